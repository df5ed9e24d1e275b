"""The networks that judge an autoencoder, against recorded outputs of torch; bad input."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.metrics import feature_network
from diffjax.nets.discriminator import PatchGAN
from diffjax.nets.perceptual import LPIPS, classifier_distance, unit
from tests.parity import ae_cases, cases

GOLDEN = Path(__file__).parents[1] / "golden" / "autoencoder.npz"


@pytest.mark.parametrize("name", ["patches", "lpips"])
def test_values_and_gradients_are_those_of_torch(name):
    ours = {"patches": ae_cases.our_patches, "lpips": ae_cases.our_lpips}[name]()
    with np.load(GOLDEN) as file:
        for key, value in ours.items():
            assert cases.relative_error(value, file[f"{name}.{key}"]) < 1e-4, key


def test_published_parameter_counts():
    image = jnp.zeros((1, 64, 64, 3))

    def count(net, *args):
        shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(PatchGAN(), image) == 2_765_633
    vgg16 = 14_714_688  # convolutions of VGG16
    assert count(LPIPS(), image, image) == vgg16 + 64 + 128 + 256 + 512 + 512


def test_the_gradient_of_a_unit_vector_at_zero_is_finite():
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_allclose(gradient[1], [4 / 125, -3 / 125], rtol=1e-5)


def test_the_fallback_is_a_distance_that_carries_gradient():
    params = feature_network("digits").params
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 1)), jnp.float32) for _ in range(2))
    distance = jax.jit(lambda x, y: classifier_distance(params, x, y))
    np.testing.assert_array_equal(distance(x, x), 0)
    near, far = distance(x, x + 0.1 * (y - x)), distance(x, y)
    assert np.all(0 < near) and np.all(near < far)
    np.testing.assert_allclose(far, distance(y, x), rtol=1e-5)
    gradient = jax.grad(lambda y: distance(x, y).sum())(y)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    with pytest.raises(ValueError, match="takes 1 channels"):
        classifier_distance(params, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("shape", [(1, 12, 16, 3), (1, 16, 16, 2)])
def test_images_that_lpips_cannot_take(shape):
    with pytest.raises(ValueError, match="of at least 16x16 pixels, got"):
        jax.eval_shape(LPIPS().init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape))


def test_images_too_small_for_a_discriminator():
    with pytest.raises(ValueError, match=r"at least 24 pixels, got \(16, 24\); set loss\.disc_lay"):
        jax.eval_shape(PatchGAN().init, jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
