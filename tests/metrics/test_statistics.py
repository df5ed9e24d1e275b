"""Streaming moments against NumPy's one-pass results."""

import numpy as np
import pytest

from diffjax.metrics import empty, merge, moments, update


def data(n=400, dim=5, offset=0.0):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + offset


def test_moments_are_the_mean_and_the_unbiased_covariance():
    x = data()
    m = moments(x)
    assert m.count == 400
    np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(m.covariance, np.cov(x.T), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(400,), (1, 399), (0, 7, 393), (100, 1, 1, 298)])
def test_updates_in_parts_equal_one_pass(sizes):
    x, state, start = data(), empty(5), 0
    for size in sizes:
        state = update(state, x[start : start + size])
        start += size
    assert state.count == 400
    np.testing.assert_allclose(state.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(state.covariance, np.cov(x.T), rtol=1e-12)


def test_merge_is_the_same_in_either_order():
    x = data()
    a, b = moments(x[:150]), moments(x[150:])
    for left, right in ((a, b), (b, a)):
        np.testing.assert_allclose(merge(left, right).covariance, np.cov(x.T), rtol=1e-12)
    np.testing.assert_array_equal(merge(empty(5), a).scatter, a.scatter)


def test_a_mean_far_from_zero_costs_no_digits():
    # E[x x^T] - mean mean^T would lose all 16 digits here.
    x = data()
    shifted = update(moments(x[:100] + 1e8), x[100:] + 1e8)
    np.testing.assert_allclose(shifted.covariance, np.cov(x.T), rtol=1e-6)


def test_float32_features_are_accumulated_in_float64():
    x = np.full((1000, 1), 16_777_216.0, np.float32)  # 2^24: float32 sums of odd multiples round
    x[::2] += 2
    assert moments(x).mean[0] == 16_777_217.0
    assert moments(x).scatter.dtype == np.float64


def test_errors():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = moments(np.ones((1, 3))).covariance
    with pytest.raises(ValueError, match="sizes differ: 3 and 4"):
        update(empty(3), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"shape \(N, F\), got \(3,\)"):
        moments(np.ones(3))
    bad = np.ones((5, 2))
    bad[3, 1], bad[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 5 rows are not, the first is row 3"):
        moments(bad)
