"""Samplers: host-side plans and one compiled loop."""

from diffjax.samplers.affine import affine, to_rows
from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.loop import image_noise, pad, prior, sample
from diffjax.samplers.registry import SAMPLERS, make
from diffjax.samplers.thresholding import clip, dynamic_threshold

__all__ = [
    "SAMPLERS",
    "affine",
    "ancestral",
    "clip",
    "ddim",
    "ddim_inverse",
    "dynamic_threshold",
    "image_noise",
    "make",
    "pad",
    "prior",
    "sample",
    "to_rows",
]
