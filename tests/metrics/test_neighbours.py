"""Nearest-neighbour metrics: extreme cases, counts by hand, and a brute-force transcription."""

import numpy as np
import pytest

from diffjax.metrics import precision_recall
from diffjax.metrics.neighbours import _compute_radii


def points(n, seed=0, dim=8, centre=0.0):
    return np.random.default_rng(seed).normal(size=(n, dim)) + centre


def brute_force(real, fake, k):
    """The definitions, one point at a time."""

    def distance(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radii(x):
        return [
            sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]
            for i in range(len(x))
        ]

    r, f = radii(real), radii(fake)
    balls = [sum(distance(y, x) <= ri for x, ri in zip(real, r, strict=True)) for y in fake]
    recalled = [any(distance(x, y) <= fi for y, fi in zip(fake, f, strict=True)) for x in real]
    covered = [any(distance(x, y) <= ri for y in fake) for x, ri in zip(real, r, strict=True)]
    return (
        np.mean([b > 0 for b in balls]),
        np.mean(recalled),
        np.mean(balls) / k,
        np.mean(covered),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_against_brute_force(k, shift):
    real, fake = points(60), points(45, seed=1, centre=shift)
    expected = brute_force(real, fake, k)
    assert 0 < expected[0] < 1 or shift == 0  # the case discriminates
    np.testing.assert_allclose(precision_recall(real, fake, k=k), expected, rtol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    real, fake = points(60), points(45, seed=1, centre=0.5)
    whole = precision_recall(real, fake)
    monkeypatch.setattr("diffjax.metrics.neighbours.BLOCK", 7)
    assert precision_recall(real, fake) == whole


def test_identical_sets():
    x = points(200)
    result = precision_recall(x, x[::-1])
    assert result[:2] == (1, 1)
    assert result.coverage == 1
    assert result.density >= 4 / 3 - 1e-12  # each point is in its own ball and k others on average


def test_far_apart_sets():
    assert precision_recall(points(50), points(50, seed=1, centre=1e4)) == (0, 0, 0, 0)


def test_half_of_the_modes_missing():
    # Two far modes in the data; the fakes cover one of them.
    near, far = points(100), points(100, seed=1, centre=1e4)
    result = precision_recall(np.concatenate([near, far]), points(100, seed=0))
    assert result.precision == 1
    assert result.recall == 0.5
    assert result.coverage == 0.5


def test_half_of_the_fakes_are_wrong():
    result = precision_recall(points(100), np.concatenate([points(100), points(100, 1, 8, 1e4)]))
    assert result.precision == 0.5
    assert result.recall == 1
    assert result.coverage == 1


def test_points_on_a_line_by_hand():
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [4.5], [9.0]])
    # k=1: real balls [-1,1], [0,2], [1,5]; fake radii 4, 4, 4.5: balls [-3.5,4.5], [.5,8.5], ...
    result = precision_recall(real, fake, k=1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == 1
    assert result.density == pytest.approx(3 / 3)
    assert result.coverage == 1


def test_duplicates_have_radius_zero_and_still_match():
    x = np.repeat(points(1, dim=64) * 1e3, 10, axis=0)
    assert (_compute_radii(x, 3) == 0).all()
    assert precision_recall(x, x + 0.0)[:2] == (1, 1)
    assert precision_recall(x, x + 1e-6)[:2] == (0, 0)


def test_errors():
    with pytest.raises(ValueError, match="less than the set sizes 3 and 10, got 3"):
        precision_recall(points(3), points(10))
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_recall(points(9), points(10), k=0)
    with pytest.raises(ValueError, match="sizes differ: 8 and 4"):
        precision_recall(points(9), points(9, dim=4))
    with pytest.raises(ValueError, match="fake must be finite: 1 of 9"):
        precision_recall(points(9), np.where(np.arange(9)[:, None] == 2, np.inf, points(9)))
