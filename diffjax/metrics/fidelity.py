"""How well images keep to a hint: edges and masks found in them, against those asked for."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def edge_f1(found: np.ndarray, wanted: np.ndarray, *, tolerance: int = 1) -> np.ndarray:
    """Return the F1 score (B,) of edge pixels, ``2 P R / (P + R)``.

    Precision P is the share of found pixels with a wanted one within ``tolerance`` pixels (in the
    larger of both distances), recall R the other way round. Two images without edges agree.

    Args:
        found, wanted: (B, H, W), edges where above 0.5.
        tolerance: in pixels.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != wanted.shape or found.ndim != 3:
        raise ValueError(
            f"both maps of edges must be (B, H, W), got {found.shape} and {wanted.shape}"
        )
    found, wanted = found > 0.5, wanted > 0.5
    precision, recall = (
        _compute_share_near(found, wanted, tolerance),
        _compute_share_near(wanted, found, tolerance),
    )
    both = precision + recall
    return np.where(both > 0, 2 * precision * recall / np.maximum(both, 1e-12), 0.0)


def _compute_share_near(some: np.ndarray, others: np.ndarray, tolerance: int) -> np.ndarray:
    """Return the share (B,) of pixels of ``some`` near one of ``others``; 1 if both are empty."""
    side = 2 * tolerance + 1
    close = ndimage.maximum_filter(others, (1, side, side), mode="constant")
    count = some.sum((1, 2))
    share = (some & close).sum((1, 2)) / np.maximum(count, 1)
    return np.where(count > 0, share, np.where(others.any((1, 2)), 0.0, 1.0))


def mask_iou(found: np.ndarray, wanted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the intersection over union (B,), averaged over the classes that either mask has.

    Args:
        found, wanted: classes (B, H, W), 0 to num_classes - 1.
        num_classes: number of classes.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != wanted.shape or found.ndim != 3:
        raise ValueError(f"both masks must be (B, H, W), got {found.shape} and {wanted.shape}")
    a, b = (np.eye(num_classes, dtype=bool)[mask] for mask in (found, wanted))
    union = (a | b).sum((1, 2))
    ratio = (a & b).sum((1, 2)) / np.maximum(union, 1)
    return (ratio * (union > 0)).sum(1) / (union > 0).sum(1)
