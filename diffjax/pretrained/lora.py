"""Low-rank adapters (Hu et al. 2021) from and to files, and merged into their networks.

Files of kohya's scripts (``lora_unet_..._to_q.lora_down.weight`` with an ``alpha``, in the names of
diffusers or of the single-file layout) and of diffusers and peft (``unet....to_q.lora_A.weight``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import lora
from diffjax.pretrained.files import StrPath, Weights, open_safetensors
from diffjax.pretrained.models import Model
from diffjax.pretrained.single_file import unet_name
from diffjax.pretrained.state_dict import (
    add_to,
    from_state_dict,
    save_safetensors,
    state_shapes,
)
from diffjax.types import PyTree

_ROLES = [
    (re.compile(r"^(.*?)[._]lora(?:_linear_layer)?[._](?:down|A)(?:\.default)?\.weight$"), "down"),
    (re.compile(r"^(.*?)[._]lora(?:_linear_layer)?[._](?:up|B)(?:\.default)?\.weight$"), "up"),
    (re.compile(r"^(.*?)\.alpha$"), "alpha"),
]
# Beginnings of flattened names, the longest first.
_PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder_2_": "text_encoder_2",
    "text_encoder_": "text_encoder",
    "base_model_model_": "unet",
    "unet_": "unet",
}
_METADATA = "lora_adapter_metadata"
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for


class Adapter(NamedTuple):
    """``W + scale alpha / r up down`` for one weight; shapes (r, I, ...), (O, r, ...)."""

    down: Callable[[], np.ndarray]
    up: Callable[[], np.ndarray]
    alpha: float | None


def merge_lora(
    models: Mapping[str, Model], path: StrPath, *, scale: float = 1.0
) -> dict[str, Model]:
    """Networks with an adapter added: ``W + scale (alpha / r) B A`` (Hu et al. 2021, eq. 3).

    Args:
        models: by the names of a diffusers folder, as from `load_single_file`.
        path: the adapter's .safetensors file.
        scale: 1 as it was trained, 0 for none of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle or damaged, or holds what is no low-rank adapter, or is for
            weights that these networks do not have, or of another shape.
    """
    weights = open_safetensors(path)
    changes: dict[str, dict[str, Callable[[], np.ndarray]]] = {name: {} for name in models}
    names = {part: _Names(model) for part, model in models.items()}
    unknown = []
    for module, adapter in _adapters(weights).items():
        part, flat = _part(module)
        key = names[part].find(flat) if part in names else None
        if key is None:
            unknown.append(module)
            continue
        changes[part][key] = _delta(key, adapter, scale, names[part].shapes[key])
    if unknown:
        raise ValueError(f"the networks have no weights for {', '.join(sorted(unknown))}")
    return {
        name: model._replace(params=add_to(model.params, changes[name]))
        for name, model in models.items()
    }


def save_lora(path: StrPath, adapters: PyTree, *, scale: float) -> None:
    """Write the adapters of a UNet for diffusers (``unet....to_q.lora_A.weight``).

    Files in these names hold no alpha, and readers take it to be the rank: ``scale`` goes into B.

    Args:
        adapters: see `diffjax.lora`.
        scale: ``alpha / r`` that they were trained with.
    """
    save_safetensors(path, {"unet": lora.fold(adapters, scale)})


def load_lora(model: Model, path: StrPath) -> PyTree:
    """The adapters of a UNet in a file, to be added with `diffjax.lora.merge`; 1 as trained.

    Layers that are scanned get adapters of one rank: smaller ones are filled up with zeros, and so
    are those of layers that the file leaves out.

    Raises:
        FileNotFoundError, ValueError: see `merge_lora`; or the file has adapters of text encoders.
    """
    names, found = _Names(model), {}
    modules = _adapters(open_safetensors(path))
    others = [module for module in modules if _part(module)[0] != "unet"]
    if others:
        raise ValueError(f"{path} is also for text encoders ({others[0]}): it can only be merged")
    keys = {module: names.find(_part(module)[1]) for module in modules}
    if unknown := sorted(module for module, key in keys.items() if key is None):
        raise ValueError(f"the networks have no weights for {', '.join(unknown)}")
    for module, key in keys.items():
        found[str(key)] = _factors(str(key), modules[module], 1.0, names.shapes[str(key)])
    return jax.tree.map(jnp.asarray, _tree(model.params, found))


def _tree(params: PyTree, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> PyTree:
    """Adapters from (r, I, ...) and (O, r) by key of the state dict."""
    state: dict[str, np.ndarray] = {}
    made: dict[lora.Path, PyTree] = {}
    for path, layer in lora.layers(params):
        keys = list(state_shapes(lora.nested({path: {lora.KERNEL: layer[lora.KERNEL]}})))
        if not (there := [found[key] for key in keys if key in found]):
            continue
        rank = max(len(down) for down, _ in there)
        shapes = lora.factor_shapes(layer[lora.KERNEL].shape, rank)
        like = {
            name: {lora.KERNEL: jax.ShapeDtypeStruct(shape, np.float32)}
            for name, shape in zip((lora.DOWN, lora.UP), shapes, strict=True)
        }
        made[path] = like
        for key, shape in state_shapes(lora.nested({path: like})).items():
            stem, _, which = key.removesuffix(".weight").rpartition(".")
            pair = found.get(f"{stem}.weight")
            state[key] = _padded(None if pair is None else pair[which == lora.UP], shape)
    return from_state_dict(state, lora.nested(made))


def _padded(factor: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """A factor with zeros up to another rank."""
    out = np.zeros(shape, np.float32)
    if factor is not None:
        out[tuple(slice(size) for size in factor.shape)] = factor
    return out


class _Names:
    """The weights of a network by their names with dots flattened to underscores."""

    def __init__(self, model: Model) -> None:
        self.shapes = state_shapes(model.params)
        stems = {key: key.removesuffix(".weight") for key in self.shapes if key.endswith(".weight")}
        self.keys = {stem.replace(".", "_"): key for key, stem in stems.items()}
        self.blocks = getattr(model.net, "blocks", 0)

    def find(self, flat: str) -> str | None:
        """The key of a flattened name of diffusers, or of the single-file layout."""
        names = [flat, f"{flat}_0", f"text_model_{flat}"]
        m = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d+)_(.+)", flat)
        if m or flat.startswith(("middle_block_", "time_embed_", "label_emb_", "out_")):
            names.append(_flat_unet_name(flat, self.blocks))
        return next((self.keys[name] for name in names if name in self.keys), None)


def _flat_unet_name(flat: str, blocks: int) -> str:
    dotted = re.sub(r"^(input_blocks|output_blocks)_(\d+)_(\d+)_", r"\1.\2.\3.", flat)
    dotted = re.sub(r"^middle_block_(\d)_", r"middle_block.\1.", dotted)
    dotted = re.sub(r"(in_layers|out_layers|emb_layers|time_embed|^out)_(\d)$", r"\1.\2", dotted)
    dotted = re.sub(r"^label_emb_0_(\d)$", r"label_emb.0.\1", dotted)
    return unet_name(f"{dotted}.weight", blocks).removesuffix(".weight").replace(".", "_")


def _part(module: str) -> tuple[str, str]:
    """(network, flattened name in it) of a module of an adapter; the UNet if it does not say."""
    flat = module.replace(".processor", "").replace(".", "_")
    for prefix, part in _PARTS.items():
        if flat.startswith(prefix):
            return part, flat.removeprefix(prefix)
    return "unet", flat


def _adapters(weights: Weights) -> dict[str, Adapter]:
    found: dict[str, dict[str, str]] = {}
    strange = []
    for key in weights:
        for pattern, role in _ROLES:
            if m := pattern.match(key):
                found.setdefault(m[1], {})[role] = key
                break
        else:
            strange.append(key)
    strange += [module for module, roles in found.items() if not {"down", "up"} <= set(roles)]
    if strange or not found:
        raise ValueError(f"not a low-rank adapter: {', '.join(sorted(strange)) or 'no keys'}")
    stored = json.loads(weights.metadata.get(_METADATA) or "{}")
    return {module: _adapter(weights, module, roles, stored) for module, roles in found.items()}


def _adapter(
    weights: Weights, module: str, roles: dict[str, str], stored: Mapping[str, Any]
) -> Adapter:
    down, up = weights.tensors[roles["down"]], weights.tensors[roles["up"]]
    if "alpha" in roles:
        return Adapter(down.read, up.read, weights[roles["alpha"]].item())
    return Adapter(down.read, up.read, _stored_alpha(module, stored, down.shape[0]))


def _stored_alpha(module: str, stored: Mapping[str, Any], rank: int) -> float | None:
    """The alpha of peft's config, which diffusers keeps in the metadata of a file.

    The rank is that of the weights; with ``use_rslora`` alpha counts over its root (Kalajdzievski
    2023).
    """
    part = module.split(".")[0]
    if stored.get(f"{part}.use_dora"):
        raise ValueError("adapters with use_dora are not supported")
    alpha = stored.get(f"{part}.lora_alpha")
    for name, own in (stored.get(f"{part}.alpha_pattern") or {}).items():
        if not re.fullmatch(r"[\w.]+", name):
            raise ValueError(f"alpha_pattern must hold names of layers, not {name!r}")
        if f".{module}".endswith(f".{name}"):
            alpha = own
            break
    if alpha is not None and stored.get(f"{part}.use_rslora"):
        return alpha * math.sqrt(rank)
    return alpha


def _delta(
    key: str, adapter: Adapter, scale: float, shape: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        down, up = _factors(key, adapter, scale, shape)
        rank = len(down)
        return (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(shape)

    return make


def _factors(
    key: str, adapter: Adapter, scale: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(r, I, ...) and (O, r, 1, ...) of a weight (O, I, ...), the second with all that scales."""
    down, up = (np.asarray(a(), np.float32) for a in (adapter.down, adapter.up))
    rank = down.shape[0]
    if up.size != shape[0] * rank or down.size != rank * math.prod(shape[1:]):
        raise ValueError(
            f"{key} has shape {shape}, but the adapter has shapes {down.shape} and {up.shape}"
        )
    factor = scale * (1.0 if adapter.alpha is None else adapter.alpha / rank)
    ones = (1,) * (len(shape) - 2)
    return down.reshape(rank, *shape[1:]), factor * up.reshape(shape[0], rank, *ones)
