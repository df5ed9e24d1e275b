"""Samplers: host-side plans and one compiled loop."""

from diffjax.samplers.affine import affine, to_rows
from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.consistency import lcm, tcd
from diffjax.samplers.exponential import dpm_solver, dpm_solver_single, unipc
from diffjax.samplers.langevin import annealed_langevin, predictor_corrector
from diffjax.samplers.loop import image_noise, pad, prior, sample
from diffjax.samplers.ode import deis, dpm2, flow_heun, heun, ipndm, lms, plms
from diffjax.samplers.registry import SAMPLERS, make
from diffjax.samplers.thresholding import clip, dynamic_threshold

__all__ = [
    "SAMPLERS",
    "affine",
    "ancestral",
    "annealed_langevin",
    "clip",
    "ddim",
    "ddim_inverse",
    "deis",
    "dpm2",
    "dpm_solver",
    "dpm_solver_single",
    "dynamic_threshold",
    "flow_heun",
    "heun",
    "image_noise",
    "ipndm",
    "lcm",
    "lms",
    "make",
    "pad",
    "plms",
    "predictor_corrector",
    "prior",
    "sample",
    "tcd",
    "to_rows",
    "unipc",
]
