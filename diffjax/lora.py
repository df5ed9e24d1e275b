"""Low-rank adapters (Hu et al. 2021): ``W + (alpha / r) B A`` for chosen layers of any network.

Adapters are a tree of parameters beside that of the network. Where a layer has ``kernel``, its
adapter has ``lora_A`` and ``lora_B`` with a kernel each, so that the joined paths are peft's names,
and layers that are scanned have stacked adapters:

| kernel | lora_A | lora_B |
|---|---|---|
| ([L,] I, O) | ([L,] I, r) | ([L,] r, O) |
| (H, W, I, O) | (H, W, I, r) | (1, 1, r, O) |

L counts scanned layers, I and O are input and output channels, H and W sides of a convolution, and
r is the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.types import Array, Params

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DOWN, UP, KERNEL = "lora_A", "lora_B", "kernel"

Path = tuple[str, ...]


def layers(params: Params, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Array]]]:
    """Yield every layer that has a kernel, with its path.

    Args:
        params: of a network.
        path: of ``params`` in a larger tree.
    """
    if KERNEL in params:
        yield path, params
    for name, child in params.items():
        if isinstance(child, Mapping):
            yield from layers(child, (*path, name))


def find(params: Params, targets: Sequence[str]) -> dict[Path, Array]:
    """Find the kernels of the layers whose dotted path is a target or ends in one.

    Args:
        params: of a network.
        targets: such as ``to_q``, ``attn2.to_k`` or ``ff.net.2``.

    Returns:
        Kernels by the path of their layer.

    Raises:
        ValueError: there is no target, or one that matches nothing; the choices are listed.
    """
    named = {path: layer[KERNEL] for path, layer in layers(params)}
    unknown = [t for t in targets if not any(_matches(path, t) for path in named)]
    if unknown or not targets:
        choices = ", ".join(sorted({path[-1] for path in named}))
        what = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"unknown LoRA target {what}; choose from {choices}, or longer paths")
    return {path: k for path, k in named.items() if any(_matches(path, t) for t in targets)}


def _matches(path: Path, target: str) -> bool:
    return f".{'.'.join(path)}".endswith(f".{target}")


def init(
    key: jax.Array, params: Params, *, rank: int, targets: Sequence[str] = ATTENTION
) -> Params:
    """Draw adapters of chosen layers that change nothing yet: ``A ~ N(0, 1 / r^2)``, ``B = 0``.

    Hu et al. 2021, section 4.1.

    Args:
        key: a key of `jax.random`.
        params: of the network.
        rank: r, at least 1.
        targets: see `find`.

    Raises:
        ValueError: the rank is not positive, or as `find`.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA must be at least 1, got {rank}")
    found = find(params, targets)
    keys = jax.random.split(key, len(found))
    return nest({path: _fresh(k, found[path], rank) for k, path in zip(keys, found, strict=True)})


def _fresh(key: jax.Array, kernel: Array, rank: int) -> Params:
    """Draw the adapter of one kernel."""
    down, up = factor_shapes(kernel.shape, rank)
    first = jax.random.normal(key, down, jnp.float32) / rank
    return {DOWN: {KERNEL: first}, UP: {KERNEL: jnp.zeros(up, jnp.float32)}}


def factor_shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of ``lora_A`` and ``lora_B`` of a kernel; see the table above."""
    *before, inputs, outputs = kernel
    around = [1, 1] if len(kernel) == 4 else before
    return (*before, inputs, rank), (*around, rank, outputs)


def nest(leaves: Mapping[Path, Params]) -> Params:
    """Return the tree that has these sub-trees at these paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = leaf
    return tree


def merge(params: Params, adapters: Params, scale: Array | float) -> Params:
    """Add adapters to parameters, ``W + scale B A`` (Hu et al. 2021, eq. 3); differentiable.

    Args:
        params: of the network; layers without an adapter stay as they are.
        adapters: as from `init`.
        scale: ``alpha / r``, or 0 to leave them out; may be traced.

    Raises:
        ValueError: an adapter is for a layer that does not exist, or has another shape; the message
            names the layer.
    """
    return _merged(params, adapters, scale, ())


def _merged(params: Params, adapters: Params, scale: Array | float, path: Path) -> Params:
    """Merge the adapters below a path, see `merge`."""
    if DOWN in adapters:
        return {**params, KERNEL: _sum(params[KERNEL], adapters, scale, path)}
    if absent := [".".join((*path, name)) for name in adapters if name not in params]:
        raise ValueError(f"the network has no weights for {', '.join(absent)}")
    changed = {k: _merged(params[k], v, scale, (*path, k)) for k, v in adapters.items()}
    return {**params, **changed}


def _sum(kernel: Array, adapter: Params, scale: Array | float, path: Path) -> Array:
    """Add one adapter to its kernel, in float32; the type of the kernel is kept."""
    down, up = adapter[DOWN][KERNEL], adapter[UP][KERNEL]
    if (down.shape, up.shape) != factor_shapes(kernel.shape, down.shape[-1]):
        raise ValueError(
            f"{'.'.join(path)} has a kernel of shape {kernel.shape}, but its adapter has shapes "
            f"{down.shape} and {up.shape}"
        )
    # The scale multiplies the narrow factor, because the product is as large as the kernel.
    product = (down * scale) @ up
    return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)


def fold(adapters: Params, scale: float) -> Params:
    """Scale adapters, so that added with scale 1 they do what these do with ``scale``."""
    if UP in adapters:
        return {**adapters, UP: {KERNEL: adapters[UP][KERNEL] * scale}}
    return {name: fold(child, scale) for name, child in adapters.items()}
