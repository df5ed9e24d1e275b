"""ControlNets to and from the config.json files of diffusers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from diffjax.nets.controlnet import ControlNet
from diffjax.nets.union_controlnet import UnionControlNet
from diffjax.pretrained.autoencoder_configs import Config, NetworkKind
from diffjax.pretrained.unet_configs import (
    DOWN,
    UNET_DEFAULTS,
    UNET_FIXED,
    UNET_IGNORED,
    UP,
    build_unet,
    describe_unet,
    make_unet_inputs,
)
from diffjax.types import JsonObject, Tree

# A ControlNet has the keys of its base but for those of the way up.
_WAY_UP = (
    *("out_channels", "up_block_types", "dropout", "time_embedding_dim"),
    *("reverse_transformer_layers_per_block", "time_cond_proj_dim"),
)
_CONTROL_OWN: dict[str, object] = dict(
    conditioning_channels=3,
    conditioning_embedding_out_channels=(16, 32, 96, 256),
    global_pool_conditions=False,
)
_NOT_CONTROL = (*_WAY_UP, "encoder_hid_dim", "encoder_hid_dim_type")
_CONTROL_DEFAULTS = {k: v for k, v in UNET_DEFAULTS.items() if k not in _NOT_CONTROL} | _CONTROL_OWN
_CONTROL_FIXED: dict[str, tuple[Any, ...]] = {
    **UNET_FIXED,
    # Their network has a layer for these widths, which nothing calls.
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "controlnet_conditioning_channel_order": ("rgb",),
}


def _build_controlnet(config: Config) -> ControlNet:
    """Build the ControlNet of a complete config, whose base is a UNet with the same encoder."""
    own = {key: config[key] for key in _CONTROL_OWN}
    down = config["down_block_types"]
    up = tuple(UP[DOWN.index(block)] for block in reversed(down) if block in DOWN)
    base = {**UNET_DEFAULTS, **config, "up_block_types": up, "out_channels": config["in_channels"]}
    widths = own["conditioning_embedding_out_channels"]
    return ControlNet(
        build_unet(base),
        hint_channels=own["conditioning_channels"],
        hint_widths=widths,
        hint_factor=2 ** (len(widths) - 1),
        pool=own["global_pool_conditions"],
    )


def _make_controlnet_inputs(net: ControlNet, config: Config) -> tuple[Any, ...]:
    """Return the smallest z, t and condition, with a hint, that a ControlNet can be initialised
    with.
    """
    z, t, cond = make_unet_inputs(net.base, config)
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
    base = describe_unet(net.base, in_channels)
    return {k: v for k, v in base.items() if k not in _NOT_CONTROL} | dict(
        _class_name="ControlNetModel",
        conditioning_channels=net.hint_channels,
        conditioning_embedding_out_channels=list(net.hint_widths),
        global_pool_conditions=net.pool,
    )


# ---- union -----------------------------------------------------------------------------------

_UNION_OWN: dict[str, object] = dict(
    num_control_type=6,
    num_trans_channel=320,
    num_trans_head=8,
    num_trans_layer=1,
    num_proj_channel=320,
)
_UNION_DEFAULTS = {
    **_CONTROL_DEFAULTS,
    **_UNION_OWN,
    "conditioning_embedding_out_channels": (48, 96, 192, 384),
}


def _build_union(config: Config) -> UnionControlNet:
    """Build the ControlNet that unites several kinds of hints of a complete config.

    Raises:
        ValueError: its transformer is not as wide as the first level.
    """
    plain, width = _build_controlnet(config), config["block_out_channels"][0]
    for key in ("num_trans_channel", "num_proj_channel"):
        if config[key] != width:
            raise ValueError(f"{key}={config[key]} is not {width}, the width of the first level")
    return UnionControlNet(
        **{name: getattr(plain, name) for name in _PLAIN},
        kinds=config["num_control_type"],
        heads=config["num_trans_head"],
        layers=config["num_trans_layer"],
    )


# Fields that both kinds of ControlNets have in configs.
_PLAIN = ("base", "hint_channels", "hint_widths", "hint_factor", "pool")


def _make_union_inputs(net: UnionControlNet, config: Config) -> tuple[Tree, ...]:
    """Return the smallest z, t and condition, with one hint."""
    z, t, cond = _make_controlnet_inputs(net, config)
    hint = dict(images=cond["hint"][:, None], kinds=jnp.zeros((1, 1), int), scales=jnp.ones((1, 1)))
    return z, t, {**cond, "hint": hint}


def _describe_union(net: UnionControlNet, in_channels: int) -> JsonObject:
    """Return the config.json of a ControlNet as ControlNetUnionModel.

    Raises:
        ValueError: as `_describe_controlnet`.
    """
    return _describe_controlnet(net, in_channels) | dict(
        _class_name="ControlNetUnionModel",
        num_control_type=net.kinds,
        num_trans_channel=net.base.channels,
        num_trans_head=net.heads,
        num_trans_layer=net.layers,
        num_proj_channel=net.base.channels,
    )


CONTROLNETS: dict[str, NetworkKind] = {
    "ControlNetModel": NetworkKind(
        "diffusers",
        _build_controlnet,
        _describe_controlnet,
        _make_controlnet_inputs,
        _CONTROL_DEFAULTS,
        _CONTROL_FIXED,
        UNET_IGNORED,
    ),
    "ControlNetUnionModel": NetworkKind(
        "diffusers",
        _build_union,
        _describe_union,
        _make_union_inputs,
        _UNION_DEFAULTS,
        _CONTROL_FIXED,
        UNET_IGNORED,
    ),
}
