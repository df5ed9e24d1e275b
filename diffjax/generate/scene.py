"""Where a generation begins: its size, keys and noise, and what is known of its images."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate import images, program
from diffjax.generate.options import Request, Size
from diffjax.types import Array, Rows

if TYPE_CHECKING:
    from diffjax.generate.pipeline import Pipeline

# Draws of a key beside those of the sampler, see `diffjax.samplers.loop.image_noise`.
PRIOR, POSTERIOR, MASKED = 1, 2, 3
SEEDS = 2**32


class Scene(NamedTuple):
    """What a run begins with.

    Attributes:
        size: of the output.
        keys: of the images.
        noise: initial noise, standard normal.
        strength: share of the steps to run.
        x: latents of the image, if there is one.
        pure: begin from noise alone even so.
        known: x, eps and mask of what is put back after every step, or None.
        concat: what the network is given beside z, or None.
    """

    size: Size
    keys: jax.Array
    noise: Array
    strength: float = 1.0
    x: Array | None = None
    pure: bool = False
    known: dict[str, Array] | None = None
    concat: Array | None = None

    def begin(self, rows: Rows, std: float) -> Array:
        """The state at the first row; ``std`` is that of pure noise."""
        if self.x is None or self.pure:
            return jnp.asarray(std * self.noise)
        return jnp.asarray(rows.level.alpha[0] * self.x + rows.level.sigma[0] * self.noise)


def make(pipe: Pipeline, request: Request, shape: tuple[int, ...] | None = None) -> Scene:
    """The scene of a request.

    Args:
        shape: (h, w) of the latents, if they come from another stage.

    Raises:
        ValueError: image, mask, latents, keys and size do not fit together, or not the model.
    """
    vae, image, count = pipe.parts.vae.net, request.image, request.count()
    given, mask = _given(request, vae.latent_channels, vae.factor)
    size = _size(pipe, request, given, shape)
    if given is not None and not given[1] and given[0].shape[1:3] != size[:2]:
        given, mask = _given(request, vae.latent_channels, vae.factor, size[:2])
    keys = make_keys(request.key, count)
    latent = (size.height // vae.factor, size.width // vae.factor, vae.latent_channels)
    noise: Array = program.draw(keys, latent, PRIOR)
    if request.latents is not None:
        noise = jnp.asarray(request.latents, jnp.float32)
        if noise.shape != (count, *latent):
            raise ValueError(f"latents must be {(count, *latent)}, got {noise.shape}")
    fills_in = pipe.extra_channels > 0
    if fills_in and (mask is None or given is None or given[1]):
        raise ValueError("this model fills in images: give image=Image(pixels, mask=mask)")
    scene = Scene(size, keys, noise)
    if image is None or given is None:
        return scene
    pixels = images.spread(given[0], request.num, count, "image")
    x = pixels if given[1] else encode(pipe, pixels, program.draw(keys, latent, POSTERIOR))
    strength = image.strength
    if strength is None:
        strength = default_strength(pipe.is_xl, mask is not None)
    scene = scene._replace(x=x, strength=strength)
    if mask is None:
        return scene
    mask = images.spread(mask, request.num, count, "mask")
    small = jnp.asarray(mask[:, :: vae.factor, :: vae.factor])
    scene = scene._replace(pure=strength == 1)
    if not fills_in:
        return scene._replace(known={"x": x, "eps": noise, "mask": small})
    hidden = np.where(mask == 1, np.float32(0.5), pixels)  # 0 in [-1, 1]
    hidden_x = encode(pipe, hidden, program.draw(keys, latent, MASKED))
    return scene._replace(concat=jnp.concatenate([small, hidden_x], -1))


Given = tuple[np.ndarray, bool]  # see `images.read`


def _given(
    request: Request, latents: int, factor: int, size: tuple[int, int] | None = None
) -> tuple[Given | None, np.ndarray | None]:
    """The image of a request, its mask, or None.

    Raises:
        ValueError: the mask has not the size of the image.
    """
    if request.image is None:
        return None, None
    given = images.read(request.image.pixels, latents=latents, size=size)
    if request.image.mask is None:
        return given, None
    mask = images.read_mask(request.image.mask, size)
    here = tuple(side * (factor if given[1] else 1) for side in given[0].shape[1:3])
    if mask.shape[1:3] != here:
        raise ValueError(f"the mask is {mask.shape[1:3]}, but the image {here}")
    return given, mask


def default_strength(xl: bool, masked: bool) -> float:
    """That of diffusers' pipelines."""
    if xl:
        return 0.9999 if masked else 0.3
    return 1.0 if masked else 0.8


def encode(pipe: Pipeline, pixels: np.ndarray, eps: Array) -> Array:
    """Latents of pixels (B, H, W, 3) in [0, 1]: a draw of their posterior, scaled."""
    net, params = pipe.parts.vae.net, pipe.parts.vae.params

    def one(image: np.ndarray) -> Any:
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        return pipe.remember(
            ("image", image.shape, digest),
            lambda: program.posterior(net, params, 2 * image[None] - 1),
        )

    posterior = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(one, pixels))
    return (posterior.with_noise(eps) - net.shift_factor) * net.scaling_factor


def _size(
    pipe: Pipeline,
    request: Request,
    given: Given | None,
    shape: tuple[int, ...] | None,
) -> Size:
    """The size of the output, which the network can have; that of pixels is rounded down."""
    factor, asked = pipe.parts.vae.net.factor, request.sizes()
    unit, found = factor * pipe.parts.unet.net.divisor, None
    if given is not None and not given[1]:
        default = tuple(side - side % unit for side in given[0].shape[1:3])
    else:
        if given is not None:
            shape = given[0].shape[1:3]
        elif request.latents is not None:
            shape = np.shape(request.latents)[1:3]
        found = None if shape is None else tuple(factor * side for side in shape)
        default = found or (asked[:2] if all(asked[:2]) else pipe.native_size())
    height, width = (side or other for side, other in zip(asked[:2], default, strict=True))
    if found and (height, width) != found:
        raise ValueError(f"size {(height, width)} is not that of what is given, {found}")
    if height < 1 or width < 1 or height % unit or width % unit:
        raise ValueError(f"height and width must be multiples of {unit}, got {(height, width)}")
    return asked._replace(height=height, width=width)


def make_keys(key: Any, count: int) -> jax.Array:
    """One key per image: from a seed or a key by the image's number, or as they are given.

    Raises:
        ValueError: there are keys, but not one per image, or a seed has more than 32 bits.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        keys = key
    elif np.ndim(key):
        keys = jnp.stack([_seeded(int(seed)) for seed in key])
    else:
        keys = _seeded(int(key))
    if not keys.ndim:
        return jax.vmap(partial(jax.random.fold_in, keys))(jnp.arange(count))
    if len(keys) != count:
        raise ValueError(f"there are {count} images, but {len(keys)} keys or seeds")
    return keys


def _seeded(seed: int) -> jax.Array:
    if not 0 <= seed < SEEDS:  # JAX would take the lower 32 bits
        raise ValueError(f"seeds must lie in [0, 2^32), got {seed}")
    return jax.random.key(seed)
