"""The scheduler cases as diffusers runs them; run as a script, it renews their goldens.

python -m tests.parity.scheduler_record
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import diffusers
import numpy as np
import torch

from tests.parity import scheduler_cases as cases
from tests.parity.record import GOLDEN

diffusers.logging.set_verbosity_error()


def scheduler(case: cases.Case) -> diffusers.SchedulerMixin:
    """The scheduler of a case, ready to step."""
    made = getattr(diffusers, f"{case.kind}Scheduler")(**case.options)
    ask = {k: v if k == "mu" else np.array(v, float) for k, v in case.ask.items()}
    listed = ask.keys() & {"timesteps", "sigmas"}
    made.set_timesteps(*(() if listed else (case.steps,)), **ask)
    return made


def _given(made: diffusers.SchedulerMixin, noise: torch.Tensor) -> AbstractContextManager:
    module = inspect.getmodule(type(made))
    if not hasattr(module, "randn_tensor"):
        return nullcontext()
    return mock.patch.object(module, "randn_tensor", lambda *_, **__: noise)


def walk(
    made: diffusers.SchedulerMixin, z: torch.Tensor, times: torch.Tensor, eta: float | None = None
) -> np.ndarray:
    """States after every evaluation."""
    given, out = {} if eta is None else {"eta": eta}, []
    for t, noise in zip(times, torch.from_numpy(cases.noises()), strict=False):
        scaled = made.scale_model_input(z, t) if hasattr(made, "scale_model_input") else z
        raw = cases.model(torch, scaled, t.to(torch.float32))
        with _given(made, noise):
            z = made.step(raw, t, z, **given).prev_sample
        out.append(z.numpy())
    return np.stack(out)


def states(case: cases.Case) -> np.ndarray:
    """States of a whole run from noise."""
    made = scheduler(case)
    z = torch.from_numpy(cases.start()) * getattr(made, "init_noise_sigma", 1.0)
    return walk(made, z, made.timesteps, case.eta)


def part(part: cases.Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, the noised image, and where a part ends, cut as diffusers' pipelines do."""
    made = scheduler(part.case)
    first = _first(made, part)
    times = made.timesteps[first:]
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(first)
    if part.end is not None:
        times = times[: int((times >= round(1000 - part.end * 1000)).sum())]
    add = made.scale_noise if hasattr(made, "scale_noise") else made.add_noise
    image, noise = torch.from_numpy(cases.image()), torch.from_numpy(cases.start())
    given = {"timestep": times[:1]} if hasattr(made, "scale_noise") else {"timesteps": times[:1]}
    noised = add(image, noise=noise, **given)
    return np.asarray(times, np.float32), noised.numpy(), walk(made, noised, times)[-1]


def _first(made: diffusers.SchedulerMixin, part: cases.Part) -> int:
    """Index of the first timestep, by the rules of the image-to-image pipelines."""
    if part.start is None:
        steps = part.case.steps
        return (steps - min(int(steps * part.strength), steps)) * made.order
    below = int((made.timesteps < round(1000 - part.start * 1000)).sum())
    below += made.order == 2 and below % 2 == 0
    return len(made.timesteps) - below


def _pack(runs: list[tuple[np.ndarray, ...]], prefix: str) -> dict[str, np.ndarray]:
    """Lists of (timesteps, more of equal shapes ...) as arrays."""
    times, *more = zip(*runs, strict=True)
    lengths = np.array([len(row) for row in times], np.int16)
    stacks = {f"{prefix}{k}": np.stack(column) for k, column in enumerate(more)}
    return {f"{prefix}lengths": lengths, f"{prefix}times": np.concatenate(times), **stacks}


def _whole(case: cases.Case) -> tuple[np.ndarray, ...]:
    made = scheduler(case)
    init = np.float32(getattr(made, "init_noise_sigma", 1.0))
    return np.asarray(made.timesteps, np.float32), init, states(case)[-1]


def _record() -> None:
    np.savez_compressed(
        GOLDEN / "schedulers.npz",
        names=list(cases.RECORDED),
        parts=list(cases.RECORDED_PARTS),
        **_pack([_whole(case) for case in cases.RECORDED.values()], "whole"),
        **_pack([part(one) for one in cases.RECORDED_PARTS.values()], "part"),
    )


if __name__ == "__main__":
    _record()
