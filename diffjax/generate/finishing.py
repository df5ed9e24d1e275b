"""Functions of finished pictures, for the argument ``finish`` of a `Pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Finish = Callable[[np.ndarray], np.ndarray]  # images (B, H, W, 3) in [0, 1] -> the same

# The 48 bits that diffusers writes into the images of XL.
XL_BITS = tuple(map(int, f"{0xB3EC907BB19E:048b}"))
LEAST = 256  # pixels on a side: the code does not fit smaller images


def chain(*finishes: Finish) -> Finish:
    """Return one function that calls several in turn."""

    def call(images: np.ndarray) -> np.ndarray:
        for finish in finishes:
            images = finish(images)
        return images

    return call


def make_watermark(bits: Sequence[int] = XL_BITS) -> Finish:
    """Make the invisible watermark that diffusers writes with XL, by the same package.

    Images of fewer than `LEAST` pixels on a side stay as they are.

    Args:
        bits: of the message, 0 or 1.

    Raises:
        ImportError: the package ``invisible-watermark`` is not installed.
    """
    try:
        from imwatermark import WatermarkEncoder
    except ImportError as error:
        raise ImportError("watermarks need a package: pip install invisible-watermark") from error
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", list(bits))

    def mark(images: np.ndarray) -> np.ndarray:
        if min(images.shape[1:3]) < LEAST:
            return images
        # The package takes the channels in the order of OpenCV: blue, green, red.
        marked = [encoder.encode(255 * one[..., ::-1], "dwtDct")[..., ::-1] for one in images]
        return np.clip(np.stack(marked) / 255, 0, 1).astype(np.float32)

    return mark
