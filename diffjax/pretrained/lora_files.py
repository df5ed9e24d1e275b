"""Merge adapters from files into networks, and load or save low-rank ones as trees.

`adapter_files` opens a file and sorts its tensors by layer, and `adapters` computes what they do to
a weight. This module finds the network and the weight that each layer of a file belongs to, which
names with underscores for dots make ambiguous.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import lora
from diffjax.pretrained.adapter_files import (
    LORA_FILE,
    AdapterFile,
    Layer,
    changes_bias,
    changes_weight,
    is_low_rank,
    open_adapter,
    read_tensor,
)
from diffjax.pretrained.adapters import change_bias, change_weight
from diffjax.pretrained.components import TEXTS
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.models import Component
from diffjax.pretrained.recognise import describe_keys
from diffjax.pretrained.single_file import rename_unet_key
from diffjax.pretrained.state_dict import (
    change_leaves,
    from_state_dict,
    list_state_shapes,
    save_safetensors,
)
from diffjax.types import Params
from diffjax.untrusted import name_some

__all__ = ["LORA_FILE", "load_lora", "load_loras", "merge_lora", "save_lora"]

# Beginnings of flattened names, the longest first.
_PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_unet_": "unet",
    "lycoris_te1_": "text_encoder",
    "lycoris_te2_": "text_encoder_2",
    "lycoris_te_": "text_encoder",
    "text_encoder_2_": "text_encoder_2",
    "text_encoder_": "text_encoder",
    "unet_": "unet",
}
# Beginnings that say nothing of the network.
_BARE = ("base_model_model_", "lycoris_")
Change = Callable[[np.ndarray], np.ndarray]


class Place(NamedTuple):
    """Where a layer of a file belongs.

    Attributes:
        part: the network by its folder's name, such as ``unet``.
        key: key of the layer's weight in the state dict of that network.
    """

    part: str
    key: str


def merge_lora(
    models: Mapping[str, Component], path: StrPath, *, scale: float = 1.0
) -> dict[str, Component]:
    """Return networks with an adapter merged: ``W + scale (W' - W)``, where W' is the adapted
    weight.

    With LoRA that is ``W + scale (alpha / r) B A`` (Hu et al. 2021, eq. 3).
    `diffjax.pretrained.adapters` lists the other methods.

    Args:
        models: networks by the names of their folders in diffusers, as from `load_single_file`.
        path: the adapter's .safetensors file, or a folder of peft or diffusers.
        scale: 1 as trained, 0 for no change.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the scale is not finite; the file is a pickle or damaged, or uses a method that
            is not supported; or its layers are not those of these networks, or have other shapes.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of {path} must be a finite number, got {scale}")
    file = open_adapter(path)
    names = {part: _Names(model) for part, model in models.items()}
    changes: dict[str, dict[str, Change]] = {part: {} for part in models}
    for module, place in _find_places(file, names).items():
        layer, found = file.layers[module], changes[place.part]
        for key, change in _make_changes(file.path, layer, place, names[place.part], scale).items():
            if key in found:
                raise ValueError(f"{file.path} has two adapters for {key} of {place.part}")
            found[key] = change
    return {
        name: model._replace(params=change_leaves(model.params, changes[name]))
        for name, model in models.items()
    }


def _make_changes(
    file: Path, layer: Layer, place: Place, names: _Names, scale: float
) -> dict[str, Change]:
    """Return the functions that change the weight and the bias of a layer, by key of the state
    dict.

    Raises:
        ValueError: the adapter changes a bias that the layer does not have.
    """
    out: dict[str, Change] = {}
    if changes_weight(layer):
        out[place.key] = partial(_apply_change, file, layer, place.key, change_weight, scale)
    if changes_bias(layer):
        bias = f"{place.key.removesuffix('weight')}bias"
        if bias not in names.shapes:
            raise ValueError(f"{file} changes the bias of {layer.module}, which has none")
        out[bias] = partial(_apply_change, file, layer, bias, change_bias, scale)
    return out


def _apply_change(
    file: Path,
    layer: Layer,
    key: str,
    change: Callable[..., np.ndarray],
    scale: float,
    old: np.ndarray,
) -> np.ndarray:
    """Return ``old + scale (new - old)`` in float32, where ``change`` computes the new values.

    Raises:
        ValueError: the tensors do not fit the weight; the message names its key and the file.
    """
    roles = {role: read_tensor(file, layer, role) for role in layer.tensors}
    try:
        new = change(roles, old, layer.scaling)
    except ValueError as error:
        raise ValueError(f"{key} {error} ({file})") from error
    return new if scale == 1 else old + scale * (new - old)


def save_lora(path: StrPath, adapters: Params, *, scale: float) -> None:
    """Write adapters in diffusers' names (``unet....to_q.lora_A.weight``).

    Files in these names hold no alpha, and readers assume that it equals the rank. ``scale`` is
    therefore multiplied into B.

    Args:
        path: the .safetensors file to write.
        adapters: a tree of low-rank factors of a UNet, see `diffjax.lora`; those of text encoders
            are its entries ``text_encoder`` and ``text_encoder_2``.
        scale: ``alpha / r`` that they were trained with.
    """
    folded = dict(lora.fold(adapters, scale))
    texts = {name: folded.pop(name) for name in TEXTS if name in folded}
    save_safetensors(path, {"unet": folded, **texts})


def load_lora(model: Component, path: StrPath) -> Params:
    """Load the adapters of a UNet as a tree that `diffjax.lora.merge` adds; see `load_loras`.

    Raises:
        FileNotFoundError, ValueError: see `load_loras`. Also, the file has adapters of text
            encoders.
    """
    file = open_adapter(path)
    others = [module for module in file.layers if _split_part(module)[0] not in ("unet", None)]
    if others:
        raise ValueError(
            f"{path} is also for text encoders ({others[0]}): give load_loras all networks"
        )
    return load_loras({"unet": model}, path)["unet"]


def load_loras(models: Mapping[str, Component], path: StrPath) -> dict[str, Params]:
    """Load the adapters of each network as trees that `diffjax.lora.merge` adds; a scale of 1 is as
    trained.

    Layers that are scanned share one array, so their adapters get one rank: smaller ones are padded
    with zeros, and so are layers that the file does not have.

    Args:
        model: the UNet.
        path: the adapter's .safetensors file, or a folder of peft or diffusers.

    Args:
        models: by the names of a diffusers folder: ``unet``, ``text_encoder``, ``text_encoder_2``.

    Raises:
        FileNotFoundError, ValueError: see `merge_lora`. Also, the file has adapters of another
            method than LoRA, which can only be merged.
    """
    names, file = {part: _Names(model) for part, model in models.items()}, open_adapter(path)
    if more := [layer.module for layer in file.layers.values() if not is_low_rank(layer)]:
        raise ValueError(
            f"{path} has more than low-rank adapters ({name_some(more)}): it can only be merged"
        )
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for module, place in _find_places(file, names).items():
        shape = names[place.part].shapes[place.key]
        factors = _read_factors(file.path, file.layers[module], place.key, shape)
        found.setdefault(place.part, {})[place.key] = factors
    return {
        part: jax.tree.map(jnp.asarray, _build_tree(models[part].params, there))
        for part, there in found.items()
    }


def _read_factors(
    file: Path, layer: Layer, key: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the factors (r, I, ...) and (O, r, 1, ...) of a weight (O, I, ...).

    The second one is multiplied by the file's ``alpha / r``.

    Raises:
        ValueError: the factors do not fit the weight.
    """
    down, up = (read_tensor(file, layer, role) for role in ("down", "up"))
    rank = down.shape[0]
    if up.size != shape[0] * rank or down.size != rank * math.prod(shape[1:]):
        raise ValueError(
            f"{key} has shape {shape}, but the adapter has shapes {down.shape} and {up.shape} "
            f"({file})"
        )
    ones = (1,) * (len(shape) - 2)
    factor = layer.scaling.factor(rank)
    return down.reshape(rank, *shape[1:]), factor * up.reshape(shape[0], rank, *ones)


def _build_tree(params: Params, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Params:
    """Build a tree of adapters in our axes from factors by the key of their weight.

    Args:
        params: parameters of the network, whose layers the tree follows.
        found: (r, I, ...) and (O, r, ...) by key of the state dict.
    """
    state: dict[str, np.ndarray] = {}
    made: dict[lora.Path, Params] = {}
    for path, layer in lora.layers(params):
        keys = list(list_state_shapes(lora.nest({path: {lora.KERNEL: layer[lora.KERNEL]}})))
        if not (there := [found[key] for key in keys if key in found]):
            continue
        rank = max(len(down) for down, _ in there)
        shapes = lora.factor_shapes(layer[lora.KERNEL].shape, rank)
        like = {
            name: {lora.KERNEL: jax.ShapeDtypeStruct(shape, np.float32)}
            for name, shape in zip((lora.DOWN, lora.UP), shapes, strict=True)
        }
        made[path] = like
        for key, shape in list_state_shapes(lora.nest({path: like})).items():
            stem, _, which = key.removesuffix(".weight").rpartition(".")
            pair = found.get(f"{stem}.weight")
            state[key] = _pad_rank(None if pair is None else pair[which == lora.UP], shape)
    return from_state_dict(state, lora.nest(made))


def _pad_rank(factor: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return a factor padded with zeros to a larger rank, or zeros if there is none."""
    out = np.zeros(shape, np.float32)
    if factor is not None:
        out[tuple(slice(size) for size in factor.shape)] = factor
    return out


# ---- names --------------------------------------------------------------------------------------


class _Names:
    """The weights of a network, to be found by names whose dots became underscores.

    Attributes:
        shapes: shapes of all parameters by key of the state dict.
        keys: keys of the weights by their flattened names.
        blocks: residual blocks per level of a UNet, which the names of the original code depend on.
    """

    def __init__(self, model: Component) -> None:
        self.shapes = list_state_shapes(model.params)
        stems = {key: key.removesuffix(".weight") for key in self.shapes if key.endswith(".weight")}
        self.keys = {stem.replace(".", "_"): key for key, stem in stems.items()}
        self.blocks = getattr(model.net, "blocks", 0)

    def find(self, flat: str) -> str | None:
        """Return the key of a weight, or None, for a flattened name of diffusers or of the
        original code.
        """
        names = [flat, f"{flat}_0", f"text_model_{flat}"]
        m = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d+)_(.+)", flat)
        if m or flat.startswith(("middle_block_", "time_embed_", "label_emb_", "out_")):
            # Files of networks with other numbers per level have the names of diffusers.
            names += [_modernise_unet_name(flat, n) for n in [self.blocks] if isinstance(n, int)]
        return next((self.keys[name] for name in names if name in self.keys), None)


def _modernise_unet_name(flat: str, blocks: int) -> str:
    """Return diffusers' flattened name for one of the original code, such as
    ``input_blocks_1_1_proj_in``.

    The dots that `rename_unet_key` needs are put back first.
    """
    dotted = re.sub(r"^(input_blocks|output_blocks)_(\d+)_(\d+)_", r"\1.\2.\3.", flat)
    dotted = re.sub(r"^middle_block_(\d)_", r"middle_block.\1.", dotted)
    dotted = re.sub(r"(in_layers|out_layers|emb_layers|time_embed|^out)_(\d)$", r"\1.\2", dotted)
    dotted = re.sub(r"^label_emb_0_(\d)$", r"label_emb.0.\1", dotted)
    return rename_unet_key(f"{dotted}.weight", blocks).removesuffix(".weight").replace(".", "_")


def _split_part(module: str) -> tuple[str | None, str]:
    """Split a module's name into its network (None if the name has none) and the flattened name
    in it.
    """
    flat = module.replace(".processor", "").replace(".", "_")
    for prefix, part in _PARTS.items():
        if flat.startswith(prefix):
            return part, flat.removeprefix(prefix)
    bare = next((prefix for prefix in _BARE if flat.startswith(prefix)), "")
    return None, flat.removeprefix(bare)


def _find_places(file: AdapterFile, names: Mapping[str, _Names]) -> dict[str, Place]:
    """Find the weight that every layer of an adapter changes.

    Args:
        file: the adapter.
        names: the weights of each network.

    Returns:
        Network and key by the name of the layer in the file.

    Raises:
        ValueError: the networks lack a layer, or more than one network has it.
    """
    out, unknown = {}, []
    for module in file.layers:
        part, flat = _split_part(module)
        part = part or (file.part if file.part in names else None)
        parts = names if part is None else [part] if part in names else []
        keys = {name: key for name in parts if (key := names[name].find(flat))}
        if len(keys) > 1:
            raise ValueError(
                f"{module} in {file.path} could be of {' or '.join(keys)}; put the adapter into a "
                "folder of peft that is called so"
            )
        if not keys:
            unknown.append(module)
        out[module] = Place(*next(iter(keys.items()), ("", "")))
    if unknown:
        raise ValueError(
            f"the networks have no weights for {name_some(sorted(unknown))}: {len(unknown)} of "
            f"{len(file.layers)} layers in {file.path} are for {_describe_other_model(unknown)}"
        )
    return out


def _describe_other_model(modules: Collection[str]) -> str:
    """Describe, for a message, the kind of model that has these layers which the loaded one
    lacks.
    """
    described = describe_keys(modules)
    xl = any(re.search(r"(te2|text_encoder_2)[_.]|blocks[_.][2-9][_.]attn", m) for m in modules)
    return described or ("another model, XL by their names" if xl else "another model")
