"""T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): features of a picture for a frozen UNet.

    F_c = adapter(hint),    F_enc,i <- F_enc,i + F_c,i                       (eq. 2 and 3)

One feature map for every level of the way down, which `UNet` takes as ``cond["adapter"]``. Nothing
depends on z or t, so that sampling makes them once. State-dict names are those of diffusers'
T2IAdapter.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from diffjax.nets.layers import conv, torch_init
from diffjax.types import ConfigError, DType, choose

Array = jax.Array


# Whether the resolution is halved before feature map i.
_HALVED: dict[str, Callable[[int], bool]] = {
    "full": lambda i: i > 0,
    "light": lambda i: i > 0,
    "full_xl": lambda i: i == 2,
}


class T2IAdapter(nn.Module):
    """A network ``hint (B, H, W, C) in [0, 1] -> [(B, h, w, width), ...]``, finest first.

    Attributes:
        hint_channels: C.
        widths: channels of the features.
        blocks: residual blocks for each.
        hint_factor: side of the pixel patches that are folded into channels.
        kind: ``full`` halves the resolution before every feature map but the first; ``full_xl``
            before the third alone; ``light`` as ``full``, in a quarter of the channels.
        dtype: type to compute in; parameters stay float32.
    """

    hint_channels: int = 3
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    hint_factor: int = 8
    kind: str = "full"
    dtype: DType = None

    @nn.compact
    def __call__(self, hint: Array) -> list[Array]:
        """Return the features of hints.

        Raises:
            ConfigError: the options are wrong, see `check_options`.
            ValueError: hints have other channels, or sides that are no multiple of ``hint_factor``.
        """
        self.check_options()
        self._check(hint)
        halved = _HALVED[self.kind]
        light, features = self.kind == "light", []
        h = _unshuffle(hint, self.hint_factor)
        if not light:
            h = self._make_conv(self.widths[0], "conv_in")(h)
        for i, width in enumerate(self.widths):
            if halved(i):
                pad = [(0, side % 2) for side in h.shape[1:3]]
                h = nn.avg_pool(h, (2, 2), (2, 2), pad, count_include_pad=False)
            inner = width // 4 if light else width
            if light or h.shape[-1] != width:
                h = self._make_conv(inner, f"body.{i}.in_conv", 1)(h)
            for j in range(self.blocks):
                name = f"body.{i}.resnets.{j}"
                r = nn.relu(self._make_conv(inner, f"{name}.block1")(h))
                h = h + self._make_conv(inner, f"{name}.block2", 3 if light else 1)(r)
            if light:
                h = self._make_conv(width, f"body.{i}.out_conv", 1)(h)
            features.append(h)
        return features

    def check_options(self) -> None:
        """Check that the options are possible.

        Raises:
            ConfigError: one is not; the message begins with its name.
        """
        choose("adapter", self.kind, _HALVED)
        # The light kind works in a quarter of the channels.
        least = 4 if self.kind == "light" else 1
        check_hint_options(self.hint_channels, "widths", self.widths, least)
        for name, value, low in (("hint_factor", self.hint_factor, 1), ("blocks", self.blocks, 0)):
            if not _is_whole(value, low):
                raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}")

    def _make_conv(self, features: int, name: str, size: int = 3) -> nn.Conv:
        return conv(
            features,
            name=f"adapter.{name}",
            size=size,
            padding=size // 2,
            dtype=self.dtype,
            init=torch_init,
        )

    def _check(self, hint: Array) -> None:
        """Raise a ValueError if hints have the wrong shape."""
        f = self.hint_factor
        if (
            hint.ndim != 4
            or hint.shape[-1] != self.hint_channels
            or any(side % f for side in hint.shape[1:3])
        ):
            raise ValueError(
                f"this adapter needs hints (B, H, W, {self.hint_channels}) with H and W multiples "
                f"of {f}, got {hint.shape}"
            )


def _unshuffle(x: Array, f: int) -> Array:
    """Fold patches of f x f pixels into channels, in PyTorch's order (C, f, f)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // f, f, w // f, f, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // f, w // f, c * f * f)


def check_hint_options(channels: int, name: str, widths: tuple[int, ...], least: int = 1) -> None:
    """Check that a network can read hints of so many channels in layers of these widths.

    Args:
        channels: of a hint.
        name: of the option that holds the widths, for messages.
        widths: channels of the layers.
        least: the smallest width that is possible.

    Raises:
        ConfigError: an option is not a whole number, or too small.
    """
    if not _is_whole(channels, 1):
        raise ConfigError(f"hint_channels must be a whole number of at least 1, got {channels!r}")
    if not widths or not all(_is_whole(width, least) for width in widths):
        raise ConfigError(
            f"{name} must be one or more whole numbers of at least {least}, got {tuple(widths)}"
        )


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
