"""Memory of maxdiffusion's training step of Stable Diffusion 1.5, compiled as ours is.

    git clone https://github.com/AI-Hypercomputer/maxdiffusion
    python -m experiments.benchmarks.baseline_maxdiffusion --source=maxdiffusion \\
        --out=docs/results/data/scaling-maxdiffusion.json

Its configuration, sharding rules, optimiser and step function, on stored latents and text features,
for absent chips at effort O0. It needs an environment of its own: maxdiffusion's requirements with
the jax and libtpu of diffjax/launch/topologies.py, flax, transformers<5, torch and ml_collections;
TensorFlow, which only its input pipeline uses, is left out.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags

from diffjax.cli import run_flags
from diffjax.launch import step_plan, topologies
from diffjax.train.sharding import with_sharding
from diffjax.types import JsonObject
from diffjax.writing import write_json

SOURCE = flags.DEFINE_string(
    "source", None, "Folder of the repository of maxdiffusion.", required=True
)
OUT = flags.DEFINE_string("out", None, "File of the figures; rows in it are kept.", required=True)
WHERE = flags.DEFINE_string("topology", "v5e:2x4", "Chips to compile for.")
# Its module that needs TensorFlow.
INPUT = "maxdiffusion.input_pipeline"
# Modules that are replaced by empty ones, because they are not installed.
ABSENT = ("tensorflow", "tensorflow_datasets", INPUT, f"{INPUT}.input_pipeline_interface")

# What is compiled: (sharded over all chips, images per chip, attention).
ROWS = ((True, 4, "dot_product"), (True, 4, "flash"))
# Size of flash attention's blocks; with its own 2048 the kernel does not compile for a v5e.
BLOCK = 512


def read_config(source: Path, chips: int, sharded: bool, batch: int, attention: str) -> Any:
    """Read maxdiffusion's configuration of Stable Diffusion 1.5, with some values changed.

    Args:
        source: folder of its repository.
        chips: number of chips.
        sharded: whether the parameters are sharded over all chips (FSDP), or else whole.
        batch: images per chip.
        attention: its name of the attention kernel.
    """
    from maxdiffusion import pyconfig

    names = ("q", "kv_compute", "kv", "q_dkv", "kv_dkv", "kv_dkv_compute")
    blocks = json.dumps({f"block_{name}": BLOCK for name in names})
    axes = {"fsdp": chips if sharded else 1, "data": 1 if sharded else chips}
    pyconfig.initialize(
        [
            "",
            str(source / "src/maxdiffusion/configs/base15.yml"),
            "run_name=plan",
            "output_dir=/tmp/plan",
            f"attention={attention}",
            f"flash_block_sizes={blocks}",
            f"per_device_batch_size={batch}",
            *(f"ici_{name}_parallelism={size}" for name, size in axes.items()),
        ],
        unittest=True,
    )
    return pyconfig.config


def lower_step(config: Any, devices: list[jax.Device]) -> tuple[jax.stages.Lowered, Any]:
    """Lower maxdiffusion's training step for some chips, from shapes alone.

    Args:
        config: of `read_config`.
        devices: chips, which need not be there.

    Returns:
        The lowered program, and the shapes of its state with their placements.
    """
    from flax.linen import partitioning
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from maxdiffusion import FlaxDDPMScheduler, max_utils
    from maxdiffusion.models.unet_2d_condition_flax import FlaxUNet2DConditionModel
    from maxdiffusion.trainers.stable_diffusion_trainer import _train_step

    mesh = Mesh(max_utils.create_device_mesh(config, devices), config.mesh_axes)
    net = FlaxUNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        dtype=config.activations_dtype,
        weights_dtype=config.weights_dtype,
        split_head_dim=config.split_head_dim,
        norm_num_groups=config.norm_num_groups,
        attention_kernel=config.attention,
        flash_min_seq_length=config.flash_min_seq_length,
        flash_block_sizes=max_utils.get_flash_block_sizes(config),
        precision=max_utils.get_precision(config),
        mesh=mesh,
    )
    scheduler = FlaxDDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon"
    )
    optimizer = max_utils.create_optimizer(config, lambda step: config.learning_rate)
    weights = lambda **given: net.init_weights(rng=jax.random.key(0), **given)  # noqa: E731
    with mesh, partitioning.axis_rules(config.logical_axis_rules):
        state, _, placed = max_utils.get_abstract_state(net, optimizer, config, mesh, weights)
        state, placed = (max_utils.unbox_logicallypartioned_trainstate(t) for t in (state, placed))
        state = with_sharding(state, placed)
        spread = NamedSharding(mesh, PartitionSpec(*config.data_sharding))
        images = config.per_device_batch_size * len(devices)
        shapes = {"pixel_values": (images, 4, 64, 64), "input_ids": (images, 77, 768)}
        batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread)
            for name, shape in shapes.items()
        }
        parts = SimpleNamespace(unet=net, scheduler=scheduler)
        made = {"scheduler": scheduler.create_state()}
        # Its own step function, with its placements; nothing of ours is in the program.
        step = max_utils.get_train_step_partial_with_signature(_train_step, parts, made, config)
        places = (placed, None, None, dict.fromkeys(batch, spread), None)
        jitted = jax.jit(
            step,
            in_shardings=places,
            out_shardings=(placed, None, None, None),
            donate_argnums=(0,),
        )
        key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
        return jitted.lower(state, None, None, batch, key), state


def read_commit(source: Path) -> str:
    """Read the commit of the repository; "unknown" for files without git."""
    command = ["git", "-C", str(source), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure_memory(
    source: Path, where: str, sharded: bool, batch: int, attention: str
) -> JsonObject:
    """Compile maxdiffusion's step, and read the bytes that it needs per chip.

    Args:
        where: topology, such as ``v5e:2x4``.
        sharded, batch, attention: see `read_config`.

    Returns:
        A row of figures by name; of a step that does not fit, how much it needs.
    """
    devices = topologies.find_devices(where)[0]
    config = read_config(source, len(devices), sharded, batch, attention)
    program, state = lower_step(config, devices)
    local = lambda leaf: leaf.sharding.shard_shape(leaf.shape)  # noqa: E731
    leaves = jax.tree.leaves(state.params)
    # A parameter whose part on a chip is the whole is not sharded.
    whole = sum(leaf.size for leaf in leaves if local(leaf) == leaf.shape)
    total = sum(leaf.size for leaf in leaves)
    found: JsonObject = {
        "commit": read_commit(source),
        "topology": where,
        "chips": len(devices),
        "data": 1 if sharded else len(devices),
        "batch_per_chip": batch,
        "attention": attention,
        "parameters": total,
        "sharded": 1 - whole / total,
        "state_bytes": step_plan.count_local_bytes(state),
    }
    started = time.monotonic()
    try:
        memory = step_plan.compile_within_memory(program.compile, found).memory_analysis()
    except step_plan.DoesNotFit as failure:
        return found | {"needed_bytes": failure.needed, "message": _explain_failure(failure)}
    return found | {
        "peak_bytes": int(memory.peak_memory_in_bytes),
        "compile_seconds": time.monotonic() - started,
    }


def _explain_failure(failure: Exception) -> str:
    """Return the first line of the compiler's message about a step that does not fit."""
    return str(failure.__cause__).strip().partition("\n")[0]


def main() -> None:
    """Compile every row of `ROWS` that the file does not hold yet.

    maxdiffusion is imported without TensorFlow, which only its input pipeline needs. Rows are
    written as they are done, so an interrupted run goes on.
    """
    topologies.configure_jax(WHERE.value)
    jax.config.update("jax_num_cpu_devices", math.prod(map(int, WHERE.value[4:].split("x"))))
    source, path = Path(SOURCE.value).absolute(), Path(OUT.value)
    sys.path.insert(0, str(source / "src"))
    __import__("maxdiffusion.utils")  # asks what is installed, before there are substitutes
    for name in ABSENT:
        sys.modules.setdefault(name, mock.MagicMock(__spec__=ModuleSpec(name, None)))
    rows = json.loads(path.read_text()) if path.exists() else {}
    for sharded, batch, attention in ROWS:
        name = f"{'fsdp' if sharded else 'data'}/batch{batch}/{attention}"
        if name not in rows:
            rows[name] = measure_memory(source, WHERE.value, sharded, batch, attention)
            print(name, rows[name], flush=True)
            write_json(path, rows)


if __name__ == "__main__":
    run_flags.run(main)
