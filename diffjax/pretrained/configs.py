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
from diffjax.nets.dinov2 import DINOv2
from diffjax.nets.k_unet import KUNet
from diffjax.nets.text import CLIPText
from diffjax.nets.tiny_autoencoder import AutoencoderTiny
from diffjax.nets.unet import UNet
from diffjax.nets.union_controlnet import UnionControlNet
from diffjax.nets.vision import CLIPVision
from diffjax.pretrained.autoencoder_configs import AUTOENCODERS, NetworkKind
from diffjax.pretrained.config_specs import NETWORK, check_levels
from diffjax.pretrained.control_configs import CONTROLNETS
from diffjax.pretrained.dinov2_configs import FEATURES, PLAIN, REGISTERS
from diffjax.pretrained.k_unet_configs import K_UNET, has_k_blocks
from diffjax.pretrained.recognise import READ, name_family
from diffjax.pretrained.text_configs import IMAGE_ENCODERS, TEXT_ENCODERS
from diffjax.pretrained.transformer_configs import TRANSFORMERS
from diffjax.pretrained.unet_configs import (
    UNET_DEFAULTS,
    UNET_FIXED,
    UNET_IGNORED,
    build_unet,
    describe_unet,
    make_unet_inputs,
)
from diffjax.types import Config, JsonObject, Module, Params, Tree, choose
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
    if name not in KINDS and (family := name_family(name)):
        raise ValueError(f"{name} is of {family}, which is not supported; {READ}")
    kind = _choose_kind(name, config)
    return kind.build(_complete_config(name, kind, config))


def _choose_kind(name: str, config: Config) -> NetworkKind:
    """Return how a config of a class is read; the blocks tell apart two UNets of one class.

    Raises:
        ValueError: the class is unknown.
    """
    kind = choose("class", name, KINDS)
    return K_UNET if name == "UNet2DConditionModel" and has_k_blocks(config) else kind


def shapes(net: Module, config: Config) -> Params:
    """Return the shapes of a network's parameters in float32; see `trace_params`."""
    inputs = _choose_kind(read_class_name(config), config).inputs
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
    kind = K_UNET if isinstance(net, KUNet) else KINDS[_find_class(net)]
    return kind.describe(net, in_channels)


def _find_class(net: object) -> str:
    """Return the class of a network in diffusers or transformers, or raise a ValueError."""
    if isinstance(net, CLIPText):
        return "CLIPTextModelWithProjection" if net.projection else "CLIPTextModel"
    if isinstance(net, CLIPVision):
        return "CLIPVisionModelWithProjection"
    if isinstance(net, DINOv2):
        return REGISTERS if net.registers else PLAIN
    if isinstance(net, Autoencoder | AutoencoderTiny):
        return type(net).__name__
    if isinstance(net, UNet) and net.context_dim:
        return "UNet2DConditionModel"
    if isinstance(net, UnionControlNet) and net.base.context_dim:
        return "ControlNetUnionModel"
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
        value = _freeze(value)
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


def _freeze(value: Any) -> Any:
    """Tuples in place of lists, however deep."""
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


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
    **IMAGE_ENCODERS,
    **FEATURES,
    **TRANSFORMERS,
    "UNet2DConditionModel": NetworkKind(
        "diffusers",
        build_unet,
        describe_unet,
        make_unet_inputs,
        UNET_DEFAULTS,
        UNET_FIXED,
        UNET_IGNORED,
    ),
    **CONTROLNETS,
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
