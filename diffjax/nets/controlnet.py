r"""ControlNet (Zhang et al. 2023): a trainable copy of a UNet's way down that reads a picture.

    y = F(x; theta) + Z(F(x + Z(c; theta_z1); theta_c); theta_z2)          (eq. 2)

with zero convolutions Z around the copy. Here F is the encoder and the middle of a UNet, the hint c
enters after the first convolution, and the outputs of Z are what ``cond["control"]`` of `UNet` is.
State-dict names are those of diffusers' ControlNetModel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath

from diffjax.nets.adapter import check_hint_options
from diffjax.nets.layers import conv, torch_init
from diffjax.nets.levels import find_first_width, take_level
from diffjax.nets.resampling import space_to_depth
from diffjax.nets.unet import UNet, embed, encode
from diffjax.types import CondEntries, ConfigError, DType, Params, choose

Array = jax.Array

zeros = nn.initializers.zeros
gaussian = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
INITS = {"zero": zeros, "gaussian": gaussian}


_PAPER_WIDTHS = (16, 32, 64, 128)


class HintEncoder(nn.Module):
    """Convolutions that bring a hint (B, f H, f W, C) to the features (B, H, W, features).

    ``released`` is the published network: 3x3 convolutions with SiLU, a pair for each width beyond
    the first. The second of a pair halves the resolution in the first ``log2 f`` pairs. ``paper``
    is the network of the text: 4x4 convolutions of 16, 32, 64 and 128 channels with ReLU and
    Gaussian weights. Its four strides of 2 would turn 512 pixels into 32 where 64 are needed: only
    the first ``log2 f`` halve here. Either ends in a 3x3 convolution that starts at zero.

    Attributes:
        features: channels of the output.
        widths: channels of the convolutions (``released`` only).
        factor: f, a power of 2.
        kind: ``released`` or ``paper``.
        last: how the last convolution is initialised, a key of `INITS`.
        dtype: type to compute in; parameters stay float32.
    """

    features: int
    widths: tuple[int, ...] = (16, 32, 96, 256)
    factor: int = 8
    kind: str = "released"
    last: str = "zero"
    dtype: DType = None

    @nn.compact
    def __call__(self, hint: Array) -> Array:
        h = choose(
            "hint encoder",
            self.kind,
            {"released": self._encode_released, "paper": self._encode_paper},
        )(hint)
        init = INITS[self.last]
        return conv(self.features, name="conv_out", dtype=self.dtype, init=init)(h)

    def _encode_released(self, h: Array) -> Array:
        """Apply the convolutions of the published network."""

        def layer(features: int, name: str, stride: int = 1) -> Array:
            return nn.silu(
                conv(features, name=name, stride=stride, dtype=self.dtype, init=torch_init)(h)
            )

        h = layer(self.widths[0], "conv_in")
        for i, (narrow, wide) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            h = layer(narrow, f"blocks.{2 * i}")
            h = layer(wide, f"blocks.{2 * i + 1}", 1 + (2**i < self.factor))
        return h

    def _encode_paper(self, h: Array) -> Array:
        """Apply the convolutions that the paper's text describes."""
        for i, width in enumerate(_PAPER_WIDTHS):
            halves = 2**i < self.factor
            h = nn.relu(
                conv(
                    width,
                    name=f"blocks.{i}",
                    size=4,
                    stride=1 + halves,
                    padding=[(1, 1 + (not halves))] * 2,
                    dtype=self.dtype,
                    init=gaussian,
                )(h)
            )
        return h


class ControlNet(nn.Module):
    """The network ``(z, t, cond) -> (residuals of the skips, residual of the middle)``.

    These are what a `UNet` reads as ``cond["control"]``. It reads the conditions of its base, and
    ``cond["hint"]`` (B, f H, f W, C) in [0, 1] for z (B, H, W, ...) of a base without patches.
    Channels that are joined to z are for the base alone.

    Attributes:
        base: the UNet whose encoder and middle this is a copy of.
        hint_channels: C.
        hint_widths, hint_factor, hint_encoder: see `HintEncoder`; f is ``hint_factor``.
        connections: convolutions around the copy: ``zero``, or ``gaussian`` (figure 8 b).
        lite: one 3x3 convolution in place of every block of the copy (figure 8 c); it sees
            neither time nor text.
        pool: average the residuals over all pixels.
    """

    base: UNet
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    hint_factor: int = 8
    hint_encoder: str = "released"
    connections: str = "zero"
    lite: bool = False
    pool: bool = False

    @nn.compact
    def __call__(
        self, z: Array, t: Array, cond: CondEntries, train: bool = False
    ) -> tuple[list[Array], Array]:
        """Return residuals for every skip and for the middle.

        They are (B, h, w, c), or (B, 1, 1, c) with ``pool``.

        Raises:
            ConfigError: the options are wrong, see `check_options`.
            ValueError: the hint is absent or has another shape.
        """
        base, cond = self.base, cond or {}
        init = choose("initialisation", self.connections, INITS)
        self.check_options()
        self._check(z, cond.get("hint"))
        enter = self._encode_hint(cond["hint"])
        if self.lite:
            h, skips = _encode_lite(base, z, enter)
        else:
            temb = embed(base, z, t, cond) + self._embed_kinds(cond["hint"])
            h, skips = encode(base, z, temb, cond, train, enter=enter)

        def out(value: Array, name: str) -> Array:
            layer = conv(value.shape[-1], name=name, size=1, padding=0, dtype=base.dtype, init=init)
            value = layer(value)
            return value.mean((1, 2), keepdims=True) if self.pool else value

        residuals = [out(s, f"controlnet_down_blocks.{i}") for i, s in enumerate(skips)]
        return residuals, out(h, "controlnet_mid_block")

    @nn.nowrap
    def _make_hint_encoder(self) -> HintEncoder:
        return HintEncoder(
            find_first_width(self.base.channels, self.base.multipliers),
            self.hint_widths,
            self.hint_factor,
            self.hint_encoder,
            self.connections,
            self.base.dtype,
            name="controlnet_cond_embedding",
        )

    @nn.nowrap
    def _encode_hint(self, hint: Any) -> Callable[[Array], Array]:
        """Return what makes the first features of the features before; the hint is read once."""
        encoded = self._make_hint_encoder()(hint)
        return lambda h: h + encoded

    @nn.nowrap
    def _embed_kinds(self, hint: Any) -> Array | float:
        """Return what the kind of hint adds to the embedding of the time: here there is one."""
        return 0.0

    @nn.nowrap
    def _find_hint_shape(self, hint: Any) -> tuple[int, ...] | None:
        """Return the shape (B, f H, f W, C) of a hint; None if it is none."""
        return getattr(hint, "shape", None)

    def check_options(self) -> None:
        """Check that hints can be read with these options; the base is checked where it is called.

        Raises:
            ConfigError: they cannot; the message begins with the option.
        """
        check_hint_options(self.hint_channels, "hint_widths", self.hint_widths)
        choose("hint encoder", self.hint_encoder, {"released": 0, "paper": 0})
        choose("initialisation", self.connections, INITS)
        paper = self.hint_encoder == "paper"
        halvings = len(_PAPER_WIDTHS) if paper else len(self.hint_widths) - 1
        factors = [2**k for k in range(halvings + 1)]
        if self.hint_factor not in factors:
            made = "" if paper else f" of hint_widths={self.hint_widths}"
            raise ConfigError(
                f"hint_factor is {self.hint_factor}, but the {self.hint_encoder} hint encoder"
                f"{made} makes hints smaller by one of {', '.join(map(str, factors))}"
            )

    def _check(self, z: Array, hint: Any) -> None:
        """Raise a ValueError if the hint does not have the shape that z asks for."""
        side = self.hint_factor / self.base.patch
        wanted = (
            z.shape[0],
            round(z.shape[1] * side),
            round(z.shape[2] * side),
            self.hint_channels,
        )
        found = self._find_hint_shape(hint)
        if found != wanted:
            raise ValueError(
                f"this ControlNet needs cond['hint'] of shape {wanted} for z {z.shape} with "
                f"hint_factor={self.hint_factor}, got {found}"
            )


def _encode_lite(
    base: UNet, z: Array, enter: Callable[[Array], Array]
) -> tuple[Array, list[Array]]:
    """Apply the encoder of `diffjax.nets.unet.encode` with one convolution for every block."""

    def layer(h: Array, features: int, name: str, stride: int = 1) -> Array:
        return conv(features, name=name, stride=stride, dtype=base.dtype)(nn.silu(h))

    first = find_first_width(base.channels, base.multipliers)
    h = enter(conv(first, name="conv_in", dtype=base.dtype)(space_to_depth(z, base.patch)))
    skips = [h]
    for i, multiplier in enumerate(base.multipliers):
        width = int(base.channels * multiplier)
        for j in range(take_level("blocks", base.blocks, i)):
            h = layer(h, width, f"down_blocks.{i}.convs.{j}")
            skips.append(h)
        if i < len(base.multipliers) - 1:
            h = layer(h, width, f"down_blocks.{i}.downsamplers.0.conv", 2)
            skips.append(h)
    return layer(h, h.shape[-1], "mid_block.conv"), skips


def copy_base(params: Params, base: Params) -> Params:
    """Return parameters of a ControlNet whose encoder and middle are copies of its base.

    Args:
        params: of a `ControlNet`, as initialised.
        base: parameters of the `UNet`. If its first convolution reads more channels than z, because
            others are joined, those of z come first and are the ones copied.

    Raises:
        ValueError: a parameter has another shape: this is not the ControlNet's base.
    """
    path = jax.tree_util.keystr

    def copy_leaf(where: KeyPath, fresh: Array, given: Array) -> Array:
        if path(where) == "['kernel']" and given.shape[2:3] > fresh.shape[2:3]:
            given = given[:, :, : fresh.shape[2]]
        if given.shape != fresh.shape:
            raise ValueError(
                f"{path(where)} is {given.shape} in the base and {fresh.shape} in the ControlNet: "
                "the ControlNet is for another base"
            )
        return jnp.asarray(given, fresh.dtype)

    return {
        name: jax.tree_util.tree_map_with_path(copy_leaf, leaves, base[name])
        if name in base
        else leaves
        for name, leaves in params.items()
    }
