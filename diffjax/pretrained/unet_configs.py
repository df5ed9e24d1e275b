"""UNets to and from the config.json files of diffusers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from diffjax.nets.unet import UNet
from diffjax.pretrained.autoencoder_configs import AVERAGED, Config, divide_width, read_same
from diffjax.types import choose
from diffjax.untrusted import show

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
_RESAMPLING = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
UNET_DEFAULTS: dict[str, Any] = dict(
    in_channels=4,
    out_channels=4,
    flip_sin_to_cos=True,
    freq_shift=0,
    down_block_types=(DOWN[1], DOWN[1], DOWN[1], DOWN[0]),
    up_block_types=(UP[0], UP[1], UP[1], UP[1]),
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    downsample_padding=1,
    dropout=0.0,
    norm_num_groups=32,
    norm_eps=1e-5,
    cross_attention_dim=1280,
    transformer_layers_per_block=1,
    attention_head_dim=8,
    use_linear_projection=False,
    addition_embed_type=None,
    addition_time_embed_dim=None,
    projection_class_embeddings_input_dim=None,
    num_class_embeds=None,
    resnet_time_scale_shift="default",
    time_embedding_dim=None,
    mid_block_type="UNetMidBlock2DCrossAttn",
    only_cross_attention=False,
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    reverse_transformer_layers_per_block=None,
    time_cond_proj_dim=None,
)
UNET_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("silu", "swish"),
    attention_type=("default",),
    center_input_sample=(False,),
    class_embed_type=(None,),
    class_embeddings_concat=(False,),
    conv_in_kernel=(3,),
    conv_out_kernel=(3,),
    cross_attention_norm=(None,),
    dual_cross_attention=(False,),
    mid_block_only_cross_attention=(None, False, True),  # which only other middles heed
    mid_block_scale_factor=(1,),
    num_attention_heads=(None,),
    resnet_out_scale_factor=(1,),
    resnet_skip_time_act=(False,),
    time_embedding_act_fn=(None,),
    time_embedding_type=("positional",),
    timestep_post_act=(None,),
)
# Attention is summed in float32 whatever upcast_attention says.
UNET_IGNORED = ("sample_size", "upcast_attention", "addition_embed_type_num_heads", *AVERAGED)


_MIDDLES = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "block", "null": "none"}


def _read_text_projection(config: Config) -> int:
    """The width of the texts that a dense layer projects, 0 for no such layer.

    Raises:
        ValueError: they are projected together with pictures, or there is a kind without a width.
    """
    kind, width = config["encoder_hid_dim_type"], config["encoder_hid_dim"]
    if kind not in (None, "text_proj") or (kind and not width):
        raise ValueError(
            f"encoder_hid_dim_type={kind!r} with encoder_hid_dim={width} is not supported; there "
            "may be 'text_proj' with a width, or neither"
        )
    return width or 0


def _read_depths(config: Config) -> tuple[Any, Any]:
    """The depths on the way down, and on the way up if these are others.

    Raises:
        ValueError: there are depths of single attentions on the way down alone.
    """
    down, up = (config[f"{start}transformer_layers_per_block"] for start in ("", "reverse_"))
    if up is None and isinstance(down, tuple) and any(isinstance(one, tuple) for one in down):
        raise ValueError(
            f"transformer_layers_per_block={show(down)} needs reverse_transformer_layers_per_block"
        )
    return down, up


def build_unet(config: Config) -> UNet:
    """Build the UNet of a complete config of UNet2DConditionModel.

    In these configs ``attention_head_dim`` is the number of heads, a known mistake of diffusers
    that published files depend on.

    Raises:
        ValueError: the blocks are of other types or do not mirror each other, or an embedding of an
            unknown type is added to the time.
    """
    widths, added = config["block_out_channels"], config["addition_embed_type"]
    down, up = config["down_block_types"], config["up_block_types"]
    unknown = sorted(set(down) - set(DOWN)) + sorted(set(up) - set(UP))
    attention = tuple(i for i, block in enumerate(down) if block == DOWN[1])
    mirrored = tuple(UP[DOWN.index(block)] for block in reversed(down) if block in DOWN)
    if unknown or up != mirrored or len(down) != len(widths):
        raise ValueError(
            f"down_block_types={show(down)} with up_block_types={show(up)} is not supported: there "
            f"must be one of {', '.join(DOWN)} per level, and its counterpart of "
            f"{', '.join(UP)} on the way up"
        )
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ValueError(
            f"time_embedding_dim={config['time_embedding_dim']} is not {4 * widths[0]}"
        )
    if config["out_channels"] is None:
        raise ValueError("out_channels is null; a UNet needs a whole number")
    if added not in (None, "text_time"):
        raise ValueError(f"addition_embed_type={added!r} is not supported; use 'text_time' or None")
    scale = choose(
        "resnet_time_scale_shift",
        config["resnet_time_scale_shift"],
        {"default": False, "scale_shift": True},
    )
    depth, up_depth = _read_depths(config)
    return UNet(
        channels=widths[0],
        multipliers=tuple(divide_width(width, widths[0]) for width in widths),
        blocks=config["layers_per_block"],
        attention_levels=attention,
        # In these configs, attention_head_dim is the number of heads.
        heads=config["attention_head_dim"],
        out_channels=config["out_channels"],
        dropout=config["dropout"],
        scale_shift=scale,
        num_classes=config["num_class_embeds"] or 0,
        flip_sin_to_cos=config["flip_sin_to_cos"],
        freq_shift=config["freq_shift"],
        downsample_padding=config["downsample_padding"],
        norm_groups=config["norm_num_groups"],
        norm_eps=config["norm_eps"],
        context_dim=read_same(config, "cross_attention_dim"),
        depth=depth,
        up_depth=up_depth,
        middle=choose("mid_block_type", config["mid_block_type"] or "null", _MIDDLES),
        only_cross_attention=config["only_cross_attention"],
        text_dim=_read_text_projection(config),
        guidance_dim=config["time_cond_proj_dim"] or 0,
        linear_projection=config["use_linear_projection"],
        added_dim=config["projection_class_embeddings_input_dim"] if added else 0,
        added_time_dim=config["addition_time_embed_dim"] or 256,
    )


def make_unet_inputs(net: UNet, config: Config) -> tuple[Any, ...]:
    """Return the smallest z, t and condition that a UNet can be initialised with."""
    size = 2 ** (len(net.multipliers) - 1)
    z = jnp.zeros((1, size, size, config.get("in_channels", 4)))
    cond: dict[str, Any] = {"context": jnp.zeros((1, 1, net.token_dim))}
    if net.guidance_dim:
        cond["guidance"] = jnp.zeros(1)
    if net.num_classes:
        cond["label"] = jnp.zeros(1, jnp.int32)
    if net.added_dim:
        pooled = jnp.zeros((1, net.added_dim % net.added_time_dim))
        times = jnp.zeros((1, net.added_dim // net.added_time_dim))
        cond["added"] = {"text_embeds": pooled, "time_ids": times}
    return z, jnp.zeros(1), cond


def describe_unet(net: UNet, in_channels: int) -> dict[str, Any]:
    """Return the config.json of a UNet; a ValueError says if diffusers lacks one of its options."""
    if net.resblock_updown or net.patch > 1 or (net.time_scale, net.time_shift) != (1, 0):
        raise ValueError(
            "resblock_updown, patch, time_scale and time_shift have no counterpart in diffusers"
        )
    levels = len(net.multipliers)
    widths = [int(net.channels * m) for m in net.multipliers]
    kinds = [int(i in net.attention_levels) for i in range(levels)]
    heads = [width // net.head_channels for width in widths] if net.head_channels else net.heads
    added = dict(
        addition_embed_type="text_time",
        addition_time_embed_dim=net.added_time_dim,
        projection_class_embeddings_input_dim=net.added_dim,
    )
    return dict(
        _class_name="UNet2DConditionModel",
        in_channels=in_channels or net.out_channels,
        out_channels=net.out_channels,
        flip_sin_to_cos=net.flip_sin_to_cos,
        freq_shift=int(net.freq_shift),
        down_block_types=[DOWN[k] for k in kinds],
        up_block_types=[UP[k] for k in reversed(kinds)],
        block_out_channels=widths,
        layers_per_block=_to_list(net.blocks),
        downsample_padding=net.downsample_padding,
        dropout=net.dropout,
        norm_num_groups=net.norm_groups,
        norm_eps=net.norm_eps,
        cross_attention_dim=net.context_dim,
        transformer_layers_per_block=_to_list(net.depth),
        attention_head_dim=_to_list(heads),
        use_linear_projection=net.linear_projection,
        num_class_embeds=net.num_classes or None,
        resnet_time_scale_shift="scale_shift" if net.scale_shift else "default",
        **(added if net.added_dim else {}),
        **_describe_rarer(net),
    )


def _describe_rarer(net: UNet) -> dict[str, Any]:
    """Options that most networks leave at their defaults, which older versions do not know."""
    named = {ours: theirs for theirs, ours in _MIDDLES.items()}
    middle = named[net.middle]
    found = dict(
        mid_block_type=None if middle == "null" else middle,
        only_cross_attention=_to_list(net.only_cross_attention),
        encoder_hid_dim=net.text_dim or None,
        encoder_hid_dim_type="text_proj" if net.text_dim else None,
        reverse_transformer_layers_per_block=_to_list(net.up_depth),
        time_cond_proj_dim=net.guidance_dim or None,
    )
    return {key: value for key, value in found.items() if value != UNET_DEFAULTS[key]}


def _to_list(value: Any) -> Any:
    return list(map(_to_list, value)) if isinstance(value, tuple) else value
