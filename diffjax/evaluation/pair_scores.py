"""Scores of pairs of images: likeness to originals, and diversity among themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffjax import metrics
from diffjax.evaluation.image_grids import to_uint8
from diffjax.evaluation.image_sets import ImageSet, StrPath, to_float
from diffjax.evaluation.references import Reference
from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained.lpips import load_lpips
from diffjax.types import Array, ConfigError

PSNR_MOST = 100.0  # dB; equal images get this value, because JSON has no infinity

ImageDistance = Callable[[Array, Array], Array]  # two batches (B, H, W, C) in [-1, 1] -> (B,)


def check_originals(images: ImageSet, originals: Reference) -> None:
    """Check that there is an original for every image.

    Raises:
        ConfigError: there are not as many originals as images.
    """
    others = originals.images
    if others is None or others.num != images.num:
        have = "statistics" if others is None else f"{others.num} images"
        raise ConfigError(
            f"image k is compared with original k: {images.num} images need as many "
            f"originals, not {have}"
        )


def measure_psnr(images: ImageSet, originals: Reference) -> dict[str, float]:
    """Measure the mean ``psnr`` in dB of images and originals in the same order, rounded to 8 bits.

    No pair has more than 100 dB, which equal images have.

    Raises:
        ConfigError: there are not as many originals as images.
        ValueError: images and originals differ in shape.
    """
    values = _compare(metrics.psnr, images, originals)
    return {"psnr": float(np.minimum(values, PSNR_MOST).mean())}


def measure_ssim(images: ImageSet, originals: Reference) -> dict[str, float]:
    """Measure the mean ``ssim`` (Wang et al. 2004) of images and originals in the same order.

    Raises:
        ConfigError, ValueError: as `measure_psnr`, or images are smaller than 11 pixels.
    """
    return {"ssim": float(_compare(metrics.ssim, images, originals).mean())}


def _compare(score: Callable[..., jax.Array], images: ImageSet, originals: Reference) -> np.ndarray:
    """Return the scores (N,) of all pairs, float64."""
    check_originals(images, originals)
    assert originals.images is not None
    both = zip(images.read_chunks(), originals.images.read_chunks(), strict=True)
    parts = [score(to_uint8(some), to_uint8(others), span=255.0) for some, others in both]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])


def load_lpips_distance(path: StrPath) -> ImageDistance:
    """Load the distance LPIPS (Zhang et al. 2018) with the weights in a file.

    Args:
        path: VGG16's as safetensors, see `diffjax.pretrained.lpips.load_lpips`.

    Returns:
        A function of two batches (B, H, W, 3) in [-1, 1] to (B,), jitted.

    Raises:
        FileNotFoundError, ValueError: as `load_lpips`.
    """
    params = load_lpips(path)

    @jax.jit
    def distance(x: Array, y: Array) -> Array:
        output: Any = LPIPS().apply({"params": params}, x, y)
        return output

    return distance


def measure_diversity(
    images: ImageSet, lpips: ImageDistance, pairs: int = 1000
) -> dict[str, float | int]:
    """Measure the mean LPIPS of random pairs of the images, which have to fit in memory.

    Zhu et al. 2017.

    Args:
        images: the samples.
        lpips: of `load_lpips_distance`, or another distance.
        pairs: how many, drawn with replacement.

    Returns:
        ``lpips_diversity``, its standard error ``lpips_diversity_se``, and ``lpips_pairs``.

    Raises:
        ValueError: fewer than 2 images or pairs.
    """
    x = to_float(to_uint8(images.read_all()))
    mean, error = metrics.diversity(lpips, x, pairs=pairs)
    return {"lpips_diversity": mean, "lpips_diversity_se": error, "lpips_pairs": pairs}
