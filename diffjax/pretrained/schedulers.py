"""Schedulers of diffusers: scheduler_config.json to a schedule, grids and a sampler, and back.

Every option of a class is used, or refused with a message that names it. Keys that belong to other
classes are kept but change nothing, as in diffusers, so that `with_class` finds them again.

`load_scheduler` reads a config with the tables of `scheduler_kinds`. `generate.stages` then calls
`Scheduler.grid` for the noise levels of a request, `Scheduler.rows` for the plan of the solver, and
puts `Scheduler.bound` around the guided denoiser.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffjax import grids, parameterization, samplers
from diffjax.pretrained.config_specs import NETWORK, check_scheduler
from diffjax.pretrained.files import StrPath, write_json
from diffjax.pretrained.scheduler_kinds import INSTEAD, KINDS, KNOWN, SchedulerKind
from diffjax.pretrained.scheduler_spacing import Asked, find_spacing
from diffjax.types import (
    Config,
    Denoiser,
    Grid,
    JsonObject,
    Options,
    Parameterization,
    Rows,
    Sampler,
    Schedule,
    choose,
)
from diffjax.untrusted import check, name_some, naming, read_json, show

FILE = "scheduler_config.json"
TAKE_ETA = ("DDIMScheduler", "DDIMParallelScheduler", "TCDScheduler")
PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
    "original_sample": "x0",
}


class Scheduler(NamedTuple):
    """A scheduler of diffusers as the parts that the sampling loop needs.

    Attributes:
        name: its class in diffusers.
        schedule: how noise grows with time.
        parameterization: what the network predicts.
        sampler: the solver.
        grid: ``(steps=None, *, timesteps=None, sigmas=None, mu=None, strength=1.0, start=None)`` to
            a `Grid`; see `make_grid`. Initial noise must be multiplied by its ``init_std``.
        rows: ``(grid, end=None) -> Rows``, the plan up to a fraction of the denoising.
        bound: wraps a denoiser with the clipping or thresholding of the config. It goes outside
            guidance.
        config: the keys that were read, those of other classes included.
    """

    name: str
    schedule: Schedule
    parameterization: Parameterization
    sampler: Sampler
    grid: Callable[..., Grid]
    rows: Callable[..., Rows]
    bound: Callable[[Denoiser], Denoiser]
    config: JsonObject


# ---- reading and writing --------------------------------------------------------------------


def load_scheduler(source: Config | StrPath, *, eta: float | None = None) -> Scheduler:
    """Load a scheduler from a config, a scheduler_config.json, or the folder that holds it.

    Args:
        source: the config as a mapping, or the path of the file or folder.
        eta: the eta of DDIM (0 by default) or the gamma of TCD (0.3), which diffusers takes at each
            step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the class or an option is unknown, or a value is not supported. The message
            names all of them.
    """
    if not isinstance(source, Mapping):
        path = Path(source) / FILE if Path(source).is_dir() else Path(source)
        config = read_json(path)
        with naming(path):
            return load_scheduler(config, eta=eta)
    config = dict(source)
    if "_class_name" not in config:
        raise ValueError("this scheduler config has no _class_name")
    name = config["_class_name"]
    check({"_class_name": name}, NETWORK, "this scheduler config")
    if name in INSTEAD:
        raise ValueError(f"{name} is not supported: {INSTEAD[name]}")
    kind = choose("scheduler class", name, KINDS)
    o = _complete_options(name, kind, config)
    if eta is not None and name not in TAKE_ETA:
        raise ValueError(f"{name} takes no eta; DDIMScheduler and TCDScheduler do")
    return Scheduler(
        name,
        kind.schedule(o),
        _build_parameterization(kind, o),
        kind.sampler(o, eta),
        functools.partial(make_grid, kind, o),
        functools.partial(_plan_rows, kind.sampler(o, eta), o["num_train_timesteps"]),
        functools.partial(_bind_rederivation, kind, o),
        config,
    )


def save_scheduler(scheduler: Scheduler, folder: StrPath) -> None:
    """Write scheduler_config.json into a folder, which is made if it does not exist."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / FILE, to_config(scheduler))


def to_config(scheduler: Scheduler) -> JsonObject:
    """Return the scheduler_config.json of a scheduler: all options of its class, and all keys
    it was read with.
    """
    own = {"_class_name": scheduler.name, **KINDS[scheduler.name].defaults}
    return json.loads(json.dumps({**own, **scheduler.config}, default=np.ndarray.tolist))


def with_class(
    scheduler: Scheduler,
    name: str,
    changes: Config | None = None,
    *,
    eta: float | None = None,
) -> Scheduler:
    """Return another scheduler for the same model, as ``from_config`` of diffusers makes it.

    Keys that were read carry over; options that they leave out have the defaults of the new class.

    Args:
        scheduler: the scheduler of the model.
        name: the new class; ``Scheduler`` at its end may be left out.
        changes: options to set.
        eta: see `load_scheduler`.

    Raises:
        ValueError: the class or an option is unknown or not supported.
    """
    name = name if name.endswith("Scheduler") else f"{name}Scheduler"
    config = {**scheduler.config, **(changes or {}), "_class_name": name}
    return load_scheduler(config, eta=eta)


def flow_mu(scheduler: Scheduler, tokens: int) -> float:
    """Return the mu of flow matching with dynamic shifting, for a number of image tokens.

    It is linear in the number, from ``base_shift`` at ``base_image_seq_len`` to ``max_shift`` at
    ``max_image_seq_len``. Levels are shifted by ``exp(mu)``.
    """
    o = {**KINDS["FlowMatchEulerDiscreteScheduler"].defaults, **scheduler.config}
    shift = grids.flow_shift(
        tokens,
        base=o["base_shift"],
        maximum=o["max_shift"],
        fewest=o["base_image_seq_len"],
        most=o["max_image_seq_len"],
    )
    return math.log(shift)


def _complete_options(name: str, kind: SchedulerKind, config: Config) -> JsonObject:
    """Return the options of a class: those of the config, and defaults for the rest.

    Args:
        name: the class, for messages.
        kind: how the class is read.
        config: the scheduler_config.json.

    Raises:
        ValueError: an option is unknown to all classes, or a value is not supported.
    """
    problems, out = [], dict(kind.defaults)
    for key, value in config.items():
        # Numbers of NumPy are as good as Python's.
        value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if key in kind.aliases and isinstance(value, str):
            value = kind.aliases[key].get(value, value)
        if key in kind.fixed and value not in kind.fixed[key]:
            allowed = " or ".join(map(repr, kind.fixed[key]))
            problems.append(f"{key}={show(value)} (only {allowed})")
        elif key in kind.defaults:
            out[key] = value
        elif key not in KNOWN and not key.startswith("_"):
            problems.append(f"{name_some([key])}={show(value)} (unknown)")
    if problems:
        raise ValueError(f"this {name} is not supported: {', '.join(problems)}")
    check_scheduler(out, kind.defaults, f"the config of {name}")
    find_spacing(out)
    _check_flow(name, out)
    return out


def _check_flow(name: str, o: Options) -> None:
    """Check that options of flow matching are set together.

    Raises:
        ValueError: the prediction type, the spacing or ``shift_terminal`` contradicts
            ``use_flow_sigmas``.
    """
    if "use_flow_sigmas" not in o:
        return
    prediction, spacing = o["prediction_type"], find_spacing(o)
    if o["use_flow_sigmas"] and prediction == "v_prediction":
        raise ValueError(f"{name} with use_flow_sigmas does not support v_prediction")
    if prediction == "flow_prediction" and not o["use_flow_sigmas"]:
        raise ValueError(f"{name} with flow_prediction needs use_flow_sigmas")
    karras = name == "UniPCMultistepScheduler" and spacing == "use_karras_sigmas"
    if o["use_flow_sigmas"] and spacing and not karras:
        raise ValueError(f"{name} does not support use_flow_sigmas with {spacing}")
    if o.get("shift_terminal") is not None and not o["use_flow_sigmas"]:
        raise ValueError(f"{name} with shift_terminal needs use_flow_sigmas")


# ---- what a config means --------------------------------------------------------------------


def _build_parameterization(kind: SchedulerKind, o: Options) -> Parameterization:
    """Return what the output of the network means, by ``prediction_type`` and ``variance_type``.

    EDM's classes precondition the network (Karras et al. 2022); v-prediction there is the same with
    the opposite sign.
    """
    prediction = o.get("prediction_type", kind.prediction)
    if "sigma_data" in o:
        inner = parameterization.edm(o["sigma_data"])
        return _negate_output(inner) if prediction == "v_prediction" else inner
    inner = parameterization.make(choose("prediction_type", prediction, PREDICTIONS))
    learned = o.get("variance_type") in ("learned", "learned_range")
    return parameterization.learned_range(inner) if learned else inner


def _negate_output(inner: Parameterization) -> Parameterization:
    """Return the parameterization with the sign of the network's output changed."""
    return inner._replace(
        target=lambda x, eps, level: -inner.target(x, eps, level),
        decode=lambda raw, z, level: inner.decode(-raw, z, level),
        gain=lambda level: -inner.gain(level),
    )


def _bind_rederivation(kind: SchedulerKind, o: Options, denoise: Denoiser) -> Denoiser:
    """Wrap a denoiser with the config's dynamic thresholding or clipping of x, if it has either.

    Solvers in eps (``predict_x0`` false) never bound x in diffusers.
    """
    if kind.rederive is None or not o.get("predict_x0", True):
        return denoise
    if o.get("thresholding"):
        quantile, most = o["dynamic_thresholding_ratio"], o["sample_max_value"]
        return samplers.dynamic_threshold(
            denoise, quantile=quantile, maximum=most, rederive_eps=kind.rederive
        )
    if o.get("clip_sample"):
        limit = o["clip_sample_range"]
        return samplers.clip(denoise, limit=limit, rederive_eps=kind.rederive)
    return denoise


def make_grid(
    kind: SchedulerKind,
    o: Options,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    mu: float | None = None,
    strength: float = 1.0,
    start: float | None = None,
) -> Grid:
    """Return the noise levels that a scheduler visits.

    Args:
        kind: the class.
        o: its complete options.
        steps: number of steps, or None with a list of timesteps or sigmas.
        timesteps: falling timesteps to visit instead, for classes that take them.
        sigmas: falling levels to visit instead, in the class's own measure, for classes that take
            them. Those of Euler include the last level.
        mu: logarithm of the shift, for flow matching with dynamic shifting.
        strength: of image-to-image, in [0, 1]; the last ``min(int(N strength), N)`` of N steps are
            left.
        start: fraction of the denoising that another model has done, for XL's refiner. Steps from
            timesteps below ``round(T - start T)`` are left, and strength has no effect.

    Raises:
        ValueError: the class does not take an argument, or no step is left.
    """
    grid = kind.grid(o, Asked(steps, timesteps, sigmas, mu))
    if start is not None and 0 < start < 1:
        return grids.skip(grid, _find_handover(kind, o, grid, start))
    first = grids.truncate(grid, strength=strength).first
    # diffusers skips rows, and its PLMS visits level 1 twice.
    return grids.skip(grid, first - (first > 1 and bool(o.get("skip_prk_steps"))))


def _find_handover(kind: SchedulerKind, o: Options, grid: Grid, start: float) -> int:
    """Return the index of the first level that a second model visits.

    With two evaluations a step it is that of the first step with an evaluation below the cut.
    """
    total = o["num_train_timesteps"]
    first = grids.window(grid, start=start, total=total).first
    if kind.order == 1:
        return first
    times = kind.sampler(o, None).plan(grid).level.t
    return int((times >= _cut(total, start)).sum()) // kind.order


def _cut(total: int, fraction: float) -> int:
    """Return the timestep at a fraction of the denoising, of ``total`` timesteps."""
    return round(total - fraction * total)


def _plan_rows(sampler: Sampler, total: int, grid: Grid, end: float | None = None) -> Rows:
    """Plan the rows of a grid, up to a fraction of the denoising.

    Args:
        sampler: the solver.
        total: T, number of timesteps of the schedule.
        grid: the levels to visit.
        end: keep rows at timesteps of at least ``round(T - end T)``, for XL's base model with a
            refiner. Only fractions between 0 and 1 have an effect.

    Raises:
        ValueError: no row is left.
    """
    rows = sampler.plan(grid)
    if end is None or not 0 < end < 1:
        return rows
    count = int((rows.level.t >= _cut(total, end)).sum())
    if count == 0:
        raise ValueError(f"no step of this grid lies before end={end}")
    return jax.tree.map(lambda leaf: leaf[:count], rows)
