"""How good generated images are: measures of papers, and the same formulas on features of our own.

With Inception (`inception_network`, weights from the user) the Fréchet distance is FID, the kernel
distance KID, and so on: see docs/metrics.md. With *our own* small classifiers, one per data set,
trained by `experiments.train_classifier` and shipped here, the numbers are **not** FID or IS: they
cannot be compared with those of papers, only with each other, for the same network version and the
same numbers of images. Report the `floor`, the distance between two disjoint sets of real images,
next to every distance.

    network = feature_network("fashion_mnist")
    evaluate_images(network, samples, test_images)["distance"]
    floor(network, train_images[:5000], train_images[5000:10000])
"""

from __future__ import annotations

from diffjax.metrics.clip_similarity import clip_score
from diffjax.metrics.collection import collect
from diffjax.metrics.features import (
    FeatureNetwork,
    Features,
    extract,
    feature_network,
    load_network,
    save_network,
)
from diffjax.metrics.fidelity import edge_f1, mask_iou
from diffjax.metrics.frechet import frechet_distance
from diffjax.metrics.image_pairs import diversity, psnr, ssim
from diffjax.metrics.inception_features import SOURCE as INCEPTION_SOURCE
from diffjax.metrics.inception_features import inception_network, inception_shapes
from diffjax.metrics.kernel import kernel_distance
from diffjax.metrics.neighbours import PrecisionRecall, precision_recall
from diffjax.metrics.reference import (
    Statistics,
    compute_statistics,
    list_arrays,
    load_array,
    load_statistics,
    save_statistics,
)
from diffjax.metrics.scores import inception_score
from diffjax.metrics.statistics import Gaussian, Moments, empty, merge, moments, update
from diffjax.metrics.texture import background_rms, texture_distance, texture_features
from diffjax.types import Array

__all__ = [
    "INCEPTION_SOURCE",
    "FeatureNetwork",
    "Features",
    "Gaussian",
    "Moments",
    "PrecisionRecall",
    "Statistics",
    "background_rms",
    "clip_score",
    "collect",
    "compute_statistics",
    "diversity",
    "edge_f1",
    "empty",
    "evaluate_images",
    "extract",
    "feature_network",
    "floor",
    "frechet_distance",
    "inception_network",
    "inception_score",
    "inception_shapes",
    "kernel_distance",
    "list_arrays",
    "load_array",
    "load_network",
    "load_statistics",
    "mask_iou",
    "merge",
    "moments",
    "precision_recall",
    "psnr",
    "save_network",
    "save_statistics",
    "ssim",
    "texture_distance",
    "texture_features",
    "update",
]


def evaluate_images(
    network: FeatureNetwork,
    images: Array,
    reference_images: Array,
    *,
    k: int = 3,
    splits: int = 10,
) -> dict[str, float | int | str]:
    """Measure ``images`` against ``reference_images`` by all image metrics.

    The numbers use the features of ``network`` and are not the FID and IS of papers (see the
    module's docstring).

    Args:
        network: whose features are compared.
        images, reference_images: (N, H, W, C), uint8 levels or float in [-1, 1].
        k: neighbours of precision and recall.
        splits: of the Inception score.

    Returns:
        Values that JSON can hold: ``distance`` (Fréchet; 0 is best), ``inception_score`` and
        ``inception_score_std`` (1 to the number of classes), ``precision``, ``recall``,
        ``density``, ``coverage`` (with ``k`` neighbours), as floats; ``num`` and ``num_reference``,
        the numbers of images; ``features``, the ``name-version`` of the network.

    Raises:
        ValueError: images of the wrong shape or range, or too few of them.
    """
    fake, probs, _ = extract(network, images)
    real = extract(network, reference_images).features
    score, score_std = inception_score(probs, splits=splits)
    return {
        "distance": frechet_distance(moments(fake), moments(real)),
        "inception_score": score,
        "inception_score_std": score_std,
        **precision_recall(real, fake, k=k)._asdict(),
        "num": len(fake),
        "num_reference": len(real),
        "features": network.id,
    }


def floor(network: FeatureNetwork, reference: Array, reference2: Array) -> float:
    """Return the Fréchet distance between two disjoint sets of real images of the same size.

    A perfect generator would score this value at this number of images; it falls like 1/N.

    Args:
        network: whose features are compared.
        reference, reference2: (N, H, W, C), uint8 levels or float in [-1, 1].

    Raises:
        ValueError: the sets differ in size, or as in `evaluate_images`.
    """
    if len(reference) != len(reference2):
        raise ValueError(
            f"the floor needs sets of equal size, got {len(reference)} and {len(reference2)}"
        )
    a, b = (moments(extract(network, images).features) for images in (reference, reference2))
    return frechet_distance(a, b)
