"""Read single-file checkpoints in the layout of the original code of CompVis and Stability AI.

Files of Stable Diffusion 1 and 2, XL base and refiner, inpainting models, and ControlNets are read,
as .safetensors. There is no config in such a file: the kind of model and all numbers are derived
from its keys and shapes. The parts are then described and named as in a diffusers folder, so that
`models.fill` builds them. `single_file_parts` has the autoencoder and the text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffjax.pretrained.files import StrPath, Weights, open_safetensors
from diffjax.pretrained.hub import download
from diffjax.pretrained.models import Component, Sharding, fill
from diffjax.pretrained.recognise import describe_keys
from diffjax.pretrained.single_file_parts import (
    HEAD,
    Part,
    build_autoencoder_part,
    build_clip_part,
    build_open_clip_part,
    count_numbers,
    select_below,
)
from diffjax.types import Config, JsonObject, choose
from diffjax.untrusted import name_some, naming

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
CONTROL = "control_model."
EMA = "model_ema."
# Kinds of models that we do not have, by a key that files of theirs are marked with.
_MARKED = {
    "edm_mean": "Playground 2.5, whose latents have a mean and a deviation of their own",
    "edm_vpred.sigma_max": "CosXL, which predicts v at the noise levels of EDM",
}


class Family(NamedTuple):
    """What the keys of a file do not show: prefixes of the text encoders, and constants.

    Attributes:
        clip: prefix of the keys of a CLIP text encoder, or None.
        open_clip: prefix of the keys of an OpenCLIP text encoder, or None.
        projected: whether the pooled and projected output of OpenCLIP is used; all of its layers
            are then.
        heads: number of attention heads of the UNet at every level, or None for heads of 64
            channels.
        scale: ``scaling_factor`` of the latents.
    """

    clip: str | None
    open_clip: str | None
    projected: bool
    heads: int | None
    scale: float


FAMILIES = {
    "v1": Family("cond_stage_model.transformer.", None, False, 8, 0.18215),
    "v2": Family(None, "cond_stage_model.model.", False, None, 0.18215),
    "xl": Family(
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.1.model.",
        True,
        None,
        0.13025,
    ),
    "refiner": Family(None, "conditioner.embedders.0.model.", True, None, 0.13025),
}


def find_family(keys: Iterable[str]) -> str:
    """Return the name in `FAMILIES` of the model that has these keys.

    Raises:
        ValueError: there is none; the message says what the keys are of, if that is known.
    """
    keys = list(keys)
    what = describe_keys(keys)
    if what and "which is not supported" in what:
        raise ValueError(f"this is {what}")
    if any(key.startswith(UNET) for key in keys):
        for name in ("v1", "v2", "xl", "refiner"):
            prefixes = [p for p in (FAMILIES[name].clip, FAMILIES[name].open_clip) if p]
            if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes):
                return name
    some = name_some(sorted(keys)) or "no keys"
    raise ValueError(
        f"this is {what or 'a file of unknown kind'}: no checkpoint of {', '.join(FAMILIES)} with "
        f"all of its parts, and no ControlNet; its keys are {some}"
    )


def open_single_file(
    path: StrPath, *, ema: bool = False, vae: bool = True
) -> tuple[str, dict[str, Part]]:
    """Open a checkpoint, and describe its parts as a diffusers folder would.

    Only the header is read.

    Args:
        path: the .safetensors file, or a name on the Hub.
        ema: use the averaged weights of the UNet, which training checkpoints also have.
        vae: look for the autoencoder too, which some files have left out.

    Returns:
        The family, ``controlnet`` for a ControlNet by itself, and configs with unread weights by
            the names of a diffusers folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle or damaged, is not of a known family, or lacks a part that
            was asked for.
    """
    path = download(path)
    weights = open_safetensors(path)
    if strange := [f"{key} ({kind})" for key, kind in _MARKED.items() if key in weights]:
        raise ValueError(f"{path} is of a kind that is not supported: it has {strange[0]}")
    with naming(str(path)):
        return _build_parts(weights, ema, vae)


def _build_parts(weights: Weights, ema: bool, vae: bool) -> tuple[str, dict[str, Part]]:
    """Split the weights of a checkpoint into parts; see `open_single_file`."""
    control = _select_control_weights(weights)
    if control and not any(key.startswith(UNET) for key in weights):
        return "controlnet", {"controlnet": _build_control_part(control)}
    name = find_family(weights)
    family = FAMILIES[name]
    unet = _take_averaged(weights) if ema else select_below(weights, UNET)
    parts = {"unet": _build_unet_part(unet, family)}
    if vae:
        parts["vae"] = build_autoencoder_part(
            select_below(weights, AUTOENCODER), scale=family.scale
        )
    if family.clip:
        parts["text_encoder"] = build_clip_part(select_below(weights, family.clip))
    if family.open_clip:
        slot = "text_encoder_2" if family.projected else "text_encoder"
        parts[slot] = build_open_clip_part(
            select_below(weights, family.open_clip), family.projected
        )
    if control:
        parts["controlnet"] = _build_control_part(control)
    return name, parts


def load_single_file(
    path: StrPath,
    *,
    parts: Iterable[str] | None = None,
    ema: bool = False,
    dtype: DTypeLike = jnp.float32,
    sharding: Sharding | None = None,
    overrides: Mapping[str, Config] | None = None,
) -> dict[str, Component]:
    """Load the networks of a checkpoint, by the names of a diffusers folder.

    Args:
        path: the .safetensors file, or a name on the Hub.
        parts: names of the parts to load (unet, vae, text_encoder, text_encoder_2, controlnet);
            None loads all.
        ema: see `open_single_file`.
        dtype: see `load_model`.
        sharding: see `load_model`.
        overrides: by part, entries of its config that the weights do not show, such as the number
            of heads of a model that is not one of the published ones.

    Raises:
        FileNotFoundError, ValueError: see `open_single_file` and `load_model`.
    """
    wanted = None if parts is None else list(parts)
    found = open_single_file(path, ema=ema, vae=wanted is None or "vae" in wanted)[1]
    out = {}
    for name in found if wanted is None else wanted:
        part = choose("part", name, found)
        config = {**part.config, **(overrides or {}).get(name, {})}
        with naming(f"the {name} of {path}"):
            out[name] = fill(config, part.weights, dtype, sharding)
    return out


def _take_averaged(weights: Weights) -> Weights:
    """Return the averaged weights of the UNet, which are stored under keys without dots.

    Raises:
        ValueError: the file has none, or not all of them.
    """
    names = {
        f"{EMA}diffusion_model{key.replace('.', '')}": key for key in select_below(weights, UNET)
    }
    if absent := sorted(set(names) - set(weights)):
        raise ValueError(f"this file has no averaged weights: {', '.join(absent)} are missing")
    return Weights({key: weights.tensors[name] for name, key in names.items()})


# ---- UNet ---------------------------------------------------------------------------------------

RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
MIDDLE = ("resnets.0", "attentions.0", "resnets.1")


def rename_unet_key(key: str, blocks: int) -> str:
    """Return diffusers' name of a UNet's weight.

    ``input_blocks`` count the residual blocks and down-samplers of all levels in one row, so the
    level follows from the number of blocks per level.

    Args:
        key: the name in the original code, without a prefix.
        blocks: number of residual blocks per level.
    """
    module, _, leaf = key.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{leaf}"
    if m := re.fullmatch(r"middle_block\.([012])\.(.+)", module):
        return f"mid_block.{MIDDLE[int(m[1])]}.{RES.get(m[2], m[2])}.{leaf}"
    if m := re.fullmatch(r"(in|out)put_blocks\.(\d+)\.(\d)\.(.+)", module):
        down, rest = m[1] == "in", m[4]
        level, place = divmod(int(m[2]) - down, blocks + 1)
        side = f"{'down' if down else 'up'}_blocks.{level}"
        resamples = place == blocks if down else m[3] != "0"
        if rest in ("op", "conv"):
            return f"{side}.{'down' if down else 'up'}samplers.0.conv.{leaf}"
        if rest not in RES:
            return f"{side}.attentions.{place}.{rest}.{leaf}"
        part = f"{'down' if down else 'up'}samplers.0" if resamples else f"resnets.{place}"
        return f"{side}.{part}.{RES[rest]}.{leaf}"
    return key


def _build_unet_part(weights: Weights, family: Family) -> Part:
    """Return the UNet's config and its weights in diffusers' names."""
    config = derive_unet_config(weights, heads=family.heads)
    return Part(
        config, weights.rename_keys(lambda key: rename_unet_key(key, config["layers_per_block"]))
    )


def derive_unet_config(weights: Weights, *, heads: int | None) -> JsonObject:
    """Derive the config of a UNet from its weights.

    Args:
        weights: weights in the original names, without a prefix.
        heads: number of heads at every level, or None for heads of 64 channels.

    Raises:
        ValueError: these are not weights of such a UNet.
    """
    config = derive_encoder_config(weights, heads=heads)
    ups = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return config | dict(
        _class_name="UNet2DConditionModel",
        out_channels=weights.shape("out.2.weight")[0],
        up_block_types=ups,
    )


def derive_encoder_config(weights: Weights, *, heads: int | None) -> JsonObject:
    """Derive the part of `derive_unet_config` that the encoder's weights show; ControlNets have no
    more.

    Raises:
        ValueError: no layer halves the resolution, or a weight is missing.
    """
    downs = sorted(
        int(m[1]) for k in weights if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.w", k))
    )
    if not downs or "input_blocks.0.0.weight" not in weights:
        raise ValueError("the network of this file has no input_blocks that halve the resolution")
    blocks, levels = downs[0] - 1, len(downs) + 1
    starts = [f"input_blocks.{1 + i * (blocks + 1)}" for i in range(levels)]
    widths = [weights.shape(f"{start}.0.in_layers.2.weight")[0] for start in starts]
    depths = [_count_transformer_blocks(weights, f"{start}.1") for start in starts]
    middle = "middle_block.1"
    added = "label_emb.0.0.weight"
    vectors = dict(addition_embed_type="text_time", addition_time_embed_dim=256)
    if added in weights:
        vectors["projection_class_embeddings_input_dim"] = weights.shape(added)[1]
    return dict(
        in_channels=weights.shape("input_blocks.0.0.weight")[1],
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=[f"{'CrossAttn' if depth else ''}DownBlock2D" for depth in depths],
        # The last depth is that of the middle too.
        transformer_layers_per_block=[
            *(d or 1 for d in depths[:-1]),
            _count_transformer_blocks(weights, middle),
        ],
        attention_head_dim=heads or [width // HEAD for width in widths],
        cross_attention_dim=weights.shape(f"{middle}.transformer_blocks.0.attn2.to_k.weight")[1],
        use_linear_projection=len(weights.shape(f"{middle}.proj_in.weight")) == 2,
        **(vectors if added in weights else {}),
    )


def _count_transformer_blocks(weights: Weights, attention: str) -> int:
    """Return the number of transformer blocks of an attention layer, 0 if there is no such
    layer.
    """
    return count_numbers(weights, rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.")


# ---- ControlNet ---------------------------------------------------------------------------------

HINT = "input_hint_block"
_CLIP_WIDTH = 768  # of the text that version 1 attends to


def _select_control_weights(weights: Weights) -> Weights:
    """Return a ControlNet's weights, with the prefix of the training code removed, or none."""
    found = select_below(weights, CONTROL)
    return weights if not found and f"{HINT}.0.weight" in weights else found


def rename_control_key(key: str, blocks: int, last: int) -> str:
    """Return diffusers' name of a ControlNet's weight.

    Args:
        key: the name in the original code, without a prefix.
        blocks: number of residual blocks per level.
        last: number of the last layer of the hint encoder.
    """
    if m := re.fullmatch(r"(zero_convs\.\d+|middle_block_out)\.0\.(\w+)", key):
        return f"{m[1].replace('zero_convs', 'controlnet_down_blocks')}.{m[2]}".replace(
            "middle_block_out", "controlnet_mid_block"
        )
    if m := re.fullmatch(rf"{HINT}\.(\d+)\.(\w+)", key):
        number = int(m[1])
        ends = {0: "conv_in", last: "conv_out"}
        return f"controlnet_cond_embedding.{ends.get(number, f'blocks.{number // 2 - 1}')}.{m[2]}"
    return rename_unet_key(key, blocks)


def _build_control_part(weights: Weights) -> Part:
    """Return a ControlNet's config and its weights in diffusers' names.

    The layers of ``input_hint_block`` have even numbers, with a SiLU after each; every second one
    widens.
    """
    last = count_numbers(weights, rf"{HINT}\.(\d+)\.") - 1
    v1 = weights.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1] == _CLIP_WIDTH
    # Layers come in pairs, a SiLU after each; the second of a pair widens.
    widths = [weights.shape(f"{HINT}.{i}.weight")[0] for i in range(0, last, 4)]
    config = derive_encoder_config(weights, heads=FAMILIES["v1"].heads if v1 else None) | dict(
        _class_name="ControlNetModel",
        conditioning_channels=weights.shape(f"{HINT}.0.weight")[1],
        conditioning_embedding_out_channels=widths,
    )
    blocks = config["layers_per_block"]
    return Part(config, weights.rename_keys(lambda key: rename_control_key(key, blocks, last)))
