"""Read and write single networks in the folders of diffusers and transformers.

A folder has config.json and weights, which may be split into shards. `pipelines` reads several such
folders; `fill` also serves single files, whose weights `single_file` renames first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from diffjax.nets.controlnet import ControlNet
from diffjax.nets.text import CLIPText
from diffjax.pretrained import configs
from diffjax.pretrained.config_specs import check_counts
from diffjax.pretrained.files import (
    StrPath,
    Weights,
    open_folder,
    resolve_inside,
    split_shards,
    write_json,
)
from diffjax.pretrained.hub import download
from diffjax.pretrained.state_dict import Place, from_state_dict, iterate_state
from diffjax.pretrained.transformer_configs import share_embedding
from diffjax.types import JsonObject, Params, summarize
from diffjax.untrusted import naming, read_json
from diffjax.writing import replace_file

SHARD = 5 * 10**9  # bytes of one file, as in diffusers' repositories
Sharding = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_ATTENTION = re.compile(rf"(attentions\.\d+)\.({'|'.join(_LEGACY)})\.")
# CLIP's half that sees images, and its temperature.
_NOT_TEXT = ("vision_model.", "visual_projection.", "visual.", "logit_scale", "logit_bias")
# A tiny autoencoder has layers in its encoder, too.
_BARE_TEXT = re.compile(
    r"embeddings\.(token_embedding|position_embedding|position_ids)\b|final_layer_norm\."
    r"|encoder\.layers\.\d+\.(self_attn|mlp|layer_norm)"
)


class Component(NamedTuple):
    """One network of a published model, with its weights.

    Attributes:
        net: the Linen module.
        params: its parameters.
        config: its config.json.
    """

    net: Any
    params: Params
    config: JsonObject

    def __repr__(self) -> str:
        return summarize(self)


def load_model(
    folder: StrPath,
    *,
    variant: str | None = None,
    dtype: DTypeLike = jnp.float32,
    sharding: Sharding | None = None,
) -> Component:
    """Load a network of diffusers or transformers from its folder: config.json and safetensors.

    Tensors are read, cast and put on devices one by one, so that host memory holds little more than
    one of them beside the result.

    Args:
        folder: the folder of the network, or a name on the Hub.
        variant: part of the file names, such as ``"fp16"``.
        dtype: type of the parameters and of the computation.
        sharding: one sharding for all parameters, or ``(key, shape) -> sharding``. None is the
            default device.

    Raises:
        FileNotFoundError: the folder lacks config.json, or weights of that variant.
        ValueError: the config is not supported, or the weights do not fit it, are damaged, or are
            pickles.
    """
    path = download(folder, variant=variant)
    file = resolve_inside(path, "config.json")
    config = read_json(file)
    with naming(file):
        configs.build(config)  # errors that are the config's alone
    with naming(path):
        return fill(config, open_folder(path, variant=variant), dtype, sharding)


def fill(
    config: JsonObject, weights: Weights, dtype: DTypeLike, sharding: Sharding | None = None
) -> Component:
    """Build the network of a config and fill it with weights in diffusers' names, old or new.

    Args:
        config: a config.json.
        weights: the state dict; tensors are read one by one.
        dtype: type of the parameters and of the computation.
        sharding: see `load_model`.

    Raises:
        ValueError: the config is not supported, or the weights do not fit it.
    """
    net = configs.build(config)
    weights = share_embedding(weights.rename_keys(modernise_key))
    check_counts(config, weights)
    net = net if dtype == jnp.float32 else _set_dtype(net, dtype)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), configs.shapes(net, config)
    )
    if isinstance(net, CLIPText):
        weights = _drop_unused(weights, net)
    return Component(net, from_state_dict(weights, like, place=_make_placer(sharding)), config)


def _drop_unused(weights: Weights, net: CLIPText) -> Weights:
    """Return a text encoder's weights without CLIP's image half and unused projection.

    Files that merge several models have kept them.
    """
    unused = _NOT_TEXT if net.projection else (*_NOT_TEXT, "text_projection.")
    return Weights({k: t for k, t in weights.tensors.items() if not k.startswith(unused)})


def _set_dtype(net: Any, dtype: DTypeLike) -> Any:
    """Return the network with another type of computation. A ControlNet takes it from its base."""
    if isinstance(net, ControlNet):
        return net.clone(base=net.base.clone(dtype=dtype))
    return net.clone(dtype=dtype)


def modernise_key(key: str) -> str:
    """Return the name that diffusers uses today for a weight that other versions call something
    else.

    The attention of early autoencoders had ``query``, ``key``, ``value`` and ``proj_attn``. Text
    encoders come with and without the prefix ``text_model.``, depending on the version of
    transformers.
    """
    if _BARE_TEXT.match(key):
        return f"text_model.{key}"
    return _LEGACY_ATTENTION.sub(lambda m: f"{m[1]}.{_LEGACY[m[2]]}.", key)


def _make_placer(sharding: Sharding | None) -> Place:
    """Return the function that puts a parameter on its devices, for `from_state_dict`."""

    def place(key: str, value: np.ndarray) -> jax.Array:
        if callable(sharding):
            return jax.device_put(value, sharding(key, value.shape))
        return jax.device_put(value, sharding)

    return place


def save_model(
    folder: StrPath,
    net: Any,
    params: Params,
    *,
    in_channels: int = 0,
    config: JsonObject | None = None,
    shard: int = SHARD,
) -> None:
    """Write a network as a folder that diffusers or transformers loads.

    Args:
        folder: the folder, which is made if it does not exist.
        net: the network.
        params: its parameters.
        in_channels: channels of the input of a UNet; those of its output if 0.
        config: the config.json that the network was loaded with, to be written unchanged; None
            derives one from ``net``.
        shard: bytes of one file, beyond which there are several and an index.

    Raises:
        ValueError: the other library has no such network.
        FileExistsError: the folder holds another model.
    """
    path = Path(folder)
    config = config or configs.describe(net, in_channels=in_channels)
    path.mkdir(parents=True, exist_ok=True)
    _check_is_replaceable(path / "config.json", configs.read_class_name(config))
    library = configs.KINDS[configs.read_class_name(config)].library
    base = "model" if library == "transformers" else "diffusion_pytorch_model"
    _save_shards(path, base, params, shard)
    write_json(path / "config.json", config)


def _check_is_replaceable(path: Path, kind: str) -> None:
    """Check that a config.json that will be overwritten is of the same class of network.

    Raises:
        FileExistsError: it is of another class, or is no config.
    """
    if not path.exists():
        return
    try:
        found: object = configs.read_class_name(read_json(path))
    except (ValueError, TypeError):
        found = None
    if found != kind:
        raise FileExistsError(
            f"{path} is {f'of a {found}' if found else 'of no model'}, and a {kind} would take its "
            "place; choose another folder"
        )


def _save_shards(path: Path, base: str, params: Params, limit: int) -> None:
    """Write the weights of a network as one file or as shards with an index.

    Args:
        path: the folder.
        base: beginning of the file names, ``model`` or ``diffusion_pytorch_model``.
        params: the parameters.
        limit: bytes of one file.

    Raises:
        FileExistsError: see `_check_for_others`.
    """
    sizes = [
        sum(v.nbytes for _, v in group) for group in split_shards(iterate_state(params), limit)
    ]
    names, where = _name_shards(base, len(sizes)), {}
    _check_for_others(path, base, names)
    for name, group in zip(names, split_shards(iterate_state(params), limit), strict=True):
        with replace_file(path / name) as partial:
            save_file(dict(group), partial, {"format": "pt"})
        where.update({key: name for key, _ in group})
    if len(names) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        write_json(path / f"{base}.safetensors.index.json", index)


def _check_for_others(path: Path, base: str, names: list[str]) -> None:
    """Check that the folder holds no other weights, which readers might load instead of the new
    ones.

    Raises:
        FileExistsError: a single file is to be written beside an index, or shards beside a single
            file.
    """
    index = f"{base}.safetensors.index.json"
    other = index if len(names) == 1 else f"{base}.safetensors"
    if (path / other).exists():
        raise FileExistsError(
            f"{path / other} is of weights in {'several files' if other == index else 'one file'}, "
            "which readers may take instead of the new ones; remove it or choose another folder"
        )


def _name_shards(base: str, count: int) -> list[str]:
    """Return the file names of ``count`` shards, numbered from 1 as diffusers numbers them."""
    if count == 1:
        return [f"{base}.safetensors"]
    return [f"{base}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
