"""Where a generation begins: its size, keys and noise, and what is known of its images.

`lay_out` reads pictures and fixes the size on the host, and raises all errors. `make_scene` then
encodes images and draws noise. Image-to-image begins from a noisy encoding of the image; inpainting
also puts known latents back after every step, or, with an inpainting model of 9 input channels,
gives the network the mask and the masked image.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate import beside, crops, images, program
from diffjax.generate.checks import RequestError, read_floats, refuse
from diffjax.generate.crops import Crop
from diffjax.generate.keys import check_key, make_keys
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import Image, Size
from diffjax.generate.request import Request
from diffjax.nets.asymmetric_autoencoder import AsymmetricAutoencoderKL
from diffjax.nets.resampling import upsample2
from diffjax.types import Array, Rows

# Draws of a key beside those of the sampler, see `diffjax.samplers.loop.image_noise`.
PRIOR, POSTERIOR, MASKED, LOW = 1, 2, 3, 4
PIXELS = 2**26  # of an image, at most
TOGETHER = 2**32  # of all images of a call, at most
Given = tuple[np.ndarray, bool]  # see `images.read_images`


class Start(NamedTuple):
    """The arrays that a run begins with, B of them for B images.

    Attributes:
        size: the size of the output, in full.
        keys: keys of the images, (B,).
        noise: initial standard normal noise (B, h, w, C).
        x: latents (B, h, w, C) of the image to start from, or None.
        pure: whether to begin from noise alone although there is an image, as inpainting does at
            strength 1.
        known: ``x``, ``eps`` and ``mask`` of what is put back after every step, or None.
        concat: what the network reads beside z, such as the mask and the masked latents
            (B, h, w, 1 + C) of an inpainting model; or None.
        label: class labels (B,) of the network, or None.
    """

    size: Size
    keys: jax.Array
    noise: Array
    x: Array | None = None
    pure: bool = False
    known: dict[str, Array] | None = None
    concat: Array | None = None
    label: Array | None = None

    def begin(self, rows: Rows, std: float) -> Array:
        """Return the state z (B, h, w, C) at the first row.

        Args:
            rows: the plan, whose first level is that of the state.
            std: standard deviation of the state if it is noise alone.
        """
        if self.x is None or self.pure:
            return jnp.asarray(std * self.noise)
        return jnp.asarray(rows.level.alpha[0] * self.x + rows.level.sigma[0] * self.noise)


class SceneLayout(NamedTuple):
    """The pictures and the size of a request, before anything is computed on a device.

    Attributes:
        size: the size of the output, in full.
        strength: share of the steps to run, in [0, 1].
        given: the image to start from as `images.read_images` returns it, pixels or latents; or
            None.
        mask: (B, H, W, 1), 1 where the image is filled in; or None.
        crop: what image and mask were cut from, or None.
        depth: (B, h, w, 1) in [-1, 1], or None.
        noise_level: of the small image of an upscaler.
    """

    size: Size
    strength: float
    given: Given | None
    mask: np.ndarray | None
    crop: Crop | None = None
    depth: np.ndarray | None = None
    noise_level: int = 0

    def latent_sides(self, factor: int) -> tuple[int, int]:
        """Return the height and width of latents, where ``factor`` is the autoencoder's
        reduction of a side.
        """
        return self.size.height // factor, self.size.width // factor


def lay_out(
    pipe: LoadedModel, request: Request, shape: tuple[int, int] | None = None
) -> SceneLayout:
    """Read the pictures of a request and fix its size, on the host.

    Args:
        pipe: the model, whose autoencoder says which latents and sizes are possible.
        request: the request.
        shape: (h, w) of the latents, if they come from another stage.

    Raises:
        RequestError: image, mask, latents, keys and size do not fit together or do not fit the
            model, the call asks for too many pixels, or an inpainting model has no image and mask.
    """
    vae, image, count = pipe.parts.vae.net, request.read_image(), request.count_images()
    given, mask = _read_given(image, vae.latent_channels, vae.factor)
    if request.latents is not None:
        _check_channels(np.shape(request.latents), vae.latent_channels)
    cropped = image is not None and image.mask_padding is not None
    if pipe.beside in beside.ENLARGES and given is not None:
        shape = shape or beside.find_enlarged(pipe, given, all(request.read_size()[:2]))
        cropped = True
    size = _choose_size(pipe, request, None if cropped else given, shape)
    _check_amount(size, count)
    crop = None
    if image is not None and given is not None and image.mask_padding is not None:
        crop, given, mask = _cut_out(image, image.mask_padding, given, vae.latent_channels, size)
    elif given is not None and not given[1] and given[0].shape[1:3] != size[:2]:
        given, mask = _read_given(image, vae.latent_channels, vae.factor, size[:2])
    check_key(request.key, count)
    layout = SceneLayout(size, 1.0, given, mask)
    if request.latents is not None:
        wanted = (count, *layout.latent_sides(vae.factor), vae.latent_channels)
        if np.shape(request.latents) != wanted:
            raise refuse("latents", f"must be {wanted}, got {np.shape(request.latents)}")
    beside.check_beside(pipe, image, given is not None and given[1])
    if image is None or given is None:
        return layout
    sides = layout.latent_sides(vae.factor)
    depth = None if image.depth is None else beside.read_depth(image.depth, sides)
    if pipe.beside in beside.ENLARGES and not given[1]:
        given = beside.read_small(pipe, image, sides), False
    strength = image.strength
    if pipe.beside in (beside.INSTRUCTION, *beside.ENLARGES):
        strength = 1.0
    elif strength is None:
        strength = choose_default_strength(pipe.is_xl, mask is not None)

    def spread(name: str, array: np.ndarray) -> np.ndarray:
        return images.read_picture(
            name, images.repeat_for_images, array, request.num, count, name.rpartition(".")[2]
        )

    if mask is not None:
        mask = spread("image.mask", mask)
    if crop is not None:
        whole = spread("image", crop.pixels), spread("image.mask", crop.mask)
        crop = Crop(crop.box, *whole)
    if depth is not None:
        depth = spread("image.depth", depth)
    level = beside.read_noise_level(pipe, image) if pipe.beside == beside.SMALL else 0
    return SceneLayout(
        size, strength, (spread("image", given[0]), given[1]), mask, crop, depth, level
    )


def make_scene(pipe: LoadedModel, request: Request, layout: SceneLayout) -> Start:
    """Encode the image of a request that was laid out, and draw its noise.

    The draws of a key are numbered: `PRIOR` for the initial noise, `POSTERIOR` for the encoding of
    the image, `MASKED` for that of the masked image, and `LOW` for the small image of an upscaler,
    so they do not depend on each other.
    """
    vae, (size, strength, given, mask, *_) = pipe.parts.vae.net, layout
    keys = make_keys(request.key, request.count_images())
    latent = (*layout.latent_sides(vae.factor), vae.latent_channels)
    noise: Array = program.draw_noise(keys, latent, PRIOR)
    if request.latents is not None:
        noise = jnp.asarray(request.latents, jnp.float32)
    scene = Start(size, keys, noise)
    if given is None:
        return scene
    pixels = given[0]
    if pipe.beside == beside.SMALL:
        low = program.draw_noise(keys, pixels.shape[1:], LOW)
        concat = beside.add_low_noise(pipe, pixels, layout.noise_level, low)
        label = jnp.full(len(pixels), layout.noise_level, jnp.int32)
        return scene._replace(concat=concat, label=label)
    if pipe.beside == beside.HALF:
        small: Array = pixels
        if not given[1]:
            half = (latent[0] // 2, latent[1] // 2, latent[2])
            small = encode(pipe, pixels, program.draw_noise(keys, half, POSTERIOR))
        return scene._replace(concat=upsample2(jnp.asarray(small)))
    if pipe.beside == beside.INSTRUCTION:
        return scene._replace(concat=pixels if given[1] else encode_mean(pipe, pixels))
    x = pixels if given[1] else encode(pipe, pixels, program.draw_noise(keys, latent, POSTERIOR))
    scene = scene._replace(x=x)
    if layout.depth is not None:
        return scene._replace(concat=jnp.asarray(layout.depth))
    if mask is None:
        return scene
    small = jnp.asarray(mask[:, :: vae.factor, :: vae.factor])
    scene = scene._replace(pure=strength == 1)
    if pipe.beside != beside.MASK:
        return scene._replace(known={"x": x, "eps": noise, "mask": small})
    hidden = np.where(mask == 1, np.float32(0.5), pixels)  # 0 in [-1, 1]
    hidden_x = encode(pipe, hidden, program.draw_noise(keys, latent, MASKED))
    return scene._replace(concat=jnp.concatenate([small, hidden_x], -1))


def _read_given(
    image: Image | None, latents: int, factor: int, size: tuple[int, int] | None = None
) -> tuple[Given | None, np.ndarray | None]:
    """Read the image and the mask of a request. Either may be None.

    Args:
        image: the image of the request.
        latents: channels of latents.
        factor: the autoencoder's reduction of a side.
        size: (height, width) to resize to; None keeps the size of the pictures.

    Raises:
        RequestError: a picture cannot be read, or the mask does not have the size of the image.
    """
    if image is None:
        return None, None
    given = images.read_picture(
        "image", images.read_images, image.pixels, latents=latents, size=size
    )
    if given[1]:
        read_floats("image", given[0], "(N, h, w, channels)")
    if image.mask is None:
        return given, None
    mask = images.read_picture("image.mask", images.read_mask, image.mask, size)
    here = tuple(side * (factor if given[1] else 1) for side in given[0].shape[1:3])
    if mask.shape[1:3] != here:
        raise RequestError("image.mask", f"the mask is {mask.shape[1:3]}, but the image {here}")
    return given, mask


def _cut_out(
    image: Image, padding: int, given: Given, latents: int, size: Size
) -> tuple[Crop, Given, np.ndarray]:
    """Cut image and mask out around the mask, at the size of the output.

    Raises:
        RequestError: the image is latents, or the mask is black.
    """
    if given[1]:
        raise refuse("image.mask_padding", "needs pixels to crop, but the image is latents")
    soft = images.read_picture("image.mask", images.read_soft_mask, image.mask)
    box = images.read_picture("image.mask", crops.find_box, soft, padding, size[:2])

    def fit(array: np.ndarray) -> np.ndarray:
        return crops.cut(array, box, size[:2])

    part = images.read_picture("image", images.read_images, image.pixels, latents=latents, fit=fit)
    mask = images.read_picture("image.mask", images.read_mask, image.mask, None, fit)
    return Crop(box, given[0], soft), part, mask


def _check_channels(found: tuple[int, ...], channels: int) -> None:
    """Check that initial latents have the model's channels on the last axis.

    Raises:
        RequestError: they have not. The message explains how to move channels that come first.
    """
    if found[-1] != channels:
        first = found[1] == channels
        hint = ": channels come last, np.moveaxis(latents, 1, -1)" if first else ""
        raise RequestError("latents", f"latents must be (B, h, w, {channels}), got {found}{hint}")


def _check_amount(size: Size, count: int) -> None:
    """Check that a call does not ask for more pixels than memory and indices can hold.

    Raises:
        RequestError: one image has more than `PIXELS` pixels, or all have more than `TOGETHER`.
    """
    if size.height * size.width > PIXELS:
        name = "size.height" if size.height >= size.width else "size.width"
        raise RequestError(
            name,
            f"size {size.height} x {size.width} is too large: there may be at most 2^26 pixels, "
            "such as 8192 x 8192",
        )
    if count * size.height * size.width > TOGETHER:
        raise RequestError(
            "num",
            f"{count} images of {size.height} x {size.width} are too many for one call: there may "
            "be at most 2^32 pixels together; lower num, or make several calls",
        )


def choose_default_strength(xl: bool, masked: bool) -> float:
    """Return the strength that diffusers' pipelines use by default, in [0, 1]."""
    if xl:
        return 0.9999 if masked else 0.3
    return 1.0 if masked else 0.8


def find_kept(pipe: LoadedModel, layout: SceneLayout) -> tuple[np.ndarray, ...]:
    """Find the image in [-1, 1] and the mask that the autoencoder reads when it decodes, if any."""
    asymmetric = isinstance(pipe.parts.vae.net, AsymmetricAutoencoderKL)
    if not asymmetric or layout.mask is None or layout.given is None or layout.given[1]:
        return ()
    return 2 * layout.given[0] - 1, np.asarray(layout.mask, np.float32)


def encode(pipe: LoadedModel, pixels: np.ndarray, eps: Array) -> Array:
    """Encode pixels to latents (B, h, w, C): a draw of the posterior, shifted and scaled for the
    UNet.

    Posteriors are kept by the hash of the pixels, so that an image is encoded once.

    Args:
        pipe: the model with the autoencoder.
        pixels: (B, H, W, 3) in [0, 1].
        eps: standard normal noise (B, h, w, C) of the draw.
    """
    net = pipe.parts.vae.net
    latents: Array = net.scale_latents(_encode(pipe, pixels).with_noise(eps))
    return latents


def encode_mean(pipe: LoadedModel, pixels: np.ndarray) -> Array:
    """Means of the posterior of pixels, not scaled: what models that edit are given."""
    return _encode(pipe, pixels).mean


def _encode(pipe: LoadedModel, pixels: np.ndarray) -> Any:
    net, params = pipe.parts.vae.net, pipe.parts.vae.params

    def encode_one(image: np.ndarray) -> Any:
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        return pipe.remember(
            ("image", image.shape, digest),
            lambda: program.encode_posterior(net, params, 2 * image[None] - 1),
        )

    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(encode_one, pixels))


def _choose_size(
    pipe: LoadedModel,
    request: Request,
    given: Given | None,
    shape: tuple[int, int] | None,
) -> Size:
    """Choose the size of the output: the one asked for, else that of the image, else the model's
    own.

    The size of an image is rounded down to what the networks allow. Latents fix the size.

    Args:
        pipe: the model.
        request: the request.
        given: the image, see `SceneLayout`.
        shape: (h, w) of latents of another stage.

    Raises:
        RequestError: the size differs from that of the latents, or is not a multiple of the unit of
            the networks; the message names the nearest possible size.
    """
    factor, asked = pipe.parts.vae.net.factor, request.read_size()
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
        name = "size.height" if height != found[0] else "size.width"
        raise RequestError(name, f"size {(height, width)} is not that of what is given, {found}")
    if height < 1 or width < 1 or height % unit or width % unit:
        near = tuple(max(unit, _round(side, unit)) for side in (height, width))
        raise RequestError(
            "size.height" if height < 1 or height % unit else "size.width",
            f"height and width must be multiples of {unit}, got {(height, width)}; "
            f"the nearest are {near}",
        )
    return asked._replace(height=height, width=width)


def _round(side: int, unit: int) -> int:
    """Return the nearest multiple of ``unit``; of two that are equally near, the smaller one."""
    return -(-(2 * side - unit) // (2 * unit)) * unit
