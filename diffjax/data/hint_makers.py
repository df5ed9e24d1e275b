"""Hints for control: pictures in [0, 1] made from images on the fly, or read from a folder.

| hint | from |
|---|---|
| canny | the image: thin edges, by non-maximum suppression and hysteresis (Canny 1986) |
| sobel | the image: the size of its gradient |
| soft | the image: gradients at three scales, blurred, as the soft edges of a network (HED) look |
| scribble | the image: thick strokes where `soft` is strong |
| mask | ``batch["mask"]`` (B, H, W) int: a channel per class |
| edges | ``batch["edges"]`` (B, H, W) in [0, 1], as the data set gives them |
| depth | ``batch["depth"]`` (B, H, W): near 1, far 0, per image |
| given | ``batch["hint"]`` (B, H, W, C) in [0, 1]: a paired folder |

Everything is NumPy, a function of the batch alone, and runs in the threads that read data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from diffjax.types import Options, build, choose

Batch = Mapping[str, np.ndarray]
Hints = Callable[[Batch], np.ndarray]  # batch -> (B, H, W, C) float32 in [0, 1]

_EIGHT = np.ones((1, 3, 3), bool)  # neighbours within an image of a batch


def make_hints(name: str, options: Options | None = None, *, channels: int = 1) -> Hints:
    """Return the function that makes the hints of a batch.

    Args:
        name: a key of `HINTS`.
        options: keyword arguments of the entry.
        channels: C. A single channel is repeated to make it.

    Returns:
        ``batch -> (B, H, W, C)`` float32 in [0, 1].

    Raises:
        ValueError: an unknown name or option, listing the choices; (when called) a batch without
            what the hint is made of, or a hint of another number of channels.
    """
    make = build("hint", name, HINTS, options)

    def hints(batch: Batch) -> np.ndarray:
        out = make(batch).astype(np.float32)
        out = out[..., None] if out.ndim == 3 else out
        out = out.repeat(channels, -1) if out.shape[-1] == 1 else out
        if out.shape[-1] != channels:
            raise ValueError(f"the hint {name!r} has {out.shape[-1]} channels, not {channels}")
        return out

    return hints


def grey(images: np.ndarray) -> np.ndarray:
    """Return the mean over channels (B, H, W) in [0, 1] of images (B, H, W, C) in [-1, 1]."""
    return (np.asarray(images, np.float32).mean(-1) + 1) / 2


def gradient(images: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Sobel derivatives (dy, dx) per pixel of (B, H, W), each (B, H, W).

    Args:
        images: greys.
        sigma: standard deviation in pixels of a Gaussian filter that comes first.
    """
    smooth = ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")

    def derivative(along: int, across: int) -> np.ndarray:
        slope = ndimage.correlate1d(smooth, [-0.5, 0, 0.5], along, mode="nearest")
        return ndimage.correlate1d(slope, [0.25, 0.5, 0.25], across, mode="nearest")

    return derivative(1, 2), derivative(2, 1)


def sobel(images: np.ndarray, *, sigma: float = 0.0) -> np.ndarray:
    """Return the size of the gradient (B, H, W), over its largest value in each image.

    Args:
        images: (B, H, W, C) in [-1, 1].
        sigma: see `gradient`.
    """
    size = np.hypot(*gradient(grey(images), sigma))
    return _normalise(size)


def canny(
    images: np.ndarray,
    *,
    low: float = 0.05,
    high: float = 0.1,
    sigma: float = 1.0,
    norm: str = "l2",
) -> np.ndarray:
    """Return edges (B, H, W), 0 or 1, by Canny's algorithm (Canny 1986).

    These are gradients that are largest across the edge and above ``high``, and those above ``low``
    that are connected with them. As in OpenCV, the gradient of a pixel is that of the channel where
    it is largest, and pictures have 256 grey levels; with sigma 0 and the norm l1 edges are those
    of ``cv2.Canny`` to the pixel.

    Args:
        images: (B, H, W, C) in [-1, 1]; they are rounded to 256 grey levels.
        low, high: sizes of the gradient per pixel, for grey levels in [0, 1].
            Thresholds of OpenCV are ``8 * 255`` times as large.
        sigma: see `gradient`.
        norm: how the size of a gradient is measured: ``l2``, or ``l1`` as OpenCV does by default.

    Raises:
        ValueError: not 0 <= low <= high, or an unknown norm.
    """
    measure: Callable[..., np.ndarray] = choose("norm of canny", norm, _NORMS)
    if not 0 <= low <= high:
        raise ValueError(f"canny needs 0 <= low <= high, got {low} and {high}")
    size, dy, dx = _take_largest(images, sigma, measure)
    thin = np.where(_is_ridge(size, dy, dx), size, 0)
    # Sizes of whole levels are exact in float32, and thresholds are rounded alike.
    labels, _ = ndimage.label(thin > np.float32(255 * low), _stack_neighbours(_EIGHT))
    strong = np.unique(labels[thin > np.float32(255 * high)])
    return np.isin(labels, strong[strong > 0]).astype(np.float32)


def _take_largest(
    images: np.ndarray, sigma: float, measure: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, dy and dx (B, H, W), in grey levels, of the channel of the largest gradient."""
    levels = np.round((np.asarray(images, np.float32) + 1) * 127.5)
    slopes = [gradient(levels[..., c], sigma) for c in range(levels.shape[-1])]
    dy, dx = (np.stack(parts) for parts in zip(*slopes, strict=True))
    sizes = measure(dy, dx)
    first = sizes.argmax(0)[None]
    size, dy, dx = (np.take_along_axis(part, first, 0)[0] for part in (sizes, dy, dx))
    return size, dy, dx


def _add_sizes(dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    return np.abs(dy) + np.abs(dx)


_NORMS: dict[str, Callable[..., np.ndarray]] = {"l2": np.hypot, "l1": _add_sizes}


def _is_ridge(size: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Return where the gradient is larger than its two neighbours along its direction.

    Directions are rounded to multiples of 45 degrees. Of two equal values side by side, or one
    above the other, the first is kept.
    """
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = size.shape[1:]

    def at(y: int, x: int) -> np.ndarray:
        return padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    octant = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    steps = [(0, 1), (1, 1), (1, 0), (1, -1)]
    kept = [
        (size > at(-y, -x)) & ((size > at(y, x)) if x and y else (size >= at(y, x)))
        for y, x in steps
    ]
    return np.choose(octant, kept)


def _stack_neighbours(neighbours: np.ndarray) -> np.ndarray:
    """Extend neighbours (1, 3, 3) to (3, 3, 3) without reaching other images of a batch."""
    none = np.zeros_like(neighbours)
    return np.concatenate([none, neighbours, none])


def soft(images: np.ndarray, *, sigmas: Sequence[float] = (0.5, 1.0, 2.0)) -> np.ndarray:
    """Return soft edges (B, H, W) in [0, 1]: gradients at several scales, blurred a little.

    Args:
        images: (B, H, W, C) in [-1, 1].
        sigmas: the scales, in pixels.
    """
    parts = [_normalise(np.hypot(*gradient(grey(images), sigma))) for sigma in sigmas]
    return _normalise(ndimage.gaussian_filter(np.mean(parts, 0), (0, 0.5, 0.5)))


def scribble(images: np.ndarray, *, threshold: float = 0.4, width: int = 1) -> np.ndarray:
    """Return strokes (B, H, W), 0 or 1: `soft` above a threshold, thickened by ``width`` pixels."""
    strokes = soft(images) > threshold
    if width:
        strokes = ndimage.binary_dilation(strokes, _stack_neighbours(_EIGHT), width)
    return strokes.astype(np.float32)


def mask(classes: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Return a channel per class (B, H, W, num_classes), 0 or 1.

    Args:
        classes: (B, H, W), int.
        num_classes: number of channels.

    Raises:
        ValueError: a class outside 0 .. num_classes - 1.
    """
    classes = np.asarray(classes, np.int64)
    if classes.min(initial=0) < 0 or classes.max(initial=0) >= num_classes:
        raise ValueError(
            f"mask of classes {classes.min()} to {classes.max()}, but num_classes={num_classes}"
        )
    return np.eye(num_classes, dtype=np.float32)[classes]


def depth(values: np.ndarray) -> np.ndarray:
    """Return depth (B, H, W) as nearness: 1 where an image is nearest, 0 where it is farthest."""
    values = np.asarray(values, np.float32)
    low, high = (f(values, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (high - values) / np.maximum(high - low, 1e-8)


def _normalise(values: np.ndarray) -> np.ndarray:
    """Divide by the largest value of each image; flat images stay near 0."""
    return values / np.maximum(values.max((1, 2), keepdims=True), 1e-3)


def _take(key: str, batch: Batch) -> np.ndarray:
    """Return an array of a batch.

    Raises:
        ValueError: the batch has no such array.
    """
    if key not in batch:
        raise ValueError(f"this hint needs {key!r}, but the data have {', '.join(batch)}")
    return batch[key]


def _canny(low: float = 0.05, high: float = 0.1, sigma: float = 1.0, norm: str = "l2") -> Hints:
    return lambda batch: canny(_take("image", batch), low=low, high=high, sigma=sigma, norm=norm)


def _sobel(sigma: float = 1.0) -> Hints:
    return lambda batch: sobel(_take("image", batch), sigma=sigma)


def _soft() -> Hints:
    return lambda batch: soft(_take("image", batch))


def _scribble(threshold: float = 0.4, width: int = 1) -> Hints:
    return lambda batch: scribble(_take("image", batch), threshold=threshold, width=width)


def _mask(num_classes: int) -> Hints:
    return lambda batch: mask(_take("mask", batch), num_classes=num_classes)


def _edges() -> Hints:
    return lambda batch: np.asarray(_take("edges", batch), np.float32)


def _depth() -> Hints:
    return lambda batch: depth(_take("depth", batch))


def _take_given() -> Hints:
    return lambda batch: _take("hint", batch)


HINTS: dict[str, Callable[..., Hints]] = {
    "canny": _canny,
    "sobel": _sobel,
    "soft": _soft,
    "scribble": _scribble,
    "mask": _mask,
    "edges": _edges,
    "depth": _depth,
    "given": _take_given,
}
