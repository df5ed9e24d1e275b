r"""Low-rank adapters (Hu et al. 2021): ``W + (alpha / r) B A`` for chosen layers of any network.

Adapters are a tree of parameters beside that of the network. Where a layer has ``kernel``, its
adapter has ``lora_A`` and ``lora_B`` with a kernel each, so that the joined paths are peft's names,
and layers that are scanned have stacked adapters:

| kernel | lora_A | lora_B |
|---|---|---|
| ([L,] I, O) | ([L,] I, r) | ([L,] r, O) |
| (H, W, I, O) | (H, W, I, r) | (1, 1, r, O) |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from diffjax.types import Array, Params, PyTree

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DOWN, UP, KERNEL = "lora_A", "lora_B", "kernel"

Path = tuple[str, ...]


def layers(params: Params, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Array]]]:
    """Every layer that has a kernel, with its path."""
    if KERNEL in params:
        yield path, params
    for name, child in params.items():
        if isinstance(child, Mapping):
            yield from layers(child, (*path, name))


def find(params: Params, targets: Sequence[str]) -> dict[Path, Array]:
    """Kernels of the layers whose dotted path is a target or ends in one.

    Args:
        targets: such as ``to_q``, ``attn2.to_k`` or ``ff.net.2``.

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
) -> PyTree:
    """Adapters of chosen layers that change nothing yet: ``A ~ N(0, 1 / r^2)``, ``B = 0``.

    Raises:
        ValueError: the rank is not positive, or as `find`.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA must be at least 1, got {rank}")
    found = find(params, targets)
    keys = jax.random.split(key, len(found))
    return nested({path: _fresh(k, found[path], rank) for k, path in zip(keys, found, strict=True)})


def _fresh(key: jax.Array, kernel: Array, rank: int) -> PyTree:
    down, up = factor_shapes(kernel.shape, rank)
    first = jax.random.normal(key, down, jnp.float32) / rank
    return {DOWN: {KERNEL: first}, UP: {KERNEL: jnp.zeros(up, jnp.float32)}}


def factor_shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``lora_A`` and ``lora_B`` of a kernel."""
    *before, inputs, outputs = kernel
    around = [1, 1] if len(kernel) == 4 else before
    return (*before, inputs, rank), (*around, rank, outputs)


def nested(leaves: Mapping[Path, PyTree]) -> PyTree:
    """The tree with these sub-trees at these paths."""
    tree: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = leaf
    return tree


def merge(params: Params, adapters: PyTree, scale: Array | float) -> PyTree:
    """Parameters with adapters added, ``W + scale B A`` (Hu et al. 2021, eq. 3), differentiable.

    Args:
        params: of the network; layers without an adapter are passed on as they are.
        adapters: as from `init`.
        scale: ``alpha / r``, or 0 for none of it; may be traced.

    Raises:
        ValueError: an adapter is for a layer that is not there, or of another shape; both are
            named.
    """
    return _merged(params, adapters, scale, ())


def _merged(params: Params, adapters: PyTree, scale: Array | float, path: Path) -> PyTree:
    if DOWN in adapters:
        return {**params, KERNEL: _sum(params[KERNEL], adapters, scale, path)}
    if absent := [".".join((*path, name)) for name in adapters if name not in params]:
        raise ValueError(f"the network has no weights for {', '.join(absent)}")
    changed = {k: _merged(params[k], v, scale, (*path, k)) for k, v in adapters.items()}
    return {**params, **changed}


def _sum(kernel: Array, adapter: PyTree, scale: Array | float, path: Path) -> Array:
    down, up = adapter[DOWN][KERNEL], adapter[UP][KERNEL]
    if (down.shape, up.shape) != factor_shapes(kernel.shape, down.shape[-1]):
        raise ValueError(
            f"{'.'.join(path)} has a kernel of shape {kernel.shape}, but its adapter has shapes "
            f"{down.shape} and {up.shape}"
        )
    # Multiplied first: the product of a narrow adapter is as large as the kernel.
    product = (down * scale) @ up
    return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)


def fold(adapters: PyTree, scale: float) -> PyTree:
    """Adapters to be added with scale 1 that add what these do with ``scale``."""
    if UP in adapters:
        return {**adapters, UP: {KERNEL: adapters[UP][KERNEL] * scale}}
    return {name: fold(child, scale) for name, child in adapters.items()}
