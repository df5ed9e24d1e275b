"""The scheduler classes of diffusers: their options and defaults, and the grid and solver they
mean.

`KINDS` is the table that `schedulers` reads configs with. An entry combines a grid of
`scheduler_levels` with a solver of `diffjax.samplers`; both know nothing of the class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from diffjax import samplers
from diffjax.pretrained import scheduler_levels as levels
from diffjax.pretrained.scheduler_solvers import (
    make_dpm,
    make_dpm_single,
    make_euler,
    make_plms,
    make_stochastic_adams,
    make_unipc,
)
from diffjax.pretrained.scheduler_spacing import Asked
from diffjax.types import Grid, Options, Sampler, Schedule


class SchedulerKind(NamedTuple):
    """How a scheduler class of diffusers is read.

    Attributes:
        defaults: its options with the defaults of diffusers.
        schedule: ``options -> Schedule``, the noise levels the model was trained with.
        grid: ``(options, asked) -> Grid``, the levels that are visited.
        sampler: ``(options, eta) -> Sampler``.
        rederive: whether eps is computed anew from a clipped x; None if the class never clips.
        order: network evaluations of a step.
        fixed: options that may only have these values.
        aliases: by option, values of other classes that are replaced by ours, as diffusers does.
        prediction: what the network predicts, for classes without ``prediction_type``.
    """

    defaults: Options
    schedule: Callable[[Options], Schedule]
    grid: Callable[[Options, Asked], Grid]
    sampler: Callable[[Options, float | None], Sampler]
    rederive: bool | None = None
    order: int = 1
    fixed: Mapping[str, tuple[object, ...]] = MappingProxyType({})
    aliases: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    prediction: str = "epsilon"


_BETAS = dict(
    num_train_timesteps=1000,
    beta_start=0.0001,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
)
_SD_BETAS = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_LEADING = dict(timestep_spacing="leading", steps_offset=0)
_LINSPACE = dict(timestep_spacing="linspace", steps_offset=0)
_ZERO_SNR = dict(rescale_betas_zero_snr=False)
_CLIP = dict(clip_sample=True, clip_sample_range=1.0)
_THRESHOLD = dict(thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
_RESPACED = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
_FLOW = dict(
    use_flow_sigmas=False,
    flow_shift=1.0,
    use_dynamic_shifting=False,
    time_shift_type="exponential",
)
_DPM = dict(
    solver_order=2,
    algorithm_type="dpmsolver++",
    solver_type="midpoint",
    final_sigmas_type="zero",
    lambda_min_clipped=-math.inf,
    variance_type=None,
)
_CONSISTENCY = {
    **_SD_BETAS,
    "beta_schedule": "scaled_linear",
    **_LEADING,
    **_ZERO_SNR,
    **_CLIP,
    **_THRESHOLD,
    "clip_sample": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "set_alpha_to_one": True,
}
_EDM = dict(
    sigma_min=0.002,
    sigma_max=80.0,
    sigma_data=0.5,
    sigma_schedule="karras",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    rho=7.0,
    final_sigmas_type="zero",
)
_VARIANCES = {
    "fixed_small": "fixedsmall",
    "fixed_small_log": "fixedsmall",
    "fixed_large": "fixedlarge",
    "fixed_large_log": "fixedlarge",
    "learned_range": "learned",
    None: "fixedsmall",  # as configs of other classes say it
}


def _choose_final(o: Options) -> str:
    """Return the last level: clean data, or that of the first timestep, see `grids.from_times`."""
    return "clean" if o["set_alpha_to_one"] else "first"


def _choose_schedule(o: Options) -> Schedule:
    """Return the flow schedule if ``use_flow_sigmas`` is set, otherwise the table of betas."""
    return (
        levels.make_flow_schedule(o)
        if o["use_flow_sigmas"]
        else levels.make_floored_discrete_schedule(o)
    )


def _bind_table_grid(
    final: str | None = None, *, listed: bool = False
) -> Callable[[Options, Asked], Grid]:
    """Return `levels.make_table_grid` with its last level bound; None takes that of the options."""
    return lambda o, asked: levels.make_table_grid(
        o, asked, final=final or _choose_final(o), listed=listed
    )


def _bind_consistency_grid(final: str) -> Callable[[Options, Asked], Grid]:
    """Return `levels.make_consistency_grid` with its last level."""
    return lambda o, asked: levels.make_consistency_grid(o, asked, final=final)


_ENDS = {"final_sigmas_type": ("zero", "sigma_min")}
_EXPONENTIAL = {"time_shift_type": ("exponential",)}
_TO_DPM = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
}
_RATIO = levels.make_ratio_grid
_SPACED_OUT = levels.make_exponential_grid
_KDPM2 = {**_SD_BETAS, **_LINSPACE, **_RESPACED}

KINDS: dict[str, SchedulerKind] = {
    "DDPMScheduler": SchedulerKind(
        {**_BETAS, **_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small"},
        levels.make_discrete_schedule,
        _bind_table_grid("clean", listed=True),
        lambda o, eta: samplers.ancestral(_VARIANCES[o["variance_type"]]),
        rederive=True,
        fixed={"variance_type": tuple(_VARIANCES)},
    ),
    "DDIMScheduler": SchedulerKind(
        {**_BETAS, **_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, "set_alpha_to_one": True},
        levels.make_discrete_schedule,
        _bind_table_grid(),
        lambda o, eta: samplers.ddim(eta or 0.0, total=o["num_train_timesteps"]),
        rederive=False,
    ),
    "PNDMScheduler": SchedulerKind(
        {**_BETAS, **_LEADING, "set_alpha_to_one": False, "skip_prk_steps": False},
        levels.make_discrete_schedule,
        _bind_table_grid(),
        make_plms,
        fixed={"prediction_type": ("epsilon", "v_prediction")},
    ),
    "LMSDiscreteScheduler": SchedulerKind(
        {**_BETAS, **_LINSPACE, **_RESPACED},
        levels.make_floored_discrete_schedule,
        _RATIO,
        lambda o, eta: samplers.lms(),
    ),
    "EulerDiscreteScheduler": SchedulerKind(
        {
            **_BETAS,
            **_LINSPACE,
            **_RESPACED,
            **_ZERO_SNR,
            "interpolation_type": "linear",
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
        },
        levels.make_floored_discrete_schedule,
        functools.partial(_RATIO, listed=("timesteps", "sigmas")),
        make_euler,
        fixed={
            **_ENDS,
            "interpolation_type": ("linear", "log_linear"),
            "timestep_type": ("discrete", "continuous"),
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerKind(
        {**_BETAS, **_LINSPACE, **_ZERO_SNR},
        levels.make_floored_discrete_schedule,
        _RATIO,
        lambda o, eta: samplers.ddim(1.0),
    ),
    "HeunDiscreteScheduler": SchedulerKind(
        {**_SD_BETAS, **_LINSPACE, **_RESPACED, **_CLIP, "clip_sample": False},
        levels.make_floored_discrete_schedule,
        functools.partial(_RATIO, listed=("timesteps",)),
        lambda o, eta: samplers.heun(),
        rederive=True,
        order=2,
    ),
    "KDPM2DiscreteScheduler": SchedulerKind(
        _KDPM2,
        levels.make_floored_discrete_schedule,
        functools.partial(_RATIO, whole=True),
        lambda o, eta: samplers.dpm2(),
        order=2,
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerKind(
        _KDPM2,
        levels.make_floored_discrete_schedule,
        functools.partial(_RATIO, whole=True),
        lambda o, eta: samplers.dpm2(ancestral=True),
        order=2,
    ),
    "DPMSolverMultistepScheduler": SchedulerKind(
        {
            **_BETAS,
            **_LINSPACE,
            **_RESPACED,
            **_ZERO_SNR,
            **_THRESHOLD,
            **_FLOW,
            **_DPM,
            "lower_order_final": True,
            "euler_at_final": False,
            "use_lu_lambdas": False,
        },
        _choose_schedule,
        functools.partial(_SPACED_OUT, listed=("timesteps",)),
        make_dpm,
        rederive=True,
        fixed={**_ENDS, **_EXPONENTIAL},
        aliases=_TO_DPM,
    ),
    "DPMSolverSinglestepScheduler": SchedulerKind(
        {**_BETAS, **_RESPACED, **_THRESHOLD, **_FLOW, **_DPM, "lower_order_final": False},
        _choose_schedule,
        functools.partial(_SPACED_OUT, listed=("timesteps",)),
        make_dpm_single,
        rederive=True,
        fixed={**_ENDS, **_EXPONENTIAL},
        aliases=_TO_DPM,
    ),
    "DEISMultistepScheduler": SchedulerKind(
        {
            **_BETAS,
            **_LINSPACE,
            **_RESPACED,
            **_THRESHOLD,
            **_FLOW,
            "solver_order": 2,
            "algorithm_type": "deis",
            "solver_type": "logrho",
            "lower_order_final": True,
        },
        _choose_schedule,
        functools.partial(_SPACED_OUT, repeat=True),
        lambda o, eta: samplers.deis(
            order=o["solver_order"], lower_order_final=o["lower_order_final"]
        ),
        rederive=True,
        fixed={**_EXPONENTIAL, "algorithm_type": ("deis",), "solver_type": ("logrho",)},
        aliases={
            "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
            "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
        },
    ),
    "UniPCMultistepScheduler": SchedulerKind(
        {
            **_BETAS,
            **_LINSPACE,
            **_RESPACED,
            **_ZERO_SNR,
            **_THRESHOLD,
            **_FLOW,
            "solver_order": 2,
            "predict_x0": True,
            "solver_type": "bh2",
            "lower_order_final": True,
            "disable_corrector": [],
            "solver_p": None,
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        _choose_schedule,
        functools.partial(_SPACED_OUT, listed=("sigmas",), repeat=True),
        make_unipc,
        rederive=True,
        fixed={**_ENDS, "solver_p": (None,), "time_shift_type": ("exponential", "linear")},
        aliases={"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
    ),
    "SASolverScheduler": SchedulerKind(
        {
            **_BETAS,
            **_LINSPACE,
            **_RESPACED,
            **_THRESHOLD,
            "use_flow_sigmas": False,
            "flow_shift": 1.0,
            "lambda_min_clipped": -math.inf,
            "variance_type": None,
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
        },
        _choose_schedule,
        functools.partial(_SPACED_OUT, repeat=True),
        make_stochastic_adams,
        rederive=True,
        fixed={
            "tau_func": (None,),
            "algorithm_type": ("data_prediction", "noise_prediction"),
        },
        aliases={
            "algorithm_type": {
                **dict.fromkeys(("deis", "dpmsolver++"), "data_prediction"),
                "dpmsolver": "noise_prediction",
            },
        },
    ),
    "IPNDMScheduler": SchedulerKind(
        {"num_train_timesteps": 1000, "trained_betas": None},
        levels.make_angle_schedule,
        levels.make_angle_grid,
        lambda o, eta: samplers.ipndm(blind=True),
        fixed={"trained_betas": (None,)},
        prediction="v_prediction",
    ),
    "LCMScheduler": SchedulerKind(
        _CONSISTENCY,
        levels.make_discrete_schedule,
        _bind_consistency_grid("clean"),
        lambda o, eta: samplers.lcm(timestep_scaling=o["timestep_scaling"]),
        rederive=True,
    ),
    "TCDScheduler": SchedulerKind(
        _CONSISTENCY,
        levels.make_discrete_schedule,
        _bind_consistency_grid("first"),
        lambda o, eta: samplers.tcd(gamma=0.3 if eta is None else eta),
    ),
    "FlowMatchEulerDiscreteScheduler": SchedulerKind(
        {
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "use_dynamic_shifting": False,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
            "invert_sigmas": False,
            "shift_terminal": None,
            **_RESPACED,
            "time_shift_type": "exponential",
            "stochastic_sampling": False,
        },
        levels.make_flow_schedule,
        functools.partial(levels.make_flow_match_grid, listed=("timesteps", "sigmas")),
        lambda o, eta: samplers.consistency() if o["stochastic_sampling"] else samplers.ddim(0.0),
        fixed={"invert_sigmas": (False,), "time_shift_type": ("exponential", "linear")},
        prediction="flow_prediction",
    ),
    "FlowMatchHeunDiscreteScheduler": SchedulerKind(
        {"num_train_timesteps": 1000, "shift": 1.0},
        levels.make_flow_schedule,
        levels.make_flow_match_grid,
        lambda o, eta: samplers.flow_heun(),
        order=2,
        prediction="flow_prediction",
    ),
    "EDMEulerScheduler": SchedulerKind(
        _EDM,
        levels.make_edm_schedule,
        levels.make_edm_grid,
        make_euler,
        fixed={**_ENDS, "prediction_type": ("epsilon", "v_prediction")},
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerKind(
        {
            **_EDM,
            **_THRESHOLD,
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
        },
        levels.make_edm_schedule,
        levels.make_edm_grid,
        make_dpm,
        rederive=True,
        fixed={**_ENDS, "prediction_type": ("epsilon", "v_prediction")},
        aliases=_TO_DPM,
    ),
}
# Their parallel kinds take the same steps, in another order of evaluations.
KINDS["DDIMParallelScheduler"] = KINDS["DDIMScheduler"]
KINDS["DDPMParallelScheduler"] = KINDS["DDPMScheduler"]
# Classes that we do not read, and what to use.
INSTEAD = {
    "DPMSolverSDEScheduler": (
        "it draws Brownian paths; use DPMSolverMultistepScheduler with "
        "algorithm_type='sde-dpmsolver++' (our sampler dpmpp_2m_sde), or KDPM2AncestralDiscrete"
    ),
    "ScoreSdeVeScheduler": (
        "use our sampler 'pc' on the schedule 've' of the same sigma_min and sigma_max"
    ),
    "ScoreSdeVpScheduler": "use our sampler 'pc' or 'ddpm' on the schedule 'vp_sde'",
}
# Options of these classes and of old versions, which some configs still carry.
_OTHERS = {"noise_sampler_seed", "tensor_format", "timestep_values", "snr", "correct_steps"}
KNOWN = {key for kind in KINDS.values() for key in kind.defaults} | _OTHERS
