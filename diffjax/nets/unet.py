"""One UNet for DDPM, improved DDPM, ADM, latent diffusion and Stable Diffusion.

Its state-dict names are those of diffusers' UNet2DModel, and with a context those of
UNet2DConditionModel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import AttentionBlock
from diffjax.nets.layers import (
    Downsample,
    FIRDownsample,
    FourierEmbedding,
    GroupNorm,
    ResBlock,
    TimestepMLP,
    Upsample,
    check_context,
    conv,
    depth_to_space,
    embed_label,
    rematerialise,
    space_to_depth,
    timestep_embedding,
    zero_init,
)
from diffjax.nets.transformer import SpatialTransformer
from diffjax.types import Cond, CondEntries, ConfigError, DType, Module, choose

Array = jax.Array
# ``(features, name, resample=None) -> (h -> h)``, a residual block.
MakeBlock = Callable[..., Callable[[Array], Array]]


class UNet(nn.Module):
    """``(z, t, cond) -> raw``: residual UNet with attention at chosen levels.

    Ho et al. 2020, appendix B; options of Nichol & Dhariwal 2021, Dhariwal & Nichol 2021, Rombach
    et al. 2022 and Podell et al. 2023. ``cond["concat"]`` (B, H, W, C) joins the channels of z;
    ``cond["control"]``, residuals of every skip (or None) and of the middle, is added to them, and
    ``cond["adapter"]``, features for every level (and maybe the middle), on the way down.

    Attributes:
        channels: width of the first level.
        multipliers: width of each level over ``channels``; each level halves the resolution.
        blocks: residual blocks per level (one more on the way up).
        attention_levels: indices of the levels that have attention; the middle always has it.
        heads, head_channels: number of heads (one, or one per level; the middle has the last), or
            channels of each (which wins if given).
        out_channels: channels of the output; twice the data's with a learned variance.
        dropout: rate inside residual blocks when ``train``.
        scale_shift: embedding as scale and shift of the second norm.
        resblock_updown: residual blocks resample (ADM) instead of a strided convolution.
        num_classes: rows of the class embedding, 0 for none; ``cond["label"]`` (B,) int.
        flip_sin_to_cos, freq_shift: order and spacing of the timestep embedding: (False, 1) is
            DDPM's, (True, 0) OpenAI's.
        time_scale: factor on t, 1000 for continuous time in [0, 1].
        downsample_padding: 0 pads like TensorFlow's SAME (DDPM), 1 like PyTorch.
        norm_groups: groups of every norm; well below the narrowest width, see `GroupNorm`.
        patch: side of the pixel patches folded into channels (Hoogeboom et al. 2023), 1 for none.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        context_dim: width D of the tokens ``cond["context"]`` (B, M, D) that transformer blocks
            attend to in place of DDPM's attention, 0 for none. ``cond["mask"]`` (B, M) bool, if
            given, leaves tokens out.
        depth: transformer blocks per attention (one, or one per level; the middle has the last).
        linear_projection: dense layers around the transformer blocks instead of 1x1 convolutions.
        added_dim: size of the added condition of SDXL, 0 for none: ``cond["added"]`` with
            "text_embeds" (B, P) and "time_ids" (B, K) where ``P + K added_time_dim = added_dim``.
        added_time_dim: size of the embedding of each of the "time_ids".
        attention: see `diffjax.nets.attention.attend`.
        decoder_attention: on the way up after ``all`` blocks of a level, or the ``last`` (Song
            et al. 2021).
        fir, rescale, project: of the residual blocks, see `ResBlock`.
        fourier_scale: random Fourier features of t with this scale, 0 for sinusoids.
        progressive_input: add the image, shrunk by filtered convolutions, to every level (the
            residual form of Song et al. 2021).
        augment_dim: size of EDM's augmentation labels ``cond["augment"]`` (B, A), 0 for none; an
            absent label is zero.
        dtype: computation type; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    heads: int | tuple[int, ...] = 1
    head_channels: int | None = None
    out_channels: int = 3
    dropout: float = 0.0
    scale_shift: bool = False
    resblock_updown: bool = False
    num_classes: int = 0
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    time_scale: float = 1.0
    downsample_padding: int = 0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    patch: int = 1
    remat: str | bool = False
    dtype: DType = None
    context_dim: int = 0
    depth: int | tuple[int, ...] = 1
    linear_projection: bool = False
    added_dim: int = 0
    added_time_dim: int = 256
    attention: str = "xla"
    decoder_attention: str = "all"
    fir: bool = False
    rescale: bool = False
    project: bool = False
    fourier_scale: float = 0.0
    progressive_input: bool = False
    augment_dim: int = 0

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of.

        With padding 1 an odd side halves to its larger half, which the way up cuts to the skip.
        """
        halves_any = self.downsample_padding == 1 and not (
            self.resblock_updown or self.progressive_input
        )
        return self.patch * (1 if halves_any else 2 ** (len(self.multipliers) - 1))

    @nn.compact
    def __call__(self, z: Array, t: Array, cond: Cond = None, train: bool = False) -> Array:
        """Return the raw output (B, H, W, out_channels), in float32.

        Args:
            z: noisy data (B, H, W, C).
            t: times, () or (B,).
            cond: entries of the condition, see the class.
            train: whether dropout is active.

        Raises:
            ValueError: shapes do not fit the network, or a condition that it needs is absent.
        """
        cond = cond or {}
        concat = cond.get("concat")
        z = z if concat is None else jnp.concatenate([z, concat], axis=-1)
        temb = embed(self, z, t, cond)
        h, skips = encode(self, z, temb, cond, train)
        if "control" in cond:
            h, skips = _add_residuals(h, skips, *cond["control"])
        return _decode(self, h, skips, temb, cond, train)


def require_unet(network: Module, use: str) -> UNet:
    """Return a network that has to be a UNet.

    Args:
        network: the network of a config.
        use: what needs it, for the message, such as "a ControlNet".

    Raises:
        ConfigError: it is another network.
    """
    if not isinstance(network, UNet):
        raise ConfigError(
            f"{use} copies the encoder of a UNet, but this network is a {type(network).__name__}; "
            "set network.name=unet"
        )
    return network


def embed(net: UNet, z: Array, t: Array, cond: CondEntries) -> Array:
    """Return the embedding (B, 4 channels) of time, label and other vectors.

    Its layers are submodules of the current module, which is a `UNet` or a copy of its encoder.

    Args:
        net: the UNet whose options count.
        z, t, cond: see `UNet.__call__`.

    Raises:
        ValueError: shapes do not fit the network, or a condition that it needs is absent.
    """
    _check(net, z, cond)
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32) * net.time_scale, z.shape[:1])
    waves = _embed_waves(net, t)
    if net.augment_dim:
        label = cond.get("augment", jnp.zeros((z.shape[0], net.augment_dim)))
        waves = waves + nn.Dense(waves.shape[-1], False, name="augment_embedding")(label)
    temb = TimestepMLP(4 * net.channels, net.dtype, name="time_embedding")(waves)
    if net.num_classes:
        table = nn.Embed(net.num_classes, 4 * net.channels, name="class_embedding")
        temb = temb + embed_label(table, cond.get("label"))
    if net.added_dim:
        mlp = TimestepMLP(4 * net.channels, net.dtype, name="add_embedding")
        temb = temb + mlp(_embed_added(net, cond["added"]))
    return temb


def encode(
    net: UNet,
    z: Array,
    temb: Array,
    cond: CondEntries,
    train: bool = False,
    *,
    shift: Array | None = None,
) -> tuple[Array, list[Array]]:
    """Apply the way down and the middle of a UNet.

    Its layers are submodules of the current module, which is a `UNet` or a copy of its encoder.

    Args:
        net: the UNet whose options count.
        z: noisy data (B, H, W, C).
        temb: from `embed`.
        cond: entries of the condition.
        train: whether dropout is active.
        shift: added to the output of the first convolution: an encoded hint, see `ControlNet`.

    Returns:
        (output of the middle, the skips from the finest to the coarsest).
    """
    last = len(net.multipliers) - 1
    res, attend = _make_block_functions(net, temb, cond, train)
    add = _Features(cond.get("adapter", ()))
    h = image = space_to_depth(z, net.patch) if net.patch > 1 else z
    h = conv(net.channels, name="conv_in", dtype=net.dtype)(h)
    h = h if shift is None else h + shift
    skips = [h]
    for i, multiplier in enumerate(net.multipliers):
        for j in range(net.blocks):
            h = res(int(net.channels * multiplier), f"down_blocks.{i}.resnets.{j}")(h)
            if i in net.attention_levels:
                h = attend(h, f"down_blocks.{i}.attentions.{j}", i)
            h = add(h, i) if j == net.blocks - 1 else h
            skips.append(h)
        if i != last:
            name = f"down_blocks.{i}.downsamplers.0"
            if net.resblock_updown:
                h = res(h.shape[-1], name, "down")(h)
            else:
                h = Downsample(net.downsample_padding, net.dtype, name=name)(h)
            if net.progressive_input:
                name = f"down_blocks.{i}.input_downsamplers.0"
                image = FIRDownsample(h.shape[-1], net.dtype, name=name)(image)
                h = image = (image + h) * (2**-0.5 if net.rescale else 1.0)
            h = add(h, i)
            skips.append(h)
    h = res(h.shape[-1], "mid_block.resnets.0")(h)
    h = attend(h, "mid_block.attentions.0", last)
    h = add(res(h.shape[-1], "mid_block.resnets.1")(h), last + 1)
    add.check()
    return h, skips


class _Features:
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
                f"features {shapes} of an adapter fit no level of this network: the adapter is of "
                "for another base, or its hint has another size"
            )


def _add_residuals(
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


def _decode(
    net: UNet, h: Array, skips: list[Array], temb: Array, cond: CondEntries, train: bool
) -> Array:
    """Apply the way up of a UNet, from the middle h and the skips to the raw output."""
    res, attend = _make_block_functions(net, temb, cond, train)
    for k, i in enumerate(range(len(net.multipliers) - 1, -1, -1)):
        for j in range(net.blocks + 1):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = res(int(net.channels * net.multipliers[i]), f"up_blocks.{k}.resnets.{j}")(h)
            wanted = net.decoder_attention == "all" or j == net.blocks
            if i in net.attention_levels and wanted:
                h = attend(h, f"up_blocks.{k}.attentions.{j}", i)
        if i:
            name = f"up_blocks.{k}.upsamplers.0"
            if net.resblock_updown:
                h = res(h.shape[-1], name, "up")(h)
            else:
                h = Upsample(net.dtype, name=name)(h, (skips[-1].shape[1], skips[-1].shape[2]))
    h = nn.silu(GroupNorm(net.norm_groups, net.norm_eps, net.dtype, name="conv_norm_out")(h))
    # The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
    h = conv(net.out_channels * net.patch**2, name="conv_out", dtype=jnp.float32, init=zero_init)(h)
    return depth_to_space(h, net.patch) if net.patch > 1 else h


def _make_block_functions(
    net: UNet, temb: Array, cond: CondEntries, train: bool
) -> tuple[MakeBlock, Callable[[Array, str, int], Array]]:
    """Return ``res(features, name, resample)`` and ``attend(h, name, level)``, which make blocks.

    Both have the options of the network bound, so that the way down and the way up read alike.
    """

    def res(features: int, name: str, resample: str | None = None) -> Callable[[Array], Array]:
        block = rematerialise(ResBlock, net.remat, static_argnums=(3,))
        module = block(
            features,
            net.dropout,
            net.scale_shift,
            resample,
            net.norm_groups,
            net.norm_eps,
            net.dtype,
            net.fir,
            net.rescale,
            net.project,
            name=name,
        )
        return lambda h: module(h, temb, train)

    def attend(h: Array, name: str, level: int) -> Array:
        heads = h.shape[-1] // net.head_channels if net.head_channels else None
        heads = heads or _take_level("heads", net.heads, level)
        if not net.context_dim:
            return AttentionBlock(
                heads,
                net.norm_groups,
                net.norm_eps,
                net.dtype,
                net.attention,
                net.rescale,
                name=name,
            )(h)
        return SpatialTransformer(
            heads,
            _take_level("depth", net.depth, level),
            net.linear_projection,
            net.norm_groups,
            net.attention,
            net.remat,
            net.dtype,
            name=name,
        )(h, cond["context"], cond.get("mask"))

    return res, attend


def _embed_waves(net: UNet, t: Array) -> Array:
    """Return the sinusoidal or random Fourier embedding of times (B,)."""
    if net.fourier_scale:
        return FourierEmbedding(2 * net.channels, net.fourier_scale, name="time_proj")(t)
    return timestep_embedding(
        t, net.channels, flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift
    )


def _embed_added(net: UNet, added: Mapping[str, Array]) -> Array:
    """Embed pooled text and every one of the time_ids as one vector (B, added_dim).

    Podell et al. 2023, section 2.2.

    Args:
        added: ``text_embeds`` (B, P) and ``time_ids`` (B, K).

    Raises:
        ValueError: the vector has another size than the network needs.
    """
    ids = jnp.asarray(added["time_ids"], jnp.float32)
    waves = timestep_embedding(
        ids.reshape(-1),
        net.added_time_dim,
        flip_sin_to_cos=net.flip_sin_to_cos,
        freq_shift=net.freq_shift,
    )
    pooled = added["text_embeds"]
    out = jnp.concatenate([pooled, waves.reshape(len(ids), -1).astype(pooled.dtype)], axis=-1)
    if out.shape[-1] != net.added_dim:
        raise ValueError(
            f"text_embeds {pooled.shape} and time_ids {ids.shape} make {out.shape[-1]} "
            f"numbers, but this network needs added_dim={net.added_dim}"
        )
    return out


def _check(net: UNet, z: Array, cond: CondEntries) -> None:
    """Raise a ValueError if z or the condition does not have the shapes that the network needs."""
    choose("decoder_attention", net.decoder_attention, {"all": 0, "last": 0})
    if z.ndim != 4 or z.shape[1] % net.divisor or z.shape[2] % net.divisor:
        raise ValueError(
            f"images must be (B, H, W, C) with H and W multiples of {net.divisor}, got {z.shape}"
        )
    check_context(cond, net.context_dim)
    if net.added_dim and "added" not in cond:
        raise ValueError("this network needs cond['added'] with 'text_embeds' and 'time_ids'")


def _take_level(name: str, value: int | tuple[int, ...], level: int) -> int:
    """Return the value of a level; one number applies to all of them.

    Raises:
        ConfigError: there are fewer values than levels.
    """
    if isinstance(value, int):
        return value
    if level >= len(value):
        raise ConfigError(
            f"{name}={tuple(value)} has {len(value)} entries, but the network has a level "
            f"{level + 1}: give one number, or one for each of the multipliers"
        )
    return value[level]
