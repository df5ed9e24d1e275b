import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.tasks.augment import LABELS, SYM6, UNTURNED, augment, make_matrix, warp

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


def test_without_turns_labels_are_those_of_what_is_left():
    out, labels = augment(jax.random.key(3), IMAGES, 1.0, turns=False)
    assert labels.shape == (64, len(UNTURNED))
    assert (np.asarray(labels)[:, 1:] != 0).mean(0) == pytest.approx([1, 1, 0.5, 1, 1], abs=0.15)
    # Nothing is turned or upside down: moved alone, with the labels of what was drawn.
    scale, (x, y), shift = labels[:, 1], labels[:, 2:4].T, labels[:, :-3:-1] / 8
    flipped = jnp.where(labels[:, 0, None, None, None] != 0, IMAGES[:, :, ::-1], IMAGES)
    errors = []
    for sign in (1, -1):  # which a label leaves open
        stretch, direction = sign * jnp.hypot(x, y), jnp.arctan2(sign * y, sign * x)
        matrices = jax.vmap(make_matrix)(scale, jnp.zeros(64), stretch, direction)
        errors.append(np.abs(out - warp(flipped, matrices, shift)).max((1, 2, 3)))
    assert np.minimum(*errors).max() < 1e-4


def test_rates_of_the_labels():
    _, labels = augment(jax.random.key(2), jnp.zeros((4000, 2, 2, 1)), 0.12)
    used = (np.asarray(labels) != 0).mean(0)
    assert used[0] == pytest.approx(0.5, abs=0.04)
    assert used[1] == pytest.approx(0.06, abs=0.02)
    assert used[[2, 3, 4, 5, 7, 8]] == pytest.approx(0.12, abs=0.025)
    assert used[6] == pytest.approx(0.06, abs=0.02)  # half of the directions are the axes
    # Each is drawn from N(0, 1); of random directions, cos has a mean square of 1/2.
    expected = np.sqrt([0.12, 0.09, 0.12, 0.12])
    assert np.asarray(labels)[:, [2, 5, 7, 8]].std(0) == pytest.approx(expected, abs=0.04)


def test_a_label_says_how_the_image_was_moved():
    # Karras et al. 2022, released code: p -> S^-1 R(angle) A^-1 (p - shift), then the flips.
    side = 33
    y, x = np.meshgrid(*(np.linspace(-1, 1, side),) * 2, indexing="ij")
    image = np.exp(-8 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))  # smooth, and of no symmetry
    images = jnp.asarray(np.broadcast_to(image[None, ..., None], (64, side, side, 1)))
    out, labels = augment(jax.random.key(5), images, 0.5)
    half = (side - 1) / 2
    for moved, (x_flip, y_flip, scale, cos, sin, a, b, tx, ty) in zip(
        np.asarray(out)[..., 0], np.asarray(labels, np.float64), strict=True
    ):
        # A = R(-r) diag(s, 1/s) R(r) with s = 2^(0.2 w); w (cos r, sin r) leaves w's sign open,
        # and both signs, with r and r + pi, are told apart by nothing but that.
        w, r = np.hypot(a, b), np.arctan2(b, a)
        turn = np.array([[cos + 1, -sin], [sin, cos + 1]])
        errors = []
        for sign in (1, -1):
            angle = r if sign == 1 else r + np.pi
            back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            sides = np.diag([2 ** (-0.2 * sign * w), 2 ** (0.2 * sign * w)])
            flips = np.diag([1 - 2 * x_flip, 1 - 2 * y_flip])
            matrix = flips @ turn @ back @ sides @ back.T * 2 ** (-0.2 * scale)
            shifted = np.stack([x - tx * side / 8 / half, y - ty * side / 8 / half])
            u, v = np.einsum("ij,jhw->ihw", matrix, shifted)
            inside = (np.abs(u) < 0.95) & (np.abs(v) < 0.95)
            expected = np.exp(-8 * ((u - 0.2) ** 2 + 2 * (v + 0.1) ** 2))
            errors.append(np.abs(moved - expected)[inside].max(initial=0))
        assert min(errors) < 0.03


def test_a_quarter_turn_and_a_whole_pixel_shift():
    some = IMAGES[:1]
    moved = warp(some, jnp.eye(2)[None], jnp.array([[1 / 8, 0.0]]))
    np.testing.assert_allclose(moved[0, 1:], some[0, :-1], atol=1e-5)
    # The wavelet is not quite symmetric, so turned pictures lose a little.
    smooth = jnp.sin(jnp.arange(16.0) / 3)[:, None, None] * jnp.cos(jnp.arange(16.0) / 4)[:, None]
    turned = warp(smooth[None], jnp.array([[[0.0, 1.0], [-1.0, 0.0]]]), jnp.zeros((1, 2)))
    np.testing.assert_allclose(turned[0, 2:-2, 2:-2], np.rot90(smooth, 1)[2:-2, 2:-2], atol=0.03)


def test_nothing_moved_is_the_image_and_its_border_is_mirrored():
    # Low passes of an orthogonal wavelet undo one another.
    still = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    np.testing.assert_allclose(warp(IMAGES[:2], still, jnp.zeros((2, 2))), IMAGES[:2], atol=1e-5)
    moved = warp(IMAGES[:2], still, jnp.full((2, 2), 3 / 8))
    np.testing.assert_allclose(moved[:, 3:, 3:], IMAGES[:2, :5, :5], atol=1e-5)
    np.testing.assert_allclose(moved[:, :3, 3:], IMAGES[:2, 3:0:-1, :5], atol=1e-5)


def test_the_wavelet_is_orthogonal_with_six_vanishing_moments():
    # Daubechies 1992, section 6.1: these equations have few solutions.
    taps, k = np.array(SYM6), np.arange(12.0)
    assert [taps[2 * n :] @ taps[: 12 - 2 * n] for n in range(6)] == pytest.approx(
        [1, 0, 0, 0, 0, 0], abs=1e-12
    )
    assert taps.sum() == pytest.approx(np.sqrt(2))
    moments = [(-1.0) ** k * k**p @ taps / 11.0**p for p in range(6)]
    assert moments == pytest.approx([0] * 6, abs=1e-9)


def test_bad_rate():
    with pytest.raises(ValueError, match="augmentation rate"):
        augment(jax.random.key(0), IMAGES, 1.5)
