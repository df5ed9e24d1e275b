"""Size and cost of a config before running it: parameters, memory, FLOPs.

    python -m experiments.plan --config=configs/ddpm.py:cifar10 --json=plan.json

Nothing is materialised. FLOPs are counted by XLA in the compiled step for one image
(--flops=false skips that compilation, a minute for large networks).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from diffjax.tasks.controlnet import make_controlled
from diffjax.train import State, make_optimizer, make_step
from experiments import common, controlled

JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
FLOPS = flags.DEFINE_bool("flops", True, "Compile a step for one image to count its FLOPs.")


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flops_per_image(cfg: Any, task: Any, state: State) -> dict[str, float]:
    """FLOPs of a training step and of one network evaluation, per image."""
    step = make_step(task, make_optimizer(cfg.optim, cfg.train.steps))
    batch = {
        "image": jax.ShapeDtypeStruct((1, *common.image_shape(cfg)), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    model = common.diffusion_of(cfg)
    network, params, frozen = model.network, state.params, None
    if cfg.task == "controlnet":
        network, frozen = make_controlled(cfg.control, model), controlled.abstract(cfg)
        hint = jax.ShapeDtypeStruct((1, *controlled.hint_shape(cfg)), jnp.float32)
        batch, params = {**batch, "hint": hint}, {**frozen["base"], **params, "hint": hint}

    def forward(params: Any, b: Any) -> Any:
        return network.apply({"params": params}, b["image"], jnp.zeros(1), {"label": b["label"]})

    def count(f: Any, *args: Any) -> float:
        # Counted before optimisation: the number does not depend on the machine.
        return float(jax.jit(f).lower(*args).cost_analysis()["flops"])

    return {
        "training_flops_per_image": count(step, state, frozen, batch),
        "forward_flops_per_image": count(forward, params, batch),
    }


def plan(cfg: Any, *, flops: bool = True) -> dict[str, Any]:
    """Figures of a config, from shapes alone."""
    task = common.task_of(cfg)
    state = common.abstract_state(cfg, task)
    out: dict[str, Any] = {
        "parameters": _count(state.params),
        "image": list(common.image_shape(cfg)),
        "batch_size": cfg.data.batch_size,
        "steps": cfg.train.steps,
        "images_seen": cfg.train.steps * cfg.data.batch_size,
        "parameter_bytes": _bytes(state.params),
        "state_bytes": _bytes(state),
    }
    if flops:
        out |= flops_per_image(cfg, task, state)
        step = out["training_flops_per_image"] * cfg.data.batch_size
        evaluations = cfg.sample.steps * out["forward_flops_per_image"]
        out |= {
            "flops_per_step": step,
            "training_flops": step * cfg.train.steps,
            "sampling_flops_per_image": evaluations,
        }
    return out


def main() -> None:
    figures = plan(common.config(), flops=FLOPS.value)
    for key, value in figures.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"{key:>26}: {f'{value:.4g}' if isinstance(value, float) else shown}")
    if JSON.value:
        common.save_json(figures, Path(JSON.value))


if __name__ == "__main__":
    common.run(main)
