"""IP-Adapters from and to the files of their authors, which diffusers reads by `load_ip_adapter`.

A file holds the projection, ``image_proj.``, and for the attentions to the text of a UNet, in the
order of `list_attentions`, ``ip_adapter.1.to_k_ip.weight``, ``ip_adapter.3...`` and so on. The odd
numbers are those of these attentions among all of them. The image encoder has a folder of its own,
``image_encoder`` beside the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from diffjax.nets.image_prompts import (
    FullProjection,
    ImageProjection,
    Resampler,
    copy_layers,
)
from diffjax.nets.vision import CLIPVision
from diffjax.pretrained.configs import trace_params
from diffjax.pretrained.files import StrPath, Weights
from diffjax.pretrained.hub import HubName, download, parse_name
from diffjax.pretrained.models import Component, load_model
from diffjax.pretrained.pickles import open_weights
from diffjax.pretrained.recognise import describe_keys
from diffjax.pretrained.state_dict import (
    from_state_dict,
    list_state_shapes,
    save_safetensors,
    to_state_dict,
)
from diffjax.types import ConfigError, Params, summarize
from diffjax.untrusted import naming

ADAPTER_FILE = "ip_adapter.safetensors"
ENCODER = "image_encoder"
_PROJECTION, _LAYERS = "image_proj.", "ip_adapter."
_HEAD_CHANNELS = 64  # of every published resampler
_ORDER = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}


class ImageAdapter(NamedTuple):
    """An IP-Adapter with its image encoder; see `diffjax.nets.image_prompts`.

    Attributes:
        projection: makes tokens of what the encoder makes of a picture.
        params: parameters of the projection.
        layers: keys and values in the attentions of the UNet, see `copy_layers`.
        encoder: CLIP's image encoder.
    """

    projection: Any
    params: Params
    layers: Params
    encoder: Component

    def __repr__(self) -> str:
        return summarize(self)


def load_image_adapter(
    unet: Component,
    path: StrPath,
    *,
    encoder: StrPath | None = None,
    dtype: DTypeLike = jnp.float32,
    allow_legacy_pickle: bool = False,
) -> ImageAdapter:
    """Load an IP-Adapter for a UNet: the plain ones, "plus" (resampler) and "full face".

    Args:
        unet: the network that it was trained for.
        path: the file, the folder that has only this one, or its name on the Hub, such as
            ``h94/IP-Adapter/models/ip-adapter_sd15.safetensors``.
        encoder: folder of the image encoder, or its name on the Hub; None is ``image_encoder``
            beside the file.
        dtype: type of the parameters and of the computation.
        allow_legacy_pickle: whether to read a file that is a pickle (.bin), without running its
            code.

    Raises:
        FileNotFoundError: there is no such file, or no image encoder.
        ConfigError: a folder has several files.
        ValueError: the file is no IP-Adapter, is one of faces (FaceID), or is for another UNet or
            encoder; or it is damaged, or a pickle that is not allowed.
    """
    file = _find_file(download(path, pickles=allow_legacy_pickle))
    weights = open_weights(file, allow_legacy_pickle=allow_legacy_pickle)
    parts = {name: _select(weights, name) for name in (_PROJECTION, _LAYERS)}
    with naming(file):
        if not all(parts.values()):
            found = describe_keys(weights) or "something else"
            raise ValueError(f"it is no IP-Adapter, but {found}")
        _refuse_faces(parts[_PROJECTION])
        layers = _read_layers(unet, parts[_LAYERS], dtype)
    vision = _load_encoder(path, file, encoder, dtype)
    with naming(file):
        width = unet.net.context_dim
        projection = _build_projection(parts[_PROJECTION], width, vision.net).clone(
            dtype=None if dtype == jnp.float32 else dtype
        )
        params = _fill(parts[_PROJECTION], trace_projection(projection, vision.net), dtype)
    return ImageAdapter(projection, params, layers, vision)


def _find_file(path: Path) -> Path:
    """Find the one file of a folder; a file is itself.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: there are several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"{path} has {len(found)} files, {names}: name one of them")
    if not found:
        raise FileNotFoundError(f"{path} has no .safetensors file of an IP-Adapter")
    return found[0]


def _select(weights: Weights, prefix: str) -> Weights:
    """Select the tensors whose keys have a prefix, without it."""
    found = weights.tensors.items()
    return Weights({k.removeprefix(prefix): t for k, t in found if k.startswith(prefix)})


def _refuse_faces(weights: Weights) -> None:
    """Refuse adapters that read embeddings of faces, which need another network.

    Raises:
        ValueError: it is one of them.
    """
    faces = any(key.startswith("perceiver_resampler.") for key in weights)
    if faces or ("proj.0.weight" in weights and "norm.weight" in weights):
        raise ValueError(
            "it is an IP-Adapter of the kind FaceID, which reads embeddings of faces by "
            "insightface and is not supported; diffusers has it"
        )


def _load_encoder(
    path: StrPath, file: Path, encoder: StrPath | None, dtype: DTypeLike
) -> Component:
    """Load the image encoder, by default from the folder beside the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder holds another network.
    """
    where: StrPath = encoder if encoder is not None else file.parent / ENCODER
    if encoder is None and not file.parent.joinpath(ENCODER, "config.json").is_file():
        name = None if Path(path).exists() else parse_name(path)
        if name is None:
            raise FileNotFoundError(
                f"{file.parent} has no folder {ENCODER} beside {file.name}: give encoder=, the "
                "folder or the name on the Hub of its image encoder"
            )
        folder = name.path.removesuffix(file.name).strip("/")
        where = str(HubName(name.repo, name.revision, f"{folder}/{ENCODER}".lstrip("/")))
    model = load_model(where, dtype=dtype)
    if not isinstance(model.net, CLIPVision):
        raise ValueError(f"{where} is no image encoder, but a {type(model.net).__name__}")
    return model


def _build_projection(weights: Weights, width: int, encoder: CLIPVision) -> Any:
    """Build the projection whose weights these are, by their names and shapes.

    Raises:
        ValueError: the names are of no kind that is known, or a shape cannot be.
    """
    if "proj.weight" in weights:
        rows = weights.shape("proj.weight")[0]
        if rows % width:
            raise ValueError(
                f"it is for another UNet: its {rows} outputs are no tokens of width {width}"
            )
        return ImageProjection(width, rows // width)
    if "proj.3.weight" in weights:
        return FullProjection(width)
    if "latents" in weights:
        _, tokens, features = weights.shape("latents")
        inner = weights.shape("layers.0.0.to_q.weight")[0]
        if inner % _HEAD_CHANNELS:
            raise ValueError(f"its attention of width {inner} has no heads of {_HEAD_CHANNELS}")
        layers = len({key.split(".")[1] for key in weights if key.startswith("layers.")})
        heads = inner // _HEAD_CHANNELS
        return Resampler(width, tokens, features, heads, _HEAD_CHANNELS, layers)
    raise ValueError("its projection is of none of the kinds that are known: base, plus, full")


def trace_projection(projection: Any, encoder: CLIPVision) -> Params:
    """Return the shapes of a projection's parameters behind an image encoder."""
    count = (encoder.size // encoder.patch) ** 2 + 1
    hidden = projection.reads_hidden
    shape = (1, count, encoder.features) if hidden else (1, encoder.projection)
    return trace_params(projection, lambda: (jnp.zeros(shape),))


def _fill(weights: Mapping[str, Any], like: Params, dtype: DTypeLike) -> Params:
    typed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), like)
    return jax.tree.map(jnp.asarray, from_state_dict(weights, typed))


# ---- the attentions of a UNet -------------------------------------------------------------------


def list_attentions(unet: Params) -> list[str]:
    """List the attentions to the text of a UNet in the order of the files: down, up, middle.

    Returns:
        Keys of the state dict up to ``attn2``.
    """
    shapes = list_state_shapes({k: v for k, v in unet.items() if ".attentions." in k})
    end = ".to_k.weight"
    found = [k.removesuffix(end) for k in shapes if k.endswith(f".attn2{end}")]
    return sorted(found, key=lambda k: (_ORDER[k.split(".")[0]], *map(int, re.findall(r"\d+", k))))


def _name_layers(unet: Params) -> dict[str, str]:
    """Map the keys of a file's layers to those of our parameters."""
    return {
        f"{2 * i + 1}.to_{n}_ip.weight": f"{name}.processor.to_{n}_ip.0.weight"
        for i, name in enumerate(list_attentions(unet))
        for n in "kv"
    }


def _read_layers(unet: Component, weights: Weights, dtype: DTypeLike) -> Params:
    """Read the layers in the attentions of a UNet.

    Raises:
        ValueError: they are for another UNet.
    """
    names = _name_layers(unet.params)
    if odd := sorted(set(weights) - set(names), key=len):
        raise ValueError(
            f"it is for another UNet: it has {len(weights)} layers, such as {odd[-1]}, and this "
            f"UNet takes {len(names)}"
        )
    like = jax.eval_shape(copy_layers, unet.params)
    try:
        return _fill(weights.rename_keys(names.__getitem__), like, dtype)
    except ValueError as error:
        raise ValueError(f"it is for another UNet: {error}") from error


def save_image_adapter(path: StrPath, unet: Params, params: Params, layers: Params) -> None:
    """Write an IP-Adapter as a file that `load_image_adapter` and diffusers read.

    Args:
        path: the .safetensors file.
        unet: parameters of the UNet, for the order of its attentions.
        params: of the projection.
        layers: see `ImageAdapter`.
    """
    names = {ours: theirs for theirs, ours in _name_layers(unet).items()}
    state = {f"{_PROJECTION}{k}": v for k, v in to_state_dict(params).items()}
    state |= {f"{_LAYERS}{names[k]}": v for k, v in to_state_dict(layers).items()}
    # A tree of one level, whose leaves have the names and axes of torch already.
    save_safetensors(path, dict(sorted(state.items())))
