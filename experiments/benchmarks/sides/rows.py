"""The rows of the speed suites: what is timed, at which sizes, beside which peers, and the goals.

A row is data. `by_diffjax` and the peers (`by_torch`, `by_flax`) know how to run its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

# Options of a config by their dotted names.
Changes = Mapping[str, Any]
NONE: Changes = MappingProxyType({})

# The sides of rows without ours, and how the page names them.
PEERS = {
    "torch": "diffusers, torch eager",
    "torch_compile": "diffusers, torch.compile",
    "flax": "diffusers 0.34, Flax",
    "diffjax_warm": "diffjax, warm cache",
    "diffjax_flags": "diffjax, other XLA flags",
}
OURS = "diffjax"
KINDS = ("matmul", "evaluate", "train", "sample", "encode", "decode", "generate", "features")
SUITES = ("cpu", "gpu", "tpu", "startup")

# The networks of a dry run; configs keep everything else.
_SMALL = {
    "network.channels": 16, "network.multipliers": (1, 2), "network.blocks": 1,
    "network.attention_levels": (1,), "network.norm_groups": 8,
}  # fmt: skip
_LATENT = {
    **_SMALL, "network.channels": 32, "network.norm_groups": 32, "network.heads": 2,
    "network.head_channels": 0, "network.context_dim": 16, "network.depth": (1, 1),
    "autoencoder.channels": 16, "autoencoder.multipliers": (1, 1, 1, 1),
    "autoencoder.blocks": 1, "autoencoder.norm_groups": 8, "data.image_size": 64,
}  # fmt: skip
_XL = {**_LATENT, "network.added_dim": 32 + 6 * 8, "network.added_time_dim": 8}
_HALF = {"network.dtype": "bfloat16", "network.remat": "none"}


class Row(NamedTuple):
    """What is timed.

    Attributes:
        suite: one of `SUITES`.
        title: as the page names it.
        kind: one of `KINDS`.
        config: file and variant of the config whose model it is; empty if there is none.
        batch: images of a call; rows and columns of the matrices of ``matmul``.
        goals: peers, each with the largest ratio of times ours / peer; None if there is no goal.
        changes: of the config.
        tiny: more changes for a dry run.
        steps: of the sampler.
        fresh: time new processes from their start to the end of the first call.
        minutes: an estimate of how long the row takes on one H100, with compilation and all sides;
            0 where nobody estimated it.
    """

    suite: str
    title: str
    kind: str
    config: str
    batch: int
    goals: dict[str, float | None]
    changes: Changes = NONE
    tiny: Changes = NONE
    steps: int = 0
    fresh: bool = False
    minutes: float = 0.0


def _make_cpu_rows() -> dict[str, Row]:
    """Make the rows of the suite cpu, the quickest first."""
    sd = "stable_diffusion.py:sd15"
    step = {"torch": 0.7, "torch_compile": 0.95}
    evaluate = {"torch": 0.8, "flax": 0.6}
    return {
        "matmul": Row("cpu", "product of two matrices", "matmul", "", 2048, {"torch": None}),
        "digits_step": Row(
            "cpu", "digits, training step", "train", "ddpm.py:digits", 128, step, tiny=_SMALL
        ),
        "fashion_mnist_step": Row(
            "cpu", "fashion_mnist, training step", "train", "ddpm.py:fashion_mnist", 64, step,
            tiny=_SMALL,
        ),
        "fashion_mnist_ddim": Row(
            "cpu", "fashion_mnist, 50 steps of DDIM", "sample", "ddim.py:fashion_mnist", 64,
            {"torch": 0.5, "torch_compile": None}, tiny=_SMALL, steps=50,
        ),
        "sd15_forward_32": Row(
            "cpu", "Stable Diffusion 1.5, UNet at 32x32", "evaluate", sd, 2, evaluate,
            {"data.image_size": 256}, _LATENT,
        ),
        "sd15_forward_64": Row(
            "cpu", "Stable Diffusion 1.5, UNet at 64x64", "evaluate", sd, 2, evaluate, {}, _LATENT
        ),
        "cifar10_step": Row(
            "cpu", "CIFAR-10 DDPM, training step", "train", "ddpm.py:cifar10", 16,
            {"torch": 0.9, "torch_compile": 1.1}, tiny=_SMALL,
        ),
        "vae_decode": Row(
            "cpu", "autoencoder, decode 512x512", "decode", sd, 1, {"torch": 0.9}, {}, _LATENT
        ),
        "vae_encode": Row(
            "cpu", "autoencoder, encode 512x512", "encode", sd, 1, {"torch": 0.9}, {}, _LATENT
        ),
        "inception": Row("cpu", "Inception's features", "features", "", 32, {"torch": 1.0}),
    }  # fmt: skip


def _make_accelerator_rows(suite: str, peers: dict[str, float | None]) -> dict[str, Row]:
    """Make the rows of a card or a slice: generation, training on stored latents, CIFAR-10."""
    sd, xl = "stable_diffusion.py:sd15", "stable_diffusion.py:sdxl"
    return {
        # diffusers has no network of EDM's.
        f"{suite}_{name}": row._replace(suite=suite, goals={} if name == "cifar10_edm" else peers)
        for name, row in {
            "matmul": Row("", "product of two matrices", "matmul", "", 8192, {}, minutes=1),
            "sd15_generate": Row(
                "", "1.5, 512 px, 30 steps", "generate", sd, 4, {}, _HALF, _LATENT, 30,
                minutes=5,
            ),
            "sdxl_generate": Row(
                "", "XL, 1024 px, 30 steps", "generate", xl, 1, {}, _HALF, _XL, 30,
                minutes=8,
            ),
            "sd15_train": Row(
                "", "1.5, 512 px, training step", "train", sd, 32, {}, _HALF, _LATENT,
                minutes=5,
            ),
            "cifar10_ddpm": Row(
                "", "CIFAR-10 DDPM, training step", "train", "ddpm.py:cifar10", 128, {},
                {"network.dtype": "bfloat16"}, _SMALL, minutes=3,
            ),
            "cifar10_edm": Row(
                "", "CIFAR-10 EDM, training step", "train", "edm.py:cifar10", 128, {},
                {"network.dtype": "bfloat16"}, _SMALL, minutes=2,
            ),
        }.items()
    }  # fmt: skip


def _make_startup_rows() -> dict[str, Row]:
    """Make the rows of the suite startup: new processes, with an empty and with a filled cache."""
    warm = {"diffjax_warm": None, "torch": None}
    steps = {
        name: Row(
            "startup", f"{name}, to the first training step", "train", f"ddpm.py:{name}", batch,
            warm, tiny=_SMALL, fresh=True,
        )
        for name, batch in {"digits": 128, "fashion_mnist": 64, "cifar10": 16}.items()
    }  # fmt: skip
    return {
        **{f"start_{name}": row for name, row in steps.items()},
        "start_image": Row(
            "startup", "1.5 at 256x256, to the first image of 4 steps", "generate",
            "stable_diffusion.py:sd15", 1, warm, {"data.image_size": 256}, _LATENT, 4, fresh=True,
        ),
    }  # fmt: skip


ROWS: dict[str, Row] = {
    **_make_cpu_rows(),
    **_make_accelerator_rows("gpu", {"torch": None, "torch_compile": None}),
    **_make_accelerator_rows("tpu", {}),
    **_make_startup_rows(),
}
