"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest
import scipy.linalg

from diffjax.metrics import Moments, frechet_distance, moments

TOL = {"rtol": 1e-10, "atol": 1e-10}


def gaussian(mean, cov, count=101):
    """Moments of a set with exactly this mean and unbiased covariance."""
    return Moments(count, np.asarray(mean, float), np.asarray(cov, float) * (count - 1))


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def spd(dim, seed):
    a = np.random.default_rng(seed).normal(size=(dim, dim))
    return a @ a.T + 0.1 * np.eye(dim)


def test_a_shift_counts_squared():
    cov = spd(6, 0)
    a, b = gaussian(np.zeros(6), cov), gaussian(np.arange(6), cov)
    np.testing.assert_allclose(frechet_distance(a, b), 55.0, **TOL)


def test_one_dimension_is_the_difference_of_standard_deviations():
    a, b = gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]])
    np.testing.assert_allclose(frechet_distance(a, b), 3**2 + (5 - 2) ** 2, **TOL)


@pytest.mark.parametrize("rotate", [False, True])
def test_commuting_covariances(rotate):
    s = np.array([0.1, 1.0, 2.0, 7.0])
    t = np.array([3.0, 1.0, 0.5, 8.0])
    q = rotation(4) if rotate else np.eye(4)
    a = gaussian(q @ np.ones(4), (q * s**2) @ q.T)
    b = gaussian(q @ np.zeros(4), (q * t**2) @ q.T)
    np.testing.assert_allclose(frechet_distance(a, b), 4 + ((s - t) ** 2).sum(), **TOL)


def test_scaling_the_standard_deviation():
    cov = spd(5, 1)
    a, b = gaussian(np.zeros(5), cov), gaussian(np.zeros(5), 9 * cov)
    np.testing.assert_allclose(frechet_distance(a, b), (3 - 1) ** 2 * np.trace(cov), **TOL)


def test_general_covariances_against_the_matrix_square_root():
    c, d = spd(6, 2), spd(6, 3)
    expected = np.trace(c + d - 2 * np.real(scipy.linalg.sqrtm(c @ d)))
    a, b = gaussian(np.zeros(6), c), gaussian(np.zeros(6), d)
    np.testing.assert_allclose(frechet_distance(a, b), expected, **TOL)
    np.testing.assert_allclose(frechet_distance(b, a), expected, **TOL)


def test_two_by_two_non_commuting_closed_form():
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2x2 matrix with positive eigenvalues.
    c, d = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    root = np.sqrt(np.trace(c @ d) + 2 * np.sqrt(np.linalg.det(c @ d)))
    expected = np.trace(c) + np.trace(d) - 2 * root
    a, b = gaussian(np.zeros(2), c), gaussian(np.zeros(2), d)
    np.testing.assert_allclose(frechet_distance(a, b), expected, **TOL)


@pytest.mark.parametrize("count", [500, 10])  # 10 samples of 30 features: singular
def test_a_set_is_at_distance_zero_from_itself(count):
    m = moments(np.random.default_rng(0).normal(size=(count, 30)))
    assert 0 <= frechet_distance(m, m) < 1e-10


def test_rank_deficient_covariances():
    q = rotation(5)
    lines = [np.outer(q[:, i], q[:, i]) for i in range(2)]
    a, same, other = (gaussian(np.zeros(5), c) for c in (lines[0], 4 * lines[0], lines[1]))
    np.testing.assert_allclose(frechet_distance(a, same), (2 - 1) ** 2, **TOL)
    np.testing.assert_allclose(frechet_distance(a, other), 1 + 1, **TOL)  # nothing in common
    point = gaussian(np.ones(5), np.zeros((5, 5)))
    np.testing.assert_allclose(frechet_distance(a, point), 5 + 1, **TOL)


def test_estimates_approach_the_distance_of_the_gaussians():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50_000, 3)), 1 + 2 * rng.normal(size=(50_000, 3))
    # 3 (1 + 1); the standard error is about 0.03.
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(6, abs=0.15)


def test_errors():
    good = gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="second set has 1 samples"):
        frechet_distance(good, moments(np.ones((1, 2))))
    with pytest.raises(ValueError, match="sizes differ: 2 and 3"):
        frechet_distance(good, gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="moments of the first set are not finite"):
        frechet_distance(gaussian([np.nan, 0], np.eye(2)), good)
