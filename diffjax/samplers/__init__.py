"""Samplers: plans that are made on the host, and one compiled loop that runs them.

A sampler turns a grid into rows (`Sampler.plan`), one per network evaluation, and `sample` runs
them::

    grid = grids.make("karras", schedule, 20)
    sampler = samplers.make("dpmpp_2m")
    rows = sampler.plan(grid)
    noise = samplers.image_noise(keys, (32, 32, 3))
    x = samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows), rows)

`SAMPLERS` lists the names that `make` knows.
"""

from diffjax.samplers.adaptive import integrate, rk45
from diffjax.samplers.affine import affine, to_rows
from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.consistency import consistency, lcm, tcd
from diffjax.samplers.euler_maruyama import euler_maruyama
from diffjax.samplers.exponential import dpm_solver, dpm_solver_single, unipc
from diffjax.samplers.langevin import annealed_langevin, predictor_corrector
from diffjax.samplers.loop import (
    Run,
    Step,
    advance,
    begin,
    follow,
    image_noise,
    pad,
    prior,
    replay_noise,
    sample,
    steps,
    trajectory,
)
from diffjax.samplers.ode import deis, dpm2, flow_heun, heun, ipndm, lms, plms
from diffjax.samplers.registry import SAMPLERS, make
from diffjax.samplers.stochastic_adams import sa_solver
from diffjax.samplers.thresholding import clip, dynamic_threshold

__all__ = [
    "SAMPLERS",
    "Run",
    "Step",
    "advance",
    "affine",
    "ancestral",
    "annealed_langevin",
    "begin",
    "clip",
    "consistency",
    "ddim",
    "ddim_inverse",
    "deis",
    "dpm2",
    "dpm_solver",
    "dpm_solver_single",
    "dynamic_threshold",
    "euler_maruyama",
    "flow_heun",
    "follow",
    "heun",
    "image_noise",
    "integrate",
    "ipndm",
    "lcm",
    "lms",
    "make",
    "pad",
    "plms",
    "predictor_corrector",
    "prior",
    "replay_noise",
    "rk45",
    "sa_solver",
    "sample",
    "steps",
    "tcd",
    "to_rows",
    "trajectory",
    "unipc",
]
