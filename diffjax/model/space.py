"""The space where diffusion happens: pixels, or the latents of a frozen autoencoder.

Latent diffusion (Rombach et al. 2022) is the same model in another `Space`. Tasks enter it, samples
leave it, and images of a condition are encoded in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax.nets.autoencoder import Autoencoder, AutoencoderKL, VQModel
from diffjax.types import Array, ArrayLike, Frozen, Params, Statistics, build_section

AUTOENCODERS = {"kl": AutoencoderKL, "vq": VQModel}


class Space(NamedTuple):
    """What a diffusion model sees in place of images.

    Attributes:
        shape: (h, w, c) of a sample.
        extra: initial statistics: ``latent_scale``, or none for pixels.
        enter: ``(frozen, extra, key, batch) -> (x, extra)``, without a gradient. The statistics
            come back with what was measured.
        read: ``(frozen, images) -> z`` without noise: latents as the autoencoder has them.
        encode: ``(frozen, extra, images) -> x``, the same shifted and scaled, for conditions.
        leave: ``(frozen, extra, x) -> images``.
        net: the autoencoder, or None for pixels.
    """

    shape: tuple[int, int, int]
    extra: Mapping[str, Array]
    enter: Callable[..., tuple[Array, Statistics]]
    read: Callable[..., Array]
    encode: Callable[..., Array]
    leave: Callable[..., Array]
    net: Autoencoder | None = None


def make_pixel_space(image_shape: tuple[int, int, int]) -> Space:
    """Make the space of the images themselves.

    Args:
        image_shape: (H, W, C).
    """
    return Space(
        image_shape,
        {},
        lambda frozen, extra, key, batch: (batch["image"], extra),
        lambda frozen, images: images,
        lambda frozen, extra, images: images,
        lambda frozen, extra, x: x,
    )


def make_space(config: ConfigDict, image_shape: tuple[int, int, int]) -> Space:
    """Make the space of a config: latents if it has a section ``autoencoder``, else pixels.

    With ``autoencoder.scale=0`` the scale is measured once, as ``1 / std(z)`` of the first batch
    (Rombach et al. 2022, appendix G), and kept in ``extra["latent_scale"]``. With
    ``autoencoder.latents_mean`` and ``latents_std``, one for each channel, latents are
    ``scale (z - mean) / std``.

    Args:
        image_shape: (H, W, C).

    Raises:
        ValueError: unknown options, sides that the factor of the autoencoder does not divide, or
            deviations of the channels without a scale.
    """
    section = config.get("autoencoder", None)
    if not section:
        return make_pixel_space(image_shape)
    options = {k: v for k, v in dict(section).items() if k not in ("weights", "scale")}
    net = make_autoencoder(options, image_shape[-1])
    scale = section.get("scale", 0.0)
    if net.latents_std is not None:
        if not scale:
            raise ValueError(
                "autoencoder.latents_std needs autoencoder.scale, the standard deviation that "
                "latents get, such as 0.5; 0 would measure one scale for all channels"
            )
        scale = scale / np.asarray(net.latents_std)
    return make_latent_space(net, image_shape, scale)


def make_latent_space(
    net: Autoencoder, image_shape: tuple[int, int, int], scale: ArrayLike
) -> Space:
    """Make the space of the latents ``scale (z - shift)`` of an autoencoder, which has the shift.

    Its parameters are ``frozen["autoencoder"]``. A batch has either ``image``, or ``moments`` that
    `encode_moments` made of it beforehand: the same key draws the same posterior sample from
    either.

    Args:
        image_shape: (H, W, C).
        scale: initial ``extra["latent_scale"]``, one number or one per channel. 0 measures it from
            the first batch.

    Raises:
        ValueError: sides that the factor of the autoencoder does not divide.
    """
    height, width, _ = image_shape
    if height % net.factor or width % net.factor:
        raise ValueError(
            f"images of {height}x{width} do not divide by the factor {net.factor} of the "
            "autoencoder; set config.data.image_size"
        )
    shape = (height // net.factor, width // net.factor, net.embed_channels)
    stop = jax.lax.stop_gradient

    def enter(
        frozen: Frozen, extra: Statistics, key: jax.Array, batch: Mapping[str, Array]
    ) -> tuple[Array, Statistics]:
        stored = batch.get("moments")
        if stored is None:
            stored = encode_moments(net, frozen["autoencoder"], batch["image"])
        z = stop(draw_latents(net, stored, key))
        scale = extra["latent_scale"]
        scale = jnp.where(scale > 0, scale, 1 / (z - net.latent_shift).std())
        return net.scale_latents(z, scale), {**extra, "latent_scale": scale}

    def read(frozen: Frozen, images: Array) -> Array:
        stored = encode_moments(net, frozen["autoencoder"], images)
        return stop(stored[..., : shape[-1]])

    def encode(frozen: Frozen, extra: Statistics, images: Array) -> Array:
        return net.scale_latents(read(frozen, images), extra["latent_scale"])

    def leave(frozen: Frozen, extra: Statistics, x: Array) -> Array:
        z = net.unscale_latents(x, extra["latent_scale"])
        return _apply(net, frozen["autoencoder"], z, net.decode)

    start = {"latent_scale": jnp.asarray(scale, jnp.float32)}
    return Space(shape, start, enter, read, encode, leave, net)


def make_autoencoder(section: ConfigDict, channels: int) -> Autoencoder:
    """Make the autoencoder of a config section ``{"name": "kl" | "vq", ...}``, without parameters.

    Args:
        channels: of the images.

    Raises:
        ValueError: unknown name or options; the message lists the choices.
    """
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()}
    name = str(options.pop("name"))
    dtype = jnp.dtype(options.pop("dtype", "float32"))
    options |= {"out_channels": channels, "dtype": None if dtype == jnp.float32 else dtype}
    return build_section("autoencoder", name, AUTOENCODERS, options)


def encode_moments(net: Autoencoder, params: Params, images: Array) -> Array:
    """Encode images as what is worth storing of their latents.

    A KL autoencoder gives mean and log-variance of the posterior, (B, h, w, 2C). A codebook gives
    its latents before they are quantised, (B, h, w, C): a diffusion model learns those, and the
    decoder quantises what it draws.
    """
    code = _apply(net, params, images, net.encode)
    if isinstance(net, VQModel):
        return code
    return jnp.concatenate([code.mean, code.logvar], axis=-1)


def draw_latents(net: Autoencoder, stored: Array, key: jax.Array) -> Array:
    """Draw latents (B, h, w, C) from stored moments: ``mean + exp(logvar / 2) eps``.

    Latents of a codebook are returned as they are.
    """
    if isinstance(net, VQModel):
        return stored
    mean, logvar = jnp.split(stored, 2, axis=-1)
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


def _apply(net: Autoencoder, params: Params, value: Array, method: Any) -> Any:
    """Call a method of an autoencoder with its parameters."""
    return net.apply({"params": params}, value, method=method)
