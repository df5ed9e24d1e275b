"""One UNet for DDPM, improved DDPM, ADM, latent diffusion and Stable Diffusion.

Its state-dict names are those of diffusers' UNet2DModel, and with a context those of
UNet2DConditionModel.
"""

from __future__ import annotations

from typing import Any

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
    conv,
    depth_to_space,
    space_to_depth,
    timestep_embedding,
    zero_init,
)
from diffjax.nets.transformer import SpatialTransformer
from diffjax.types import choose

Array = jax.Array


class UNet(nn.Module):
    """``(z, t, cond) -> raw``: residual UNet with attention at chosen levels.

    Ho et al. 2020, appendix B; options of Nichol & Dhariwal 2021, Dhariwal & Nichol 2021, Rombach
    et al. 2022 and Podell et al. 2023. ``cond["concat"]`` (B, H, W, C) joins the channels of z;
    ``cond["control"]``, residuals of every skip and of the middle, is added to them.

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
        remat: recompute blocks in the backward pass instead of keeping their activations.
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
    remat: bool = False
    dtype: Any = None
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

    @nn.compact
    def __call__(self, z: Array, t: Array, cond: Any = None, train: bool = False) -> Array:
        cond = cond or {}
        self._check(z, cond)
        last = len(self.multipliers) - 1
        temb = self._embed(z, t, cond)

        def res(features: int, name: str, resample: str | None = None) -> Any:
            block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
            module = block(
                features,
                self.dropout,
                self.scale_shift,
                resample,
                self.norm_groups,
                self.norm_eps,
                self.dtype,
                self.fir,
                self.rescale,
                self.project,
                name=name,
            )
            return lambda h: module(h, temb, train)

        def attend(h: Array, name: str, level: int) -> Array:
            heads = h.shape[-1] // self.head_channels if self.head_channels else None
            heads = heads or _at(self.heads, level)
            if not self.context_dim:
                return AttentionBlock(
                    heads,
                    self.norm_groups,
                    self.norm_eps,
                    self.dtype,
                    self.attention,
                    self.rescale,
                    name=name,
                )(h)
            return SpatialTransformer(
                heads,
                _at(self.depth, level),
                self.linear_projection,
                self.norm_groups,
                self.attention,
                self.remat,
                self.dtype,
                name=name,
            )(h, cond["context"], cond.get("mask"))

        z = jnp.concatenate([z, cond["concat"]], axis=-1) if "concat" in cond else z
        h = space_to_depth(z, self.patch) if self.patch > 1 else z
        image = h
        h = conv(self.channels, name="conv_in", dtype=self.dtype)(h)
        skips = [h]
        for i, multiplier in enumerate(self.multipliers):
            for j in range(self.blocks):
                h = res(int(self.channels * multiplier), f"down_blocks.{i}.resnets.{j}")(h)
                if i in self.attention_levels:
                    h = attend(h, f"down_blocks.{i}.attentions.{j}", i)
                skips.append(h)
            if i != last:
                name = f"down_blocks.{i}.downsamplers.0"
                if self.resblock_updown:
                    h = res(h.shape[-1], name, "down")(h)
                else:
                    h = Downsample(self.downsample_padding, self.dtype, name=name)(h)
                if self.progressive_input:
                    name = f"down_blocks.{i}.input_downsamplers.0"
                    image = FIRDownsample(h.shape[-1], self.dtype, name=name)(image)
                    h = image = (image + h) * (2**-0.5 if self.rescale else 1.0)
                skips.append(h)

        h = res(h.shape[-1], "mid_block.resnets.0")(h)
        h = attend(h, "mid_block.attentions.0", last)
        h = res(h.shape[-1], "mid_block.resnets.1")(h)
        if "control" in cond:
            residuals, middle = cond["control"]
            skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
            h = h + middle

        for k, i in enumerate(range(last, -1, -1)):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(int(self.channels * self.multipliers[i]), f"up_blocks.{k}.resnets.{j}")(h)
                wanted = self.decoder_attention == "all" or j == self.blocks
                if i in self.attention_levels and wanted:
                    h = attend(h, f"up_blocks.{k}.attentions.{j}", i)
            if i:
                name = f"up_blocks.{k}.upsamplers.0"
                if self.resblock_updown:
                    h = res(h.shape[-1], name, "up")(h)
                else:
                    h = Upsample(self.dtype, name=name)(h)

        h = nn.silu(GroupNorm(self.norm_groups, self.norm_eps, self.dtype, name="conv_norm_out")(h))
        # The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
        h = conv(
            self.out_channels * self.patch**2, name="conv_out", dtype=jnp.float32, init=zero_init
        )(h)
        return depth_to_space(h, self.patch) if self.patch > 1 else h

    def _embed(self, z: Array, t: Array, cond: Any) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32) * self.time_scale, z.shape[:1])
        waves = self._waves(t)
        if self.augment_dim:
            label = cond.get("augment", jnp.zeros((z.shape[0], self.augment_dim)))
            waves = waves + nn.Dense(waves.shape[-1], False, name="augment_embedding")(label)
        temb = TimestepMLP(4 * self.channels, self.dtype, name="time_embedding")(waves)
        if self.num_classes:
            label = cond.get("label")
            if label is None:
                raise ValueError(f"this network needs cond['label'] in 0 .. {self.num_classes - 1}")
            embed = nn.Embed(self.num_classes, 4 * self.channels, name="class_embedding")
            known = label[:, None] < self.num_classes  # beyond: the zero embedding, for "no class"
            temb = temb + jnp.where(known, embed(jnp.minimum(label, self.num_classes - 1)), 0)
        if self.added_dim:
            mlp = TimestepMLP(4 * self.channels, self.dtype, name="add_embedding")
            temb = temb + mlp(self._added(cond["added"]))
        return temb

    def _waves(self, t: Array) -> Array:
        if self.fourier_scale:
            return FourierEmbedding(2 * self.channels, self.fourier_scale, name="time_proj")(t)
        return timestep_embedding(
            t, self.channels, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )

    def _added(self, added: Any) -> Array:
        """The vector (B, added_dim): pooled text, and the embedding of every one of the time_ids.

        Podell et al. 2023, section 2.2.
        """
        ids = jnp.asarray(added["time_ids"], jnp.float32)
        waves = timestep_embedding(
            ids.reshape(-1),
            self.added_time_dim,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
        )
        pooled = added["text_embeds"]
        out = jnp.concatenate([pooled, waves.reshape(len(ids), -1).astype(pooled.dtype)], axis=-1)
        if out.shape[-1] != self.added_dim:
            raise ValueError(
                f"text_embeds {pooled.shape} and time_ids {ids.shape} make {out.shape[-1]} "
                f"numbers, but this network needs added_dim={self.added_dim}"
            )
        return out

    def _check(self, z: Array, cond: Any) -> None:
        choose("decoder_attention", self.decoder_attention, {"all": 0, "last": 0})
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        if z.ndim != 4 or z.shape[1] % factor or z.shape[2] % factor:
            raise ValueError(
                f"images must be (B, H, W, C) with H and W multiples of {factor}, got {z.shape}"
            )
        if self.context_dim:
            found = getattr(cond.get("context"), "shape", None)
            if found is None or len(found) != 3 or found[-1] != self.context_dim:
                raise ValueError(
                    f"this network needs cond['context'] (B, M, {self.context_dim}), got {found}"
                )
        if self.added_dim and "added" not in cond:
            raise ValueError("this network needs cond['added'] with 'text_embeds' and 'time_ids'")


def _at(value: int | tuple[int, ...], level: int) -> int:
    """The value of a level; one number is for all of them."""
    return value if isinstance(value, int) else value[level]
