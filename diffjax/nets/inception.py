"""The Inception network of FID, with the parameter names of torchvision's Inception v3.

It is not torchvision's network: average pooling leaves the padding out, the last block pools by
maximum, and there are 1008 logits (the TensorFlow graph of 2015-12-05 that Heusel et al. 2017 use).

The network is a table, `_BLOCKS`: each block has chains of convolutions side by side, whose outputs
are concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import choose

Array = jax.Array

SIZE = 299  # pixels on a side of the network's input
SPATIAL_CHANNELS = 7  # spatial FID uses this many of the 192 of Mixed_6d.branch1x1
_EPS = 1e-3
# TF32 and bfloat16 products would move features by more than the metrics' own rounding.
_EXACT = jax.lax.Precision.HIGHEST


class _Conv(NamedTuple):
    """A convolution: padded to keep the size, or unpadded with stride 2.

    Attributes:
        name: as in torchvision.
        features: output channels.
        size: (height, width) of the kernel.
        stride: 1 or 2.
    """

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1


_Step = _Conv | tuple[_Conv, ...]  # a tuple forks, and its outputs are concatenated


class _Block(NamedTuple):
    """Chains of convolutions side by side, and a pooling branch.

    Attributes:
        chains: steps of each branch.
        pool: ``average``, ``maximum`` or ``stride``, the last without a convolution.
        pool_features: output channels of the convolution after pooling.
    """

    chains: tuple[tuple[_Step, ...], ...]
    pool: str
    pool_features: int = 192


def _make_block_a(pool: int) -> _Block:
    """Describe a block of 1x1, 5x5 and double 3x3 convolutions (Mixed_5b to 5d)."""
    return _Block(
        (
            (_Conv("branch1x1", 64),),
            (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        "average",
        pool,
    )


def _make_block_c(width: int) -> _Block:
    """Describe a block of 7x7 convolutions, factored into 1x7 and 7x1 (Mixed_6b to 6e)."""
    return _Block(
        (
            (_Conv("branch1x1", 192),),
            (
                _Conv("branch7x7_1", width),
                _Conv("branch7x7_2", width, (1, 7)),
                _Conv("branch7x7_3", 192, (7, 1)),
            ),
            (
                _Conv("branch7x7dbl_1", width),
                _Conv("branch7x7dbl_2", width, (7, 1)),
                _Conv("branch7x7dbl_3", width, (1, 7)),
                _Conv("branch7x7dbl_4", width, (7, 1)),
                _Conv("branch7x7dbl_5", 192, (1, 7)),
            ),
        ),
        "average",
    )


def _make_block_e(pool: str) -> _Block:
    """Describe a block whose 3x3 convolutions end in forks of 1x3 and 3x1 (Mixed_7b and 7c)."""

    def fork(name: str) -> tuple[_Conv, _Conv]:
        return _Conv(f"{name}a", 384, (1, 3)), _Conv(f"{name}b", 384, (3, 1))

    return _Block(
        (
            (_Conv("branch1x1", 320),),
            (_Conv("branch3x3_1", 384), fork("branch3x3_2")),
            (
                _Conv("branch3x3dbl_1", 448),
                _Conv("branch3x3dbl_2", 384, (3, 3)),
                fork("branch3x3dbl_3"),
            ),
        ),
        pool,
    )


_BLOCKS = {
    "Mixed_5b": _make_block_a(32),
    "Mixed_5c": _make_block_a(64),
    "Mixed_5d": _make_block_a(64),
    "Mixed_6a": _Block(
        (
            (_Conv("branch3x3", 384, (3, 3), 2),),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3), 2),
            ),
        ),
        "stride",
    ),
    "Mixed_6b": _make_block_c(128),
    "Mixed_6c": _make_block_c(160),
    "Mixed_6d": _make_block_c(160),
    "Mixed_6e": _make_block_c(192),
    "Mixed_7a": _Block(
        (
            (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2)),
            (
                _Conv("branch7x7x3_1", 192),
                _Conv("branch7x7x3_2", 192, (1, 7)),
                _Conv("branch7x7x3_3", 192, (7, 1)),
                _Conv("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        "stride",
    ),
    "Mixed_7b": _make_block_e("average"),
    "Mixed_7c": _make_block_e("maximum"),
}


class _Kernel(nn.Module):
    """A kernel without its convolution; it comes from a file and starts at 0."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Array:
        return jnp.asarray(self.param("kernel", nn.initializers.zeros, self.shape))


class _FrozenNorm(nn.Module):
    """A batch norm with stored statistics, as the scale and the shift that it amounts to."""

    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Return (scale, shift), each (features,)."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (self.features,)
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        scale = scale * jax.lax.rsqrt(variance + _EPS)
        return scale, bias - mean * scale


class _ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU. The norm's scale goes into the kernel."""

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return features (B, h, w, features), computed at the highest precision of the device."""
        kernel = _Kernel((*self.size, x.shape[-1], self.features), name="conv")()
        scale, shift = _FrozenNorm(self.features, name="bn")()
        y = jax.lax.conv_general_dilated(
            x,
            kernel * scale,
            (self.stride, self.stride),
            [(k // 2 * self.padded,) * 2 for k in self.size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_EXACT,
        )
        return nn.relu(y + shift)


def _average_pool(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _stride_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


_POOLS: dict[str, Callable[[Array], Array]] = {"average": _average_pool, "maximum": _max_pool}


class _Mixed(nn.Module):
    """One block of the table."""

    block: _Block

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Return the outputs of all branches, (B, h, w, c) each, in torchvision's order."""

        def conv(unit: _Conv, h: Array) -> Array:
            padded = unit.stride == 1
            return _ConvNorm(unit.features, unit.size, unit.stride, padded, name=unit.name)(h)

        def run(chain: tuple[_Step, ...]) -> Array:
            h = x
            for step in chain:
                if isinstance(step, _Conv):
                    h = conv(step, h)
                else:
                    h = jnp.concatenate([conv(unit, h) for unit in step], -1)
            return h

        outputs = [run(chain) for chain in self.block.chains]
        if self.block.pool == "stride":
            return (*outputs, _stride_pool(x))
        pooled = _POOLS[self.block.pool](x)
        return (*outputs, conv(_Conv("branch_pool", self.block.pool_features), pooled))


class _Head(nn.Module):
    """A dense layer whose bias is in the file but not in the scores."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.dot(x, kernel, precision=_EXACT)


class InceptionFeatures(NamedTuple):
    """What Inception computes from images.

    Attributes:
        pool: average-pooled last features (B, 2048), for FID, KID, precision and recall.
        spatial: (B, 2023) = 17 x 17 x 7, for spatial FID (Nash et al. 2021).
        logits: (B, 1008) *without the bias* of the last layer, as every Inception score is formed.
    """

    pool: Array
    spatial: Array
    logits: Array


class Inception(nn.Module):
    """The network ``x (B, 299, 299, 3) in [-1, 1] -> InceptionFeatures``; see `inception_input`.

    Szegedy et al. 2015, with the weights that Heusel et al. 2017 published.
    """

    @nn.compact
    def __call__(self, x: Array) -> InceptionFeatures:
        """Return the features of images that `inception_input` has resized."""
        x = _ConvNorm(32, (3, 3), 2, padded=False, name="Conv2d_1a_3x3")(x)
        x = _ConvNorm(32, (3, 3), padded=False, name="Conv2d_2a_3x3")(x)
        x = _stride_pool(_ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = _ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = _stride_pool(_ConvNorm(192, (3, 3), padded=False, name="Conv2d_4a_3x3")(x))
        spatial = x
        for name, block in _BLOCKS.items():
            outputs = _Mixed(block, name=name)(x)
            x = jnp.concatenate(outputs, -1)
            if name == "Mixed_6d":
                spatial = outputs[0][..., :SPATIAL_CHANNELS]
        pool = x.mean((1, 2))
        logits = _Head(1008, name="fc")(pool)
        return InceptionFeatures(pool, spatial.reshape(len(spatial), -1), logits)


def _make_bilinear(source: int, target: int, *, half_pixel: bool) -> np.ndarray:
    """Return the interpolation matrix (target, source); a row has at most 2 entries.

    Args:
        source, target: pixels on a side before and after.
        half_pixel: whether pixel centres are aligned, instead of the top left corners.
    """
    at = np.arange(target) * (source / target)
    if half_pixel:
        at = np.maximum(at + 0.5 * source / target - 0.5, 0)
    low = np.minimum(at.astype(int), source - 1)
    part = at - low
    rows, out = np.arange(target), np.zeros((target, source))
    np.add.at(out, (rows, low), 1 - part)
    np.add.at(out, (rows, np.minimum(low + 1, source - 1)), part)
    return out.astype(np.float32)


# For each way to resize: whether pixel centres are aligned, then scale and offset of levels 0..255.
_INPUTS = {"tensorflow": (False, 1 / 128, -1.0), "pytorch_fid": (True, 2 / 255, -1.0)}


def inception_input(levels: Array, *, resize: str = "tensorflow") -> Array:
    """Resize and scale images as Inception reads them, (B, 299, 299, 3).

    The resize is bilinear without anti-aliasing, as the published numbers were made. Two
    conventions are in use, and statistics of one cannot be compared with those of the other:

    - ``tensorflow``: pixel corners aligned, ``(u - 128) / 128``. The original FID, ADM, EDM and
      torch-fidelity.
    - ``pytorch_fid``: pixel centres aligned, ``2 u / 255 - 1``.

    Args:
        levels: images (B, H, W, 1 or 3) of levels 0 to 255, rounded or not; grey is repeated.
        resize: one of the conventions.

    Raises:
        ValueError: unknown convention, or not 1 or 3 channels.
    """
    half_pixel, scale, offset = choose("resize", resize, _INPUTS)
    if levels.ndim != 4 or levels.shape[-1] not in (1, 3):
        raise ValueError(f"Inception takes images (N, H, W, 1 or 3), got {levels.shape}")
    height, width = (_make_bilinear(n, SIZE, half_pixel=half_pixel) for n in levels.shape[1:3])
    x = levels.astype(jnp.float32)
    x = jnp.einsum("th,bhwc,uw->btuc", height, x, width, precision=_EXACT)
    return jnp.broadcast_to(x * scale + offset, (*x.shape[:3], 3))
