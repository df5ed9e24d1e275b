"""What the papers and their released code decided, with the place where they say so.

    python -m experiments.report --published

writes docs/published.md of this table. A variant has an entry here if it has the settings of a
paper; the others of configs/ are small ones for one machine. `tests/experiments/test_published.py`
compares the values with the configs, and wants all of `DECIDED` to be listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Options that no paper variant may have from base() alone.
DECIDED = (
    "train.steps",
    "data.batch_size",
    "data.flip",
    "data.crop",
    "network.initialisation",
    "loss.reduction",
    "optim.lr",
    "optim.warmup",
    "optim.clip",
    "ema.decay",
)
# Releases by the name in front of a file, at these commits.
RELEASES = {
    "ddpm": "hojonathanho/diffusion@1e0dceb",
    "ddim": "ermongroup/ddim@e8df66c",
    "iddpm": "openai/improved-diffusion@1bc7bbb",
    "adm": "openai/guided-diffusion@22e0df8",
    "edm": "NVlabs/edm@008a4e5",
    "edm2": "NVlabs/edm2@4bf8162",
    "sde": "yang-song/score_sde@0acb9e0",
    "ncsn": "ermongroup/ncsn@7f27f4a",
    "ncsnv2": "ermongroup/ncsnv2@1bcea03",
    "flow": "gnobitab/RectifiedFlow@5a1fd4d",
    "ldm": "CompVis/latent-diffusion@a506df5",
    "taming": "CompVis/taming-transformers@3ba01b2",
    "controlnet": "lllyasviel/ControlNet@ed85cd1",
    "dit": "facebookresearch/DiT@ed81ce2",
    "sit": "willisma/SiT@947f95b",
    "repa": "sihyun-yu/REPA@67f7145",
    "jcm": "openai/consistency_models_cifar10@d086e77",
    "ect": "locuslab/ect@4311059",
    "meanflow": "Gsunshine/py-meanflow@1f6d72d",
}
Values = Mapping[str, tuple[Any, str]]  # dotted key -> (value, where it is decided)


class Published(NamedTuple):
    """What is known of one variant.

    Attributes:
        values: of the options that the paper or its code decides.
        number: the figures of the paper, and what they are measured on.
        measure: flags of ``experiments.evaluate`` that measure it, a line for each command; empty:
            nothing to compare with.
        differs: what is not as released, with the reason.
        against: how many images the figures are of, and what they are compared with.
    """

    values: Values
    number: str = "none"
    measure: str = ""
    differs: tuple[str, ...] = ()
    against: str = ""


FID = "--metrics=fid,is --num=50000"
# Likelihoods of all 10,000 test images of CIFAR-10.
BITS = "--metrics=fid,is,bits --num=50000 --config.eval.bits_images=10000"
ODE_BITS = "--metrics=fid,is,ode_bits --num=50000 --config.eval.bits_images=10000"
TRAIN = "50,000 samples, beside the whole training set"
BOUNDS = f"{TRAIN}; bits/dim on the test set"


def virtual(name: str) -> str:
    """Say what ADM's evaluation compares with, statistics of a whole training set."""
    return f"50,000 samples, beside ADM's reference VIRTUAL_{name}.npz"


def pick(value: Any, where: str, *keys: str) -> dict[str, tuple[Any, str]]:
    return dict.fromkeys(keys, (value, where))
