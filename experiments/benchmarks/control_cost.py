"""What training a ControlNet costs against fine-tuning its base: time and memory of a step.

    python -m experiments.benchmarks.control_cost --batch=32 \\
        --config=configs/controlnet.py:fashion_mnist_edges

Both train with the same optimiser and average. They take turns, so that a machine which slows down
does so for both, and the time of every turn is written; processor time is given beside it, since
other work does not add to that. Memory is what the compiled step holds at
its peak: state, frozen weights and temporaries. Weights are random. The paper has +34% and +23%.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.runs.hints import read_hint_shape
from diffjax.runs.states import make_abstract_base
from diffjax.tasks import make_task
from diffjax.train import State, init_state, make_optimizer, make_step
from diffjax.types import Batch, Frozen, JsonObject, T, Task
from diffjax.writing import write_json
from experiments.benchmarks.sides.turns import take_turns

BATCH = flags.DEFINE_integer("batch", 32, "Number of images in a batch.", 1)
REPEATS = flags.DEFINE_integer("repeats", 31, "Number of measurements of each task.", 1)
JSON = flags.DEFINE_string("json", None, "File that the figures are also written to.")
# The parts of XLA's memory analysis that a step holds at its peak.
ALL_ARGUMENTS = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")


def make_tasks(cfg: ConfigDict) -> dict[str, tuple[Task, Frozen | None]]:
    """Make the two tasks that are compared: fine-tuning the base, and training the ControlNet.

    Returns:
        The task, and the shapes of the parameters that it reads but does not train, by name.
    """
    shape = runs.read_image_shape(cfg)
    fine = make_task(cfg, shape, cfg.data.levels, cfg.data.num_classes)
    return {
        "fine_tuning": (fine, None),
        "controlnet": (runs.build_task(cfg), make_abstract_base(cfg)),
    }


def draw_batch(cfg: ConfigDict, size: int) -> dict[str, np.ndarray]:
    """Draw a batch of random images, labels and hints.

    Args:
        cfg: the config, for shapes and classes.
        size: number of images B.

    Returns:
        ``image`` (B, H, W, C) in [-1, 1], ``label`` (B,) and ``hint`` in [0, 1].
    """
    rng, shape = np.random.default_rng(0), runs.read_image_shape(cfg)
    return {
        "image": rng.uniform(-1, 1, (size, *shape)).astype(np.float32),
        "label": rng.integers(0, max(cfg.data.num_classes, 1), size).astype(np.int32),
        "hint": rng.uniform(0, 1, (size, *read_hint_shape(cfg, shape))).astype(np.float32),
    }


def compile_step(
    cfg: ConfigDict, task: Task, fixed: Frozen | None, batch: Batch
) -> tuple[jax.stages.Compiled, State]:
    """Compile a training step from shapes alone.

    Args:
        fixed: shapes of the frozen parameters, or None.
        batch: a batch, for its shapes.

    Returns:
        The compiled step, and the shapes of its state.
    """
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    state = jax.eval_shape(partial(init_state, task, optimizer), jax.random.key(0), fixed, batch)
    step = jax.jit(make_step(task, optimizer), donate_argnums=0)
    return step.lower(state, fixed, batch).compile(), state


def count_peak_bytes(program: jax.stages.Compiled) -> int:
    """Count the bytes that a compiled step holds: arguments, results and temporaries.

    Results that take the place of arguments are counted once.
    """
    sizes = program.memory_analysis()
    total = sum(getattr(sizes, name) for name in ALL_ARGUMENTS)
    return int(total - sizes.alias_size_in_bytes)


def _fill(shapes: T) -> T:
    """Fill a tree of shapes with small random numbers, and zeros where they are whole numbers."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """Fill one shape."""
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def _make_call(
    program: jax.stages.Compiled, shapes: State, fixed: Frozen | None, batch: Batch
) -> Callable[[], object]:
    """Make the function that takes the next step from a random state."""
    state, base = _fill(shapes), _fill(fixed)
    state = state._replace(opt=jax.tree.map(jnp.zeros_like, state.opt))

    def take_step() -> object:
        """Take one step."""
        nonlocal state
        state, metrics = program(state, base, batch)
        return state, metrics

    return take_step


def measure(cfg: ConfigDict, batch: int, repeats: int) -> JsonObject:
    """Measure the time and memory of a step of either task.

    Args:
        batch: images of a batch.
        repeats: number of measurements of each task, after one that warms up.

    Returns:
        Seconds and bytes by task, the ratios of ControlNet to fine-tuning, and ``turns``, the
        seconds of every turn by clock and task, see `take_turns`.
    """
    given = draw_batch(cfg, batch)
    programs, calls = {}, {}
    for name, (task, fixed) in make_tasks(cfg).items():
        programs[name], shapes = compile_step(cfg, task, fixed, given)
        calls[name] = _make_call(programs[name], shapes, fixed, given)
    turns = take_turns(calls, repeats)
    step = {c: {n: float(np.median(v)) for n, v in s.items()} for c, s in turns.items()}
    # Ratios are taken within a turn.
    ratios = {
        c: float(np.median(np.divide(s["controlnet"], s["fine_tuning"]))) for c, s in turns.items()
    }
    peak = {name: count_peak_bytes(program) for name, program in programs.items()}
    temporary = {n: int(p.memory_analysis().temp_size_in_bytes) for n, p in programs.items()}
    return {
        "batch": batch,
        "repeats": repeats,
        "step_seconds": step["wall"],
        "step_cpu_seconds": step["cpu"],
        "peak_bytes": peak,
        "temporary_bytes": temporary,
        "turns": turns,
        "time_ratio": ratios["wall"],
        "cpu_ratio": ratios["cpu"],
        "memory_ratio": peak["controlnet"] / peak["fine_tuning"],
        "temporary_ratio": temporary["controlnet"] / temporary["fine_tuning"],
    }


# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights")


def main() -> None:
    """Print the costs of training a ControlNet, and write them as JSON if asked for.

    Both tasks begin with random weights: costs do not depend on their values.

    Raises:
        UsageError: the config is not of a ControlNet.
    """
    cfg = run_flags.read_config()
    if cfg.task != "controlnet":
        raise UsageError("this needs a config of a ControlNet, as in configs/controlnet.py")
    found = measure(cfg, BATCH.value, REPEATS.value)
    for name in found["step_seconds"]:
        print(
            f"{name:>12}: {1e3 * found['step_seconds'][name]:.1f} ms a step, "
            f"{found['peak_bytes'][name] / 1e6:.1f} MB at the peak, "
            f"{found['temporary_bytes'][name] / 1e6:.1f} MB of it temporary"
        )
    print(
        f"ControlNet / fine-tuning: time {found['time_ratio']:.3f}, processor time "
        f"{found['cpu_ratio']:.3f}, memory {found['memory_ratio']:.3f}, "
        f"temporaries {found['temporary_ratio']:.3f}"
    )
    if JSON.value:
        write_json(Path(JSON.value), found)


if __name__ == "__main__":
    run_flags.run(main, USES)
