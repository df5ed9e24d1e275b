"""Scheduler configs whose runs are compared with diffusers; nothing here needs torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import samplers
from diffjax.pretrained import Scheduler, load_scheduler
from diffjax.types import Denoiser, Grid, Level, Prediction, Rows

SHAPE = (2, 2, 2, 3)
ROWS = 64  # of noise; the longest run has fewer
# Their states are z / alpha.
RATIO = ("LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2")
Config = dict[str, Any]


class Case(NamedTuple):
    """A class without its ``Scheduler``, its options, and what a grid is asked for."""

    kind: str
    options: Config
    steps: int = 10
    ask: Config = {}  # noqa: RUF012
    eta: float | None = None

    @property
    def name(self) -> str:
        hidden = {*SD, "trained_betas"}
        shown = {k: v for k, v in self.options.items() if k not in hidden} | self.ask
        parts = [self.kind, str(self.steps)] + ["sd"] * ("beta_start" in self.options)
        parts += ["eta"] * (self.eta is not None)
        return "-".join(parts + [f"{k}={v}" for k, v in shown.items()])

    @property
    def config(self) -> Config:
        return {"_class_name": f"{self.kind}Scheduler", **self.options}

    @property
    def in_ratios(self) -> bool:
        return self.kind.startswith(RATIO)

    @property
    def tolerance(self) -> float:
        """Relative to the largest of the reference (at least 1)."""
        if self.options.get("algorithm_type") == "sde-dpmsolver++":
            return 3e-4
        if self.options.get("algorithm_type") == "noise_prediction":
            return 2e-3  # theirs: differences of terms of e^-lam in float32; measured: 1.4e-3
        return 1e-4 if "beta_start" in self.options else 2e-4


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
THRESHOLD = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
RATIOS = [*(k for k in RATIO if k != "KDPM2"), "KDPM2Discrete", "KDPM2AncestralDiscrete"]
MULTISTEP = ["DPMSolverMultistep", "DEISMultistep", "UniPCMultistep"]
EXPONENTIAL = [*MULTISTEP, "DPMSolverSinglestep"]


def _spacings() -> Iterator[Case]:
    """Every spacing of every class, at numbers of steps that divide 1000 and that do not."""
    tables = [("DDPM", {}), ("DDIM", {}), ("PNDM", {}), ("PNDM", {"skip_prk_steps": True})]
    kinds = [*tables, *((kind, {"steps_offset": 1}) for kind in RATIOS + MULTISTEP)]
    for (kind, more), spacing, steps in itertools.product(
        kinds, ("leading", "trailing", "linspace"), (10, 30)
    ):
        options = {**SD, "timestep_spacing": spacing, **more}
        eta = 0.5 if kind == "DDIM" else None
        yield Case(kind, options, steps, eta=eta)
        yield Case(kind, {**options, "prediction_type": "v_prediction"}, steps, eta=eta)


def _respaced() -> Iterator[Case]:
    kinds = [k for k in RATIOS if k != "EulerAncestralDiscrete"] + EXPONENTIAL
    for kind, name, steps in itertools.product(kinds, ("karras", "exponential", "beta"), (10, 25)):
        yield Case(kind, {**SD, f"use_{name}_sigmas": True}, steps)
    yield Case("DPMSolverMultistep", {**SD, "use_lu_lambdas": True})
    for kind in ("EulerDiscrete", *EXPONENTIAL[::2], "DPMSolverSinglestep"):
        yield Case(kind, {**SD, "final_sigmas_type": "sigma_min", "use_karras_sigmas": True}, 20)
        yield Case(kind, {**SD, "final_sigmas_type": "sigma_min"})
    bounds = {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}
    yield Case("EulerDiscrete", {**SD, **bounds})
    yield Case("UniPCMultistep", {**SD, **bounds})


def _tables() -> Iterator[Case]:
    for variance in ("fixed_small_log", "fixed_large"):
        yield Case("DDPM", {**SD, "variance_type": variance, "clip_sample": False})
    for betas in ("linear", "squaredcos_cap_v2", "sigmoid", "laplace"):
        yield Case("DDPM", {"beta_schedule": betas})
    given = np.linspace(1e-4, 0.03, 500).tolist()
    yield Case("DDPM", {"trained_betas": given, "num_train_timesteps": 500})
    yield Case("DDPM", {"trained_betas": None, "num_train_timesteps": 400}, 7)
    yield Case("HeunDiscrete", {"beta_schedule": "exp"})
    yield Case("DDIM", {**SD, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False})
    yield Case("DDIM", {**SD, "clip_sample_range": 0.5})
    yield Case("PNDM", {**SD, "set_alpha_to_one": True, "skip_prk_steps": True})
    yield Case("PNDM", {**SD, "skip_prk_steps": True, "steps_offset": 1}, 50)
    for kind, options in (("DDPM", {}), ("DDIM", {}), ("HeunDiscrete", {"clip_sample": True})):
        yield Case(kind, {**SD, **options, "prediction_type": "sample"})
    for kind, prediction in itertools.product(
        ("DDPM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", *MULTISTEP[::2]),
        ("epsilon", "v_prediction"),
    ):
        yield Case(kind, {**SD, **ZERO_SNR, "prediction_type": prediction}, 20)
    for kind in ("DDPM", "DDIM", *EXPONENTIAL):
        yield Case(kind, {**SD, **THRESHOLD})
    for kind in ("DDPM", "LMSDiscrete", "EulerDiscrete", "HeunDiscrete", *EXPONENTIAL):
        yield Case(kind, {}, 20)  # linear betas


def _euler() -> Iterator[Case]:
    yield Case("EulerDiscrete", {**SD, "interpolation_type": "log_linear"})
    yield Case(
        "EulerDiscrete", {**SD, "interpolation_type": "log_linear", "use_karras_sigmas": True}
    )
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    yield Case("EulerDiscrete", {**SD, **continuous})
    edm = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    yield Case("EulerDiscrete", {**SD, **continuous, **edm})
    times = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    for kind in ("DDPM", "EulerDiscrete", "HeunDiscrete", *EXPONENTIAL[::3]):
        yield Case(kind, SD, ask={"timesteps": times})
    yield Case("EulerDiscrete", SD, ask={"sigmas": [14.615, 6.475, 3.861, 1.396, 0.399, 0.0]})


def _exponential() -> Iterator[Case]:
    algorithms = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    for kind, order, algorithm, solver, steps in itertools.product(
        EXPONENTIAL[::3], (1, 2, 3), algorithms, ("midpoint", "heun"), (10, 25)
    ):
        single, noisy = kind == "DPMSolverSinglestep", algorithm.startswith("sde")
        absent = algorithm == "sde-dpmsolver" and (single or order == 3)
        # One term has another sign in diffusers. With the exact denoiser of N(0.4, 0.3^2) their
        # samples have std 0.335 after 100 steps and 0.325 after 200; for ours see
        # test_noisy_solvers_keep_the_gaussian.
        wrong = order == 3 and noisy and (not single or solver == "heun")
        if absent or wrong:
            continue
        options = {"solver_order": order, "algorithm_type": algorithm, "solver_type": solver}
        for final in ("zero",) * ("++" in algorithm) + ("sigma_min",):
            yield Case(kind, {**SD, **options, "final_sigmas_type": final}, steps)
    for order, steps, more in itertools.product(
        (1, 2, 3, 4),
        (10, 25),
        (
            {"final_sigmas_type": "zero"},
            {"lower_order_final": False},
            {"solver_type": "bh1"},
            {"predict_x0": False},
            {"predict_x0": False, "prediction_type": "v_prediction", **THRESHOLD},
            {"disable_corrector": [0, 1, 5]},
        ),
    ):
        options = {**SD, "solver_order": order, "final_sigmas_type": "sigma_min", **more}
        yield Case("UniPCMultistep", options, steps)
    for order, more, steps in itertools.product(
        (1, 2, 3), ({}, {"lower_order_final": False}, {"prediction_type": "sample"}), (10, 25)
    ):
        yield Case("DEISMultistep", {**SD, "solver_order": order, **more}, steps)
    ends = ({"lower_order_final": False}, {"euler_at_final": True})
    clipped = ({}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"})
    for more in (*ends, *({"lambda_min_clipped": -1.0, **spacing} for spacing in clipped)):
        options = {**SD, **more, "solver_order": 3, "final_sigmas_type": "sigma_min"}
        yield Case("DPMSolverMultistep", options, 25)
    yield Case("DPMSolverSinglestep", {**SD, "lambda_min_clipped": -1.0, "lower_order_final": True})
    for solver in ("bh2", "logrho"):  # written by other classes
        options = {**SD, "final_sigmas_type": "sigma_min", "algorithm_type": "deis"}
        yield Case("DPMSolverMultistep", {**options, "solver_type": solver})


def _stochastic_adams() -> Iterator[Case]:
    for predictor, corrector, algorithm, steps in itertools.product(
        (1, 2, 3, 4), (1, 2, 3, 4), ("data_prediction", "noise_prediction"), (10, 25)
    ):
        orders = {"predictor_order": predictor, "corrector_order": corrector}
        yield Case("SASolver", {**SD, **orders, "algorithm_type": algorithm}, steps)
    for more in (
        {"lower_order_final": False},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"prediction_type": "v_prediction"},
        THRESHOLD,
    ):
        yield Case("SASolver", {**SD, **more}, 20)
    yield Case("SASolver", {**FLOW, "flow_shift": 3.0}, 20)
    yield Case("DDIMParallel", {**SD, "clip_sample": False}, eta=0.5)
    yield Case("DDPMParallel", SD)


def _flows() -> Iterator[Case]:
    dynamic = {"use_dynamic_shifting": True}
    for kind, shift in itertools.product(EXPONENTIAL, (1.0, 3.0)):
        yield Case(kind, {**FLOW, "flow_shift": shift}, 20)
        yield Case(kind, {**FLOW, **dynamic, "flow_shift": shift}, 20, {"mu": 0.8})
    yield Case("UniPCMultistep", {**FLOW, "shift_terminal": 0.1})
    yield Case("UniPCMultistep", {**FLOW, "final_sigmas_type": "sigma_min"})
    yield Case("UniPCMultistep", FLOW, ask={"sigmas": [1.0, 0.9, 0.6, 0.3]})
    karras = {"use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.01}
    yield Case("UniPCMultistep", {**FLOW, **karras})
    yield Case("DPMSolverMultistep", {**FLOW, "final_sigmas_type": "sigma_min"})
    for steps, options in itertools.product(
        (4, 20),
        (
            {"shift": 3.0},
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True},
            {"use_beta_sigmas": True, "shift": 2.0},
            {"shift_terminal": 0.02},
            {"stochastic_sampling": True},
        ),
    ):
        yield Case("FlowMatchEulerDiscrete", options, steps)
    for options in ({}, {"time_shift_type": "linear"}, {"shift_terminal": 0.02}):
        yield Case("FlowMatchEulerDiscrete", {**dynamic, **options}, 20, {"mu": 0.8})
    listed = {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    yield Case("FlowMatchEulerDiscrete", {"shift": 2.0}, ask=listed)
    yield Case("FlowMatchEulerDiscrete", {}, ask={**listed, "timesteps": [990.0, 700, 400, 100]})
    for shift in (1.0, 3.0):
        yield Case("FlowMatchHeunDiscrete", {"shift": shift})


def _others() -> Iterator[Case]:
    for steps in (5, 20):
        yield Case("IPNDM", {}, steps)
    for steps in (1, 4, 8):
        yield Case("LCM", {}, steps)
        yield Case("TCD", {}, steps)
        yield Case("TCD", {}, steps, eta=0.0)
    for options in (
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction"},
        {"clip_sample": True},
        {**THRESHOLD, "original_inference_steps": 40},
    ):
        yield Case("LCM", options, 4)
        yield Case("TCD", options, 4)
    yield Case("LCM", {"timestep_scaling": 0.01}, ask={"timesteps": [999, 499, 19]})
    for kind, steps, options in itertools.product(
        ("EDMEuler", "EDMDPMSolverMultistep"),
        (10, 20),
        (
            {},
            {"final_sigmas_type": "sigma_min"},
            {"sigma_schedule": "exponential"},
            {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 120.0},
            {"rho": 5.0},
        ),
    ):
        yield Case(kind, options, steps)
    for options in (
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_type": "heun"},
        {"thresholding": True},
    ):
        yield Case("EDMDPMSolverMultistep", options, 20)


class Part(NamedTuple):
    """A part of a run: image-to-image, or one of two models."""

    case: Case
    strength: float = 1.0
    start: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        cut = f"strength={self.strength}" if self.start is self.end is None else ""
        return f"{self.case.name}-{cut or f'{self.start}..{self.end}'}"

    @property
    def aligned(self) -> bool:
        """Whether diffusers goes on as it would in a whole run.

        Its PNDM is a step behind where it repeats no timestep, and its LMS uses the weights of
        slopes that it does not have.
        """
        begins = self.strength < 1 or self.start is not None
        return not (begins and self.case.kind in ("PNDM", "LMSDiscrete"))


def _parts() -> Iterator[Part]:
    plain = {"clip_sample": False, "steps_offset": 1}
    kinds = {
        "DDPM": plain,
        "DDIM": plain,
        "PNDM": {"skip_prk_steps": True, "steps_offset": 1},
        **{kind: {} for kind in (*RATIOS, *EXPONENTIAL)},
    }
    windows = ((0.8, None), (None, 0.8), (0.25, 0.7))
    for (kind, options), steps in itertools.product(kinds.items(), (10, 20)):
        case = Case(kind, {**SD, **options}, steps)
        yield from (Part(case, strength) for strength in (0.8, 0.33))
        yield from (Part(case, start=start, end=end) for start, end in windows)
    for kind, steps in itertools.product(EXPONENTIAL, (10, 20)):
        yield Part(Case(kind, {**SD, "solver_order": 3}, steps), 0.55)
        yield Part(Case(kind, {**SD, "use_karras_sigmas": True}, steps), 0.55)
    for kind, options in (("LCM", {}), ("TCD", {}), ("FlowMatchEulerDiscrete", {"shift": 3.0})):
        yield Part(Case(kind, options, 8), 0.5)


PARTS = {part.name: part for part in _parts()}
RECORDED_PARTS = {name: part for name, part in PARTS.items() if part.case.steps <= 10}
_ALL = (*(_spacings, _respaced, _tables, _euler, _exponential, _stochastic_adams, _flows, _others),)
CASES = {case.name: case for make in _ALL for case in make()}
RECORDED = {name: case for name, case in CASES.items() if case.steps <= 10}


def start() -> np.ndarray:
    """Initial noise of variance 1."""
    return np.random.RandomState(0).standard_normal(SHAPE).astype(np.float32)


def noises() -> np.ndarray:
    """The noise of every evaluation."""
    return np.random.RandomState(1).standard_normal((ROWS, *SHAPE)).astype(np.float32)


def model(xp: Any, z: Any, t: Any) -> Any:
    """A smooth stand-in for a network; xp is numpy, jax.numpy or torch."""
    return 0.8 * xp.sin(1.7 * z + t / 300) + 0.3 * z


def denoiser(scheduler: Scheduler, xp: Any = np) -> Denoiser:
    """The stand-in behind a scheduler's parameterization and bound."""
    target = scheduler.parameterization

    def denoise(z: Any, level: Level) -> Prediction:
        return target.decode(model(xp, z * target.scale_in(level), level.t), z, level)

    return scheduler.bound(denoise)


def ours(case: Case) -> tuple[Scheduler, Grid, Rows]:
    """Scheduler, grid and plan of a case."""
    scheduler = load_scheduler(case.config, eta=case.eta)
    listed = "timesteps" in case.ask or "sigmas" in case.ask
    grid = scheduler.grid(None if listed else case.steps, **case.ask)
    return scheduler, grid, scheduler.rows(grid)


def walk(denoise: Denoiser, z: np.ndarray, rows: Rows) -> np.ndarray:
    """States (rows, ...) of an affine plan in NumPy's float32, without compiling anything."""
    stack, out = np.zeros((rows.coef.shape[1], *z.shape), np.float32), []
    stack[0] = z
    for k, (coef, noise) in enumerate(zip(rows.coef, noises(), strict=False)):
        level = jax.tree.map(lambda leaf, k=k: leaf[k], rows.level)
        x, eps, _ = denoise(stack[0], level)
        stack = np.tensordot(coef, np.concatenate([stack, np.stack([x, eps, noise])]), 1)
        out.append(stack[0])
    return np.stack(out)


def our_states(case: Case) -> np.ndarray:
    """States after every evaluation, in the coordinates of diffusers."""
    scheduler, grid, rows = ours(case)
    states = walk(denoiser(scheduler), np.float32(grid.init_std) * start(), rows)
    alpha = rows.next.alpha if case.in_ratios else np.ones(len(states), np.float32)
    return states / alpha.reshape(-1, 1, 1, 1, 1)


def image() -> np.ndarray:
    """What a part begins with, before noise."""
    return np.random.RandomState(2).standard_normal(SHAPE).astype(np.float32) / 2


def our_part(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, the noised image, and where a part ends, in the coordinates of diffusers."""
    scheduler = load_scheduler(part.case.config)
    grid = scheduler.grid(part.case.steps, strength=part.strength, start=part.start)
    rows = scheduler.rows(grid, end=part.end)
    alpha, sigma = np.float32(rows.level.alpha[0]), np.float32(rows.level.sigma[0])
    noised = alpha * image() + sigma * start()
    end = walk(denoiser(scheduler), noised, rows)[-1]
    if part.case.in_ratios:
        noised, end = noised / alpha, end / rows.next.alpha[-1]
    return np.asarray(rows.level.t), noised, end


def our_loop(case: Case) -> np.ndarray:
    """Where the compiled loop ends."""
    scheduler, grid, rows = ours(case)

    def run(z: Any, rows: Rows) -> Any:
        noise = samplers.replay_noise(noises())
        return samplers.sample(noise, denoiser(scheduler, jnp), scheduler.sampler, z, rows)

    return np.asarray(jax.jit(run)(np.float32(grid.init_std) * start(), rows))


def error(value: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest of the reference (at least 1)."""
    return float(np.abs(value - reference).max() / max(1.0, np.abs(reference).max()))
