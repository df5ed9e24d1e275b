"""The distance on our own features, and baselines that give it a scale.

The feature networks are the small classifiers of `diffjax.metrics.feature_network`. The numbers
are not FID: they compare only with each other, for one version of a network and one number of
images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffjax import metrics
from diffjax.evaluation.image_grids import to_uint8
from diffjax.evaluation.image_sets import ImageSet, match_channels, to_float


def measure_distance(
    network: metrics.FeatureNetwork, images: np.ndarray, real: np.ndarray, classes: int = 0
) -> dict[str, float | int | str]:
    """Return the scores of `diffjax.metrics.evaluate_images`, with images rounded to 8 bits.

    Args:
        network: whose features are compared.
        images: (N, H, W, C), uint8 levels 0..255 or float in [-1, 1].
        real: (M, H, W, C), images to compare with.
        classes: if not 0, image k was made as class ``k % classes``.

    Returns:
        ``distance`` and the others; with ``classes``, ``class_accuracy`` too, the share of images
        in which the network sees the class that they were made as.

    Raises:
        ConfigError: images in colour, for a network of grey images.
        ValueError: images of another shape or range, or too few of them.
    """
    images, real = to_uint8(images), to_float(real)
    if network.shape is not None:
        images, real = (match_channels(some, network.shape[-1]) for some in (images, real))
    rounded = to_float(images)
    scores: dict[str, float | int | str] = metrics.evaluate_images(network, rounded, real)
    if classes:
        seen = metrics.extract(network, rounded).probs.argmax(1)
        scores["class_accuracy"] = float((seen == np.arange(len(seen)) % classes).mean())
    return scores


def draw_gaussian_images(real: np.ndarray, num: int) -> np.ndarray:
    """Draw images (num, H, W, C) of the Gaussian with the moments of the pixels of real ones.

    Args:
        real: (M, H, W, C) in [-1, 1]; so are the samples, by clipping.
        num: number of samples.
    """
    flat = real.reshape(len(real), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    noise = np.random.default_rng(1).standard_normal((num, flat.shape[1]))
    drawn = flat.mean(0) + noise * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return np.clip(drawn, -1, 1).reshape(num, *real.shape[1:]).astype(np.float32)


def measure_baselines(
    network: metrics.FeatureNetwork,
    pool: ImageSet,
    num: int,
    untrained: Callable[[int], np.ndarray],
) -> dict[str, float | int]:
    """Measure distances that give the scale for those of a model.

    Args:
        network: whose features are compared.
        pool: real images, in random order; twice ``num`` of them are wanted.
        num: number of images that each baseline makes.
        untrained: ``num ->`` images of the model before training.

    Returns:
        ``real_floor``, between two disjoint halves of real images, ``real_floor_num`` each;
        ``matched_gaussian``, of `draw_gaussian_images`; and ``untrained_network``.
    """
    half = min(num, pool.num // 2)
    real, both = (to_float(pool.read(0, count)) for count in (min(num, pool.num), 2 * half))

    def distance(images: np.ndarray) -> float:
        return float(measure_distance(network, images, real)["distance"])

    return {
        "real_floor": metrics.floor(network, both[:half], both[half:]),
        "real_floor_num": half,
        "matched_gaussian": distance(draw_gaussian_images(real, num)),
        "untrained_network": distance(untrained(num)),
    }
