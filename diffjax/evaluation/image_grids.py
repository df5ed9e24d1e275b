"""Many images as one picture: grids for previews, samples and comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FILM = "-film.png"  # the name of a film's file ends with it
ENLARGED = 56  # smaller images are enlarged by a whole factor to about this height in pixels


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert float images in [-1, 1] to levels 0..255, rounded and clipped; uint8 images are kept.

    Args:
        images: any shape.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def tile(images: np.ndarray, *, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Arrange images row by row in one picture (H', W', 3) uint8, with white lines between them.

    Args:
        images: (N, H, W, C) in [-1, 1] or uint8, of 1 channel, or of 3 and more, of which the first
            3 are shown.
        columns: images in a row; default: as many as rows.
        scale: factor by which images are enlarged; default: small ones to about 56 pixels.
    """
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    scale = scale or max(1, ENLARGED // height)
    rows = -(-count // columns)
    canvas = np.zeros((rows * columns, height, width, channels), np.uint8)
    canvas[:count] = to_uint8(images)
    canvas = canvas.repeat(scale, 1).repeat(scale, 2)
    canvas = np.pad(canvas, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    canvas = canvas.reshape(rows, columns, *canvas.shape[1:]).swapaxes(1, 2)
    picture = canvas.reshape(canvas.shape[0] * canvas.shape[1], -1, channels)
    return picture.repeat(3, -1) if channels == 1 else picture[..., :3]


def interleave_rows(above: np.ndarray, below: np.ndarray, columns: int = 16) -> np.ndarray:
    """Arrange images in one picture, in which every row stands above the row of their counterparts.

    Args:
        above: (N, H, W, C), as for `tile`.
        below: of the same shape; image k belongs to image k above.
        columns: images in a row. A last row that is not full is left out, unless it is the only
            one.

    Returns:
        (H', W', 3) uint8.
    """
    rows = [
        part
        for start in range(0, len(above) - len(above) % columns or len(above), columns)
        for part in (above[start : start + columns], below[start : start + columns])
    ]
    return tile(np.concatenate(rows), columns=min(columns, len(above)))


def arrange_film(frames: np.ndarray) -> np.ndarray:
    """Arrange the frames of a film in one picture: two rows an image, time from left to right.

    The upper row has the states, from noise to picture. The lower has the predictions of the
    picture that led to them.

    Args:
        frames: (2, F, N, H, W, C) in [-1, 1], as `diffjax.model.film` returns them.

    Returns:
        (H', W', 3) uint8.
    """
    count = frames.shape[1]
    by_image = np.moveaxis(frames, 2, 0)
    return tile(by_image.reshape(-1, *frames.shape[3:]), columns=count)


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) uint8; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
