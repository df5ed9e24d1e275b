"""One evaluation of a UNet by the Flax networks that diffusers had up to 0.34.

Started by `speed`, in an environment of its own that `make peers` makes.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import platform  # noqa: E402
from typing import NamedTuple  # noqa: E402

import diffusers  # noqa: E402
import flax  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers.models.modeling_flax_pytorch_utils import (  # noqa: E402
    convert_pytorch_state_dict_to_flax,
)
from safetensors.numpy import load_file  # noqa: E402

from experiments.benchmarks.sides.server import Call, Work, serve  # noqa: E402


class _Tensor(NamedTuple):
    """An array in the place of torch's tensor, of which diffusers wants the array alone."""

    value: np.ndarray

    def numpy(self) -> np.ndarray:
        """Return the array."""
        return self.value


def make_call(work: Work) -> Call:
    """Make the call of one evaluation, jitted with the options that diffusers has by default."""
    config = work.read_config("unet")
    del config["_class_name"]
    net = diffusers.FlaxUNet2DConditionModel.from_config(config)
    weights = {k: _Tensor(v) for k, v in load_file(work.folder / "unet.safetensors").items()}
    params = convert_pytorch_state_dict_to_flax(weights, net)
    params = jax.tree.map(jax.numpy.asarray, flax.core.unfreeze(params))
    inputs = work.read_inputs()
    z, t, context = inputs["z"].transpose(0, 3, 1, 2), inputs["t"], inputs["context"]
    apply = jax.jit(lambda p, *given: net.apply({"params": p}, *given).sample)

    def run() -> None:
        """Evaluate it."""
        jax.block_until_ready(apply(params, z, t, context))

    def check() -> np.ndarray:
        """Return the output of the first two images, with channels last."""
        return np.asarray(apply(params, z, t, context))[:2].transpose(0, 2, 3, 1)

    libraries = {"jax": jax, "flax": flax, "diffusers": diffusers}
    versions = {name: module.__version__ for name, module in libraries.items()}
    return Call(run, check, {"versions": {**versions, "python": platform.python_version()}})


if __name__ == "__main__":
    serve(make_call, STARTED)
