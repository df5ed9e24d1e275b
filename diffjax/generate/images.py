"""Images and masks as people have them, to arrays and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from diffjax.generate.checks import RequestError, read_text
from diffjax.types import Array, choose

Side = tuple[int, int]  # height and width


def read(
    value: Any, *, channels: int = 3, latents: int = 4, size: Side | None = None, low: float = 0
) -> tuple[np.ndarray, bool]:
    """Images as (N, H, W, C) float32 in [0, 1], or latents as they are; and whether they are.

    Args:
        value: PIL image(s), upright as their EXIF data say, uint8 or floats in [0, 1] of shape
            ([N,] H, W, C), or float latents ([N,] h, w, latents).
        size: (H, W) that images are brought to, by Lanczos' filter as in diffusers.
        low: what floats may be at least. Values below 0 are marks, such as -1 of pixels that a
            ControlNet is to fill in, and are not blended with their neighbours.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, PIL.Image.Image):
        value = [value]
    if isinstance(value, list | tuple):
        value = np.stack([_array(one, channels, size) for one in value])
    array = np.asarray(value)
    array = array[None] if array.ndim == 3 else array
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if array.ndim == 4 and floating and array.shape[-1] == latents != channels:
        return np.asarray(array, np.float32), True
    if array.ndim != 4 or array.shape[-1] != channels or not array.size:
        raise ValueError(
            f"images must be PIL images, or arrays ([N,] H, W, {channels}), or latents ([N,] h, w, "
            f"{latents}) of floats; got an array of {array.dtype} {array.shape}"
        )
    array = array if array.dtype == np.uint8 else _unit(array, "images", low)
    return _unit(array if size is None else _resized(array, size), "images", low), False


def _array(one: Any, channels: int, size: Side | None) -> np.ndarray:
    if isinstance(one, PIL.Image.Image):
        one = PIL.ImageOps.exif_transpose(one).convert("RGB" if channels == 3 else "L")
        one = np.asarray(one if size is None else _scaled(one, size))
        return one if one.ndim == 3 else one[..., None]
    return np.asarray(one)


def _resized(array: np.ndarray, size: Side) -> np.ndarray:
    """Images (N, H, W, C), uint8 or float32, of another size."""
    if array.shape[1:3] == size:
        return array
    smooth = array.min() >= 0
    planes = np.moveaxis(array, -1, 1).reshape(-1, *array.shape[1:3])
    planes = np.stack(
        [np.asarray(_scaled(PIL.Image.fromarray(one), size, smooth)) for one in planes]
    )
    out = np.moveaxis(planes.reshape(len(array), array.shape[-1], *size), 1, -1)
    # The filter overshoots.
    return np.clip(out, 0, 1) if smooth and out.dtype != np.uint8 else out


def _scaled(image: PIL.Image.Image, size: Side, smooth: bool = True) -> PIL.Image.Image:
    filters = PIL.Image.Resampling
    return image.resize(size[::-1], filters.LANCZOS if smooth else filters.NEAREST)


def _unit(array: np.ndarray, name: str, low: float = 0) -> np.ndarray:
    """uint8, bool or floats as float32 in [low, 1].

    Raises:
        ValueError: another type, or values outside.
    """
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind not in "fb":
        raise ValueError(f"{name} must be uint8 or floats in [{low}, 1], got {array.dtype}")
    array = array.astype(np.float32)
    if not (array.min() >= low and array.max() <= 1):
        raise ValueError(f"{name} must lie in [{low}, 1], got {array.min()} .. {array.max()}")
    return array


def read_mask(value: Any, size: Side | None = None) -> np.ndarray:
    """A mask as (N, H, W, 1) float32, 1 where it is at least one half; ``size`` as for `read`.

    Raises:
        ValueError: it is no mask.
    """
    if not isinstance(value, PIL.Image.Image | list | tuple):
        value = np.asarray(value)
        flat = value.ndim == 2 or (value.ndim == 3 and value.shape[-1] != 1)
        value = value[..., None] if flat else value
    return (read(value, channels=1, latents=0, size=size)[0] >= 0.5).astype(np.float32)


def spread(array: np.ndarray, num: int, images: int, name: str) -> np.ndarray:
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


def read_picture(argument: str, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What ``read`` makes of pictures.

    Raises:
        RequestError: they cannot be read; it names the argument.
    """
    try:
        return read(*args, **options)
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
