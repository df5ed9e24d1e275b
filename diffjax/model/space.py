"""Where diffusion happens: on pixels, or on the latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax.nets.autoencoder import Autoencoder, AutoencoderKL, VQModel
from diffjax.types import Array, ArrayLike, Frozen, Params, PyTree, Statistics, build_section

AUTOENCODERS = {"kl": AutoencoderKL, "vq": VQModel}


class Space(NamedTuple):
    """What a diffusion model sees instead of images.

    Attributes:
        shape: (h, w, c).
        extra: initial statistics.
        enter: ``(frozen, extra, key, batch) -> (x, extra)``, no gradient.
        encode: ``(frozen, extra, images) -> x`` without noise, for conditions.
        leave: ``(frozen, extra, x) -> images``.
        net: the autoencoder, or None for pixels.
    """

    shape: tuple[int, int, int]
    extra: Mapping[str, Array]
    enter: Callable[..., tuple[Array, PyTree]]
    encode: Callable[..., Array]
    leave: Callable[..., Array]
    net: Autoencoder | None = None


def pixels(image_shape: tuple[int, int, int]) -> Space:
    """Images as they are."""
    return Space(
        image_shape,
        {},
        lambda frozen, extra, key, batch: (batch["image"], extra),
        lambda frozen, extra, images: images,
        lambda frozen, extra, x: x,
    )


def make_space(config: ConfigDict, image_shape: tuple[int, int, int]) -> Space:
    """The space of a config: latents if it has a section ``autoencoder``, see `make_latent_space`.

    With ``autoencoder.scale`` 0 the scale is measured once, ``1 / std(z)`` of the first batch
    (Rombach et al. 2022, appendix G), and kept in ``extra["latent_scale"]``.

    Raises:
        ValueError: unknown options, or images that the autoencoder cannot halve so often.
    """
    section = config.get("autoencoder", None)
    if not section:
        return pixels(image_shape)
    options = {k: v for k, v in dict(section).items() if k not in ("weights", "scale")}
    net = make_autoencoder(options, image_shape[-1])
    return make_latent_space(net, image_shape, section.get("scale", 0.0))


def make_latent_space(
    net: Autoencoder, image_shape: tuple[int, int, int], scale: ArrayLike, shift: ArrayLike = 0.0
) -> Space:
    """The latents ``scale (z - shift)`` of an autoencoder, ``frozen["autoencoder"]``.

    A batch has either ``image``, or ``moments`` from `moments`, written to disk beforehand: the
    same key draws the same posterior sample from either.

    Args:
        image_shape: (H, W, C).
        scale: ``extra["latent_scale"]``, one number or one per channel; 0 to measure it.
        shift: likewise.

    Raises:
        ValueError: images that the autoencoder cannot halve so often.
    """
    height, width, _ = image_shape
    if height % net.factor or width % net.factor:
        raise ValueError(
            f"images of {height}x{width} do not divide by the factor {net.factor} of the "
            "autoencoder; set config.data.image_size"
        )
    shape = (height // net.factor, width // net.factor, net.embed_channels)
    stop = jax.lax.stop_gradient

    def center(z: Array) -> Array:
        return z - shift if np.any(shift) else z

    def enter(
        frozen: Frozen, extra: Statistics, key: jax.Array, batch: Mapping[str, Array]
    ) -> tuple[Array, PyTree]:
        stored = batch.get("moments")
        if stored is None:
            stored = moments(net, frozen["autoencoder"], batch["image"])
        z = center(stop(draw(net, stored, key)))
        scale = extra["latent_scale"]
        scale = jnp.where(scale > 0, scale, 1 / z.std())
        return z * scale, {**extra, "latent_scale": scale}

    def encode(frozen: Frozen, extra: Statistics, images: Array) -> Array:
        stored = moments(net, frozen["autoencoder"], images)
        return center(stop(stored[..., : shape[-1]])) * extra["latent_scale"]

    def leave(frozen: Frozen, extra: Statistics, x: Array) -> Array:
        z = x / extra["latent_scale"]
        return _run(net, frozen["autoencoder"], z + shift if np.any(shift) else z, net.decode)

    start = {"latent_scale": jnp.asarray(scale, jnp.float32)}
    return Space(shape, start, enter, encode, leave, net)


def make_autoencoder(section: ConfigDict, channels: int) -> Autoencoder:
    """The network of a config section ``{"name": "kl" | "vq", ...}``.

    Args:
        channels: of the images.

    Raises:
        ValueError: unknown name or options, listing the choices.
    """
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()}
    name = str(options.pop("name"))
    dtype = jnp.dtype(options.pop("dtype", "float32"))
    options |= {"out_channels": channels, "dtype": None if dtype == jnp.float32 else dtype}
    return build_section("autoencoder", name, AUTOENCODERS, options)


def moments(net: Autoencoder, params: Params, images: Array) -> Array:
    """What is worth storing of the latents: (B, h, w, 2C) mean and log-variance, or (B, h, w, C).

    A codebook's latents are not yet quantised: a diffusion model learns those, and the decoder
    quantises what it makes.
    """
    code = _run(net, params, images, net.encode)
    if isinstance(net, VQModel):
        return code
    return jnp.concatenate([code.mean, code.logvar], axis=-1)


def draw(net: Autoencoder, stored: Array, key: jax.Array) -> Array:
    """A sample (B, h, w, C) of `moments`."""
    if isinstance(net, VQModel):
        return stored
    mean, logvar = jnp.split(stored, 2, axis=-1)
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


def _run(net: Autoencoder, params: Params, value: Array, method: Any) -> Any:
    return net.apply({"params": params}, value, method=method)
