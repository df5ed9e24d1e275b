"""Autoencoders in small, as the config.json of diffusers.

Nothing here needs torch; ae_record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffjax.nets.autoencoder import tiled
from tests.parity import sd_cases

Config = dict[str, Any]


def _config(name: str, kinds: str = "--", **options: Any) -> Config:
    """Block types by a letter per level, ``a`` with attention."""
    attn = ["Attn" if kind == "a" else "" for kind in kinds]
    return dict(
        _class_name=name,
        in_channels=3,
        out_channels=3,
        block_out_channels=[8, 16, 16][: len(kinds)],
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=[f"{a}DownEncoderBlock2D" for a in attn],
        up_block_types=[f"{a}UpDecoderBlock2D" for a in reversed(attn)],
        **options,
    )


AUTOENCODERS = {
    "kl": _config("AutoencoderKL", latent_channels=4),
    "kl-attention": _config("AutoencoderKL", "-a", latent_channels=4),
    "kl-bare": _config(
        "AutoencoderKL",
        "---",
        latent_channels=5,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.1,
    ),
    "vq": _config("VQModel", latent_channels=3, num_vq_embeddings=11, vq_embed_dim=5),
}
TILE = 16  # of the image, for large images


def images(size: tuple[int, int] = (16, 8)) -> np.ndarray:
    """(2, H, W, 3)."""
    rng = np.random.RandomState(4)
    return rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def latents(config: Config, size: tuple[int, int] = (8, 4)) -> np.ndarray:
    """(2, h, w, C)."""
    channels = config.get("vq_embed_dim") or config["latent_channels"]
    return np.random.RandomState(5).standard_normal((2, *size, channels)).astype(np.float32)


def ours(config: Config) -> dict[str, np.ndarray]:
    """What our network makes of `images` and of `latents`."""
    net, params = sd_cases.random_params(config)
    given = {"params": params}
    encoded = jax.jit(lambda x: net.apply(given, x, method=net.encode))(images())
    decoded = jax.jit(lambda z: net.apply(given, z, method=net.decode))(latents(config))
    out = {"decoded": decoded}
    if config["_class_name"] == "VQModel":
        quantized = jax.jit(net.apply)(given, images())[1]
        out |= {"encoded": encoded, "index": quantized.indices}
        out |= {"codebook": quantized.codebook, "commitment": quantized.commitment}
    else:
        out |= {"mean": encoded.mean, "logvar": encoded.logvar, "kl": encoded.kl()}
    return {key: np.asarray(value) for key, value in out.items()}


def ours_tiled(config: Config, size: tuple[int, int] = (28, 12)) -> dict[str, np.ndarray]:
    """Means of a large image, and the image of a large latent, tile by tile."""
    net, params = sd_cases.random_params(config)
    given = {"params": params}
    encode = jax.jit(lambda x: net.apply(given, x, method=net.encode).mean)
    decode = jax.jit(lambda z: net.apply(given, z, method=net.decode))
    z = latents(config, (size[0] // 2, size[1] // 2))
    return {
        "mean": np.asarray(tiled(encode, images(size), tile=TILE)),
        "decoded": np.asarray(tiled(decode, z, tile=TILE // net.factor)),
    }
