"""DINOv2 (Oquab et al. 2023), with the names of transformers' Dinov2Model as its files have them.

With registers (Darcet et al. 2023) it is Dinov2WithRegistersModel.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import attend
from diffjax.nets.layers import default_init
from diffjax.nets.resize import resize_bicubic
from diffjax.nets.text import gelu
from diffjax.types import ArrayLike, ConfigError, DType

Array = jax.Array

# Channel means and deviations of ImageNet, of pixels in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_small = nn.initializers.normal(0.02)


class _Embeddings(nn.Module):
    """What is learned of the first layer: tokens (1, n, D) and positions (1, 1 + grid^2, D)."""

    features: int
    positions: int
    registers: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """Return the class token, the positions and the registers."""

        def make(name: str, *rows: int) -> Array:
            return jnp.asarray(self.param(name, _small, (*rows, self.features)))

        make("mask_token", 1)  # every file has it, and pre-training alone reads it
        token, positions = make("cls_token", 1, 1), make("position_embeddings", 1, self.positions)
        registers = make("register_tokens", 1, self.registers) if self.registers else token[:, :0]
        return token, positions, registers


class _Scale(nn.Module):
    """The learned factor of each channel of a branch (LayerScale, Touvron et al. 2021)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * self.param("lambda1", nn.initializers.ones, x.shape[-1:]).astype(x.dtype)


class DINOv2Layer(nn.Module):
    """Pre-norm transformer layer, ``x + l_1 attention(norm(x))`` and ``x + l_2 mlp(norm(x))``.

    It is the body of a scan, so that it returns ``(x, None)``.

    Attributes:
        heads: attention heads.
        width: hidden channels of the MLP.
        swiglu: ``W_2 (silu(g) * h)`` with ``[g, h] = W_1 x`` (Shazeer 2020) in place of GELU.
        eps: of the layer norms.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    heads: int
    width: int
    swiglu: bool = False
    eps: float = 1e-6
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        """Return tokens of the shape of x (B, M, D)."""
        h = _make_norm("norm1", self.eps, self.dtype)(x)
        x = x + _Scale(name="layer_scale1")(self._attend(h))
        h = self._apply_mlp(_make_norm("norm2", self.eps, self.dtype)(x))
        return x + _Scale(name="layer_scale2")(h), None

    def _make_dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=default_init, name=name)

    def _attend(self, x: Array) -> Array:
        def project(name: str) -> Array:
            out = self._make_dense(x.shape[-1], f"attention.attention.{name}")(x)
            return out.reshape(*x.shape[:2], self.heads, -1)

        out = attend(project("query"), project("key"), project("value"), kind=self.attention)
        return self._make_dense(x.shape[-1], "attention.output.dense")(out.reshape(x.shape))

    def _apply_mlp(self, x: Array) -> Array:
        if not self.swiglu:
            h = gelu(self._make_dense(self.width, "mlp.fc1")(x))
            return self._make_dense(x.shape[-1], "mlp.fc2")(h)
        gate, h = jnp.split(self._make_dense(2 * self.width, "mlp.weights_in")(x), 2, axis=-1)
        return self._make_dense(x.shape[-1], "mlp.weights_out")(nn.silu(gate) * h)


def _make_norm(name: str, eps: float, dtype: DType) -> nn.LayerNorm:
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


class DINOv2(nn.Module):
    """DINOv2's vision transformer, ``x (B, H, W, 3) -> features of patches (B, N, D)``.

    The layers are scanned: their parameters are stacked. Images of another size than that of the
    training get positions that are interpolated by cubic convolution.

    Attributes:
        size: pixels on a side of the images of the training, which the positions are for.
        patch: pixels on a side of a patch.
        features: width D of the residual stream.
        layers, heads: depth and attention heads.
        ratio: width of the MLPs over D; SwiGLU has two thirds of it, up to a multiple of 8.
        registers: learned tokens beside those of the patches, whose output nobody reads.
        swiglu: see `DINOv2Layer`; the giant model has it.
        smooth: whether positions that become fewer are low-pass filtered. timm does so,
            transformers with registers alone.
        eps: of the layer norms.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    size: int = 518
    patch: int = 14
    features: int = 768
    layers: int = 12
    heads: int = 12
    ratio: int = 4
    registers: int = 0
    swiglu: bool = False
    smooth: bool = True
    eps: float = 1e-6
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the normalised output (B, N, D) of the patches of images, row by row.

        Args:
            x: (B, H, W, 3) that `dinov2_input` has made, or others of these scales.

        Raises:
            ConfigError: the number of heads does not divide the width.
            ValueError: images that patches do not fill.
        """
        if self.features % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide the width {self.features}")
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch or x.shape[3] != 3:
            raise ValueError(f"images must be (B, H, W, 3) of {self.patch} h, got {x.shape}")
        patches = nn.Conv(
            self.features,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=default_init,
            name="embeddings.patch_embeddings.projection",
        )(x)
        count = (self.size // self.patch) ** 2
        learned = _Embeddings(self.features, 1 + count, self.registers, name="embeddings")()
        token, positions, registers = learned
        rows, columns = patches.shape[1:3]
        places = self._place(positions[:, 1:], (rows, columns)).astype(patches.dtype)
        patches = patches.reshape(len(x), -1, self.features) + places
        before = jnp.concatenate([token + positions[:, :1], registers], 1).astype(patches.dtype)
        before = jnp.broadcast_to(before, (len(x), *before.shape[1:]))
        out, _ = self._make_stack()(jnp.concatenate([before, patches], 1))
        return _make_norm("layernorm", self.eps, self.dtype)(out[:, before.shape[1] :])

    @nn.nowrap
    def _make_stack(self) -> nn.Module:
        """Make the scan over the layers."""
        stack = nn.scan(
            DINOv2Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        width = self.features * self.ratio
        width = (width * 2 // 3 + 7) // 8 * 8 if self.swiglu else width
        options = (self.heads, width, self.swiglu, self.eps, self.attention, self.dtype)
        return stack(*options, name="encoder.layer")

    @nn.nowrap
    def _place(self, positions: Array, grid: tuple[int, int]) -> Array:
        """Return the positions (1, h w, D) of a grid of patches, of those that were trained."""
        side = self.size // self.patch
        if grid == (side, side):
            return positions
        table = positions.reshape(1, side, side, -1)
        if self.smooth:
            shape = (1, *grid, table.shape[-1])
            table = jax.image.resize(table, shape, "bicubic", antialias=True)
        else:
            table = resize_bicubic(table, grid)
        return table.reshape(1, -1, table.shape[-1])


def dinov2_input(images: ArrayLike, sides: tuple[int, int]) -> Array:
    """Resize and scale images as REPA gives them to DINOv2 (Yu et al. 2024), (B, h, w, 3).

    Args:
        images: (B, H, W, 3 or 1) in [-1, 1]; a grey channel is repeated.
        sides: h and w, by cubic convolution without a low-pass filter.
    """
    x = ((jnp.asarray(images) + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    return resize_bicubic(x, sides)
