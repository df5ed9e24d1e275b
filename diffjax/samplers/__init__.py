"""Samplers: host-side plans and one compiled loop."""

from diffjax.samplers.affine import affine, to_rows
from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.loop import (
    Run,
    Step,
    advance,
    begin,
    given_noise,
    image_noise,
    pad,
    prior,
    sample,
    steps,
    trajectory,
)
from diffjax.samplers.registry import SAMPLERS, make
from diffjax.samplers.thresholding import clip, dynamic_threshold

__all__ = [
    "SAMPLERS",
    "Run",
    "Step",
    "advance",
    "affine",
    "ancestral",
    "begin",
    "clip",
    "ddim",
    "ddim_inverse",
    "dynamic_threshold",
    "given_noise",
    "image_noise",
    "make",
    "pad",
    "prior",
    "sample",
    "steps",
    "to_rows",
    "trajectory",
]
