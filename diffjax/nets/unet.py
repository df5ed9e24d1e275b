"""One UNet for DDPM, improved DDPM, ADM, latent diffusion and Stable Diffusion.

Its state-dict names are those of diffusers' UNet2DModel, and with a context those of
UNet2DConditionModel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    check_added,
    check_context,
    conv,
    embed_added,
    embed_label,
    rematerialise,
    timestep_embedding,
    zero_init,
)
from diffjax.nets.levels import Depths, find_first_width, take_depth, take_level
from diffjax.nets.resampling import depth_to_space, space_to_depth
from diffjax.nets.skips import Features, add_residuals, weigh_skip
from diffjax.nets.transformer import SpatialTransformer
from diffjax.types import IMAGE_PROMPTS, Cond, CondEntries, ConfigError, DType, Module, choose

Array = jax.Array
# ``(features, name, resample=None) -> (h -> h)``, a residual block.
MakeBlock = Callable[..., Callable[[Array], Array]]


class UNet(nn.Module):
    """``(z, t, cond) -> raw``: residual UNet with attention at chosen levels.

    Ho et al. 2020, appendix B; options of Nichol & Dhariwal 2021, Dhariwal & Nichol 2021, Rombach
    et al. 2022 and Podell et al. 2023. ``cond["concat"]`` (B, H, W, C) joins the channels of z;
    ``cond["control"]``, residuals of every skip (or None) and of the middle, is added to them, and
    ``cond["adapter"]``, features for every level (and maybe the middle), on the way down.
    ``cond["freeu"]`` (B, 4) has the factors (b1, b2, s1, s2) of `weigh_skip`.
    ``cond["image_prompts"]`` are pictures that the attentions to the text also read, see
    `diffjax.nets.attention.Attention`; their layers are parameters beside the others.

    Attributes:
        channels: width of the first level.
        multipliers: width of each level over ``channels``; each level halves the resolution.
        blocks: residual blocks per level (one more on the way up); one number, or one per level.
        attention_levels: indices of the levels that have attention; the middle always has it.
        heads, head_channels: number of heads (one, or one per level; the middle has the last), or
            channels of each (which wins if given).
        out_channels: channels of the output; twice the data's with a learned variance.
        dropout: rate inside residual blocks when ``train``.
        scale_shift: embedding as scale and shift of the second norm.
        resblock_updown: residual blocks resample (ADM) instead of a strided convolution.
        num_classes: rows of the class embedding, 0 for none; ``cond["label"]`` (B,) int.
        flip_sin_to_cos, freq_shift: of the timestep embedding; (False, 1): DDPM, (True, 0): OpenAI.
        time_scale, time_shift: factor on t, 1000 for continuous t in [0, 1]; what is added then.
        downsample_padding: 0 pads like TensorFlow's SAME (DDPM), 1 like PyTorch.
        norm_groups: groups of every norm; well below the narrowest width, see `GroupNorm`.
        patch: side of the pixel patches folded into channels (Hoogeboom et al. 2023), 1 for none.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        context_dim: width D of the tokens ``cond["context"]`` (B, M, D) that transformer blocks
            attend to in place of DDPM's attention, 0 for none. ``cond["mask"]`` (B, M) bool, if
            given, leaves tokens out.
        depth: transformer blocks per attention: one, or one per level, or one for each attention of
            a level; the middle has the last.
        up_depth: the same on the way up, the coarsest level first; those of ``depth`` if None.
        middle: ``attention`` between two blocks, one ``block`` alone, or ``none``.
        only_cross_attention: the first attention of a transformer block reads the context, too; one
            for all levels, or one per level, or for none. Never in the middle.
        text_dim: width of ``cond["context"]`` where a dense layer brings it to ``context_dim``, 0
            for no such layer.
        guidance_dim: size of the embedding of a guidance scale, ``cond["guidance"]`` (B,) is w of
            ``w + 1 = scale`` (Meng et al. 2023, section 3.1); 0 for none.
        linear_projection: dense layers around the transformer blocks instead of 1x1 convolutions.
        added_dim: size of the added condition of SDXL, 0 for none: ``cond["added"]`` with
            "text_embeds" (B, P) and "time_ids" (B, K) where ``P + K added_time_dim = added_dim``.
        added_time_dim: size of the embedding of each of the "time_ids".
        span_dim: size of the embeddings of t and the one "time_id", side by side; 0 for t alone.
        attention: see `diffjax.nets.attention.attend`.
        decoder_attention: on the way up after ``all`` blocks of a level, or the ``last`` (Song
            et al. 2021).
        fir, rescale, project: of the residual blocks, see `ResBlock`.
        fourier_scale: random Fourier features of t with this scale, 0 for sinusoids.
        progressive_input: add the image, shrunk by filtered convolutions, to every level (the
            residual form of Song et al. 2021).
        augment_dim: size of EDM's augmentation labels ``cond["augment"]`` (B, A), 0 for none; an
            absent label is zero.
        class_embedding: where the class joins the time embedding: ``after`` its two layers (ADM)
            or ``before`` them (Karras et al. 2022, of CIFAR-10).
        initialisation: a name in `diffjax.nets.initialisation`.
        identity_attention: names of attentions, or beginnings of them, whose self-attention is the
            identity (Ahn et al. 2024), such as ``mid_block`` or ``up_blocks.0.attentions.1``.
        dtype: computation type; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int | tuple[int, ...] = 2
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
    time_shift: float = 0.0
    downsample_padding: int = 0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    patch: int = 1
    remat: str | bool = False
    dtype: DType = None
    context_dim: int = 0
    depth: Depths = 1
    linear_projection: bool = False
    added_dim: int = 0
    added_time_dim: int = 256
    span_dim: int = 0
    attention: str = "auto"
    decoder_attention: str = "all"
    fir: bool = False
    rescale: bool = False
    project: bool = False
    fourier_scale: float = 0.0
    progressive_input: bool = False
    augment_dim: int = 0
    class_embedding: str = "after"
    initialisation: str = "ddpm"
    identity_attention: tuple[str, ...] = ()
    up_depth: Depths | None = None
    middle: str = "attention"
    only_cross_attention: bool | tuple[bool, ...] = False
    text_dim: int = 0
    guidance_dim: int = 0

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of.

        With padding 1 an odd side halves to its larger half, which the way up cuts to the skip.
        """
        halves_any = self.downsample_padding == 1 and not (
            self.resblock_updown or self.progressive_input
        )
        return self.patch * (1 if halves_any else 2 ** (len(self.multipliers) - 1))

    @property
    def token_dim(self) -> int:
        """Width of ``cond["context"]``."""
        return self.text_dim or self.context_dim

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
        if self.text_dim:
            project = nn.Dense(self.context_dim, dtype=self.dtype, name="encoder_hid_proj")
            cond = {**cond, "context": project(cond["context"])}
        h, skips = encode(self, z, temb, cond, train)
        if "control" in cond:
            h, skips = add_residuals(h, skips, *cond["control"])
        return _decode(self, h, skips, temb, cond, train)


def require_unet(network: Module, use: str) -> UNet:
    """Return a network that has to be a UNet; ``use`` says what needs it, such as "a ControlNet".

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
    t = jnp.full(z.shape[:1], t, jnp.float32) * net.time_scale + net.time_shift
    waves = _embed_waves(net, t, cond)
    before = net.num_classes and net.class_embedding == "before"
    if before:  # one_hot is 0 beyond the classes, which means no class
        chosen = jax.nn.one_hot(cond["label"], net.num_classes) * net.num_classes**0.5
        waves = waves + nn.Dense(waves.shape[-1], name="class_embedding")(chosen)
    if net.augment_dim:
        label = cond.get("augment", jnp.zeros((z.shape[0], net.augment_dim)))
        waves = waves + nn.Dense(waves.shape[-1], False, name="augment_embedding")(label)
    guidance = cond.get("guidance") if net.guidance_dim else None
    if guidance is not None:
        guidance = timestep_embedding(1000 * guidance, net.guidance_dim)
    temb = TimestepMLP(4 * net.channels, net.dtype, name="time_embedding")(waves, guidance)
    if net.num_classes and not before:
        table = nn.Embed(net.num_classes, 4 * net.channels, name="class_embedding")
        temb = temb + embed_label(table, cond.get("label"))
    if net.added_dim:
        mlp = TimestepMLP(4 * net.channels, net.dtype, name="add_embedding")
        embed = partial(_embed_numbers, net, dim=net.added_time_dim)
        temb = temb + mlp(embed_added(cond["added"], embed, net.added_dim))
    return temb


def encode(
    net: UNet,
    z: Array,
    temb: Array,
    cond: CondEntries,
    train: bool = False,
    *,
    enter: Callable[[Array], Array] | None = None,
) -> tuple[Array, list[Array]]:
    """Apply the way down and the middle of a UNet.

    Its layers are submodules of the current module, which is a `UNet` or a copy of its encoder.

    Args:
        net: the UNet whose options count.
        z: noisy data (B, H, W, C).
        temb: from `embed`.
        cond: entries of the condition.
        train: whether dropout is active.
        enter: changes the output of the first convolution: by a hint, see `ControlNet`.

    Returns:
        (output of the middle, the skips from the finest to the coarsest).
    """
    last = len(net.multipliers) - 1
    res, attend = _make_block_functions(net, temb, cond, train)
    add = Features(cond.get("adapter", ()))
    h = image = space_to_depth(z, net.patch) if net.patch > 1 else z
    h = conv(find_first_width(net.channels, net.multipliers), name="conv_in", dtype=net.dtype)(h)
    h = h if enter is None else enter(h)
    skips = [h]
    for i, multiplier in enumerate(net.multipliers):
        blocks = take_level("blocks", net.blocks, i)
        for j in range(blocks):
            h = res(int(net.channels * multiplier), f"down_blocks.{i}.resnets.{j}")(h)
            if i in net.attention_levels:
                depth = take_depth("depth", net.depth, i, j)
                h = attend(h, f"down_blocks.{i}.attentions.{j}", i, depth)
            h = add(h, i) if j == blocks - 1 else h
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
    if net.middle != "none":
        h = res(h.shape[-1], "mid_block.resnets.0")(h)
    if net.middle == "attention":
        depth = take_depth("depth", net.depth, last, 0)
        h = attend(h, "mid_block.attentions.0", last, depth, only_cross=False)
        h = res(h.shape[-1], "mid_block.resnets.1")(h)
    h = add(h, last + 1)
    add.check()
    return h, skips


def _decode(
    net: UNet, h: Array, skips: list[Array], temb: Array, cond: CondEntries, train: bool
) -> Array:
    """Apply the way up of a UNet, from the middle h and the skips to the raw output."""
    res, attend = _make_block_functions(net, temb, cond, train)
    for k, i in enumerate(range(len(net.multipliers) - 1, -1, -1)):
        blocks = take_level("blocks", net.blocks, i)
        for j in range(blocks + 1):
            skip = skips.pop()
            if k < 2 and "freeu" in cond:
                h, skip = weigh_skip(h, skip, cond["freeu"][:, k], cond["freeu"][:, 2 + k])
            h = jnp.concatenate([h, skip], axis=-1)
            h = res(int(net.channels * net.multipliers[i]), f"up_blocks.{k}.resnets.{j}")(h)
            wanted = net.decoder_attention == "all" or j == blocks
            if i in net.attention_levels and wanted:
                if net.up_depth is None:
                    depth = take_depth("depth", net.depth, i, j)
                else:
                    depth = take_depth("up_depth", net.up_depth, k, j)
                h = attend(h, f"up_blocks.{k}.attentions.{j}", i, depth)
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
) -> tuple[MakeBlock, Callable[..., Array]]:
    """Return ``res(features, name, resample)`` and ``attend(h, name, level, depth)``, which make
    blocks.

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

    def attend(h: Array, name: str, level: int, depth: int, only_cross: bool = True) -> Array:
        heads = h.shape[-1] // net.head_channels if net.head_channels else None
        heads = heads or take_level("heads", net.heads, level)
        identity = any(f"{name}.".startswith(f"{one}.") for one in net.identity_attention)
        if not net.context_dim:
            return AttentionBlock(
                heads,
                net.norm_groups,
                net.norm_eps,
                net.dtype,
                net.attention,
                net.rescale,
                identity,
                name=name,
            )(h)
        return SpatialTransformer(
            heads,
            depth,
            net.linear_projection,
            net.norm_groups,
            net.attention,
            net.remat,
            net.dtype,
            identity,
            only_cross and _reads_context_only(net, level),
            name=name,
        )(h, cond["context"], cond.get("mask"), tuple(cond.get(IMAGE_PROMPTS, ())))

    return res, attend


def _reads_context_only(net: UNet, level: int) -> bool:
    value = net.only_cross_attention
    whole = isinstance(value, bool)
    return bool(value if whole else take_level("only_cross_attention", value, level))


def _embed_waves(net: UNet, t: Array, cond: CondEntries) -> Array:
    """Return the sinusoidal or random Fourier embedding of times (B,), with that of the span."""
    if net.fourier_scale:
        return FourierEmbedding(2 * net.channels, net.fourier_scale, name="time_proj")(t)
    if not net.span_dim:
        return _embed_numbers(net, t, net.channels)
    both = jnp.concatenate([t[:, None], cond["added"]["time_ids"]], 1)
    return _embed_numbers(net, both.reshape(-1), net.span_dim).reshape(len(t), -1)


def _embed_numbers(net: UNet, values: Array, dim: int) -> Array:
    flip, shift = net.flip_sin_to_cos, net.freq_shift
    return timestep_embedding(values, dim, flip_sin_to_cos=flip, freq_shift=shift)


def _check(net: UNet, z: Array, cond: CondEntries) -> None:
    """Raise a ValueError if z or the condition does not have the shapes that the network needs."""
    choose("decoder_attention", net.decoder_attention, {"all": 0, "last": 0})
    choose("class_embedding", net.class_embedding, {"after": 0, "before": 0})
    if net.num_classes and cond.get("label") is None:
        raise ValueError(f"this network needs cond['label'] in 0 .. {net.num_classes - 1}")
    choose("middle", net.middle, {"attention": 0, "block": 0, "none": 0})
    if z.ndim != 4 or z.shape[1] % net.divisor or z.shape[2] % net.divisor:
        raise ValueError(
            f"images must be (B, H, W, C) with H and W multiples of {net.divisor}, got {z.shape}"
        )
    check_context(cond, net.token_dim if net.context_dim else 0)
    if net.added_dim or net.span_dim:
        check_added(cond)
