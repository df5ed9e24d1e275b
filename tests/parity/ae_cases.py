"""Autoencoders in small, as the config.json of diffusers.

Nothing here needs torch; ae_record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.discriminator import PatchGAN
from diffjax.nets.perceptual import LPIPS
from diffjax.nets.tiles import apply_tiled
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes, to_state_dict
from tests.parity import cases, sd_cases

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
    "kl-normal": _config(
        "AutoencoderKL",
        latent_channels=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    ),
    "tiny": dict(
        _class_name="AutoencoderTiny",
        encoder_block_out_channels=[6, 6],
        decoder_block_out_channels=[8, 8],
        num_encoder_blocks=[1, 2],
        num_decoder_blocks=[2, 1],
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
    channels = config.get("vq_embed_dim") or config.get("latent_channels", 4)
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
    elif config["_class_name"] == "AutoencoderTiny":
        out |= {"encoded": encoded.with_noise(1.0)}
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
        "mean": np.asarray(apply_tiled(encode, images(size), tile=TILE)),
        "decoded": np.asarray(apply_tiled(decode, z, tile=TILE // net.factor)),
    }


PATCHES = dict(channels=4, layers=2)
WIDTHS = (2, 3, 4, 5, 6)  # of VGG16's stages, in small


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two batches (2, 20, 16, 3) in [-1, 1], one grey pixel of them equal."""
    x, y = (images((20, 16)) * s for s in (1.0, -0.7))
    y[0, 0, 0] = x[0, 0, 0]
    return x, y


def our_patches() -> dict[str, np.ndarray]:
    """Logits of PatchGAN while training, their gradient at the images, and those at rest."""
    net, x = PatchGAN(**PATCHES), pair()[0]
    like = jax.eval_shape(net.init, jax.random.key(0), x)
    params = from_state_dict(cases.random_state(list_state_shapes(like["params"])), like["params"])
    stats = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), like["batch_stats"])
    given = {"params": params, "batch_stats": stats}

    def train(x: Any) -> Any:
        out, changed = net.apply(given, x, mutable=["batch_stats"])
        return (out**2).sum(), (out, changed)

    gradient, (out, changed) = jax.grad(train, has_aux=True)(x)
    return {
        "train": np.asarray(out),
        "gradient": np.asarray(gradient),
        "mean": np.asarray(changed["batch_stats"]["main.3"]["mean"]),
        "rest": np.asarray(net.apply(given, x, train=False)),
    }


def lpips_params(widths: tuple[int, ...]) -> Any:
    """Random weights; those of the last layers are positive, as in the published ones."""
    x = jnp.zeros((1, 16, 16, 3))
    like = jax.eval_shape(LPIPS(widths).init, jax.random.key(0), x, x)["params"]
    state = cases.random_state(list_state_shapes(like))
    positive = {k: np.abs(v) if k.startswith("lin") else v for k, v in state.items()}
    return from_state_dict(positive, like)


def our_lpips(widths: tuple[int, ...] = WIDTHS) -> dict[str, np.ndarray]:
    """Distances (2,), and the gradient of their sum at the second images."""
    params, (x, y) = lpips_params(widths), pair()

    def total(y: Any) -> Any:
        value = LPIPS(widths).apply({"params": params}, x, y)
        return value.sum(), value

    gradient, value = jax.jit(jax.grad(total, has_aux=True))(y)
    return {"value": np.asarray(value), "gradient": np.asarray(gradient)}


def lpips_state(widths: tuple[int, ...] = WIDTHS) -> dict[str, np.ndarray]:
    """The same weights for torch."""
    return to_state_dict(lpips_params(widths))
