"""PSNR, SSIM and diversity against closed forms and a window-by-window transcription."""

import numpy as np
import pytest

from diffjax.metrics import diversity, psnr, ssim


def images(n=2, size=14, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, size, size, 2)).astype(np.float32)


def test_psnr_in_closed_form():
    x = images()
    np.testing.assert_allclose(psnr(x, x + 0.02), 10 * np.log10(4 / 0.02**2), rtol=1e-4)
    levels = np.zeros((1, 4, 4, 1), np.uint8)
    assert psnr(levels, levels + 255, span=255.0)[0] == pytest.approx(0, abs=1e-5)
    assert np.isinf(psnr(x, x)).all()


def by_windows(x, y, span):
    """Wang et al. 2004, eq. 13 with the Gaussian weights of section III.C."""
    at = np.arange(11) - 5
    w = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    w /= w.sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
            cov = (w * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    return np.mean(values)


def test_ssim_by_windows():
    x, noise = images().astype(np.float64), images(seed=1)
    y = 0.7 * x + 0.3 * noise + 0.1
    expected = [
        np.mean([by_windows(a[..., c], b[..., c], 2.0) for c in range(2)])
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(x, x), 1, rtol=1e-6)


def test_bad_pairs():
    with pytest.raises(ValueError, match="pairs of images"):
        psnr(images(2), images(3))
    with pytest.raises(ValueError, match="11 pixels and more"):
        ssim(images(size=8), images(size=8))


def distance(x, y):
    return np.abs(x - y).mean((1, 2, 3))


def test_diversity_is_the_mean_over_pairs_of_different_images():
    # Images 0 and 1 of constant value: every pair of different ones is 1 apart.
    two = np.zeros((2, 4, 4, 1))
    two[1] = 1
    assert diversity(distance, two, pairs=20, batch_size=7) == (1, 0)
    many = np.arange(5.0)[:, None, None, None] * np.ones((5, 2, 2, 1))
    mean, error = diversity(distance, many, pairs=20_000, batch_size=5000)
    assert abs(mean - 2) < 5 * error  # E |i - j| over i != j in 0..4
    assert error == pytest.approx(1 / 20_000**0.5, rel=0.05)
    with pytest.raises(ValueError, match="at least 2"):
        diversity(distance, two[:1])
