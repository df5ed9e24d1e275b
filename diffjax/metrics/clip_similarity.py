"""CLIP score: how well images fit their texts."""

from __future__ import annotations

import numpy as np

from diffjax.metrics.statistics import as_features
from diffjax.types import Array


def clip_score(images: Array, texts: Array, *, scale: float = 100.0) -> tuple[float, float]:
    """Return mean and standard error of ``scale max(cos(image, text), 0)``.

    Hessel et al. 2021, eq. 1. The paper's scale is 2.5; tables of text-to-image models give the
    plain cosine (scale 1) or percent (100, as torchmetrics does). Scores of different CLIP models
    cannot be compared.

    Args:
        images: embeddings (N, P) of `diffjax.nets.vision.CLIPVision`.
        texts: projected embeddings (N, P) of `diffjax.nets.text.CLIPText`; row k is the text of
            image k.
        scale: the score of a perfect match.

    Raises:
        ValueError: shapes differ, fewer than 2 pairs, or an embedding is 0 or not finite.
    """
    x, y = as_features(images, "images"), as_features(texts, "texts")
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"at least 2 pairs of embeddings are needed, got {x.shape} and {y.shape}")
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    if not norms.all():
        raise ValueError(f"the embedding of pair {int(np.argmin(norms))} is 0: it has no direction")
    values = scale * np.maximum((x * y).sum(axis=1) / norms, 0)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
