"""What is added to the features and the skips of a UNet, and how skips are weighed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


class Features:
    """Adds the features of an adapter, one per level: at its end, or after halving if that fits.

    Adapters of Stable Diffusion 1.5 are made for the former. Those of XL are made for the latter,
    and their last features are the middle's.
    """

    def __init__(self, features: Sequence[Array]):
        self._left, self._done = list(features), -1

    def __call__(self, h: Array, level: int) -> Array:
        if not self._left or self._done == level or self._left[0].shape != h.shape:
            return h
        self._done = level
        return h + self._left.pop(0).astype(h.dtype)

    def check(self) -> None:
        """Raise a ValueError if features are left that fitted no level."""
        if self._left:
            shapes = ", ".join(str(f.shape) for f in self._left)
            raise ValueError(
                f"features {shapes} of an adapter fit no level of this network: the adapter is "
                "for another base, or its hint has another size"
            )


def add_residuals(
    h: Array, skips: list[Array], residuals: list[Array] | None, middle: Array
) -> tuple[Array, list[Array]]:
    """Add the residuals of control to the middle and the skips, or to the middle alone.

    Raises:
        ValueError: their number or shapes are not those of the features.
    """
    if residuals is None:
        return h + middle, skips
    if len(residuals) != len(skips):
        raise ValueError(
            f"{len(residuals)} control residuals for {len(skips)} skips: the control is for "
            "another base"
        )
    for skip, residual in zip((*skips, h), (*residuals, middle), strict=True):
        if any(r not in (1, n) for r, n in zip(residual.shape, skip.shape, strict=True)):
            raise ValueError(
                f"a control residual {residual.shape} does not fit the features {skip.shape}"
            )
    return h + middle, [skip + r for skip, r in zip(skips, residuals, strict=True)]


def weigh_skip(h: Array, skip: Array, backbone: Array, low: Array) -> tuple[Array, Array]:
    """FreeU (Si et al. 2023): the first half of the channels of h times ``backbone`` (B,).

    The lowest frequencies of the skip, -1 and 0 along each axis, are taken ``low`` (B,) times.
    """
    half = jnp.arange(h.shape[-1]) < h.shape[-1] // 2
    h = jnp.where(half, h * backbone[:, None, None, None].astype(h.dtype), h)
    waves = [jnp.fft.fftfreq(side, 1 / side) for side in skip.shape[1:3]]
    near = [(-1 <= wave) & (wave <= 0) for wave in waves]
    lowest = (near[0][:, None] & near[1])[None, :, :, None]
    spectrum = jnp.fft.fft2(skip.astype(jnp.float32), axes=(1, 2))
    scaled = jnp.where(lowest, spectrum * low[:, None, None, None], spectrum)
    return h, jnp.fft.ifft2(scaled, axes=(1, 2)).real.astype(skip.dtype)
