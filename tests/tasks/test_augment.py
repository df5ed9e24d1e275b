import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.tasks.augment import LABELS, _warp, augment

IMAGES = jax.random.uniform(jax.random.key(0), (64, 8, 8, 2), minval=-1)


def test_rate_zero_without_flips_is_the_identity_bit_by_bit():
    out, labels = augment(jax.random.key(1), IMAGES, 0.0, flip=False)
    np.testing.assert_array_equal(out, IMAGES)
    np.testing.assert_array_equal(labels, np.zeros((64, LABELS)))


def test_flips_are_exact_and_labelled():
    out, labels = augment(jax.random.key(1), IMAGES, 0.0)
    flipped = np.asarray(labels[:, 0]) == 1
    assert 0.2 < flipped.mean() < 0.8
    expected = np.where(flipped[:, None, None, None], IMAGES[:, :, ::-1], IMAGES)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_array_equal(labels[:, 1:], 0)


def test_a_zero_label_means_an_unmoved_image():
    out, labels = augment(jax.random.key(3), IMAGES, 0.2)
    still = np.abs(np.asarray(labels)).max(1) == 0
    moved = np.abs(np.asarray(out - IMAGES)).reshape(64, -1).max(1) > 1e-4
    assert still.any() and (~still).any()
    np.testing.assert_array_equal(moved, ~still)


def test_rates_of_the_labels():
    _, labels = augment(jax.random.key(2), jnp.zeros((4000, 2, 2, 1)), 0.12)
    used = (np.asarray(labels) != 0).mean(0)
    assert used[0] == pytest.approx(0.5, abs=0.04)
    assert used[1] == pytest.approx(0.06, abs=0.02)
    assert used[2:] == pytest.approx(0.12, abs=0.025)


def test_a_quarter_turn_and_a_whole_pixel_shift():
    quarter = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    turned = _warp(IMAGES[0], quarter, jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(IMAGES[0], 1), atol=1e-5)
    moved = _warp(IMAGES[0], jnp.eye(2), jnp.array([1 / 8, 0.0]))
    np.testing.assert_allclose(moved[1:], IMAGES[0][:-1], atol=1e-5)


def test_bad_rate():
    with pytest.raises(ValueError, match="augmentation rate"):
        augment(jax.random.key(0), IMAGES, 1.5)
