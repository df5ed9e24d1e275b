"""Inception score of class probabilities."""

from __future__ import annotations

import itertools

import numpy as np

from diffjax.types import Array

SEED = 2020  # torch-fidelity's default


def inception_score(
    probs: Array, *, splits: int = 10, seed: int | None = SEED
) -> tuple[float, float]:
    """Return mean and standard deviation over splits of the Inception score (Salimans et al. 2016).

    ``IS = exp(mean_x KL(p(y|x) || p(y)))``, between 1 (all images look alike, or none is
    recognisable) and ``K`` (each is certain, all classes equally often). ``p(y)`` is the mean
    over the split, so that images in the order of their classes would score about 1: as in
    torch-fidelity, they are permuted first. The figures of papers use Inception's 1,000 ImageNet
    classes and cannot be compared with those of another classifier.

    Args:
        probs: p(y|x), (N, K), rows sum to 1.
        splits: number of parts, from ``i N // splits`` to ``(i + 1) N // splits``; fewer images
            than that make one part each.
        seed: of the permutation; None keeps the order.

    Raises:
        ValueError: wrong shape, or rows that are not distributions.
    """
    p = np.asarray(probs, np.float64)
    if p.ndim != 2:
        raise ValueError(f"probs must have shape (N, K), got {p.shape}")
    if splits < 1 or not len(p):
        raise ValueError(f"at least 1 split and 1 image are needed, got {splits} and {len(p)}")
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("probs must be non-negative and sum to 1 in each row")
    if seed is not None:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    bounds = np.arange(min(splits, len(p)) + 1) * len(p) // min(splits, len(p))
    scores = [_compute_score(p[a:b]) for a, b in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def _compute_score(p: np.ndarray) -> float:
    """Return the score of one split; a term ``0 log 0`` counts as 0."""
    marginal = np.broadcast_to(p.mean(axis=0), p.shape)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)  # 0 log 0 = 0
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))
