"""The solvers that options of diffusers' schedulers mean: ``(options, eta) -> Sampler``."""

from __future__ import annotations

from diffjax import samplers
from diffjax.types import Options, Sampler


def make_plms(o: Options, eta: float | None) -> Sampler:
    """Make the solver of PNDM (Liu et al. 2022): PLMS, after Runge-Kutta steps unless they are
    skipped.
    """
    output = "v" if o["prediction_type"] == "v_prediction" else "eps"
    rest = {"output": output, "total": o["num_train_timesteps"]}
    return samplers.plms(runge_kutta=not o["skip_prk_steps"], **rest)


def make_dpm(o: Options, eta: float | None) -> Sampler:
    """Make the multistep DPM-Solver or DPM-Solver++ (Lu et al. 2022)."""
    return samplers.dpm_solver(
        order=o["solver_order"],
        algorithm=o["algorithm_type"],
        solver_type=o["solver_type"],
        lower_order_final=o["lower_order_final"],
        euler_at_final=o["euler_at_final"],
    )


def make_dpm_single(o: Options, eta: float | None) -> Sampler:
    """Make the singlestep DPM-Solver or DPM-Solver++ (Lu et al. 2022)."""
    return samplers.dpm_solver_single(
        order=o["solver_order"],
        algorithm=o["algorithm_type"],
        solver_type=o["solver_type"],
        lower_order_final=o["lower_order_final"],
    )


def make_unipc(o: Options, eta: float | None) -> Sampler:
    """Make UniPC (Zhao et al. 2023), whose corrector may be disabled at the first steps."""
    return samplers.unipc(
        order=o["solver_order"],
        solver_type=o["solver_type"],
        predict_x=o["predict_x0"],
        disable_corrector=o["disable_corrector"],
        lower_order_final=o["lower_order_final"],
    )


def make_stochastic_adams(o: Options, eta: float | None) -> Sampler:
    """Make SA-Solver (Xue et al. 2023), a predictor and a corrector of any order with noise."""
    return samplers.sa_solver(
        predictor=o["predictor_order"],
        corrector=o["corrector_order"],
        predict_x=o["algorithm_type"] == "data_prediction",
        lower_order_final=o["lower_order_final"],
    )


def make_euler(o: Options, eta: float | None) -> Sampler:
    """Make Euler's method in ``sigma / alpha``, which DDIM at eta 0 equals."""
    return samplers.ddim(0.0)
