"""The UNet of the latent upscaler to and from the config.json files of diffusers.

Its class there is UNet2DConditionModel, too; the types of its blocks tell the two apart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax.numpy as jnp

from diffjax.nets.k_unet import GROUP, KUNet
from diffjax.pretrained.autoencoder_configs import AVERAGED, Config, NetworkKind, read_same
from diffjax.types import JsonObject
from diffjax.untrusted import show

DOWN = ("KDownBlock2D", "KCrossAttnDownBlock2D")
UP = ("KUpBlock2D", "KCrossAttnUpBlock2D")
_DEFAULTS: dict[str, Any] = dict(
    in_channels=4,
    out_channels=4,
    down_block_types=(),
    up_block_types=(),
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    attention_head_dim=8,
    cross_attention_dim=1280,
    time_cond_proj_dim=None,
    flip_sin_to_cos=True,
    dropout=0.0,
    norm_eps=1e-5,
)
_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("gelu",),
    addition_embed_type=(None,),
    center_input_sample=(False,),
    class_embed_type=(None,),
    class_embeddings_concat=(False,),
    conv_in_kernel=(1,),
    conv_out_kernel=(1,),
    encoder_hid_dim=(None,),
    encoder_hid_dim_type=(None,),
    mid_block_type=(None,),
    norm_num_groups=(None,),
    num_attention_heads=(None,),
    num_class_embeds=(None,),
    time_embedding_act_fn=(None,),
    time_embedding_dim=(None,),
    time_embedding_type=("fourier",),
    timestep_post_act=("gelu",),
)
# Other values than the defaults of the class, which diffusers always writes.
_WRITTEN: JsonObject = dict(
    act_fn="gelu",
    conv_in_kernel=1,
    conv_out_kernel=1,
    mid_block_type=None,
    norm_num_groups=None,
    time_embedding_type="fourier",
    timestep_post_act="gelu",
)
# Options of other blocks, which these do not read.
_IGNORED = (
    *("sample_size", "upcast_attention", "addition_embed_type_num_heads", "attention_type"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim", "freq_shift"),
    *("cross_attention_norm", "dual_cross_attention", "downsample_padding"),
    *("mid_block_only_cross_attention", "mid_block_scale_factor", "only_cross_attention"),
    *("resnet_out_scale_factor", "resnet_skip_time_act", "resnet_time_scale_shift"),
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
    *("use_linear_projection", *AVERAGED),
)


def has_k_blocks(config: Config) -> bool:
    """Return whether a config of UNet2DConditionModel names blocks of this network."""
    blocks = config.get("down_block_types")
    return isinstance(blocks, list | tuple) and any(block in DOWN for block in blocks)


def _build(config: Config) -> KUNet:
    """Build the network of a complete config.

    Raises:
        ValueError: the blocks or the widths of the levels do not fit each other, or there is no
            vector beside the time.
    """
    down, up, widths = (
        config[key] for key in ("down_block_types", "up_block_types", "block_out_channels")
    )
    mirrored = tuple(UP[DOWN.index(block)] for block in reversed(down) if block in DOWN)
    if up != mirrored or not len(down) == len(widths) == len(up) or down[-1] != DOWN[1]:
        raise ValueError(
            f"down_block_types={show(down)} with up_block_types={show(up)} is not supported: there "
            f"must be one of {', '.join(DOWN)} per level, the second at the last, and its "
            f"counterpart of {', '.join(UP)} on the way up"
        )
    # diffusers finds the coarsest level on the way up, which has no skip, by these widths.
    marks = [wide == before == 2 * widths[0] for before, wide in pairwise(widths)]
    if marks != [False] * (len(widths) - 2) + [True]:
        raise ValueError(
            f"block_out_channels={show(widths)} is not supported: the last two, and no other two "
            "neighbours, must be twice the first"
        )
    head = read_same(config, "attention_head_dim")
    if any(width % GROUP or width % head for width in widths):
        raise ValueError(
            f"block_out_channels={show(widths)} must be multiples of {GROUP} and of "
            f"attention_head_dim={head}"
        )
    if config["out_channels"] is None or not config["time_cond_proj_dim"]:
        raise ValueError("out_channels and time_cond_proj_dim must be whole numbers")
    return KUNet(
        widths=widths,
        blocks=config["layers_per_block"],
        attention_levels=tuple(i for i, block in enumerate(down) if block == DOWN[1]),
        head_channels=head,
        out_channels=config["out_channels"],
        context_dim=read_same(config, "cross_attention_dim"),
        vector_dim=config["time_cond_proj_dim"],
        flip_sin_to_cos=config["flip_sin_to_cos"],
        dropout=config["dropout"],
        norm_eps=config["norm_eps"],
    )


def _describe(net: KUNet, in_channels: int) -> JsonObject:
    """Return the config.json of a network."""
    kinds = [int(i in net.attention_levels) for i in range(len(net.widths))]
    return dict(
        _class_name="UNet2DConditionModel",
        in_channels=in_channels or 2 * (net.out_channels - 1),
        out_channels=net.out_channels,
        down_block_types=[DOWN[k] for k in kinds],
        up_block_types=[UP[k] for k in reversed(kinds)],
        block_out_channels=list(net.widths),
        layers_per_block=list(net.blocks) if isinstance(net.blocks, tuple) else net.blocks,
        attention_head_dim=net.head_channels,
        cross_attention_dim=net.context_dim,
        time_cond_proj_dim=net.vector_dim,
        flip_sin_to_cos=net.flip_sin_to_cos,
        dropout=net.dropout,
        norm_eps=net.norm_eps,
        **_WRITTEN,
    )


def _make_inputs(net: KUNet, config: Config) -> tuple[Any, ...]:
    """Return the smallest z, t and condition that the network can be initialised with."""
    side = 2 * net.divisor  # the filters reflect the edges of the coarsest level
    z = jnp.zeros((1, side, side, config.get("in_channels", 4)))
    cond = {
        "context": jnp.zeros((1, 1, net.context_dim)),
        "vector": jnp.zeros((1, net.vector_dim)),
    }
    return z, jnp.zeros(1), cond


K_UNET = NetworkKind("diffusers", _build, _describe, _make_inputs, _DEFAULTS, _FIXED, _IGNORED)
