"""What some networks are given beside the latents: a mask, an image to edit, or depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from diffjax.generate import images
from diffjax.generate.checks import RequestError, read_floats, refuse
from diffjax.generate.options import Image
from diffjax.nets.resize import resize_bicubic
from diffjax.pretrained.components import DEPTH, HALF, INSTRUCTION, MASK, SMALL
from diffjax.pretrained.schedulers import load_scheduler
from diffjax.types import Array, Schedule

if TYPE_CHECKING:
    from diffjax.generate.loaded import LoadedModel

ENLARGES = (SMALL, HALF)
NOISE_LEVEL = 20  # of the small image of an upscaler, the default of diffusers


def check_beside(pipe: LoadedModel, image: Image | None, latents: bool) -> None:
    """See that an image has what the network is given beside the latents, and nothing else.

    Args:
        latents: the image is given as latents.

    Raises:
        RequestError: the message says what the model does, and what to give.
    """
    beside = pipe.beside
    does = {
        MASK: "this model fills in images: give image=Image(pixels, mask=mask)",
        INSTRUCTION: "this model edits images by instruction: give image=Image(pixels)",
        DEPTH: "this model keeps the depth of an image: give image=Image(pixels, depth=depth)",
        SMALL: "this model enlarges images: give image=Image(pixels)",
        HALF: "this model doubles images: give image=Image(pixels), or Image(Latents(values))",
    }
    needed = {MASK: "mask", DEPTH: "depth"}.get(beside)
    absent = image is None or (needed is not None and getattr(image, needed) is None)
    if beside and (absent or (latents and beside not in (INSTRUCTION, HALF))):
        raise RequestError("image", does[beside])
    if image is None:
        return
    unused = {
        "depth": beside != DEPTH,
        "noise_level": beside != SMALL,
        "mask": beside in (INSTRUCTION, DEPTH, *ENLARGES),
        "strength": beside in (INSTRUCTION, *ENLARGES),
    }
    for name, is_unused in unused.items():
        if is_unused and getattr(image, name) is not None:
            what = does.get(beside, "only models of a special kind take it")
            raise refuse(f"image.{name}", f"is of no use: {what}")


def read_depth(depth: Any, sides: tuple[int, int]) -> np.ndarray:
    """Depths as (N, h, w, 1) in [-1, 1], the farthest and the nearest of each image.

    Args:
        depth: ([N,] H, W) floats, the nearer the larger, as MiDaS and DPT predict them.
        sides: of the latents.

    Raises:
        RequestError: they are something else, or all the same.
    """
    values = np.asarray(depth)
    axes = "(N, H, W)" if values.ndim == 3 else "(H, W)"
    values = np.asarray(read_floats("image.depth", values, axes), np.float32)
    values = np.asarray(resize_bicubic(values[None] if values.ndim == 2 else values, sides))
    values = values[..., None]
    low, high = (f(values, (1, 2, 3), keepdims=True) for f in (np.min, np.max))
    if (low == high).any():
        raise refuse("image.depth", "is the same everywhere")
    return 2 * (values - low) / (high - low) - 1


def read_noise_level(pipe: LoadedModel, image: Image) -> int:
    """Return the time of the noise that the small image of an upscaler gets.

    Raises:
        RequestError: its schedule, or the network, has no such time.
    """
    level = NOISE_LEVEL if image.noise_level is None else image.noise_level
    steps, classes = _low_schedule(pipe).steps, pipe.parts.unet.net.num_classes
    most = min(one for one in (steps, classes, level + 1) if one) - 1
    if level > most:
        raise refuse("image.noise_level", f"must lie in 0 .. {most}, got {level}")
    return level


def add_low_noise(pipe: LoadedModel, pixels: np.ndarray, level: int, noise: Array) -> Array:
    """Return the small images (B, h, w, 3) of an upscaler in [-1, 1], with noise of a level."""
    alpha, sigma = (np.float32(value) for value in _low_schedule(pipe).at(np.float64(level)))
    return alpha * (2 * jnp.asarray(pixels) - 1) + sigma * noise


def _low_schedule(pipe: LoadedModel) -> Schedule:
    return load_scheduler(pipe.parts.low_res or pipe.parts.scheduler).schedule


def find_enlarged(
    pipe: LoadedModel, given: tuple[np.ndarray, bool], sized: bool
) -> tuple[int, int] | None:
    """The height and width of the latents that an upscaler makes of an image; None: as asked for.

    Args:
        given: the image, as `images.read_images` returns it.
        sized: whether the request gives a height and a width, to which pixels are brought.
    """
    array, is_latents = given
    height, width = array.shape[1:3]
    if pipe.beside == HALF and is_latents:
        return 2 * height, 2 * width
    if sized:
        return None
    if pipe.beside == SMALL:
        return height, width
    factor, unit = pipe.parts.vae.net.factor, pipe.parts.unet.net.divisor
    height, width = (2 * side // factor // unit * unit for side in (height, width))
    return height, width


def read_small(pipe: LoadedModel, image: Image, sides: tuple[int, int]) -> np.ndarray:
    """The pixels that an upscaler enlarges, brought to the size that it takes.

    Args:
        sides: of the latents that it makes: of the image of the x4 upscaler, and of twice the
            latents of the image of the x2 upscaler.

    Raises:
        RequestError: they cannot be read.
    """
    if pipe.beside == HALF:
        sides = tuple(pipe.parts.vae.net.factor * side // 2 for side in sides)
    return images.read_picture("image", images.read_images, image.pixels, latents=0, size=sides)[0]
