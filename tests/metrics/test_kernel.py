"""Kernel distance: by hand, in closed form, and against a plain double loop."""

import numpy as np
import pytest

from diffjax.metrics import kernel_distance
from diffjax.metrics.kernel import squared_mmd


def points(n, seed=0, dim=4, centre=0.0):
    return np.random.default_rng(seed).normal(size=(n, dim)) + centre


def test_against_a_double_loop():
    x, y = points(7), points(5, seed=1, centre=0.5)

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_points_that_are_all_the_same():
    # (|a|^2 / F + 1)^3 + (|b|^2 / F + 1)^3 - 2 (a.b / F + 1)^3 with a = 0, b = 1
    found = kernel_distance(np.zeros((9, 2)), np.ones((8, 2)), subsets=3, size=4)
    assert found == pytest.approx((1 + 8 - 2, 0))


def test_unbiased_at_any_size():
    # E k(x, y) for x, y ~ N(0, I_F), F = 1: E (xy + 1)^3 = 1 + 3; shifted by m: 1 + 3 m^2 + ...
    rng = np.random.default_rng(0)
    values = [squared_mmd(rng.normal(size=(10, 1)), rng.normal(size=(10, 1))) for _ in range(4000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 4000**0.5


def test_grows_with_the_shift_and_does_not_depend_on_order():
    real = points(300)
    near, far = (points(300, seed=1, centre=c) for c in (0.2, 1.0))
    assert kernel_distance(real, near, size=100)[0] < kernel_distance(real, far, size=100)[0]
    whole = kernel_distance(real, far, subsets=1, size=300)[0]
    assert kernel_distance(real[::-1], far, subsets=1, size=300)[0] == pytest.approx(whole)


def test_errors():
    with pytest.raises(ValueError, match="at most the 9 and 5 images"):
        kernel_distance(points(9), points(5), size=6)
    with pytest.raises(ValueError, match="feature shapes differ"):
        kernel_distance(points(9), points(9, dim=3), size=3)
