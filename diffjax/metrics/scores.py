"""Inception score of class probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np


def inception_score(probs: Any, *, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over splits of the score of Salimans et al. (2016).

    ``IS = exp(mean_x KL(p(y|x) || p(y)))``, between 1 (all images look alike, or none is
    recognisable) and ``K`` (each is certain, all classes equally often). ``p(y)`` is the mean
    over the split. The figures of papers use Inception's 1,000 ImageNet classes and cannot be
    compared with those of another classifier.

    Args:
        probs: p(y|x), (N, K), rows sum to 1.
        splits: number of consecutive parts; images should be in random order.

    Raises:
        ValueError: wrong shape, rows that are not distributions, or fewer images than splits.
    """
    p = np.asarray(probs, np.float64)
    if p.ndim != 2:
        raise ValueError(f"probs must have shape (N, K), got {p.shape}")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits must be between 1 and the {len(p)} images, got {splits}")
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("probs must be non-negative and sum to 1 in each row")
    scores = [_score(part) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: np.ndarray) -> float:
    marginal = np.broadcast_to(p.mean(axis=0), p.shape)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)  # 0 log 0 = 0
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))
