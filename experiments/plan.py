"""Size and cost of a config before running it, on this machine or on chips that are not there.

    python -m experiments.plan --config=configs/ddpm.py:cifar10 --json=plan.json
    python -m experiments.plan --config=configs/ddpm.py:cifar10 --topology=v5e:2x4
    python -m experiments.plan --config=configs/ddpm.py:cifar10 --topology=v5e:2x4 --fit

Nothing is materialised. Without a topology: parameters, bytes and FLOPs, at once. With one: the
training step is compiled for it, and memory, FLOPs, traffic and XLA's estimate of its time are
given per chip (diffjax/launch/topologies.py says what that needs). --fit tries meshes and batches,
and prints the largest batch that fits each mesh, best first.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError, name_keys
from diffjax.cli.tables import format_table
from diffjax.launch import topologies
from diffjax.launch.mesh_search import format_rows, rank_meshes
from diffjax.launch.program_costs import count_flops
from diffjax.launch.step_plan import Figures, StepCase, compile_plan, format_figures
from diffjax.runs import make_abstract_batch
from diffjax.train import State, make_optimizer, make_step
from diffjax.types import Array, JsonObject, Params, Task, Tree
from diffjax.writing import write_json

JSON = flags.DEFINE_string("json", None, "File that the figures are also written to.")
FLOPS = flags.DEFINE_bool("flops", True, "Count the FLOPs of a training step.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips to compile for, such as v5e:2x4, v5e:16x16, v5p:2x2x2, v6e:2x4, cpu:N."
)
FIT = flags.DEFINE_bool(
    "fit", False, "Find the largest batch of each mesh, and the mesh with the best time."
)


def _count_parameters(tree: Tree) -> int:
    """Count the numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _count_bytes(tree: Tree) -> int:
    """Count the bytes of a tree of arrays or shapes, on one device that holds all of it."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count_flops_per_image(cfg: ConfigDict, task: Task, state: State) -> dict[str, float]:
    """Count the FLOPs of a training step and of one evaluation of the network, per image.

    They are counted in the traced program, so the gradient counts as what it computes. A perceptual
    network, which is the user's, is left out.

    Args:
        task: of the config.
        state: shapes of its state.
    """
    step = make_step(task, make_optimizer(cfg.optim, cfg.train.steps))
    batch = make_abstract_batch(cfg, 1)
    training = count_flops(step, state, runs.make_abstract_fixed_parts(cfg), batch)
    # Other tasks have no network that is evaluated once for each step of sampling.
    if cfg.task != "diffusion":  # without a perceptual network, which is the user's
        return {"training_flops_per_image": training}
    model = runs.build_model(cfg)

    def evaluate_network(params: Params) -> Array:
        """Evaluate the network on one sample, with a condition of its shapes."""
        z = jnp.zeros((1, *model.space.shape))
        return model.network.apply({"params": params}, z, jnp.zeros(1), model.condition.example)

    return {
        "training_flops_per_image": training,
        "forward_flops_per_image": count_flops(evaluate_network, state.params),
    }


def make_case(cfg: ConfigDict) -> StepCase:
    """Make the training step of a config from shapes alone.

    Returns:
        What `launch.step_plan` compiles: the task, shapes of its frozen parameters, and a function
            from
        a batch size to the shapes of a batch.
    """
    weights = runs.make_abstract_fixed_parts(cfg)
    return StepCase(runs.build_task(cfg), weights, partial(make_abstract_batch, cfg))


def make_plan(cfg: ConfigDict, *, flops: bool = True) -> JsonObject:
    """Compute the figures of a config from shapes alone.

    Args:
        flops: whether to trace the training step, which takes seconds.

    Returns:
        Parameters, bytes of parameters and state, images seen, and FLOPs, by name.
    """
    task = runs.build_task(cfg)
    state = runs.make_abstract_state(cfg, task)
    out: JsonObject = {
        "parameters": _count_parameters(state.params),
        "image": list(runs.read_image_shape(cfg)),
        "batch_size": cfg.data.batch_size,
        "steps": cfg.train.steps,
        "images_seen": cfg.train.steps * cfg.data.batch_size,
        "parameter_bytes": _count_bytes(state.params),
        "state_bytes": _count_bytes(state),
    }
    if flops:
        out |= count_flops_per_image(cfg, task, state)
        step = out["training_flops_per_image"] * cfg.data.batch_size
        out |= {"flops_per_step": step, "training_flops": step * cfg.train.steps}
        if forward := out.get("forward_flops_per_image"):
            out["sampling_flops_per_image"] = cfg.sample.steps * forward
    return out


def _print_rows(rows: dict[str, str]) -> None:
    """Print names and values, one pair a line."""
    for key, value in rows.items():
        print(f"{key:>26}: {value}")


def _plan_topology(cfg: ConfigDict) -> Figures | list[Figures]:
    """Compile the step for the topology of the flags, and print its figures.

    With --fit every mesh is compiled at the largest batch that fits.

    Returns:
        What was printed, for --json.

    Raises:
        UsageError: no mesh fits one image per chip.
    """
    name = TOPOLOGY.value
    if not FIT.value:
        figures = compile_plan(cfg, name, make_case(cfg))
        _print_rows(format_figures(figures))
        return figures
    with name_keys({"a search": "--fit"}):
        rows = rank_meshes(cfg, name, make_case)
    if not rows:
        raise UsageError(f"not one image per chip fits {name}, on any mesh")
    print(format_table(format_rows(rows)))
    return rows


FLAG_GROUPS = {
    "Config": ("config", "workdir", "weights"),
    "Plan": ("topology", "fit", "flops", "json"),
}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights")


def main() -> None:
    """Print the plan of a config, and write it as JSON if asked for.

    Without --topology the figures come from shapes alone, in seconds; with it the step is compiled.

    Raises:
        UsageError: --fit without --topology.
        ConfigError: the topology is unknown, or libtpu is missing.
    """
    cfg = run_flags.read_config()
    if FIT.value and not TOPOLOGY.value:
        raise UsageError("--fit needs --topology")
    if TOPOLOGY.value:
        # JAX reads these settings before its first device.
        topologies.configure_jax(TOPOLOGY.value)
        figures = _plan_topology(cfg)
    else:
        figures = make_plan(cfg, flops=FLOPS.value)
        _print_rows({
            key: f"{value:,}" if isinstance(value, int)
            else f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in figures.items()
        })  # fmt: skip
    if JSON.value:
        write_json(Path(JSON.value), figures)


if __name__ == "__main__":
    run_flags.run(main, USES)
