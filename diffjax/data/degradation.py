"""Small pictures for super-resolution: blurred, resized, noisy and compressed at random.

The lighter of the two degradations that latent diffusion was trained with, after BSRGAN (Zhang et
al. 2021, "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution"). Names
and numbers are those of the release, whose resizing is OpenCV's; here it is a matrix per axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffjax.interpolation import make_resize_matrix
from diffjax.types import choose

HALVED = 0.25  # probability that a picture is first halved, of a factor of 4
RESIZED = 0.8  # probability that the first of two steps down resizes; else it blurs and picks
COMPRESSED = 0.9  # probability of a first compression; the last one always happens
QUALITY = (80, 95)  # of JPEG, from and to
NOISE = (1, 2)  # standard deviation in grey levels, from and to
Random = np.random.Generator


class Degradation(NamedTuple):
    """Makes small pictures of large ones, by (seed, position).

    Attributes:
        function: ``(picture uint8 (H, W, C), factor, rng) -> uint8 (H // factor, W // factor, C)``.
        factor: of height and width.
    """

    function: Callable[[np.ndarray, int, Random], np.ndarray]
    factor: int

    def __call__(self, images: np.ndarray, seed: int, positions: np.ndarray) -> np.ndarray:
        """Degrade uint8 (B, H, W, C); image k depends on its pixels, seed and ``positions[k]``."""
        made = [
            self.function(image, self.factor, np.random.default_rng([seed, 4, int(position)]))
            for image, position in zip(images, positions, strict=True)
        ]
        return np.stack(made)


def make_degradation(name: str, factor: int) -> Degradation | None:
    """Make the degradation ``data.degradation``; None for the name ``none``.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    function = choose("data.degradation", name, {"none": None, **DEGRADATIONS})
    return function and Degradation(function, factor)


def degrade_lightly(picture: np.ndarray, factor: int, rng: Random) -> np.ndarray:
    """Degrade one picture as ``bsrgan_light``.

    Blur, two steps down, noise and JPEG come in a random order, the steps in theirs, and JPEG once
    more at the end. A factor of 4 is a factor of 2 of the halved picture with probability `HALVED`.

    Args:
        picture: uint8 (H, W, 3); its sides are multiples of ``factor``.

    Returns:
        uint8 (H // factor, W // factor, 3).

    Raises:
        ValueError: other than three channels.
    """
    if picture.shape[-1] != 3:
        raise ValueError(
            f"data.degradation=bsrgan_light needs RGB pictures, got {picture.shape[-1]} channels: "
            "set data.channels=3"
        )
    x = picture.astype(np.float32) / 255
    if factor == 4 and rng.random() < HALVED:
        names = ["matlab"] * 3 + ["linear", "cubic", "area"]  # half of the time the former
        sides = (x.shape[0] // 2, x.shape[1] // 2)
        x, factor = _clip(resize(x, sides, names[rng.integers(6)])), 2
    size = (x.shape[0] // factor, x.shape[1] // factor)
    steps = {
        "blur": lambda x: blur(x, draw_kernel(factor, rng)),
        "shrink": lambda x: _clip(_shrink(x, factor, rng)),
        "resize": lambda x: _clip(resize(x, size, _draw_filter(rng))),
        "noise": lambda x: _clip(x + draw_noise(x.shape, rng)),
        "compress": lambda x: compress(x, rng) if rng.random() < COMPRESSED else x,
    }
    order = [list(steps)[k] for k in rng.permutation(len(steps))]
    first, last = sorted((order.index("shrink"), order.index("resize")))
    order[first], order[last] = "shrink", "resize"
    for name in order:
        x = steps[name](x)
    return _to_bytes(compress(x, rng))


DEGRADATIONS = {"bsrgan_light": degrade_lightly}


def _clip(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 1)


def _to_bytes(x: np.ndarray) -> np.ndarray:
    return np.rint(_clip(x) * 255).astype(np.uint8)


def _draw_filter(rng: Random) -> str:
    return ("linear", "cubic", "area")[rng.integers(3)]


def compress(x: np.ndarray, rng: Random) -> np.ndarray:
    """Compress (H, W, 3) in [0, 1] as JPEG of a quality in `QUALITY`, and read it again."""
    file = io.BytesIO()
    quality = int(rng.integers(QUALITY[0], QUALITY[1], endpoint=True))
    Image.fromarray(_to_bytes(x)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def draw_noise(shape: tuple[int, ...], rng: Random) -> np.ndarray:
    """Draw Gaussian noise (H, W, 3), in units of the range of the picture.

    A share 0.4 is independent by channel and 0.4 the same in all, both with a deviation from
    `NOISE`. The others have the covariance ``s^2 |U^T D U|`` between channels, with the larger
    deviation s, D uniform in [0, 1] and U an orthonormal basis of a uniform matrix.
    """
    low, high = NOISE
    kind = rng.random()
    scale = rng.integers(low, high, endpoint=True) / 255
    if kind > 0.6:
        return scale * rng.standard_normal(shape, np.float32)
    if kind < 0.4:
        return scale * rng.standard_normal((*shape[:2], 1), np.float32)
    basis = np.linalg.svd(rng.random((3, 3)))[0]
    covariance = (high / 255) ** 2 * np.abs(basis.T @ np.diag(rng.random(3)) @ basis)
    # Absolute values may leave no covariance; singular values then stand in for its eigenvalues.
    noise = rng.multivariate_normal(
        np.zeros(3), covariance, shape[:2], check_valid="ignore", method="svd"
    )
    return noise.astype(np.float32)


# ---- blur ---------------------------------------------------------------------------------------


def draw_kernel(factor: int, rng: Random) -> np.ndarray:
    """Draw a kernel (k, k) of sum 1: a Gaussian, which is stretched with probability 1/2.

    Stretched ones have 5 to 14 pixels and variances uniform up to ``(4 + factor) / 4``; round ones
    have 5 to 7 pixels and deviations uniform up to ``(2 + factor / 5) / 4``.
    """
    if rng.random() < 0.5:
        variances = (4 + factor) / 4 * rng.random(2)
        return make_kernel(int(rng.integers(5, 15)), variances, np.pi * rng.random())
    deviation = (2 + factor / 5) / 4 * rng.random()
    return make_kernel(int(rng.integers(5, 8)), np.full(2, deviation**2))


def make_kernel(size: int, variances: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Make a Gaussian (size, size) of sum 1 about its middle.

    Args:
        variances: (2,), in pixels, along the angle and across it.
        angle: in radians, from x to y.
    """
    y, x = np.indices((size, size)) - (size - 1) / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
    first, second = np.maximum(variances, 1e-6)
    power = along**2 / first + across**2 / second
    # Less the smallest power, so that something is left of the narrowest ones.
    kernel = np.exp(-0.5 * (power - power.min()))
    return kernel / kernel.sum()


def blur(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve (H, W, C) with a kernel (k, k), mirrored at the borders without their pixels.

    The middle of an even kernel is the pixel after it, as in `scipy.ndimage.convolve`.
    """
    size = len(kernel)
    before, after = size - 1 - size // 2, size // 2
    padded = np.pad(x, ((before, after), (before, after), (0, 0)), mode="reflect")
    from scipy.signal import fftconvolve  # it takes most of a second to import

    made = fftconvolve(padded, kernel[..., None].astype(x.dtype), "valid", axes=(0, 1))
    return np.asarray(made, x.dtype)


# ---- size ---------------------------------------------------------------------------------------


def _shrink(x: np.ndarray, factor: int, rng: Random) -> np.ndarray:
    """Take the first of two steps down: by any factor up to twice the wanted one, or by that."""
    if rng.random() < RESIZED:
        by = rng.uniform(1, 2 * factor)
        sides = (max(1, int(x.shape[0] / by)), max(1, int(x.shape[1] / by)))
        return resize(x, sides, _draw_filter(rng))
    kernel = make_kernel(25, np.full(2, rng.uniform(0.1, 0.6 * factor) ** 2))
    moved = shift_kernel(kernel, (factor - 1) / 2)
    return blur(x, moved)[::factor, ::factor]


def shift_kernel(kernel: np.ndarray, shift: float) -> np.ndarray:
    """Shift a kernel up and left by a part of a pixel, by linear interpolation, to sum 1."""
    at = np.clip(np.arange(len(kernel)) + shift, 0, len(kernel) - 1)
    hats = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(kernel))))
    moved = hats @ kernel @ hats.T
    return moved / moved.sum()


def resize(x: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Resize (H, W, C) to (h, w, C).

    Args:
        name: linear, cubic and area are OpenCV's: the former two do not widen their filters where
            a picture shrinks. matlab is MATLAB's bicubic filter, which does.
    """
    shrinks = all(old >= new for old, new in zip(x.shape, size, strict=False))
    sides = zip(x.shape[:2], size, strict=True)
    rows, columns = (make_resize_matrix(old, new, name, shrinks) for old, new in sides)
    return np.asarray(np.einsum("yh,hwc,xw->yxc", rows, x, columns, optimize=True), x.dtype)
