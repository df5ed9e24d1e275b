"""Images and masks as people have them, to arrays and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image

from diffjax.data import pictures
from diffjax.generate.checks import RequestError, read_text
from diffjax.generate.options import Latents
from diffjax.types import Array, choose

Side = tuple[int, int]  # height and width
Fit = Callable[[np.ndarray], np.ndarray] | None


def read_images(
    value: Any,
    *,
    channels: int = 3,
    latents: int = 4,
    size: Side | None = None,
    low: float = 0,
    fit: Fit = None,
) -> tuple[np.ndarray, bool]:
    """Images as (N, H, W, C) float32 in [0, 1], or latents as they are; and whether they are.

    Floats of as many channels as latents have are latents only if their values can be those of
    nothing else: some below 0, and some larger than 1 in size.

    Args:
        value: PIL image(s), or arrays, as `diffjax.data.pictures.to_unit` takes them, of shape
            ([N,] H, W, C); or `Latents`, or float latents ([N,] h, w, latents).
        size: (H, W) that images are brought to, by Lanczos' filter as in diffusers.
        low: what floats may be at least. Below 0 for control images, whose transparent pixels are
            black, and whose values below 0 are marks, such as -1 of pixels that a ControlNet is to
            fill in, and are not blended with their neighbours.
        fit: brings images (N, H, W, C) to a size, in place of ``size``.

    Raises:
        ValueError: it is none of these, or could be either; or the images differ in size.
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


def read_mask(value: Any, size: Side | None = None, fit: Fit = None) -> np.ndarray:
    """Read a mask as (N, H, W, 1) float32, 1 where it is at least one half.

    ``size`` and ``fit`` are as for `read_images`.

    Raises:
        ValueError: it is no mask, see `diffjax.data.pictures.read_mask`.
    """
    soft = read_soft_mask(value)
    soft = soft if size is None else resize(soft, size)
    return ((soft if fit is None else fit(soft)) >= 0.5).astype(np.float32)


def read_soft_mask(value: Any) -> np.ndarray:
    """Read a mask as greys (N, H, W, 1), float32 in [0, 1].

    Raises:
        ValueError: it is no mask, see `diffjax.data.pictures.read_mask`; or the masks differ in
            size.
    """
    parts = [_add_batch_axis(pictures.read_mask(one)) for one in _list_images(value)]
    return _join_batches(parts, "masks")


def _list_images(value: Any) -> Sequence[Any]:
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
    if sizes := sorted({part.shape[1:3] for part in parts})[1:]:
        raise ValueError(
            f"{name} differ in size: {parts[0].shape[1:3]} and {sizes[0]} (height, width); give "
            "size, or bring them to one size"
        )
    return np.concatenate(parts)


def _add_batch_axis(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 3 else array


def _read_pixels(
    one: Any, channels: int, size: Side | None, low: float, fit: Fit = None
) -> np.ndarray:
    """Images (N, H, W, channels) of a PIL image or an array, resized in the depth they have."""
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


def _find_latents(one: Any, channels: int, latents: int) -> np.ndarray | None:
    """Return latents, or None if the value is an image.

    Raises:
        ValueError: it could be either.
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


def _to_latents(value: Any, latents: int) -> np.ndarray:
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
    """Resize images (N, H, W, C), uint8 or float32, to (height, width) by Lanczos' filter."""
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
    """One array for all images, one per prompt with ``num`` images each, or one per image.

    Raises:
        ValueError: there is another number of them.
    """
    prompts = images // num
    if len(array) not in (1, prompts, images):
        raise ValueError(
            f"give one {name}, or one for each of {prompts} prompts or {images} images, "
            f"not {len(array)}"
        )
    return np.repeat(array, images // len(array), axis=0)


def read_picture(argument: str, reader: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what ``reader`` makes of pictures.

    Raises:
        RequestError: they cannot be read; it names the argument.
    """
    try:
        return reader(*args, **options)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(argument, f"{argument}: {error}") from error


OUTPUTS = ("pil", "np", "latent")


def check_output(output: str) -> None:
    """
    Raises:
        RequestError: there is no such output.
    """
    try:
        choose("output", read_text("output", output), dict.fromkeys(OUTPUTS))
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError("output", str(error)) from error


def to_output(pixels: Array, output: str) -> Any:
    """Pixels (B, H, W, 3) in [-1, 1] as asked for: ``np`` in [0, 1], or ``pil``."""
    unit = np.clip(np.asarray(pixels, np.float32) / 2 + np.float32(0.5), 0, 1)
    if output == "pil":
        return [PIL.Image.fromarray(one) for one in np.rint(unit * 255).astype(np.uint8)]
    return unit
