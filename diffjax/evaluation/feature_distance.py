"""Distances on our own features, and baselines that give them a scale.

The feature networks are the small classifiers of `diffjax.metrics.feature_network`, which look past
noise; texture features see it. The numbers are not FID: they compare only with each other, for one
version of the features and one number of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffjax import metrics
from diffjax.evaluation.image_grids import to_uint8
from diffjax.evaluation.image_sets import ImageSet, match_channels, to_float
from diffjax.metrics.texture import VERSION as TEXTURE_VERSION


def measure_distance(
    network: metrics.FeatureNetwork, images: np.ndarray, real: np.ndarray, classes: int = 0
) -> dict[str, float | int | str]:
    """Measure images by a network's features and by texture, with images rounded to 8 bits.

    Args:
        network: whose features are compared.
        images: (N, H, W, C), uint8 levels 0..255 or float in [-1, 1].
        real: (M, H, W, C), images to compare with.
        classes: if not 0, image k was made as class ``k % classes``.

    Returns:
        The scores of `diffjax.metrics.evaluate_images` and of `measure_texture`; with ``classes``,
        ``class_accuracy`` too, the share of images in which the network sees the class that they
        were made as.

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
    return {**scores, **measure_texture(rounded, real)}


def measure_texture(images: np.ndarray, real: np.ndarray) -> dict[str, float | str]:
    """Measure noise and texture, which classifiers look past.

    Args:
        images: (N, H, W, C), uint8 levels 0..255 or float in [-1, 1].
        real: (M, H, W, C), images to compare with.

    Returns:
        ``texture_distance``, see `diffjax.metrics.texture_distance`; ``texture_features``, their
        version; and ``background_rms``, if real images agree on a background.

    Raises:
        ValueError: images of another size, below 3x3 pixels, or too few of them.
    """
    rounded, real = to_float(to_uint8(images)), to_float(real)
    found: dict[str, float | str] = {
        "texture_distance": metrics.texture_distance(rounded, real),
        "texture_features": TEXTURE_VERSION,
    }
    noise = metrics.background_rms(rounded, real)
    return found if noise is None else {**found, "background_rms": noise}


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
    """Measure distances that give the scale for those of a model, on both kinds of features.

    Args:
        network: whose features are compared.
        pool: real images, in random order; twice ``num`` of them are wanted.
        num: number of images that each baseline makes.
        untrained: ``num ->`` images of the model before training.

    Returns:
        ``real_floor``, between two disjoint halves of real images, ``real_floor_num`` each;
        ``matched_gaussian``, of `draw_gaussian_images`; and ``untrained_network``. The same with
        ``texture_`` before their names are texture distances.
    """
    half = min(num, pool.num // 2)
    real, both = (to_float(pool.read(0, count)) for count in (min(num, pool.num), 2 * half))
    found: dict[str, float | int] = {
        "real_floor": metrics.floor(network, both[:half], both[half:]),
        "real_floor_num": half,
        "texture_real_floor": metrics.texture_distance(both[:half], both[half:]),
    }
    made = {
        "matched_gaussian": draw_gaussian_images(real, num),
        "untrained_network": untrained(num),
    }
    for name, images in made.items():
        scores = measure_distance(network, images, real)
        found[name] = float(scores["distance"])
        found[f"texture_{name}"] = float(scores["texture_distance"])
    return found
