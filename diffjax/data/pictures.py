"""Pictures and masks as people have them, from files, PIL or arrays, read by one set of rules.

| what | how it is read |
|---|---|
| integer depths of 1 to 16 bits | scaled: the largest value of the depth is white |
| integers of 32 bits | refused: their white is not known |
| floats | values in [0, 1], 1 is white; others are refused |
| transparency | composited on a background, white by default (black for hints) |
| orientation of EXIF | applied |
| palettes, CMYK and other colours | converted to RGB; to grey by luminance (ITU-R 601) |
| several frames | the first one |
| masks | white where the image is filled in: see `read_mask` |

Training, generation and evaluation read pictures here and nowhere else; see docs/pictures.md.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

# Formats that are read, whatever a file's name. Pillow would start Ghostscript for EPS.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**27  # most pixels of a picture file, unless ENV_PIXELS sets another number
ENV_PIXELS = "DIFFJAX_MAX_PIXELS"

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_BITS_PER_SAMPLE = 258  # TIFF tag
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_COLOURS = list(ImageColor.colormap)
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


class DamagedImage(ValueError):
    """A file is truncated, holds no image, or one that is too large."""


def open_image(path: str | Path) -> Image.Image:
    """Open a picture file and load all of it, without any conversion.

    Raises:
        OSError: the file cannot be read, since it is not there for instance.
        DamagedImage: the file is damaged, of none of `FORMATS`, or has too many pixels.
    """
    return _read(path, load=True)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) of a picture file from its header, upright as in `read_image`.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    image = _read(path, load=False)
    width, height = image.size
    turned = _is_turned(image)
    image.close()
    return (width, height) if turned else (height, width)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except (OSError, SyntaxError):  # a PNG may be damaged before its EXIF; its header is not
        return False


def read_image(path: str | Path, channels: int = 3, *, background: Colour = WHITE) -> np.ndarray:
    """Read the picture in a file, upright: uint8 (H, W, channels).

    Args:
        path: of the file.
        channels: 3 for RGB, 1 for grey.
        background: what shows through transparent pixels.

    Raises:
        FileNotFoundError, ValueError: as `open_image` and `to_bytes`.
    """
    return to_bytes(open_image(path), channels, background=background, name=str(path))


def parse_colour(text: str | Colour, name: str = "background") -> Colour:
    """Return RGB, 0 to 255 each, of a colour by its name in CSS or as ``#rrggbb``.

    Args:
        text: the colour; RGB is returned as it is.
        name: of the argument, for the message.

    Raises:
        ValueError: there is no such colour.
    """
    if not isinstance(text, str):
        return text
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        near = "".join(f" (did you mean {one}?)" for one in get_close_matches(text, _COLOURS, 1))
        raise ValueError(
            f"{name}={text!r} is not a colour{near}; give a name such as white or black, or #rrggbb"
        ) from error


def _read(path: str | Path, *, load: bool) -> Image.Image:
    """Open a picture file, and decode its pixels if ``load`` is true.

    Raises:
        OSError: the file cannot be read.
        DamagedImage: it is damaged, of none of `FORMATS`, or has too many pixels.
    """
    limit = _find_limit()
    try:
        image = Image.open(path, formats=FORMATS)
        if image.width * image.height > limit:
            image.close()
            raise ValueError(
                f"it has {image.height}x{image.width} pixels (height x width), more than "
                f"{limit:,} in all; shrink it, or set {ENV_PIXELS}"
            )
        if load:
            with image:
                image.load()
        return image
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise DamagedImage(
            f"{path} cannot be read as an image: it is damaged, or none of {formats}"
        ) from error
    except Exception as error:  # decoders raise errors of many types for damaged files
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the content
            raise
        raise DamagedImage(f"{path} cannot be read as an image: {error}") from error


def _find_limit() -> int:
    """Return the most pixels of a picture; Pillow's own limit is raised with the environment's.

    Raises:
        ValueError: the environment variable is no number.
    """
    text = os.environ.get(ENV_PIXELS, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal():
        raise ValueError(f"{ENV_PIXELS}={text} must be a number of pixels")
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(text))
    return int(text)


# ---- PIL images ---------------------------------------------------------------------------------


def to_bytes(
    image: Image.Image, channels: int = 3, *, background: Colour = WHITE, name: str = "image"
) -> np.ndarray:
    """Convert a PIL image to uint8 (H, W, channels), upright.

    Args:
        image: of any mode.
        channels: 3 for RGB, 1 for grey.
        background: what shows through transparent pixels.
        name: how messages call the image.

    Raises:
        ValueError: its values have no known white, are floats outside [0, 1], or cannot be decoded.
    """
    flat = _composite(_scale(image, name), background, name)
    grey = _convert(flat, "RGB" if channels == 3 else "L", name)
    return np.asarray(grey).reshape(grey.height, grey.width, channels)


def _convert(image: Image.Image, mode: str, name: str) -> Image.Image:
    """Convert an image to a mode of PIL.

    Raises:
        ValueError: it cannot be decoded or converted.
    """
    try:
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:  # the caller's image is decoded here
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _scale(image: Image.Image, name: str) -> Image.Image:
    """Return the image upright, with 8 bits a channel.

    Raises:
        ValueError: its white is not known, or values lie outside of their range.
    """
    top = _find_white(image)
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # the caller's image is decoded here
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if upright.mode == "F":
        values = np.asarray(upright)
        _check_unit(values, name, 0)
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if upright.mode != "I" and not upright.mode.startswith("I;16"):
        return upright
    if top is None:
        raise ValueError(
            f"{name} cannot be read as an image: which of its integers of 32 bits is white is not "
            "known; save it with 8 or 16 bits a channel"
        )
    values = np.asarray(upright).astype(np.float64)
    if values.min(initial=0) < 0 or values.max(initial=0) > top:
        raise ValueError(f"{name} cannot be read as an image: values lie outside 0 .. {top}")
    scaled = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    hidden = upright.info.get("transparency")
    if isinstance(hidden, int):  # the one value that is transparent
        scaled = scaled.convert("LA")
        scaled.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return scaled


def _find_white(image: Image.Image) -> int | None:
    """Return the value of white of an image of integers, if it is known."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return 2 ** min(int(bits), 16) - 1
    # Pillow reads grey files of 16 bits in these formats as 32 bits.
    return 65535 if image.format in ("PNG", "PPM") else None


def _composite(image: Image.Image, background: Colour, name: str) -> Image.Image:
    """Put an image on a background if it has transparent pixels."""
    if not image.has_transparency_data:
        return image
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, _add_alpha(image, name))


def _is_transparent(image: Image.Image, name: str) -> bool:
    """Return whether any pixel lets the background through."""
    if not image.has_transparency_data:
        return False
    return bool(np.asarray(_add_alpha(image, name))[..., 3].min(initial=255) < 255)


def _add_alpha(image: Image.Image, name: str) -> Image.Image:
    plain = _convert(image, _PREMULTIPLIED.get(image.mode, image.mode), name)
    return _convert(plain, "RGBA", name)


# ---- arrays -------------------------------------------------------------------------------------


def to_unit(
    array: np.ndarray,
    channels: int = 3,
    *,
    background: Colour = WHITE,
    low: float = 0,
    name: str = "image",
) -> np.ndarray:
    """Convert pictures in an array to float32 in [low, 1] of shape ([N,] H, W, channels).

    Args:
        array: ([N,] H, W, C), where C is ``channels``, or 1 for grey, 3 for RGB or 4 with alpha;
            or (H, W). uint8, uint16 and bool are scaled, floats lie in [low, 1].
        channels: of the result.
        background: what shows through transparent pixels.
        low: the least that floats may be; below 0 for marks such as those of inpainting.
        name: how messages call the array.

    Raises:
        ValueError: another type, shape or range.
    """
    values = np.asarray(array)
    values = values[..., None] if values.ndim == 2 else values
    known = {channels, *((1, 3, 4) if channels in (1, 3) else ())}
    if values.ndim not in (3, 4) or values.shape[-1] not in known or not values.size:
        raise ValueError(
            f"{name} must be a PIL image or an array ([N,] height, width, {channels}), channels "
            f"last; got an array of {values.dtype} {values.shape}"
        )
    return _recolour(_divide_by_white(values, low, name), channels, background, name)


def _divide_by_white(values: np.ndarray, low: float, name: str) -> np.ndarray:
    """Divide values by that of white, to float32."""
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if not _is_floating(values):
        raise ValueError(
            f"{name} must be uint8, uint16, bool or floats in [{low}, 1], got {values.dtype}, "
            "whose white is not known; convert values of 0 to 255 by .astype(np.uint8)"
        )
    values = values.astype(np.float32)
    _check_unit(values, name, low)
    return values


def _is_floating(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def _check_unit(values: np.ndarray, name: str, low: float) -> None:
    if not (values.min() >= low and values.max() <= 1):  # this also catches NaN
        raise ValueError(
            f"{name} must lie in [{low}, 1], where 1 is white, got {values.min()} .. {values.max()}"
        )


def _recolour(values: np.ndarray, channels: int, background: Colour, name: str) -> np.ndarray:
    """Convert floats to grey or RGB without alpha.

    Raises:
        ValueError: there are marks below 0 as well as an alpha channel.
    """
    if values.shape[-1] == channels:
        return values
    if values.shape[-1] == 4:
        if (values < 0).any():
            raise ValueError(f"{name} has marks below 0 and transparency; give it without alpha")
        colours, alpha = values[..., :-1], values[..., -1:]
        below = np.asarray(background, np.float32) / np.float32(255)
        values = colours * alpha + below * (1 - alpha)
    if channels == 1:
        return (values @ _LUMA)[..., None]
    if values.shape[-1] == channels:
        return values
    return np.broadcast_to(values, (*values.shape[:-1], channels))


# ---- masks --------------------------------------------------------------------------------------


def read_mask(value: Image.Image | npt.ArrayLike) -> np.ndarray:
    """Read a mask as greys ([N,] H, W, 1), float32 in [0, 1], 1 where the image is to be filled in.

    Integers that are all 0 or 1, or all 0 or 255, are binary whatever their type, so that a mask
    of ones alone is all white. Others are scaled as pictures are. RGB counts by its luminance.

    Args:
        value: PIL image, or array ([N,] H, W[, C]), where C is 1 or 3.

    Raises:
        ValueError: another type, shape or range, or transparent pixels, which may or may not be
            meant to be filled in.
    """
    if isinstance(value, Image.Image):
        image = _scale(value, "mask")
        if _is_transparent(image, "mask"):
            raise ValueError(
                "the mask has transparent pixels; give it without alpha, white where the image is "
                "to be filled in"
            )
        grey = image.mode in ("1", "L", "LA")
        value = np.asarray(_convert(image, "L" if grey else "RGB", "mask"))
    values = np.asarray(value)
    if values.ndim == 2 or (values.ndim == 3 and values.shape[-1] not in (1, 3)):
        values = values[..., None]
    if values.ndim not in (3, 4) or values.shape[-1] not in (1, 3) or not values.size:
        raise ValueError(
            "mask must be a PIL image or an array ([N,] height, width), white where the image is "
            f"to be filled in; got an array of {values.dtype} {values.shape}"
        )
    if values.dtype.kind in "iu":
        values = _to_binary(values)
    return to_unit(values, 1, name="mask")


def _to_binary(values: np.ndarray) -> np.ndarray:
    """Return integers that are only 0 and 1, or 0 and 255, as bool; others unchanged."""
    for white in (1, 255):
        if ((values == 0) | (values == white)).all():
            return values == white
    return values
