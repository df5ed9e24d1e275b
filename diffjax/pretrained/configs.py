"""Networks to and from the config.json files of diffusers and transformers.

A key of a config is either turned into a field of our module, or must have the value that our
networks implement, or is known to change nothing. Anything else is an error that names the key,
because a network that ignores an option computes something else.

`build` makes the module, `shapes` its parameters' shapes without memory, and `describe` the config
of a module of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.autoencoder import Autoencoder
from diffjax.nets.controlnet import ControlNet
from diffjax.nets.text import CLIPText
from diffjax.nets.unet import UNet
from diffjax.pretrained.autoencoder_configs import (
    AUTOENCODERS,
    AVERAGED,
    NetworkKind,
    divide_width,
    read_same,
)
from diffjax.pretrained.config_specs import LEVELS, NETWORK, check_levels
from diffjax.pretrained.text_configs import TEXT_ENCODERS
from diffjax.pretrained.transformer_configs import TRANSFORMERS
from diffjax.types import CondEntries, Config, JsonObject, Module, Params, T, Tree, choose
from diffjax.untrusted import check, name_some, show

_NAMES = ("_class_name", "architectures")


def read_class_name(config: Config) -> str:
    """Return the name of the class that a config describes: ``_class_name``, or the first of
    ``architectures``.

    Raises:
        ValueError: the config names none.
    """
    check({k: config[k] for k in _NAMES if k in config}, NETWORK, "the config of a network")
    names = [config["_class_name"]] if "_class_name" in config else config.get("architectures")
    if not names:
        raise ValueError("this config names neither _class_name nor architectures")
    return names[0]


def build(config: Config) -> Any:
    """Build the Linen module that a config.json describes.

    Raises:
        ValueError: the class or a key is unknown, or a value is not implemented. The message names
            all of them.
    """
    name = read_class_name(config)
    kind = choose("class", name, KINDS)
    return kind.build(_complete_config(name, kind, config))


def shapes(net: Module, config: Config) -> Params:
    """Return the shapes of a network's parameters in float32; see `trace_params`."""
    inputs = KINDS[read_class_name(config)].inputs
    # Inputs are made inside, where they take no memory, whatever the config says of their size.
    return trace_params(net, lambda: inputs(net, config))


def trace_params(net: Module, inputs: Callable[[], tuple[Tree, ...]]) -> Params:
    """Return the shapes of a network's parameters by tracing its initialisation, which allocates
    nothing.

    Args:
        net: the network.
        inputs: makes small arguments of the network. It is called while tracing, so that the
            arguments take no memory either.

    Raises:
        ValueError: the network cannot be initialised, since numbers of its config contradict each
            other.
    """
    try:
        return jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs()))["params"]
    except (TypeError, ZeroDivisionError, OverflowError, IndexError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"the numbers of this config do not fit each other: {reason}") from error


def describe(net: object, *, in_channels: int = 0) -> JsonObject:
    """Return the config.json of a network, for diffusers or transformers to read.

    ``in_channels`` are those of a UNet's input; those of its output if 0.

    Raises:
        ValueError: the other library has no such network.
    """
    return KINDS[find_kind(net)].describe(net, in_channels)


def find_kind(net: object) -> str:
    """Return the class of a network in diffusers or transformers, or raise a ValueError."""
    if isinstance(net, CLIPText):
        return "CLIPTextModelWithProjection" if net.projection else "CLIPTextModel"
    if isinstance(net, Autoencoder):
        return type(net).__name__
    if isinstance(net, UNet) and net.context_dim:
        return "UNet2DConditionModel"
    if isinstance(net, ControlNet) and net.base.context_dim:
        return "ControlNetModel"
    if isinstance(net, T2IAdapter):
        return "T2IAdapter"
    raise ValueError(f"networks of type {type(net).__name__} like this one have no class elsewhere")


def _complete_config(name: str, kind: NetworkKind, config: Config) -> Config:
    """Return a config with defaults filled in, and without keys that are fixed or ignored.

    Raises:
        ValueError: keys are unknown, or have values that are not implemented; all are named.
    """
    problems, out = [], dict(kind.defaults)
    for key, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        if key in kind.defaults:
            out[key] = value
        elif key in kind.fixed:
            if value not in kind.fixed[key]:
                allowed = " or ".join(map(repr, kind.fixed[key]))
                problems.append(f"{key}={show(value)} (only {allowed})")
        elif key not in kind.ignored and not key.startswith("_"):
            problems.append(f"{name_some([key])}={show(value)} (unknown)")
    if problems:
        raise ValueError(f"this {name} is not supported: {', '.join(problems)}")
    check(out, NETWORK, f"the config of this {name}")
    check_levels({**config, **out}, f"the config of this {name}")
    return out


# ---- UNet -------------------------------------------------------------------------------------

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
_RESAMPLING = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
_UNET_DEFAULTS: Config = dict(
    in_channels=4,
    out_channels=4,
    flip_sin_to_cos=True,
    freq_shift=0,
    down_block_types=(_DOWN[1], _DOWN[1], _DOWN[1], _DOWN[0]),
    up_block_types=(_UP[0], _UP[1], _UP[1], _UP[1]),
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
)
_UNET_FIXED: dict[str, tuple[object, ...]] = dict(
    act_fn=("silu", "swish"),
    attention_type=("default",),
    center_input_sample=(False,),
    class_embed_type=(None,),
    class_embeddings_concat=(False,),
    conv_in_kernel=(3,),
    conv_out_kernel=(3,),
    cross_attention_norm=(None,),
    dual_cross_attention=(False,),
    encoder_hid_dim=(None,),
    encoder_hid_dim_type=(None,),
    mid_block_only_cross_attention=(None, False),
    mid_block_scale_factor=(1,),
    mid_block_type=("UNetMidBlock2DCrossAttn",),
    num_attention_heads=(None,),
    only_cross_attention=(False, *((False,) * n for n in range(1, LEVELS + 1))),
    resnet_out_scale_factor=(1,),
    resnet_skip_time_act=(False,),
    reverse_transformer_layers_per_block=(None,),
    time_cond_proj_dim=(None,),
    time_embedding_act_fn=(None,),
    time_embedding_type=("positional",),
    timestep_post_act=(None,),
)
# Attention is summed in float32 whatever upcast_attention says.
_UNET_IGNORED = ("sample_size", "upcast_attention", "addition_embed_type_num_heads", *AVERAGED)


def _build_unet(config: Config) -> UNet:
    """Build the UNet of a complete config of UNet2DConditionModel.

    In these configs ``attention_head_dim`` is the number of heads, a known mistake of diffusers
    that published files depend on.

    Raises:
        ValueError: the blocks are of other types or do not mirror each other, or an embedding of an
            unknown type is added to the time.
    """
    widths, added = config["block_out_channels"], config["addition_embed_type"]
    down, up = config["down_block_types"], config["up_block_types"]
    unknown = sorted(set(down) - set(_DOWN)) + sorted(set(up) - set(_UP))
    attention = tuple(i for i, block in enumerate(down) if block == _DOWN[1])
    mirrored = tuple(_UP[_DOWN.index(block)] for block in reversed(down) if block in _DOWN)
    if unknown or up != mirrored or len(down) != len(widths):
        raise ValueError(
            f"down_block_types={show(down)} with up_block_types={show(up)} is not supported: there "
            f"must be one of {', '.join(_DOWN)} per level, and its counterpart of "
            f"{', '.join(_UP)} on the way up"
        )
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ValueError(
            f"time_embedding_dim={config['time_embedding_dim']} is not {4 * widths[0]}"
        )
    if added not in (None, "text_time"):
        raise ValueError(f"addition_embed_type={added!r} is not supported; use 'text_time' or None")
    scale = choose(
        "resnet_time_scale_shift",
        config["resnet_time_scale_shift"],
        {"default": False, "scale_shift": True},
    )
    return UNet(
        channels=widths[0],
        multipliers=tuple(divide_width(width, widths[0]) for width in widths),
        blocks=read_same(config, "layers_per_block"),
        attention_levels=attention,
        # In published configs of diffusers, attention_head_dim is the number of heads.
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
        depth=config["transformer_layers_per_block"],
        linear_projection=config["use_linear_projection"],
        added_dim=config["projection_class_embeddings_input_dim"] if added else 0,
        added_time_dim=config["addition_time_embed_dim"] or 256,
    )


def _make_unet_inputs(net: UNet, config: Config) -> tuple[jax.Array, jax.Array, CondEntries]:
    """Return the smallest z, t and condition that a UNet can be initialised with."""
    size = 2 ** (len(net.multipliers) - 1)
    z = jnp.zeros((1, size, size, config.get("in_channels", 4)))
    cond: dict[str, Tree] = {"context": jnp.zeros((1, 1, net.context_dim))}
    if net.num_classes:
        cond["label"] = jnp.zeros(1, jnp.int32)
    if net.added_dim:
        pooled = jnp.zeros((1, net.added_dim % net.added_time_dim))
        times = jnp.zeros((1, net.added_dim // net.added_time_dim))
        cond["added"] = {"text_embeds": pooled, "time_ids": times}
    return z, jnp.zeros(1), cond


def _describe_unet(net: UNet, in_channels: int) -> JsonObject:
    """Return the config.json of a UNet; a ValueError says if diffusers lacks one of its options."""
    if net.resblock_updown or net.patch > 1 or net.time_scale != 1:
        raise ValueError("resblock_updown, patch and time_scale have no counterpart in diffusers")
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
        down_block_types=[_DOWN[k] for k in kinds],
        up_block_types=[_UP[k] for k in reversed(kinds)],
        block_out_channels=widths,
        layers_per_block=net.blocks,
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
    )


def _to_list(value: T | tuple[T, ...]) -> T | list[T]:
    return list(value) if isinstance(value, tuple) else value


# ---- ControlNet -------------------------------------------------------------------------------

# A ControlNet has the keys of its base but for those of the way up.
_WAY_UP = ("out_channels", "up_block_types", "dropout", "time_embedding_dim")
_CONTROL_OWN: dict[str, object] = dict(
    conditioning_channels=3,
    conditioning_embedding_out_channels=(16, 32, 96, 256),
    global_pool_conditions=False,
)
_CONTROL_DEFAULTS = {k: v for k, v in _UNET_DEFAULTS.items() if k not in _WAY_UP} | _CONTROL_OWN
_CONTROL_FIXED = {**_UNET_FIXED, "controlnet_conditioning_channel_order": ("rgb",)}


def _build_controlnet(config: Config) -> ControlNet:
    """Build the ControlNet of a complete config, whose base is a UNet with the same encoder."""
    own = {key: config[key] for key in _CONTROL_OWN}
    down = config["down_block_types"]
    up = tuple(_UP[_DOWN.index(block)] for block in reversed(down) if block in _DOWN)
    base = {**_UNET_DEFAULTS, **config, "up_block_types": up, "out_channels": config["in_channels"]}
    widths = own["conditioning_embedding_out_channels"]
    return ControlNet(
        _build_unet(base),
        hint_channels=own["conditioning_channels"],
        hint_widths=widths,
        hint_factor=2 ** (len(widths) - 1),
        pool=own["global_pool_conditions"],
    )


def _make_controlnet_inputs(net: ControlNet, config: Config) -> tuple[Tree, ...]:
    """Return the smallest z, t and condition, with a hint, that a ControlNet can be initialised
    with.
    """
    z, t, cond = _make_unet_inputs(net.base, config)
    sides = [side * net.hint_factor for side in z.shape[1:3]]
    return z, t, {**cond, "hint": jnp.zeros((1, *sides, net.hint_channels))}


def _describe_controlnet(net: ControlNet, in_channels: int) -> JsonObject:
    """Return the config.json of a ControlNet as ControlNetModel.

    Raises:
        ValueError: diffusers has no such hint encoder, or the ControlNet is of the lite kind.
    """
    known = net.hint_factor == 2 ** (len(net.hint_widths) - 1) and net.hint_encoder == "released"
    if net.lite or not known:
        raise ValueError(
            "diffusers has neither ControlNet-lite nor hint encoders other than the released one, "
            "which halves once for each width beyond the first"
        )
    base = _describe_unet(net.base, in_channels)
    return {k: v for k, v in base.items() if k not in _WAY_UP} | dict(
        _class_name="ControlNetModel",
        conditioning_channels=net.hint_channels,
        conditioning_embedding_out_channels=list(net.hint_widths),
        global_pool_conditions=net.pool,
    )


# ---- T2I-Adapter ------------------------------------------------------------------------------

_ADAPTER_DEFAULTS: Config = dict(
    in_channels=3,
    channels=(320, 640, 1280, 1280),
    num_res_blocks=2,
    downscale_factor=8,
    adapter_type="full_adapter",
)
_ADAPTERS = {"full": "full_adapter", "full_xl": "full_adapter_xl", "light": "light_adapter"}


def _build_adapter(config: Config) -> T2IAdapter:
    """Build the T2I-Adapter of a complete config.

    A light adapter has the width of its last level twice.
    """
    named = {theirs: ours for ours, theirs in _ADAPTERS.items()}
    kind, widths = choose("adapter_type", config["adapter_type"], named), config["channels"]
    return T2IAdapter(
        hint_channels=config["in_channels"],
        widths=(*widths, widths[-1]) if kind == "light" else widths,
        blocks=config["num_res_blocks"],
        hint_factor=config["downscale_factor"],
        kind=kind,
    )


def _make_adapter_inputs(net: T2IAdapter, config: Config) -> tuple[Tree, ...]:
    """Return the smallest hint that a T2I-Adapter can be initialised with."""
    return (jnp.zeros((1, net.hint_factor, net.hint_factor, net.hint_channels)),)


def _describe_adapter(net: T2IAdapter, in_channels: int) -> JsonObject:
    """Return the config.json of a T2I-Adapter; a ValueError says if diffusers has none like it."""
    if net.kind == "light" and net.widths[-1] != net.widths[-2]:
        raise ValueError("diffusers' light adapters have the same width twice at the end")
    return dict(
        _class_name="T2IAdapter",
        in_channels=net.hint_channels,
        channels=list(net.widths[:-1] if net.kind == "light" else net.widths),
        num_res_blocks=net.blocks,
        downscale_factor=net.hint_factor,
        adapter_type=_ADAPTERS[net.kind],
    )


KINDS: dict[str, NetworkKind] = {
    **AUTOENCODERS,
    **TEXT_ENCODERS,
    **TRANSFORMERS,
    "UNet2DConditionModel": NetworkKind(
        "diffusers",
        _build_unet,
        _describe_unet,
        _make_unet_inputs,
        _UNET_DEFAULTS,
        _UNET_FIXED,
        _UNET_IGNORED,
    ),
    "ControlNetModel": NetworkKind(
        "diffusers",
        _build_controlnet,
        _describe_controlnet,
        _make_controlnet_inputs,
        _CONTROL_DEFAULTS,
        _CONTROL_FIXED,
        _UNET_IGNORED,
    ),
    "T2IAdapter": NetworkKind(
        "diffusers",
        _build_adapter,
        _describe_adapter,
        _make_adapter_inputs,
        _ADAPTER_DEFAULTS,
        {},
        (),
    ),
}
