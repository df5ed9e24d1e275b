"""Single-file checkpoints in the layout of the CompVis and Stability AI code.

Stable Diffusion 1 and 2, XL base and refiner, those that inpaint, and ControlNets, as .safetensors.
What is in a file is read off its keys and shapes; the parts are then described and named as in a
diffusers folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

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
from diffjax.types import choose
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
    """What the keys of a file cannot tell: where the text encoders are, and constants.

    Attributes:
        clip, open_clip: prefix of the text encoder of that kind, or None.
        projected: the pooled output of OpenCLIP is used, and all of its layers are.
        heads: heads of the UNet everywhere, or None for heads of 64 channels.
        scale: factor of the latents.
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


def family_of(keys: Iterable[str]) -> str:
    """Return the name in `FAMILIES` to which a file's keys belong.

    Raises:
        ValueError: none of them.
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
    """The family of a checkpoint, and its parts by the names of a diffusers folder.

    Only the header is read. The family of a ControlNet by itself is ``controlnet``.

    Args:
        path: a file, or a name on the Hub; see `diffjax.pretrained.hub`.
        ema: use the averaged weights of the UNet, which training checkpoints also have.
        vae: look for the autoencoder too, which some files have left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle or damaged, or not of a known family, or lacks what was
            asked for.
    """
    path = download(path)
    weights = open_safetensors(path)
    if strange := [f"{key} ({kind})" for key, kind in _MARKED.items() if key in weights]:
        raise ValueError(f"{path} is of a kind that is not supported: it has {strange[0]}")
    with naming(str(path)):
        return _build_parts(weights, ema, vae)


def _build_parts(weights: Weights, ema: bool, vae: bool) -> tuple[str, dict[str, Part]]:
    control = _select_control_weights(weights)
    if control and not any(key.startswith(UNET) for key in weights):
        return "controlnet", {"controlnet": _build_control_part(control)}
    name = family_of(weights)
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
    dtype: Any = jnp.float32,
    sharding: Sharding | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Component]:
    """The networks of a checkpoint, by the names of a diffusers folder.

    Args:
        parts: those wanted (unet, vae, text_encoder, text_encoder_2, controlnet); all of them if
            None.
        ema: see `open_single_file`.
        dtype, sharding: see `load_model`.
        overrides: entries of a part's config that its weights cannot tell, such as the number of
            heads of a model that is none of the published ones.

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
    """Return the averaged weights of the UNet, whose keys have lost their dots."""
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
    """Return diffusers' name of a UNet weight; ``blocks`` is the number of them per level."""
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
    config = derive_unet_config(weights, heads=family.heads)
    return Part(
        config, weights.rename_keys(lambda key: rename_unet_key(key, config["layers_per_block"]))
    )


def derive_unet_config(weights: Weights, *, heads: int | None) -> dict[str, Any]:
    """Derive the config of the UNet from its weights.

    Args:
        heads: number of heads everywhere, or None for heads of 64 channels.

    Raises:
        ValueError: this is no UNet of the family.
    """
    config = derive_encoder_config(weights, heads=heads)
    ups = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return config | dict(
        _class_name="UNet2DConditionModel",
        out_channels=weights.shape("out.2.weight")[0],
        up_block_types=ups,
    )


def derive_encoder_config(weights: Weights, *, heads: int | None) -> dict[str, Any]:
    """Derive the part of `derive_unet_config` that the encoder's weights show."""
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
    """Count the transformer blocks of an attention layer."""
    return count_numbers(weights, rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.")


# ---- ControlNet ---------------------------------------------------------------------------------

HINT = "input_hint_block"
_CLIP_WIDTH = 768  # of the text that version 1 attends to


def _select_control_weights(weights: Weights) -> Weights:
    """Select a ControlNet's weights, with or without the training code's prefix, if any."""
    found = select_below(weights, CONTROL)
    return weights if not found and f"{HINT}.0.weight" in weights else found


def rename_control_key(key: str, blocks: int, last: int) -> str:
    """Return diffusers' name of a ControlNet's weight; ``last`` numbers the hint's last layer."""
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
