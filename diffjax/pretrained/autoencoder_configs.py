"""Autoencoders to and from the config.json files of diffusers, and the type that describes a class.

`NetworkKind` says how a class of network in another library is read and written. This module has
the two autoencoders, `text_configs` the text encoders, and `configs` the rest and the functions
that use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffjax.nets.asymmetric_autoencoder import AsymmetricAutoencoderKL
from diffjax.nets.autoencoder import Autoencoder, AutoencoderKL, VQModel
from diffjax.nets.tiny_autoencoder import AutoencoderTiny
from diffjax.types import Config, JsonObject, Options, Tree


class NetworkKind(NamedTuple):
    """How a class of network in another library is read and written.

    Every key of a config is in one of ``defaults``, ``fixed`` and ``ignored``; all others are
    errors.

    Attributes:
        library: name of the library, as in model_index.json.
        build: ``config -> Linen module``, for a config that is complete.
        describe: ``(module, channels) -> config``, with the channels of a UNet's input.
        inputs: ``(module, config) -> arguments`` of the smallest shapes that the module can be
            initialised with.
        defaults: keys that are read, with the values that the library assumes when they are absent.
        fixed: keys that may only have one of these values, since our networks have no other.
        ignored: keys that change nothing here.
    """

    library: str
    build: Callable[[Config], Any]
    describe: Callable[[Any, int], JsonObject]
    inputs: Callable[[Any, Config], tuple[Tree, ...]]
    defaults: Config
    fixed: dict[str, tuple[object, ...]]
    ignored: tuple[str, ...]


def divide_width(width: int, base: int) -> float:
    """Return the multiplier of a level, ``width / base``, as an int if it is whole."""
    return width // base if width % base == 0 else width / base


def read_same(config: Config, key: str) -> Any:
    """Return the number under a key that may list one per level, if all levels have the same.

    Raises:
        ValueError: they differ.
    """
    value = config[key]
    if not isinstance(value, tuple):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{key}={value!r} is not supported: it must be the same for every level")
    return value[0]


_ENCODER = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
_DECODER = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
_SHARED: dict[str, object] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=_ENCODER[:1],
    up_block_types=_DECODER[:1],
    norm_num_groups=32,
    scaling_factor=0.18215,
)
_AE_DEFAULTS = dict(
    _SHARED, block_out_channels=(64,), layers_per_block=1, mid_block_add_attention=True
)
_KL_DEFAULTS = dict(
    _AE_DEFAULTS,
    latent_channels=4,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
)
_ASYMMETRIC_DEFAULTS = dict(
    _SHARED,
    down_block_out_channels=(64,),
    up_block_out_channels=(64,),
    layers_per_down_block=1,
    layers_per_up_block=1,
    latent_channels=4,
)
_VQ_DEFAULTS = dict(_AE_DEFAULTS, latent_channels=3, num_vq_embeddings=256, vq_embed_dim=None)
_KL_FIXED: dict[str, tuple[object, ...]] = dict(act_fn=("silu",))
_TINY_DEFAULTS: dict[str, object] = dict(
    in_channels=3,
    out_channels=3,
    encoder_block_out_channels=(64, 64, 64, 64),
    decoder_block_out_channels=(64, 64, 64, 64),
    num_encoder_blocks=(1, 3, 3, 3),
    num_decoder_blocks=(3, 3, 3, 1),
    latent_channels=4,
    scaling_factor=1.0,
    shift_factor=0.0,
)
_TINY_FIXED: dict[str, tuple[object, ...]] = dict(
    act_fn=("relu",), upsample_fn=("nearest",), upsampling_scaling_factor=(2,)
)
_VQ_FIXED: dict[str, tuple[object, ...]] = dict(
    act_fn=("silu",), norm_type=("group",), lookup_from_codebook=(False,)
)
# What EMAModel.save_pretrained of diffusers leaves in the config of the averaged network.
AVERAGED = (
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step"),
    *("use_ema_warmup", "use_ema"),
)
# Half precision is for the caller to choose; norms are in float32 anyway.
_AE_IGNORED = ("sample_size", "force_upcast", *AVERAGED)


def _read_autoencoder_fields(config: Config) -> Options:
    """Return the fields of the module that both kinds of autoencoder have.

    Raises:
        ValueError: the blocks on the way up do not mirror those on the way down, a list has another
            length than there are levels, or input and output differ in channels.
    """
    widths, down, up = (
        config[key] for key in ("block_out_channels", "down_block_types", "up_block_types")
    )
    known = set(down) <= set(_ENCODER)
    mirrored = tuple(_DECODER[_ENCODER.index(b)] for b in reversed(down)) if known else None
    if up != mirrored or len(down) != len(widths):
        raise ValueError(
            f"down_block_types={down!r} with up_block_types={up!r} is not supported: there must be "
            f"one of {', '.join(_ENCODER)} per level, and its counterpart of "
            f"{', '.join(_DECODER)} on the way up"
        )
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"in_channels={config['in_channels']} with out_channels={config['out_channels']} is "
            "not supported: an autoencoder reconstructs its input"
        )
    return dict(
        channels=widths[0],
        multipliers=tuple(divide_width(width, widths[0]) for width in widths),
        blocks=read_same(config, "layers_per_block"),
        attention_levels=tuple(i for i, block in enumerate(down) if block == _ENCODER[1]),
        latent_channels=config["latent_channels"],
        out_channels=config["out_channels"],
        norm_groups=config["norm_num_groups"],
        middle_attention=config["mid_block_add_attention"],
        scaling_factor=config["scaling_factor"],
    )


def _read_statistics(config: Config) -> dict[str, Any]:
    """Read mean and standard deviation of the latents by channel.

    Raises:
        ValueError: there is one without the other, or another number of them than of channels.
    """
    mean, std = config["latents_mean"], config["latents_std"]
    counts = [None if one is None else len(one) for one in (mean, std)]
    if counts not in ([None, None], [config["latent_channels"]] * 2):
        raise ValueError(
            f"latents_mean={mean} and latents_std={std} must each have latent_channels="
            f"{config['latent_channels']} numbers, or be null"
        )
    return {"latents_mean": mean, "latents_std": std}


def _build_kl(config: Config) -> AutoencoderKL:
    """Build the KL autoencoder of a complete config."""
    return AutoencoderKL(
        **_read_autoencoder_fields(config),
        shift_factor=config["shift_factor"] or 0.0,
        **_read_statistics(config),
        quant_conv=config["use_quant_conv"],
        post_quant_conv=config["use_post_quant_conv"],
    )


# By the side of the autoencoder: keys of an asymmetric config, and those of a symmetric one.
_SIDES = {
    side: {
        "block_out_channels": f"{side}_block_out_channels",
        "layers_per_block": f"layers_per_{side}_block",
    }
    for side in ("down", "up")
}


def _build_asymmetric(config: Config) -> AsymmetricAutoencoderKL:
    """Build the asymmetric autoencoder of a complete config."""

    def read(side: str) -> Options:
        ours = {key: config[theirs] for key, theirs in _SIDES[side].items()}
        return _read_autoencoder_fields({**config, **ours, "mid_block_add_attention": True})

    encoder, decoder = read("down"), read("up")
    wide = {f"decoder_{k}": decoder[k] for k in ("channels", "multipliers", "blocks")}
    return AsymmetricAutoencoderKL(**encoder, **wide)


def _describe_asymmetric(net: AsymmetricAutoencoderKL, in_channels: int) -> JsonObject:
    """Return the config.json of an asymmetric autoencoder."""
    found = _describe_autoencoder(net, in_channels)
    for key in ("block_out_channels", "layers_per_block", "mid_block_add_attention"):
        del found[key]
    wide = net.clone(channels=net.decoder_channels, multipliers=net.decoder_multipliers)
    sides = {"down": net, "up": wide}
    for side, one in sides.items():
        widths = [int(one.channels * m) for m in one.multipliers]
        blocks = net.decoder_blocks if side == "up" else net.blocks
        found |= {_SIDES[side]["block_out_channels"]: widths}
        found |= {_SIDES[side]["layers_per_block"]: blocks}
    return found


def _build_vq(config: Config) -> VQModel:
    """Build the VQ autoencoder of a complete config."""
    return VQModel(
        **_read_autoencoder_fields(config),
        codes=config["num_vq_embeddings"],
        code_channels=config["vq_embed_dim"] or 0,
    )


def _make_autoencoder_inputs(
    net: Autoencoder | AutoencoderTiny, config: Config
) -> tuple[Tree, ...]:
    """Return the smallest image that an autoencoder can encode, (1, factor, factor, C)."""
    return (jnp.zeros((1, net.factor, net.factor, net.out_channels)),)


def _describe_autoencoder(net: Autoencoder, in_channels: int) -> JsonObject:
    """Return the entries of a config.json that both kinds of autoencoder have."""
    kinds = [int(i in net.attention_levels) for i in range(len(net.multipliers))]
    return dict(
        _class_name=type(net).__name__,
        in_channels=net.out_channels,
        out_channels=net.out_channels,
        down_block_types=[_ENCODER[k] for k in kinds],
        up_block_types=[_DECODER[k] for k in reversed(kinds)],
        block_out_channels=[int(net.channels * m) for m in net.multipliers],
        layers_per_block=net.blocks,
        latent_channels=net.latent_channels,
        norm_num_groups=net.norm_groups,
        scaling_factor=net.scaling_factor,
        mid_block_add_attention=net.middle_attention,
        act_fn="silu",
    )


def _describe_kl(net: AutoencoderKL, in_channels: int) -> JsonObject:
    """Return the config.json of a KL autoencoder."""
    return dict(
        _describe_autoencoder(net, in_channels),
        shift_factor=net.shift_factor or None,
        latents_mean=None if net.latents_mean is None else list(net.latents_mean),
        latents_std=None if net.latents_std is None else list(net.latents_std),
        use_quant_conv=net.quant_conv,
        use_post_quant_conv=net.post_quant_conv,
    )


def _describe_vq(net: VQModel, in_channels: int) -> JsonObject:
    """Return the config.json of a VQ autoencoder."""
    return dict(
        _describe_autoencoder(net, in_channels),
        num_vq_embeddings=net.codes,
        vq_embed_dim=net.code_channels or None,
    )


def _build_tiny(config: Config) -> AutoencoderTiny:
    if config["in_channels"] != config["out_channels"]:
        raise ValueError("in_channels and out_channels differ, which is not supported")
    fields = ("encoder_block_out_channels", "decoder_block_out_channels")
    blocks = ("num_encoder_blocks", "num_decoder_blocks")
    if len({len(config[key]) for key in (*fields, *blocks)}) > 1:
        raise ValueError(f"{', '.join((*fields, *blocks))} must have as many entries each")
    return AutoencoderTiny(
        encoder_widths=config[fields[0]],
        decoder_widths=config[fields[1]],
        encoder_blocks=config[blocks[0]],
        decoder_blocks=config[blocks[1]],
        latent_channels=config["latent_channels"],
        out_channels=config["out_channels"],
        scaling_factor=config["scaling_factor"],
        shift_factor=config["shift_factor"] or 0.0,
    )


def _describe_tiny(net: AutoencoderTiny, in_channels: int) -> dict[str, Any]:
    return dict(
        _class_name="AutoencoderTiny",
        in_channels=net.out_channels,
        out_channels=net.out_channels,
        encoder_block_out_channels=list(net.encoder_widths),
        decoder_block_out_channels=list(net.decoder_widths),
        num_encoder_blocks=list(net.encoder_blocks),
        num_decoder_blocks=list(net.decoder_blocks),
        latent_channels=net.latent_channels,
        scaling_factor=net.scaling_factor,
        shift_factor=net.shift_factor,
        block_out_channels=list(net.decoder_widths),
        act_fn="relu",
    )


AUTOENCODERS = {
    "AutoencoderTiny": NetworkKind(
        "diffusers",
        _build_tiny,
        _describe_tiny,
        _make_autoencoder_inputs,
        _TINY_DEFAULTS,
        _TINY_FIXED,
        (*_AE_IGNORED, "latent_magnitude", "latent_shift", "block_out_channels"),
    ),
    "AutoencoderKL": NetworkKind(
        "diffusers",
        _build_kl,
        _describe_kl,
        _make_autoencoder_inputs,
        _KL_DEFAULTS,
        _KL_FIXED,
        _AE_IGNORED,
    ),
    "AsymmetricAutoencoderKL": NetworkKind(
        "diffusers",
        _build_asymmetric,
        _describe_asymmetric,
        _make_autoencoder_inputs,
        _ASYMMETRIC_DEFAULTS,
        _KL_FIXED,
        (*_AE_IGNORED, "block_out_channels"),
    ),
    "VQModel": NetworkKind(
        "diffusers",
        _build_vq,
        _describe_vq,
        _make_autoencoder_inputs,
        _VQ_DEFAULTS,
        _VQ_FIXED,
        _AE_IGNORED,
    ),
}
