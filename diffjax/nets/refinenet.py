"""RefineNet of NCSN (Song & Ermon 2019, appendix A) and of NCSNv2 (Song & Ermon 2020, appendix B).

State-dict names are those of the released models. Their tables of noise levels begin with the most
noise, ours with the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.layers import rematerialise, torch_init
from diffjax.nets.resampling import downsample2
from diffjax.types import Cond, CondEntries, ConfigError, DType

Array = jax.Array


def resize_by_corners(x: Array, size: tuple[int, int]) -> Array:
    """Interpolate linearly to (B, height, width, C), so that the pixels in the corners stay.

    Pixel i of m is read at ``i (n - 1) / (m - 1)`` of the n pixels of a side.

    Args:
        x: features (B, H, W, C).
        size: (height, width).
    """
    if x.shape[1:3] == tuple(size):
        return x

    def weigh(n: int, m: int) -> Array:  # (m, n)
        distance = np.abs(np.linspace(0, n - 1, m)[:, None] - np.arange(n))
        return jnp.asarray(np.maximum(0, 1 - distance), x.dtype)

    rows, columns = weigh(x.shape[1], size[0]), weigh(x.shape[2], size[1])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns)


def _begin_near_one(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, tuple(shape), dtype)


def _begin_rows(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Begin rows of (gamma, alpha, beta): two near 1, and 0."""
    rows, width = shape
    near = _begin_near_one(key, (rows, 2 * width // 3), dtype)
    return jnp.concatenate([near, jnp.zeros((rows, width // 3), dtype)], axis=1)


class LevelNorm(nn.Module):
    """Instance normalisation that keeps what sets the means of the channels apart.

    With m and s^2 the mean and the variance of a channel over the pixels, and M and V those of the
    m over the channels, it is ``gamma ((x - m) / s + alpha (m - M) / sqrt(V)) + beta`` (Song &
    Ermon 2019, appendix A.1). Statistics are in float32; V is unbiased, as released.

    Attributes:
        levels: noise levels, each with gamma, alpha and beta of its own; 0: one for all.
        dtype: type of the output; None is that of the input.
    """

    levels: int = 0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, level: Array) -> Array:
        """Return features of the shape of x (B, H, W, C), for levels (B,) in 0 .. levels - 1."""
        width = x.shape[-1]
        if self.levels:
            table = nn.Embed(self.levels, 3 * width, embedding_init=_begin_rows, name="embed")
            gamma, alpha, beta = jnp.split(table(level)[:, None, None, :], 3, axis=-1)
        else:
            gamma = self.param("gamma", _begin_near_one, (width,))
            alpha = self.param("alpha", _begin_near_one, (width,))
            beta = self.param("beta", nn.initializers.zeros, (width,))
        y = x.astype(jnp.float32)
        means = y.mean((1, 2), keepdims=True)
        y = (y - means) * jax.lax.rsqrt(y.var((1, 2), keepdims=True) + 1e-5)
        spread = means.var(-1, ddof=1, keepdims=True)
        apart = (means - means.mean(-1, keepdims=True)) * jax.lax.rsqrt(spread + 1e-5)
        return (gamma * (y + alpha * apart) + beta).astype(self.dtype or x.dtype)


def _conv(
    features: int, name: str, *, size: int = 3, dilation: int = 1, bias: bool = True, dtype: DType
) -> nn.Conv:
    pads = [(dilation * (size // 2),) * 2] * 2
    return nn.Conv(
        features, (size, size), padding=pads, kernel_dilation=dilation, use_bias=bias, dtype=dtype,
        kernel_init=torch_init, name=name,
    )  # fmt: skip


class _Residual(nn.Module):
    """Norm, ELU, conv, norm, ELU, conv, beside a shortcut.

    Attributes:
        features: output channels.
        first: the first block of a stage changes the channels, and halves the sides if it does not
            dilate; of the first stage no block is one.
        dilation: of its convolutions.
        levels, dtype: see `RefineNet`.
    """

    features: int
    first: bool = False
    dilation: int = 1
    levels: int = 0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, level: Array) -> Array:
        halve = self.first and self.dilation == 1

        def convolve(h: Array, features: int, name: str, size: int = 3) -> Array:
            name = f"{name}.conv" if halve and name != "conv1" else name
            h = _conv(features, name, size=size, dilation=self.dilation, dtype=self.dtype)(h)
            return downsample2(h) if halve and name != "conv1" else h

        width = x.shape[-1] if self.first else self.features
        h = nn.elu(LevelNorm(self.levels, self.dtype, name="normalize1")(x, level))
        h = convolve(h, width, "conv1")
        h = nn.elu(LevelNorm(self.levels, self.dtype, name="normalize2")(h, level))
        h = convolve(h, self.features, "conv2")
        shortcut = convolve(x, self.features, "shortcut", 1 if halve else 3) if self.first else x
        return shortcut + h


class _Refine(nn.Module):
    """Adapt features by residual units, fuse them, pool them in a chain, and adapt the result.

    Lin et al. 2017; with noise levels every convolution has a norm in front, and pools average.

    Attributes:
        features: output channels.
        units: residual units at the end.
        levels, dtype: see `RefineNet`.
    """

    features: int
    units: int = 1
    levels: int = 0
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Sequence[Array], level: Array) -> Array:
        """Return features of the size of the first of the inputs."""
        parts = [self._adapt(x, level, f"adapt_convs.{i}", 2) for i, x in enumerate(inputs)]
        h = parts[0] if len(parts) == 1 else self._fuse(parts, level)
        pool = nn.avg_pool if self.levels else nn.max_pool
        h = path = nn.elu(h)
        for i in range(2):
            path = pool(self._norm(path, level, f"crp.norms.{i}"), (5, 5), padding=((2, 2), (2, 2)))
            path = _conv(self.features, f"crp.convs.{i}", bias=False, dtype=self.dtype)(path)
            h = path + h
        return self._adapt(h, level, "output_convs", self.units)

    def _fuse(self, parts: Sequence[Array], level: Array) -> Array:
        """Sum features at the size of the first."""
        size, total = parts[0].shape[1:3], jnp.zeros(())
        for i, x in enumerate(parts):
            h = self._norm(x, level, f"msf.norms.{i}")
            h = _conv(self.features, f"msf.convs.{i}", dtype=self.dtype)(h)
            total = total + resize_by_corners(h, (size[0], size[1]))
        return total

    def _norm(self, x: Array, level: Array, name: str) -> Array:
        return LevelNorm(self.levels, self.dtype, name=name)(x, level) if self.levels else x

    def _adapt(self, x: Array, level: Array, name: str, units: int) -> Array:
        """Apply residual units of two convolutions."""
        for unit in range(1, units + 1):
            h = x
            for k in (1, 2):
                h = nn.elu(self._norm(h, level, f"{name}.{unit}_{k}_norm"))
                place = f"{name}.{unit}_{k}_conv"
                h = _conv(x.shape[-1], place, bias=False, dtype=self.dtype)(h)
            x = h + x
        return x


class RefineNet(nn.Module):
    """``(z, t, cond) -> raw``: RefineNet with dilated convolutions, of NCSN and NCSNv2.

    Stages of residual blocks, the second of which halves the sides and later ones dilate their
    convolutions by 2, 4 and so on, are refined from the last to the first. ``cond["concat"]`` (B,
    H, W, C) joins the channels of z. Nothing else but the noise level is known to the network.

    Attributes:
        channels: width of the first stage.
        multipliers: width of each stage over ``channels``.
        blocks: residual blocks of a stage.
        noise_levels: number of noise levels that all norms are told, where t is the index of one
            (NCSN); 0: no norm is told, and the output is to be divided by sigma (NCSNv2).
        out_channels: channels of the output.
        num_classes: must be 0.
        initialisation: a name in `diffjax.nets.initialisation`; that of the release is ``torch``.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        dtype: computation type; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    noise_levels: int = 0
    out_channels: int = 3
    num_classes: int = 0
    initialisation: str = "torch"
    remat: str | bool = False
    dtype: DType = None

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of."""
        return min(2, len(self.multipliers))

    @nn.compact
    def __call__(self, z: Array, t: Array, cond: Cond = None, train: bool = False) -> Array:
        """Return the raw output (B, H, W, out_channels), in float32.

        Args:
            z: noisy data (B, H, W, C).
            t: times, () or (B,); with noise levels their indices, 0 for the least noise.
            cond: entries of the condition, see the class.
            train: without effect: there is no dropout.

        Raises:
            ConfigError: the network is to know classes.
            ValueError: shapes do not fit the network, or it does not read a condition.
        """
        cond = cond or {}
        _check(self, z, cond)
        concat = cond.get("concat")
        z = z if concat is None else jnp.concatenate([z, concat], axis=-1)
        level = jnp.broadcast_to(jnp.asarray(t), z.shape[:1])
        level = jnp.clip(jnp.round(level), 0, max(self.noise_levels - 1, 0)).astype(jnp.int32)
        h = _conv(self.channels, "begin_conv", dtype=self.dtype)(z)
        h = self._refine(self._encode(h, level), level)
        h = nn.elu(LevelNorm(self.noise_levels, self.dtype, name="normalizer")(h, level))
        # The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
        return _conv(self.out_channels, "end_conv", dtype=jnp.float32)(h)

    def _encode(self, h: Array, level: Array) -> list[Array]:
        """Return what comes out of every stage."""
        block = rematerialise(_Residual, self.remat)
        stages = []
        for i, multiplier in enumerate(self.multipliers):
            width, dilation = int(self.channels * multiplier), 2 ** (i - 1) if i > 1 else 1
            for k in range(self.blocks):
                first = i > 0 and k == 0
                net = block(
                    *(width, first, dilation, self.noise_levels, self.dtype), name=f"res{i + 1}.{k}"
                )
                h = net(h, level)
            stages.append(h)
        return stages

    def _refine(self, stages: list[Array], level: Array) -> Array:
        """Join the stages from the last to the first; each gets the width of the next to join."""
        block = rematerialise(_Refine, self.remat)
        widths = [stage.shape[-1] for stage in stages]
        inputs = [stages.pop()]
        for i in range(1, len(widths) + 1):
            width = widths[-1] if i == 1 else widths[max(len(stages) - 1, 0)]
            units = 1 if stages else 3
            net = block(width, units, self.noise_levels, self.dtype, name=f"refine{i}")
            h = net(inputs, level)
            inputs = [stages.pop(), h] if stages else []
        return h


def _check(net: RefineNet, z: Array, cond: CondEntries) -> None:
    """Raise an error unless z and the condition fit the network."""
    if net.num_classes:
        raise ConfigError(
            "a RefineNet (network.name=refinenet) knows no classes: set network.conditional=False, "
            "or network.name=unet"
        )
    if z.ndim != 4 or z.shape[1] % net.divisor or z.shape[2] % net.divisor:
        raise ValueError(
            f"images must be (B, H, W, C) with H and W multiples of {net.divisor}, got {z.shape}"
        )
    for name in set(cond) - {"concat", "label"}:
        raise ValueError(f"a RefineNet (network.name=refinenet) does not read cond[{name!r}]")
