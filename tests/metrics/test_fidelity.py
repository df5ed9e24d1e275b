"""Edge F1 and mask IoU of drawn masks, whose values are counted by hand."""

import numpy as np
import pytest

from diffjax.metrics import edge_f1, mask_iou


def line(column, size=8, rows=8):
    edges = np.zeros((1, size, size))
    edges[:, :rows, column] = 1
    return edges


def test_edges_within_the_tolerance_agree():
    assert edge_f1(line(3), line(3)) == pytest.approx(1)
    assert edge_f1(line(3), line(4)) == pytest.approx(1)
    assert edge_f1(line(3), line(5)) == pytest.approx(0)
    assert edge_f1(line(3), line(5), tolerance=2) == pytest.approx(1)
    assert edge_f1(line(3), line(4), tolerance=0) == pytest.approx(0)


def test_precision_and_recall_count_both():
    # All of the short line is near the long one; of the 8 pixels of the long one, 4 + 1 are near.
    assert edge_f1(line(3, rows=4), line(3)) == pytest.approx(2 * 1 * 5 / 8 / (1 + 5 / 8))
    assert edge_f1(line(3), line(3, rows=4)) == edge_f1(line(3, rows=4), line(3))


def test_images_without_edges():
    none = np.zeros((1, 8, 8))
    assert edge_f1(none, none) == pytest.approx(1)
    assert edge_f1(none, line(3)) == pytest.approx(0)
    assert edge_f1(line(3), none) == pytest.approx(0)


def test_images_are_judged_one_by_one():
    found = np.concatenate([line(1), line(6)])
    assert edge_f1(found, np.concatenate([line(1), line(1)])).tolist() == [1, 0]


def test_intersection_over_union():
    wanted = np.zeros((2, 4, 4), int)
    wanted[:, :2] = 1
    found = wanted.copy()
    found[1, :1] = 0  # of class 1: 4 of 8; of class 0: 8 of 12
    assert mask_iou(found, wanted, 5) == pytest.approx([1, (4 / 8 + 8 / 12) / 2])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"must be \(B, H, W\), got \(1, 8, 8\) and \(2, 8, 8\)"):
        edge_f1(line(1), np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="both masks must be"):
        mask_iou(np.zeros((1, 4), int), np.zeros((1, 4), int), 2)
