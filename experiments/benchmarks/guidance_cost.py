"""What guidance costs: time and memory of a sampling step, guided against unguided.

    python -m experiments.benchmarks.guidance_cost --config=configs/cfg.py:fashion_mnist --batch=32

The modes take turns, so that a machine which slows down does so for all of them, and the time of
every turn is written; memory is what the compiled step needs beside its arguments. Weights are
random.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.model import make_sampler, make_steering, sample
from diffjax.types import Array, JsonObject, Params
from diffjax.writing import write_json
from experiments.benchmarks.sides.turns import take_turns

BATCH = flags.DEFINE_integer("batch", 32, "Number of images in a batch.", 1)
REPEATS = flags.DEFINE_integer("repeats", 31, "Number of measurements of each mode.", 1)
JSON = flags.DEFINE_string("json", None, "File that the figures are also written to.")

# Steps of a run: enough that its fixed cost does not count.
STEPS = 4


# What is compared: (both halves in turn, guidance scale).
MODES = {"unguided": (False, None), "guided": (False, 2.0), "guided_sequential": (True, 2.0)}


def compile_sampling(
    cfg: ConfigDict, batch: int, *, sequential: bool, scale: float | None
) -> tuple[jax.stages.Compiled, tuple[Params, np.ndarray | None]]:
    """Compile the sampling of a few steps with random weights.

    Args:
        batch: number of images.
        sequential: whether both halves of guidance run in turn.
        scale: guidance scale; None for no guidance.

    Returns:
        The compiled program, and its arguments (parameters, scale of each step).
    """
    cfg = runs.replace_sample(cfg, sampler="ddim", steps=STEPS, guidance_sequential=sequential)
    model = runs.build_model(cfg)
    sampler, rows = make_sampler(cfg, model)
    steering = make_steering(cfg)
    cond = {"label": np.arange(batch, dtype=np.int32) % cfg.data.num_classes}
    keys = jax.random.split(jax.random.key(0), batch)

    def run(params: Params, scales: Array | None) -> Array:
        """Draw one batch with these parameters and scales."""
        own = model._replace(params=params)
        return sample(own, cond, sampler, rows, keys, scale=scales, steering=steering)

    # The scale is an argument: the same program serves all scales.
    scales = None if scale is None else np.full(STEPS, scale, np.float32)
    arguments = runs.init_untrained(cfg).params, scales
    return jax.jit(run).lower(*arguments).compile(), arguments


def measure(cfg: ConfigDict, batch: int, repeats: int) -> JsonObject:
    """Measure the seconds and bytes of a step in every mode of `MODES`.

    Args:
        batch: number of images.
        repeats: number of measurements of each mode, after one that warms up.

    Returns:
        Seconds and bytes by mode, their ratios to unguided sampling, and ``turns``, the seconds of
        a step in every turn by clock and mode, see `take_turns`.
    """
    modes = {
        mode: compile_sampling(cfg, batch, sequential=sequential, scale=scale)
        for mode, (sequential, scale) in MODES.items()
    }
    calls = {mode: partial(run, *arguments) for mode, (run, arguments) in modes.items()}
    turns = {
        clock: {mode: [seconds / STEPS for seconds in times] for mode, times in found.items()}
        for clock, found in take_turns(calls, repeats).items()
    }
    step = {mode: float(np.median(times)) for mode, times in turns["wall"].items()}
    memory = {m: int(run.memory_analysis().temp_size_in_bytes) for m, (run, _) in modes.items()}
    return {
        "batch": batch,
        "repeats": repeats,
        "step_seconds": step,
        "turns": turns,
        "temporary_bytes": memory,
        "time_ratio": {m: step[m] / step["unguided"] for m in step},
        "memory_ratio": {m: memory[m] / memory["unguided"] for m in memory},
    }


# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights")


def main() -> None:
    """Print what guidance costs, and write it as JSON if asked for.

    Any config of a model with classes will do; its weights are drawn at random.

    Raises:
        UsageError: the model of the config has no condition.
    """
    cfg = run_flags.read_config()
    if not (cfg.network.conditional and cfg.data.num_classes):
        raise UsageError("guidance needs a model with a condition, such as configs/cfg.py")
    found = measure(cfg, BATCH.value, REPEATS.value)
    for mode in found["step_seconds"]:
        print(
            f"{mode:>18}: {1e3 * found['step_seconds'][mode]:.1f} ms a step "
            f"(x {found['time_ratio'][mode]:.2f}), {found['temporary_bytes'][mode] / 1e6:.1f} MB "
            f"(x {found['memory_ratio'][mode]:.2f})"
        )
    if JSON.value:
        write_json(Path(JSON.value), found)


if __name__ == "__main__":
    run_flags.run(main, USES)
