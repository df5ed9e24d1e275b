"""Layers shared by the networks, with diffusers' names and PyTorch's defaults where they differ.

Submodules carry dotted names, so that the joined path of a parameter is its diffusers state-dict
name. Features are (B, H, W, C). ``dtype`` is the type that a layer computes in; parameters stay
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.nn.initializers import Initializer

from diffjax.nets.resampling import (
    downsample2,
    filter_fir,
    fir_downsample2,
    fir_upsample2,
    upsample2,
)
from diffjax.remat import read_auto_policy
from diffjax.types import CondEntries, DType, choose

Array = jax.Array
ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])

# DDPM's initialisation (Ho et al. 2020, released code): fan-average uniform, and a scale of
# 1e-10 for the last layer of every residual branch so that blocks start as the identity.
default_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
# PyTorch's default for convolutions.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def timestep_embedding(
    t: Array, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: float = 1.0
) -> Array:
    """Return the sinusoidal embedding (B, dim) of times (B,) (Vaswani et al. 2017, section 3.5).

    Frequencies are ``10000^(-k / (dim/2 - freq_shift))``, k = 0 .. dim/2 - 1.

    Args:
        t: times, usually 0 to 1000.
        dim: size of the embedding; an odd one is padded with 0.
        flip_sin_to_cos: order [cos, sin] (OpenAI, LDM) instead of [sin, cos] (DDPM).
        freq_shift: 1 for DDPM, 0 for OpenAI and LDM.
    """
    half = dim // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * freqs
    waves = [jnp.sin(angles), jnp.cos(angles)]
    out = jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)
    return jnp.pad(out, ((0, 0), (0, dim % 2)))


def _is_product(primitive: Primitive, *_: object, **__: object) -> bool:
    """Return whether a primitive is a product, a convolution or a kernel: those are kept."""
    return primitive.name in ("dot_general", "conv_general_dilated", "pallas_call")


REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything is kept
    "blocks": jax.checkpoint_policies.nothing_saveable,  # only the input of each block is kept
    "products": _is_product,  # norms, activations and softmax are computed again
}


def rematerialise(module: ModuleClass, policy: str | bool, **options: Any) -> ModuleClass:
    """Return a block's class that keeps for the backward pass only what the policy says.

    What is not kept is computed again, which trades time for memory (Chen et al. 2016).

    Args:
        module: the class of the block.
        policy: a key of `REMAT`, or ``auto`` (see `diffjax.remat`); True is ``blocks`` and False
            ``none``.
        options: of `flax.linen.remat`.

    Raises:
        ValueError: unknown policy.
    """
    name = policy if isinstance(policy, str) else "blocks" if policy else "none"
    keep = choose("remat", name, {**REMAT, "auto": REMAT[read_auto_policy()]})
    return module if keep is None else nn.remat(module, policy=keep, **options)


class TimestepMLP(nn.Module):
    """Two dense layers with an activation between them, (B, D) -> (B, features).

    A dense layer without bias adds an embedded ``guidance`` (B, G) to the input, if it is given.

    Attributes:
        features: width of both layers.
        dtype: type to compute in.
        kernel_init: initialiser of both kernels.
        activation: between the layers.
        activate_last: whether the activation follows the second layer, too.
    """

    features: int
    dtype: DType = None
    kernel_init: Initializer = default_init
    activation: Callable[[Array], Array] = nn.silu
    activate_last: bool = False

    @nn.compact
    def __call__(self, x: Array, guidance: Array | None = None) -> Array:
        if guidance is not None:
            x = x + nn.Dense(x.shape[-1], False, dtype=self.dtype, name="cond_proj")(guidance)
        x = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="linear_1"
        )(x)
        x = self.activation(x)
        x = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="linear_2"
        )(x)
        return self.activation(x) if self.activate_last else x


def embed_added(
    added: Mapping[str, Array], embed: Callable[[Array], Array], added_dim: int
) -> Array:
    """Embed pooled text and time_ids as a vector (B, added_dim) (Podell et al. 2023, section 2.2).

    Args:
        added: ``text_embeds`` (B, P) and ``time_ids`` (B, K).
        embed: from numbers (N,) to their sinusoidal embeddings (N, D).
        added_dim: ``P + K D`` of the network.

    Raises:
        ValueError: the vector has another size than the network needs.
    """
    ids = jnp.asarray(added["time_ids"], jnp.float32)
    waves, pooled = embed(ids.reshape(-1)), added["text_embeds"]
    out = jnp.concatenate([pooled, waves.reshape(len(ids), -1).astype(pooled.dtype)], axis=-1)
    if out.shape[-1] != added_dim:
        raise ValueError(
            f"text_embeds {pooled.shape} and time_ids {ids.shape} make {out.shape[-1]} "
            f"numbers, but this network needs added_dim={added_dim}"
        )
    return out


def check_added(cond: CondEntries) -> None:
    """Raise a ValueError if a condition lacks the numbers that are added to the time embedding."""
    if "added" not in cond:
        raise ValueError("this network needs cond['added'] with 'text_embeds' and 'time_ids'")


def embed_label(table: nn.Embed, label: Array | None) -> Array:
    """Return the rows of a class embedding for labels (B,); rows beyond the last are 0: no class.

    Args:
        table: the class embedding.
        label: ``cond["label"]``, None if it is absent.

    Raises:
        ValueError: the label is absent.
    """
    rows = table.num_embeddings
    if label is None:
        raise ValueError(f"this network needs cond['label'] in 0 .. {rows - 1}")
    return jnp.where(label[:, None] < rows, table(jnp.minimum(label, rows - 1)), 0)


def check_context(cond: CondEntries, dim: int) -> None:
    """Raise a ValueError unless ``cond["context"]`` is (B, M, dim). Networks without have dim 0."""
    found = getattr(cond.get("context"), "shape", None)
    if dim and (found is None or len(found) != 3 or found[-1] != dim):
        raise ValueError(f"this network needs cond['context'] (B, M, {dim}), got {found}")


def normalise_groups(x: Array, groups: int, eps: float, scale: Array | float = 1.0) -> Array:
    """Return ``scale (x - mean) / sqrt(var + eps)`` in float32 (Wu & He 2018).

    Mean and variance are those of a group's channels over all pixels.

    Args:
        x: features (B, ..., C).
        groups: number of groups.
        eps: added to the variance.
        scale: (C,), or one number.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    channels = x.shape[-1]
    if channels % groups:
        raise ValueError(f"norm_groups={groups} does not divide {channels} channels")
    pixels = tuple(range(1, x.ndim - 1))
    y = x.astype(jnp.float32)

    def group_mean(value: Array) -> Array:
        # The sums per channel come first: reducing over pixels and groups at once is several
        # times slower on CPUs, where XLA does not vectorise over the short group axis.
        sums = value.mean(pixels).reshape(-1, groups, channels // groups).mean(-1)
        return jnp.repeat(sums, channels // groups, axis=-1)

    def spread(value: Array) -> Array:
        return jnp.expand_dims(value, pixels)

    y = y - spread(group_mean(y))
    return y * spread(jax.lax.rsqrt(group_mean(y * y) + eps) * scale)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), with statistics in float32.

    With one channel per group it removes whatever is constant over the pixels of a channel, the
    added time embedding included: give small networks few groups.

    Attributes:
        groups: number of groups, which divides the channels.
        eps: added to the variance.
        dtype: type of the output; None is that of the input.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    groups: int = 32
    eps: float = 1e-6
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise features (B, ..., C) over the pixels and the channels of a group."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = normalise_groups(x, self.groups, self.eps, scale) + bias
        return y.astype(self.dtype or x.dtype)


def conv(
    features: int,
    *,
    name: str,
    size: int = 3,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] = 1,
    dtype: DType = None,
    init: Initializer = default_init,
) -> nn.Conv:
    """Make a convolution with symmetric padding as PyTorch writes it.

    Args:
        features: output channels.
        name: of the submodule.
        size: side of the kernel.
        stride: of both axes.
        padding: pixels on every side, or (before, after) for height and width.
        dtype: type to compute in.
        init: initialiser of the kernel.
    """
    pads = padding if isinstance(padding, Sequence) else [(padding, padding)] * 2
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=pads,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )


class FIRDownsample(nn.Module):
    """A 3x3 convolution of the filtered image at every second pixel; it pads as NCSN++ does."""

    features: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = filter_fir(x, gain=1.0, padding=[(2, 2)] * 2)
        return conv(self.features, name="conv", stride=2, padding=0, dtype=self.dtype)(x)


class FourierEmbedding(nn.Module):
    """Random Fourier features ``[sin, cos](2 pi W t)`` (B, dim), W fixed (Tancik et al. 2020).

    Attributes:
        dim: size of the embedding.
        scale: standard deviation of ``W ~ N(0, scale^2)``.
        flip_sin_to_cos: order [cos, sin].
    """

    dim: int
    scale: float = 16.0
    flip_sin_to_cos: bool = False

    @nn.compact
    def __call__(self, t: Array) -> Array:
        init = nn.initializers.normal(self.scale)
        angles = (
            2
            * jnp.pi
            * t[:, None]
            * jax.lax.stop_gradient(self.param("weight", init, (self.dim // 2,)))
        )
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.flip_sin_to_cos else waves, axis=-1)


class Downsample(nn.Module):
    """A convolution of stride 2, (B, H, W, C) -> (B, H/2, W/2, C).

    Attributes:
        padding: 1 pads both sides; 0 pads right and bottom only, as TensorFlow's SAME does.
        dtype: type to compute in.
    """

    padding: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pads = [(self.padding, 1)] * 2
        return conv(x.shape[-1], name="conv", stride=2, padding=pads, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest upsampling by 2 and a 3x3 convolution."""

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        """Return features (B, 2H, 2W, C).

        Args:
            x: (B, H, W, C).
            size: (height, width) to which they are cut before the convolution.
        """
        x = upsample2(x)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return conv(x.shape[-1], name="conv", dtype=self.dtype)(x)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, conv, time embedding, norm, SiLU, dropout, conv.

    Ho et al. 2020, appendix B.

    Attributes:
        features: output channels.
        dropout: rate when training.
        scale_shift: the embedding scales and shifts the second norm (Nichol & Dhariwal 2021)
            instead of being added before it.
        resample: ``None``, ``"up"`` or ``"down"`` on both branches (BigGAN blocks of ADM).
        groups, eps: of the norms.
        dtype: type to compute in.
        fir: resample with `FIR` instead of repeating and averaging.
        rescale: divide the sum of both branches by sqrt(2) (Song et al. 2021, appendix H).
        project: a 1x1 convolution on the shortcut of resampling blocks too.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: str | None = None
    groups: int = 32
    eps: float = 1e-6
    dtype: DType = None
    fir: bool = False
    rescale: bool = False
    project: bool = False

    @nn.compact
    def __call__(self, x: Array, temb: Array | None, train: bool = False) -> Array:
        """Return features (B, H', W', features).

        Args:
            x: (B, H, W, C).
            temb: embedding (B, D) of time and conditions; None for none.
            train: whether dropout is active.
        """

        def norm(name: str) -> GroupNorm:
            return GroupNorm(self.groups, self.eps, self.dtype, name=name)

        h = nn.silu(norm("norm1")(x))
        if self.resample:
            ways = (fir_upsample2, fir_downsample2) if self.fir else (upsample2, downsample2)
            move = ways[self.resample == "down"]
            x, h = move(x), move(h)
        h = conv(self.features, name="conv1", dtype=self.dtype)(h)
        shift = None
        if temb is not None:
            width = self.features * (2 if self.scale_shift else 1)
            proj = nn.Dense(
                width, dtype=self.dtype, kernel_init=default_init, name="time_emb_proj"
            )(nn.silu(temb))[:, None, None, :]
            if self.scale_shift:
                scale, shift = jnp.split(proj, 2, axis=-1)
            else:
                h = h + proj
        h = norm("norm2")(h)
        if shift is not None:
            h = h * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(self.features, name="conv2", dtype=self.dtype, init=zero_init)(h)
        if x.shape[-1] != self.features or (self.project and self.resample):
            x = conv(self.features, name="conv_shortcut", size=1, padding=0, dtype=self.dtype)(x)
        return (x + h) * 2**-0.5 if self.rescale else x + h
