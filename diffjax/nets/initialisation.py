"""How networks begin: the initialisations of the releases, by name.

| name | kernels | last layers of residual branches, and of the network | biases |
|---|---|---|---|
| ddpm | fan-average uniform | the same times 1e-5 | 0 |
| score_sde | the same; queries, keys and values times sqrt(0.1) | the same | 0 |
| torch | uniform in ±1/sqrt(fan_in), PyTorch's default | the same | as the kernels |
| adm | as torch | exactly 0 | as torch |

``ddpm`` is that of Ho et al. 2020, and what the layers of `diffjax.nets.layers` do by themselves.
``score_sde`` is that of Song et al. 2021, where the projections of attention begin smaller; Karras
et al. 2022 draw all three as one kernel, with the same spread, for CIFAR-10. ``adm`` is that of the
UNets of Nichol & Dhariwal 2021, Dhariwal & Nichol 2021 and Rombach et al. 2022, and of Karras et
al. 2022 for ImageNet; of transformer blocks only ``proj_out`` is 0. ``torch`` is that of the code
of DDIM (Song et al. 2020) and of the autoencoders of Rombach et al. 2022. Both draw the embeddings
of classes from N(0, 1).
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from diffjax.types import Array, Module, Params, choose

INITIALISATIONS = dict.fromkeys(("ddpm", "score_sde", "torch", "adm"))
_QUERIES = re.compile(r"\bto_[qkv]$")
_LAST = re.compile(r"(\bconv2|\bproj_out|\bconv_out|\bto_out\.0)$")
_OF_BLOCK = "transformer_blocks"
_CLASSES = ("class_embedding", "label_encoder")  # codes and words begin in their own ways


def init_network(net: Module, key: jax.Array, *inputs: Any) -> dict[str, Params]:
    """Return ``net.init(key, *inputs)``, its collections by name.

    JAX keeps the trace of a network for inputs of some shapes. So configs that share a network, or
    a task and the base that it trains something beside, trace it once in a process, which takes
    seconds for a large one. A network that has no hash is traced each time.
    """
    try:
        init = _compile_init(cast(Hashable, net))
    except TypeError:
        init = net.init
    return init(key, *inputs)


@functools.lru_cache(maxsize=64)
def _compile_init(net: Any) -> Callable[..., dict[str, Params]]:
    return jax.jit(net.init)


def describe_network(net: Module, *inputs: Any) -> Params:
    """Describe the parameters of a network by shapes and types, for inputs like these."""
    return jax.eval_shape(functools.partial(init_network, net), jax.random.key(0), *inputs)[
        "params"
    ]


def initialise(params: Params, name: str, key: jax.Array) -> Params:
    """Fresh parameters of a network, begun as ``name`` says.

    Args:
        params: as the network's own ``init`` made them; their shapes and names count, and what the
            initialisation leaves alone (norms, Fourier features) stays.
        name: a name of the table above.

    Raises:
        ValueError: unknown name.
    """
    choose("network.initialisation", name, INITIALISATIONS)
    if name == "ddpm":
        return params
    return _visit(params, "", name, key)


def _visit(node: Any, path: str, name: str, key: jax.Array) -> Any:
    if not isinstance(node, Mapping):
        return node
    if "kernel" in node:
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        if name == "score_sde":
            return _draw_as_score_sde(dict(node), path, own)
        return _draw_as_torch(dict(node), path, own, zeros=name == "adm")
    if name in ("torch", "adm") and path in _CLASSES and "embedding" in node:
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return {"embedding": jax.random.normal(own, node["embedding"].shape)}
    return {k: _visit(v, f"{path}.{k}" if path else k, name, key) for k, v in node.items()}


def _find_fans(kernel: Array, path: str) -> tuple[int, int]:
    """Inputs and outputs of one number of a kernel's result, and of its input."""
    shape = kernel.shape[1:] if _OF_BLOCK in path else kernel.shape  # blocks are stacked
    if len(shape) == 3:  # (inputs, heads, width), or (heads, width, outputs)
        inputs = math.prod(shape[:-1]) if path.endswith(".out") else shape[0]
        return inputs, math.prod(shape) // inputs
    pixels = math.prod(shape[:-2])
    return pixels * shape[-2], pixels * shape[-1]


def _draw_as_torch(layer: dict[str, Any], path: str, key: jax.Array, *, zeros: bool) -> Any:
    if zeros and _LAST.search(path) and _OF_BLOCK not in path:
        return jax.tree.map(jnp.zeros_like, layer)
    limit = _find_fans(layer["kernel"], path)[0] ** -0.5
    return {
        part: jax.random.uniform(jax.random.fold_in(key, k), leaf.shape, jnp.float32, -limit, limit)
        for k, (part, leaf) in enumerate(sorted(layer.items()))
    }


def _draw_as_score_sde(layer: dict[str, Any], path: str, key: jax.Array) -> Any:
    scale = 1e-5 if _LAST.search(path) else math.sqrt(0.1) if _QUERIES.search(path) else 1.0
    limit = scale * math.sqrt(6 / sum(_find_fans(layer["kernel"], path)))
    kernel = jax.random.uniform(key, layer["kernel"].shape, jnp.float32, -limit, limit)
    return {**layer, "kernel": kernel}
