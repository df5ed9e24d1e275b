"""Scores of papers on Inception's features: FID, sFID, Inception score, KID, precision and recall.

Every function takes the images, a store of Inception's features and, but for the Inception score,
a reference. All report how many images they measured: ``num``, and ``num_reference`` where the
reference's own images were measured and not only their published statistics.
"""

from __future__ import annotations

from diffjax import metrics
from diffjax.evaluation.feature_store import FeatureStore
from diffjax.evaluation.image_sets import ImageSet
from diffjax.evaluation.references import Reference, require_images
from diffjax.types import Array, ConfigError

KID_SUBSET = 1000  # images of a subset, as in Binkowski et al. 2018

Scores = dict[str, float | int]


def measure_inception_score(images: ImageSet, inception: FeatureStore) -> Scores:
    """Measure the Inception score of 10 splits (Salimans et al. 2016), 1 to the number of classes.

    Returns:
        ``inception_score`` and ``inception_score_std``, over the splits.
    """
    mean, spread = metrics.inception_score(inception.collect(images).probs)
    return {"num": images.num, "inception_score": mean, "inception_score_std": spread}


def check_reference(reference: Reference) -> None:
    """Check that a reference can be compared with.

    Raises:
        ConfigError: the reference has neither images nor statistics.
    """
    if reference.statistics is None:
        require_images(reference)


def check_spatial(reference: Reference) -> None:
    """Check that a reference can be compared with by spatial features.

    Raises:
        ConfigError: the reference has neither images nor statistics of spatial features.
    """
    statistics = reference.statistics
    if reference.images is None and (statistics is None or statistics.spatial is None):
        raise ConfigError(
            "the reference needs images, or statistics of spatial features too (mu_s and sigma_s)"
        )


def measure_fid(images: ImageSet, reference: Reference, inception: FeatureStore) -> Scores:
    """Measure the Frechet distance of the pooled features, ``fid`` (Heusel et al. 2017); 0 is best.

    Args:
        images: the samples.
        reference: real images, or their statistics.
        inception: the store of features.
    """
    return _measure_frechet("fid", images, reference, inception)


def measure_rfid(images: ImageSet, originals: Reference, inception: FeatureStore) -> Scores:
    """Measure FID of reconstructions against their originals, ``rfid`` (Rombach et al. 2022)."""
    return _measure_frechet("rfid", images, originals, inception)


def measure_sfid(images: ImageSet, reference: Reference, inception: FeatureStore) -> Scores:
    """Measure the Frechet distance of features that keep positions, ``sfid`` (Nash et al. 2021).

    The store has to keep spatial features.
    """
    return _measure_frechet("sfid", images, reference, inception)


def _measure_frechet(
    name: str, images: ImageSet, reference: Reference, inception: FeatureStore
) -> Scores:
    """Measure the Frechet distance of pooled or spatial features.

    Published statistics of the reference are used where they exist, its images elsewhere.
    """
    out: Scores = {"num": images.num}
    field = "spatial" if name == "sfid" else "features"
    real = getattr(reference.statistics, field, None)
    if real is None:
        originals = require_images(reference)
        real = getattr(inception.summarize(originals), field)
        out["num_reference"] = originals.num
    fake = getattr(inception.summarize(images), field)
    return out | {name: metrics.frechet_distance(fake, real)}


def measure_kid(images: ImageSet, reference: Reference, inception: FeatureStore) -> Scores:
    """Measure the kernel distance ``kid`` over 100 subsets (Binkowski et al. 2018); 0 is best.

    Returns:
        ``kid``, ``kid_std`` over the subsets, and ``kid_subset``, the images of a subset.

    Raises:
        ConfigError: the reference has statistics only.
    """
    real, fake = _collect_both(images, reference, inception)
    size = min(KID_SUBSET, len(real), len(fake))
    mean, spread = metrics.kernel_distance(real, fake, size=size)
    counts: Scores = {"num": len(fake), "num_reference": len(real)}
    return counts | {"kid": mean, "kid_std": spread, "kid_subset": size}


def measure_precision_recall(
    images: ImageSet, reference: Reference, inception: FeatureStore
) -> Scores:
    """Measure ``precision``, ``recall``, ``density`` and ``coverage`` with 3 neighbours.

    Kynkäänniemi et al. 2019 and Naeem et al. 2020. They are shares of images; a density can
    exceed 1.

    Raises:
        ConfigError: the reference has statistics only.
    """
    real, fake = _collect_both(images, reference, inception)
    found = metrics.precision_recall(real, fake)._asdict()
    return {"num": len(fake), "num_reference": len(real), **found}


def _collect_both(
    images: ImageSet, reference: Reference, inception: FeatureStore
) -> tuple[Array, Array]:
    """Return the features of the reference's images and of the samples."""
    fake = inception.collect(images).features
    return inception.collect(require_images(reference)).features, fake
