"""How the gradients of sharded weights are summed on TPU slices that are not there.

    python -m experiments.benchmarks.gradient_collectives
    python -m experiments.benchmarks.gradient_collectives --meshes=v5e:8x8/64,v5e:8x8/32

The gradient of a perceptron of bfloat16 products with float32 weights, which are sharded over
``fsdp`` as `diffjax.train.sharding` does, compiled for each slice (diffjax/launch/topologies.py
says what that needs). A line has the MiB and the number of each kind of collective on a chip.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from diffjax.cli import run_flags
from diffjax.cli.tables import format_table
from diffjax.launch import topologies
from diffjax.launch.program_costs import COLLECTIVES, count_collectives
from diffjax.train.sharding import (
    make_batch_sharding,
    make_mesh,
    make_tree_sharding,
    with_sharding,
)
from diffjax.types import Array, Params

MESHES = flags.DEFINE_list(
    "meshes",
    ["v5e:2x4/8", "v5e:8x8/64", "v5e:8x8/32", "v5e:16x16/64"],
    "Slices, each with the number of chips over which weights are sharded.",
)
WIDTH = flags.DEFINE_integer(
    "width", 2048, "Width of the perceptron; hidden layers have 4 times.", 1
)
ROWS = 1024  # of a chip


def compute_loss(params: Params, x: Array) -> Array:
    """Compute the mean square of the output of two layers, in bfloat16."""
    h = x.astype(jnp.bfloat16)
    for name in ("w1", "w2"):
        h = jax.nn.gelu(h @ params[name].astype(jnp.bfloat16))
    return (h.astype(jnp.float32) ** 2).mean()


def compile_gradient(mesh: Mesh, width: int) -> str:
    """Compile a step of gradient descent for a mesh, and return the program's text.

    Args:
        mesh: chips, which need not be there.
        width: of the perceptron.
    """
    shapes = {"w1": (width, 4 * width), "w2": (4 * width, width)}
    params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    places, spread = make_tree_sharding(params, mesh), make_batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((mesh.size, ROWS, width), jnp.float32, sharding=spread)

    def step(params: Params, x: Array) -> Params:
        """Take one step."""
        found = jax.grad(compute_loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, found)

    jitted = jax.jit(step, out_shardings=places)
    return str(jitted.lower(with_sharding(params, places), x).compile().as_text())


def format_row(name: str, text: str) -> dict[str, str]:
    """Format the collectives of a program as texts by title."""
    found = count_collectives(text)
    return {"mesh": name} | {
        kind: f"{found[kind]['bytes'] / 2**20:.1f} in {found[kind]['count']:g}"
        if kind in found
        else "-"
        for kind in COLLECTIVES
    }


def main() -> None:
    """Compile for every mesh of the flags, and print the collectives.

    Raises:
        ConfigError: a topology is unknown, or libtpu is missing.
        ValueError: the number of chips does not divide that of the slice.
    """
    rows = []
    topologies.configure_jax(MESHES.value[0].partition("/")[0])
    for name in MESHES.value:
        where, _, fsdp = name.partition("/")
        devices = topologies.find_devices(where)[0]
        mesh = make_mesh({"data": -1, "fsdp": int(fsdp or len(devices))}, devices)
        rows.append(format_row(name, compile_gradient(mesh, WIDTH.value)))
    print(format_table(rows))


if __name__ == "__main__":
    run_flags.run(main)
