"""Texture features: closed forms for noise and blur, and what a classifier does not see."""

import numpy as np
import pytest

from diffjax import data, evaluation, metrics

LEVELS = 127.5


def noise(deviation, shape=(400, 14, 14, 1)):
    return deviation * np.random.default_rng(0).standard_normal(shape)


def test_white_noise_has_its_deviation_in_every_band_and_half_of_it_in_means():
    found = metrics.texture_features(noise(0.1)) / LEVELS
    assert found.shape == (400, 16)
    np.testing.assert_allclose(np.mean(found[:, :8] ** 2, 0), 0.1**2, rtol=0.04)
    np.testing.assert_allclose(np.mean(found[:, 8:] ** 2, 0), 0.05**2, rtol=0.04)


def test_flat_images_have_no_texture_and_a_cosine_has_one_band():
    assert metrics.texture_features(np.full((2, 6, 6, 3), 0.5)) == pytest.approx(np.zeros((2, 16)))
    # Columns alternate: the patch (1, -1, 1) is 1/3 mean, and (1, -2, 1) has 4 / sqrt(6) of it.
    stripes = np.tile([1.0, -1.0], 7)[None, None, :, None] * np.ones((1, 14, 1, 1))
    found = metrics.texture_features(stripes)[0] / LEVELS
    np.testing.assert_allclose(found[:2], [0, np.sqrt(3) * 4 / np.sqrt(6)], atol=1e-12)
    assert found[2:] == pytest.approx(np.zeros(14))


def test_noise_on_flat_images_costs_ten_times_its_variance():
    flat = np.zeros((400, 14, 14, 1))
    assert metrics.texture_distance(flat, flat) == 0
    expected = 10 * (0.1 * LEVELS) ** 2
    assert metrics.texture_distance(noise(0.1), flat) == pytest.approx(expected, rel=0.03)


def test_texture_sees_noise_that_a_classifier_looks_past():
    images = data.to_float(data.load("fashion_mnist14").images[:2000], 256)
    real, other = images[:1000], images[1000:]
    blurred = images[1000:].copy()
    blurred[:, :-1, :-1] = (
        other[:, :-1, :-1] + other[:, 1:, :-1] + other[:, :-1, 1:] + other[:, 1:, 1:]
    ) / 4
    noisy = np.clip(other + noise(0.3, other.shape), -1, 1)
    network = metrics.feature_network("fashion_mnist14")
    floor, blur, noised = (
        evaluation.measure_distance(network, some, real) for some in (other, blurred, noisy)
    )
    assert noised["distance"] < blur["distance"]
    assert noised["texture_distance"] > 30 * floor["texture_distance"]
    assert blur["texture_distance"] > 20 * floor["texture_distance"]
    assert noised["background_rms"] > 20 > 1 > floor["background_rms"]


def test_the_background_is_what_nine_tenths_agree_on():
    real = np.random.default_rng(0).uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
    assert metrics.background_rms(real, real) is None
    real[:, :2] = -1
    real[:2, 1] = 0  # one in ten may differ
    images = np.full((3, 4, 4, 1), -1 + 2 / LEVELS)
    images[:, :, 2:] += 2 / LEVELS
    images[0] = 1  # one image in three is filled, and the median does not see it
    assert metrics.background_rms(images, real) == pytest.approx(np.sqrt((4 + 16) / 2))
    with pytest.raises(ValueError, match=r"differ in size: \(4, 3, 1\) and \(4, 4, 1\)"):
        metrics.background_rms(images[:, :, :3], real)


def test_texture_needs_no_network_but_three_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (10, 5, 5, 1), np.uint8)
    found = evaluation.evaluate(images, images, metrics=["texture"])
    assert found == {"texture_distance": pytest.approx(0, abs=1e-6), "texture_features": "dct3-v1"}
    with pytest.raises(ValueError, match=r"at least 3x3 pixels, got \(10, 2, 5, 1\)"):
        evaluation.evaluate(images[:, :2], images[:, :2], metrics=["texture"])
