"""What training the published latent models costs on TPU slices, compiled without any.

    python -m experiments.benchmarks.plan_diffusers --out=runs/scaling.json
    python -m experiments.benchmarks.plan_diffusers --only=sd15/v5e:2x4 --out=runs/scaling.json

The step is that of the trainer (AdamW in float32, average, bfloat16 computation, clipping) on
latents and text features that were stored beforehand. Attention is the chip's fused kernel, and the
backward pass computes as little again as fits (``remat=auto``). A compilation takes minutes;
figures are cached, and rows that are in the file already are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from absl import flags, logging
from ml_collections import ConfigDict

from configs.base import base
from diffjax import losses, schedules
from diffjax.cli import run_flags
from diffjax.cli.tables import format_table
from diffjax.launch import step_plan, topologies
from diffjax.nets.controlnet import ControlNet, copy_base
from diffjax.nets.unet import UNet
from diffjax.types import Array, Batch, Cond, Frozen, JsonObject, Params, Statistics, Task, expand
from diffjax.writing import write_json

OUT = flags.DEFINE_string(
    "out", "docs/results/scaling.json", "File of the figures; rows in it are kept."
)
ONLY = flags.DEFINE_list("only", [], "Rows to compile, as NAME/TOPOLOGY/MESH or the start of it.")

# Options that the UNets of all versions share, in diffusers' layout.
SD = dict(
    channels=320, blocks=2, out_channels=4, flip_sin_to_cos=True, freq_shift=0.0,
    downsample_padding=1, norm_eps=1e-5, dtype=jnp.bfloat16, remat="auto", attention="auto",
)  # fmt: skip
# The UNet of Stable Diffusion 1.5.
SD15 = UNet(multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2), heads=8, context_dim=768, **SD)
# The UNet of Stable Diffusion XL.
SDXL = UNet(
    multipliers=(1, 2, 4), attention_levels=(1, 2), heads=(5, 10, 20), depth=(1, 2, 10),
    linear_projection=True, context_dim=2048, added_dim=2816, **SD,
)  # fmt: skip
# Shapes of a batch by the names of its entries.
Shapes: TypeAlias = dict[str, Any]
# From a batch size to the shapes of a batch.
MakeBatch: TypeAlias = Callable[[int], Shapes]
# What a task's loss returns, see `diffjax.types.Task`.
Loss: TypeAlias = tuple[Array, tuple[Statistics, dict[str, Array]]]


def _make_shape(*shape: int) -> jax.ShapeDtypeStruct:
    """Make the shape of a float32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _make_batch(side: int, width: int, *, added: bool = False, hint: bool = False) -> MakeBatch:
    """Make the function that describes a batch of stored latents and text features.

    Args:
        side: height and width of the latents.
        width: of the features of 77 tokens.
        added: whether the model is told pooled text and sizes, as Stable Diffusion XL is.
        hint: whether there are hints, 8 times as large as the latents.
    """

    def make(size: int) -> Shapes:
        """Describe a batch of some size."""
        batch: Shapes = {
            "image": _make_shape(size, side, side, 4),
            "context": _make_shape(size, 77, width),
        }
        if added:
            batch["added"] = {
                "text_embeds": _make_shape(size, 1280),
                "time_ids": _make_shape(size, 6),
            }
        if hint:
            batch["hint"] = _make_shape(size, 8 * side, 8 * side, 3)
        return batch

    return make


def _compute_loss(predict: Callable[..., Array], key: jax.Array, batch: Batch) -> Loss:
    """Compute ``E |eps_hat(z_t, t, cond) - eps|^2`` with the schedule of Stable Diffusion.

    Args:
        predict: ``(z, t, cond) -> eps_hat``.
        key: of times and noise.
    """
    schedule = schedules.make(
        "scaled_linear", {"steps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
    )
    x, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    t = jax.random.randint(key, x.shape[:1], 0, 1000)
    alpha, sigma = (expand(value, x) for value in schedule.at(t))
    eps = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
    value = losses.squared_error(predict(alpha * x + sigma * eps, t, cond), eps).mean()
    return value, ({}, {"loss": value})


def _make_unet_task(net: UNet) -> Task:
    """Make the task that trains a UNet in full.

    A task of ours needs a config and an autoencoder; this one takes stored latents and features, so
    that only the step itself is compiled.
    """

    def init(key: jax.Array, frozen: Frozen, batch: Batch) -> tuple[Params, Statistics]:
        """See `Task.init`; there are no statistics."""
        cond = {k: v for k, v in batch.items() if k != "image"}
        return net.init(key, batch["image"], jnp.zeros(1), cond)["params"], {}

    def loss(
        params: Params, frozen: Frozen, extra: Statistics, key: jax.Array, step: Array, batch: Batch
    ) -> Loss:
        """See `Task.loss`."""
        return _compute_loss(lambda *inputs: net.apply({"params": params}, *inputs), key, batch)

    return Task(init, loss)


def _make_control_task(base_net: UNet) -> Task:
    """Make the task that trains a ControlNet beside a frozen UNet, ``frozen["base"]``."""
    net = ControlNet(base_net)

    def init(key: jax.Array, frozen: Frozen, batch: Batch) -> tuple[Params, Statistics]:
        """See `Task.init`; the ControlNet begins as a copy of the base's encoder."""
        cond = {k: v for k, v in batch.items() if k != "image"}
        fresh = net.init(key, batch["image"], jnp.zeros(1), cond)["params"]
        return copy_base(fresh, frozen["base"]), {}

    def loss(
        params: Params, frozen: Frozen, extra: Statistics, key: jax.Array, step: Array, batch: Batch
    ) -> Loss:
        """See `Task.loss`; the base is no argument of the gradient."""

        def predict(z: Array, t: Array, cond: Cond) -> Array:
            """Evaluate the base with what the ControlNet adds."""
            added = net.apply({"params": params}, z, t, cond)
            return base_net.apply({"params": frozen["base"]}, z, t, {**cond, "control": added})

        return _compute_loss(predict, key, batch)

    return Task(init, loss)


def make_case(name: str) -> step_plan.StepCase:
    """Make the step that a row compiles: ``sd15``, ``sdxl`` or ``controlnet_sd15``."""
    if name == "sd15":
        return step_plan.StepCase(_make_unet_task(SD15), None, _make_batch(64, 768))
    if name == "sdxl":
        return step_plan.StepCase(_make_unet_task(SDXL), None, _make_batch(128, 2048, added=True))
    batch, plain = _make_batch(64, 768, hint=True), _make_batch(64, 768)
    base_params = jax.eval_shape(
        lambda b: _make_unet_task(SD15).init(jax.random.key(0), None, b)[0], plain(1)
    )
    return step_plan.StepCase(_make_control_task(SD15), {"base": base_params}, batch)


# What is compiled: (case, topology, images per chip, fsdp). The rest of the chips is the data axis.
ROWS = [
    ("sd15", "v5e:2x4", 4, 8),
    ("sd15", "v5e:2x4", 22, 8),
    ("sd15", "v5e:2x4", 4, 1),
    ("sdxl", "v5e:2x4", 1, 8),
    ("controlnet_sd15", "v5e:2x4", 4, 8),
    ("sd15", "v5e:8x8", 4, 64),
    ("sd15", "v5e:16x16", 4, 64),
    ("sdxl", "v5e:8x8", 1, 64),
    ("sdxl", "v5e:8x8", 1, 32),
    ("sdxl", "v5e:16x16", 1, 64),
    ("controlnet_sd15", "v5e:8x8", 4, 64),
    ("controlnet_sd15", "v5e:16x16", 4, 64),
]


def make_config(name: str, chips: int, per_chip: int, fsdp: int) -> ConfigDict:
    """Make the trainer's config of a row.

    Args:
        name: of the case; kept in the config, so that cached figures of cases differ.
        chips: number of chips.
        per_chip: images per chip.
        fsdp: chips over which parameters are sharded.
    """
    config = base()
    # Figures are cached by the config, which must tell the cases apart.
    config.planned = name
    config.network.remat = "auto"
    config.data.update(batch_size=chips * per_chip)
    config.optim.update(name="adamw", lr=1e-5, warmup=0, weight_decay=0.01, clip=1.0)
    config.mesh.update(data=chips // fsdp, fsdp=fsdp)
    return config


def name_row(case: str, where: str, per_chip: int, fsdp: int) -> str:
    """Name a row by its case, topology, sharding and images per chip."""
    return f"{case}/{where}/fsdp{fsdp}/batch{per_chip}"


def compile_row(case: str, where: str, per_chip: int, fsdp: int) -> JsonObject:
    """Compile a row, and read its figures per chip.

    Args:
        case: sd15, sdxl or controlnet_sd15.
        where: topology.
        per_chip: images per chip.
        fsdp: chips over which parameters are sharded.

    Returns:
        Figures of `step_plan.compile_plan`; of a step that does not fit, what it needs.
    """
    chips = len(topologies.find_devices(where)[0])
    config = make_config(case, chips, per_chip, fsdp)
    try:
        return step_plan.compile_plan(config, where, make_case(case))
    except step_plan.DoesNotFit as failure:
        return {"topology": where, "needed_bytes": failure.needed, **failure.sizes}


def format_rows(rows: dict[str, JsonObject]) -> str:
    """Format figures as a table for the terminal."""
    shown = []
    for name, row in rows.items():
        state = {"row": name, "state GiB": f"{row['state_bytes'] / topologies.GIB:.2f}"}
        if "needed_bytes" in row:
            shown.append(state | {"peak GiB": "does not fit"})
            continue
        # All kinds of collectives count.
        traffic = sum(entry["bytes"] for entry in row["collectives"].values())
        shown.append(state | {
            "peak GiB": f"{row['peak_bytes'] / topologies.GIB:.2f}",
            "recomputed": row["remat"],
            "TFLOP": f"{row['flops'] / 1e12:.2f}",
            "collectives GiB": f"{traffic / topologies.GIB:.2f}",
            "sharded": f"{100 * row['sharded']:.2f}%",
            "compile s": f"{row['compile_seconds']:.0f}",
        })  # fmt: skip
    return format_table(shown)


def main() -> None:
    """Compile every row that the flags name and the file does not hold yet, and print all.

    A row is written as soon as it is compiled, so an interrupted run goes on.
    """
    path = Path(OUT.value)
    rows = json.loads(path.read_text()) if path.exists() else {}
    topologies.configure_jax("v5e:2x4")
    for row in ROWS:
        name = name_row(*row)
        if ONLY.value and not any(name.startswith(prefix) for prefix in ONLY.value):
            continue
        if name not in rows:
            logging.info("compiling %s", name)
            rows[name] = compile_row(*row)
            write_json(path, rows)
    print(format_rows(rows))


if __name__ == "__main__":
    run_flags.run(main)
