"""ControlNets and T2I-Adapters beside a base network, and what they make of a hint.

A ControlNet (Zhang et al. 2023) reads the state, the time, the condition and a hint at every step,
and adds residuals to the skips and the middle of the base. A T2I-Adapter (Mou et al. 2023) reads
the hint alone, once. `diffjax.control` combines several of them and guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import control, guidance
from diffjax.control import Features, Residuals
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.controlnet import ControlNet
from diffjax.nets.initialisation import init_network
from diffjax.nets.unet import UNet, require_unet
from diffjax.types import (
    Array,
    Cond,
    ConfigError,
    Level,
    Module,
    Parameterization,
    Params,
    build_section,
    expand,
)

HINT = "hint"  # the entry of a condition that holds what the network beside the base sees


class ControlNetwork(NamedTuple):
    """A network beside a base, with its parameters.

    Attributes:
        net: a ControlNet reads (z, t, cond) and a hint; a T2I-Adapter reads the hint alone.
        params: its parameters; None while it is only described.
        only_middle: whether only the middle of the base gets a residual, and not its skips.
    """

    net: ControlNet | T2IAdapter
    params: Params | None = None
    only_middle: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether the network is a T2I-Adapter."""
        return isinstance(self.net, T2IAdapter)

    @property
    def entry(self) -> str:
        """The entry of the base's condition that takes the residuals."""
        return "adapter" if self.is_adapter else "control"

    def init(self, key: jax.Array, z: Array, t: Array, cond: Cond = None) -> Params:
        """Initialise parameters beside a base of ``z`` (B, h, w, C), ``t`` (B,) and ``cond``."""
        if isinstance(self.net, T2IAdapter):
            side = self.net.hint_factor
            hint = jnp.zeros((1, side, side, self.net.hint_channels))
            return init_network(self.net, key, hint)["params"]
        height, width = (
            side * self.net.hint_factor // self.net.base.patch for side in z.shape[1:3]
        )
        hint = jnp.zeros((z.shape[0], height, width, self.net.hint_channels))
        cond = {**(cond or {}), HINT: hint}
        return init_network(self.net, key, z, t, cond)["params"]

    def prepare_hint(self, hint: Array) -> Array | Features:
        """Prepare a hint (B, H, W, C) in [0, 1] for `compute_residuals`, once before the loop.

        Returns:
            The features of an adapter, which depend on nothing else, or the hint itself.
        """
        if not self.is_adapter:
            return hint
        return cast(Features, self.net.apply({"params": self.params or {}}, hint))

    def compute_residuals(
        self, z: Array, t: Array, cond: Cond, **options: Any
    ) -> Residuals | Features:
        """Compute what the network adds to the features of the base.

        Args:
            z: (B, h, w, C) as the base reads it, scaled.
            t: times (B,).
            cond: the condition of the base, with the prepared hint as ``cond["hint"]``.
            options: of the network's ``apply``, such as ``train`` and ``rngs``.

        Returns:
            Residuals of the skips and the middle, or the features of an adapter.
        """
        if self.is_adapter:
            return cast(Features, cast(Any, cond)[HINT])
        out = cast(Residuals, self.net.apply({"params": self.params or {}}, z, t, cond, **options))
        return (None, out[1]) if self.only_middle else out


def make_control_network(section: ConfigDict, base: Module) -> ControlNetwork:
    """Make the network beside a base that a section ``control`` describes, without parameters.

    Args:
        base: a UNet.

    Raises:
        ConfigError: the base is no UNet.
        ValueError: unknown name or options, listing those that there are, or an adapter that is to
            act on the middle only.
    """
    unet = require_unet(base, f"config.control.net.name={section.net.get('name', 'controlnet')}")
    network = ControlNetwork(make_controlnet(section.net, unet), None, section.only_middle)
    if network.only_middle and network.is_adapter:
        raise ValueError("control.only_middle is of ControlNets; an adapter acts on the way down")
    return network


def make_controlnet(section: ConfigDict, base: UNet) -> ControlNet | T2IAdapter:
    """Make the module that a section ``control.net`` describes: a controlnet, or a t2i_adapter.

    Raises:
        ValueError: unknown name or options, listing those that there are.
        ConfigError: an option has a value that no such network can have; its key is named.
    """
    options: dict[str, object] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()
    }
    widths = tuple(int(base.channels * m) for m in base.multipliers)
    if options.get("kind") == "full_xl":  # whose last features are the middle's
        widths += widths[-1:]
    known: dict[str, Callable[..., ControlNet | T2IAdapter]] = {
        "controlnet": partial(ControlNet, base),
        "t2i_adapter": partial(T2IAdapter, widths=widths, dtype=base.dtype),
    }
    net = build_section("network", str(options.pop("name", "controlnet")), known, options)
    try:
        net.check_options()
    except ConfigError as error:
        raise ConfigError(f"control.net.{error}") from error
    return net


def apply_control(
    network: ControlNetwork,
    parameterization: Parameterization,
    hint: Array | Features,
    strength: guidance.Scale,
    balance: control.Balance,
) -> control.AppliedControl:
    """Join a network and a prepared hint into what `diffjax.control` combines.

    Args:
        parameterization: of the base, whose scaling of z the network shares.
        strength: factor on the residuals: a number, an array (B,), or ``level ->`` either.
        balance: between control and prompt, see `diffjax.control.BALANCES`.
    """

    def compute_residuals(z: Array, level: Level, cond: Cond) -> Residuals | Features:
        return network.compute_residuals(*scale_inputs(parameterization, z, level), cond)

    return control.AppliedControl(compute_residuals, hint, strength, balance, network.entry)


def scale_inputs(parameterization: Parameterization, z: Array, level: Level) -> tuple[Array, Array]:
    """Scale a state for the networks: ``c_in z``, and the times as (B,) float32.

    Args:
        z: (B, h, w, C).
        level: noise level of the state, with leaves () or (B,).
    """
    scaled = z * expand(jnp.asarray(parameterization.scale_in(level)), z)
    t = level.t if parameterization.time is None else parameterization.time(level)
    return scaled, jnp.broadcast_to(jnp.asarray(t, jnp.float32), z.shape[:1])
