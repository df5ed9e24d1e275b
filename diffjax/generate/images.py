"""Read images, masks and latents in the forms that people have them, and turn results into images.

Users pass PIL images or arrays of several types and ranges. Everything behind this module works on
float32 arrays in [0, 1] of shape (N, H, W, C). The rules for depth, transparency and grey levels
are those of `diffjax.data.pictures`, so that training and generation read a picture alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from diffjax.data import pictures
from diffjax.generate.checks import RequestError, read_text
from diffjax.generate.options import Latents
from diffjax.types import Array, T, choose

Side = tuple[int, int]  # height and width
Fit = Callable[[np.ndarray], np.ndarray] | None


def read_images(
    value: object,
    *,
    channels: int = 3,
    latents: int = 4,
    size: Side | None = None,
    low: float = 0,
    fit: Fit = None,
) -> tuple[np.ndarray, bool]:
    """Read images as float32 (N, H, W, C) in [0, 1], or recognise latents and return them
    unchanged.

    Float arrays with as many channels as latents count as latents only if no picture could have
    their values: some are below 0 and some are larger than 1 in size.

    Args:
        value: PIL images, or arrays that `diffjax.data.pictures.to_unit` takes, of shape ([N,] H,
            W, C); or `Latents`, or float latents ([N,] h, w, latents).
        channels: C, 3 for RGB.
        latents: channels of the model's latents, or 0 if there can be none.
        size: (H, W) to which images are resized with a Lanczos filter, as diffusers does.
        low: the smallest value that floats may have. Control images use -1: their transparent
            pixels are composited on black, and values below 0 mark pixels that an inpainting
            ControlNet fills in, so they are resized without blending.

    Returns:
        The array, and whether it holds latents.
        fit: brings images (N, H, W, C) to a size, in place of ``size``.

    Raises:
        ValueError: the value is neither an image nor latents, could be both, mixes them, or has
            images of different sizes.
    """
    if isinstance(value, Latents):
        return _to_latents(value.values, latents), True
    parts = [_find_latents(one, channels, latents) for one in _list_images(value)]
    if all(part is not None for part in parts):
        return _join_batches([part for part in parts if part is not None], "latents"), True
    if any(part is not None for part in parts):
        raise ValueError("images and latents cannot be mixed; give either")
    return _join_batches(
        [_read_pixels(one, channels, size, low, fit) for one in _list_images(value)], "images"
    ), False


def read_mask(value: object, size: Side | None = None, fit: Fit = None) -> np.ndarray:
    """Read masks as float32 (N, H, W, 1), with 1 where the mask is at least one half.

    Args:
        value: PIL images or arrays, as `diffjax.data.pictures.read_mask` takes them. White marks
            the pixels to fill in.
        size: (height, width) to which they are resized, as in `read_images`.
        fit: as in `read_images`.

    Raises:
        ValueError: the value cannot be read as a mask.
    """
    soft = read_soft_mask(value, size)
    return ((soft if fit is None else fit(soft)) >= 0.5).astype(np.float32)


def read_soft_mask(value: object, size: Side | None = None) -> np.ndarray:
    """Read masks as greys (N, H, W, 1), float32 in [0, 1].

    Raises:
        ValueError: the value cannot be read as a mask, or the masks differ in size.
    """
    parts = [_add_batch_axis(pictures.read_mask(one)) for one in _list_images(value)]  # type: ignore[arg-type]
    parts = parts if size is None else [resize(part, size) for part in parts]
    return _join_batches(parts, "masks")


def _list_images(value: object) -> Sequence[object]:
    """Return the images of a list; a single image counts as a list of one.

    Raises:
        ValueError: the list is empty.
    """
    if isinstance(value, PIL.Image.Image) or not isinstance(value, list | tuple):
        return [value]
    if not value:
        raise ValueError("there is no image in the list")
    return value


def _join_batches(parts: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Concatenate batches of images (N, H, W, C) along N.

    Raises:
        ValueError: they differ in height or width; ``name`` says what they are.
    """
    if sizes := sorted({part.shape[1:3] for part in parts})[1:]:
        raise ValueError(
            f"{name} differ in size: {parts[0].shape[1:3]} and {sizes[0]} (height, width); give "
            "size, or bring them to one size"
        )
    return np.concatenate(parts)


def _add_batch_axis(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 3 else array


def _read_pixels(
    one: object, channels: int, size: Side | None, low: float, fit: Fit = None
) -> np.ndarray:
    """Read a PIL image or an array as float32 (N, H, W, channels) in [0, 1].

    8-bit images are resized before they become floats, because PIL's resampling rounds to 8 bits
    and the result must equal that of diffusers.
    """
    name, background = "images", pictures.WHITE
    if low < 0:
        name, background = "control images", pictures.BLACK
    if isinstance(one, PIL.Image.Image):
        levels = 3 if channels == 3 else 1
        one = pictures.to_bytes(one, levels, background=background, name=name)
    array = np.asarray(one)
    if array.dtype != np.uint8 or array.shape[-1] != channels or array.ndim not in (3, 4):
        array = pictures.to_unit(array, channels, background=background, low=low, name=name)
    array = _add_batch_axis(array)
    array = array if size is None else resize(array, size)
    array = array if fit is None else fit(array)
    return pictures.to_unit(array, channels, low=low, name=name)


def _find_latents(one: object, channels: int, latents: int) -> np.ndarray | None:
    """Return float32 latents (N, h, w, latents), or None if the value is an image.

    Raises:
        ValueError: the value could be latents or a picture with an alpha channel.
    """
    if isinstance(one, PIL.Image.Image):
        return None
    array = np.asarray(one)
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if not floating or array.ndim not in (3, 4) or array.shape[-1] != latents or not array.size:
        return None
    if latents == channels:
        return None
    values = _to_latents(array, latents)
    if latents == 4 and not (values.min() < 0 and np.abs(values).max() > 1):
        raise ValueError(
            f"image is an array of floats {array.shape} in [{values.min()}, {values.max()}], which "
            "could be latents or a picture with alpha: give latents as generate.Latents(array), "
            "and a picture as PIL image, as uint8, or without alpha"
        )
    return values


def _to_latents(value: object, latents: int) -> np.ndarray:
    """Return latents as finite float32 of shape (N, h, w, latents).

    Raises:
        ValueError: the shape or the type is another one, or a value is not finite.
    """
    values = np.asarray(value)
    if values.ndim not in (3, 4) or values.shape[-1] != latents or values.dtype.kind in "OSU":
        raise ValueError(
            f"latents must be ([N,] h, w, {latents}), got an array of {values.dtype} {values.shape}"
        )
    values = _add_batch_axis(values.astype(np.float32))
    if not np.isfinite(values).all():
        raise ValueError("latents must be finite")
    return values


def resize(array: np.ndarray, size: Side) -> np.ndarray:
    """Resize images (N, H, W, C), uint8 or float32, to (height, width), channel by channel with
    PIL.

    Images with values below 0 are resized by the nearest pixel, because these values are marks. The
    Lanczos filter overshoots, so float results are clipped to [0, 1].
    """
    if array.shape[1:3] == size:
        return array
    smooth = array.min() >= 0
    planes = np.moveaxis(array, -1, 1).reshape(-1, *array.shape[1:3])
    planes = np.stack(
        [np.asarray(_resize_pillow(PIL.Image.fromarray(one), size, smooth)) for one in planes]
    )
    out = np.moveaxis(planes.reshape(len(array), array.shape[-1], *size), 1, -1)
    # The filter overshoots.
    return np.clip(out, 0, 1) if smooth and out.dtype != np.uint8 else out


def _resize_pillow(image: PIL.Image.Image, size: Side, smooth: bool = True) -> PIL.Image.Image:
    filters = PIL.Image.Resampling
    return image.resize(size[::-1], filters.LANCZOS if smooth else filters.NEAREST)


def repeat_for_images(array: np.ndarray, num: int, images: int, name: str) -> np.ndarray:
    """Repeat an array until it has one row per image.

    Args:
        array: one row for all images, one per prompt, or one per image.
        num: images per prompt.
        images: images of the call.
        name: what the array holds, for messages.

    Raises:
        ValueError: the array has another number of rows.
    """
    prompts = images // num
    if len(array) not in (1, prompts, images):
        raise ValueError(
            f"give one {name}, or one for each of {prompts} prompts or {images} images, "
            f"not {len(array)}"
        )
    return np.repeat(array, images // len(array), axis=0)


def read_picture(argument: str, reader: Callable[..., T], *args: object, **options: object) -> T:
    """Call a reader of pictures, and name the argument in its errors.

    Args:
        argument: the name of the argument that holds the pictures.
        reader: a function such as `read_images`, which is called with ``args`` and ``options``.

    Raises:
        RequestError: the reader raised a ValueError.
    """
    try:
        return reader(*args, **options)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(argument, f"{argument}: {error}") from error


OUTPUTS = ("pil", "np", "latent")


def check_output(output: str) -> None:
    """Check the name of an output format.

    Raises:
        RequestError: it is not one of `OUTPUTS`.
    """
    try:
        choose("output", read_text("output", output), dict.fromkeys(OUTPUTS))
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError("output", str(error)) from error


def to_output(pixels: Array, output: str) -> list[PIL.Image.Image] | np.ndarray:
    """Turn pixels (B, H, W, 3) in [-1, 1] into the output that was asked for.

    Returns:
        A list of 8-bit PIL images for ``pil``, otherwise a float32 array (B, H, W, 3) in [0, 1].
    """
    unit = np.clip(np.asarray(pixels, np.float32) / 2 + np.float32(0.5), 0, 1)
    if output == "pil":
        return [PIL.Image.fromarray(one) for one in np.rint(unit * 255).astype(np.uint8)]
    return unit
