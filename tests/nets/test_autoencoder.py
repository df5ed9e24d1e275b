"""Autoencoders: against diffusers' recorded outputs, closed forms, and what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.autoencoder import AutoencoderKL, Codebook, Posterior, VQModel
from diffjax.nets.tiles import apply_tiled
from tests.parity import ae_cases, cases

GOLDEN = Path(__file__).parents[1] / "golden" / "autoencoder.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("name", ae_cases.AUTOENCODERS)
def test_outputs_are_those_of_diffusers(recorded, name):
    found = ae_cases.ours(ae_cases.AUTOENCODERS[name])
    expected = {k.partition(".")[2]: v for k, v in recorded.items() if k.startswith(f"{name}.")}
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert cases.relative_error(found[key], value) < 2e-5, key


def test_tiles_are_blended_as_by_diffusers(recorded):
    for key, value in ae_cases.ours_tiled(ae_cases.AUTOENCODERS["kl"]).items():
        assert cases.relative_error(value, recorded[f"tiled.{key}"]) < 2e-5, key


@pytest.mark.parametrize("size", [(7, 9), (30, 23)])
def test_tiling_what_is_local_changes_nothing(size):
    x = np.random.RandomState(0).standard_normal((1, *size, 2))
    out = apply_tiled(lambda part: 2 * part.repeat(2, 1).repeat(2, 2), x, tile=12, overlap=0.34)
    np.testing.assert_allclose(out, 2 * x.repeat(2, 1).repeat(2, 2), rtol=1e-6)


@pytest.mark.parametrize("overlap", [1.0, -0.5])
def test_tiles_that_would_not_advance_are_refused(overlap):
    with pytest.raises(ValueError, match=f"overlap={overlap}"):
        apply_tiled(lambda x: x, np.zeros((1, 20, 20, 1)), tile=8, overlap=overlap)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (AutoencoderKL(), 83_653_863),
        (VQModel(multipliers=(1, 2, 4), codes=8192), 55_322_782),
    ],
)
def test_published_parameter_counts(net, count):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_divergence_is_that_of_gaussians():
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, by quadrature."""
    mean, std = 0.7, 0.4
    u = np.linspace(mean - 8 * std, mean + 8 * std, 20_001)
    q = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    ratio = -0.5 * ((u - mean) / std) ** 2 - np.log(std) + 0.5 * u**2
    expected = np.trapezoid(q * ratio, u)
    shape = (2, 3, 1, 2)
    q = Posterior(jnp.full(shape, mean), jnp.full(shape, 2 * np.log(std)))
    np.testing.assert_allclose(q.kl(), 6 * expected, rtol=1e-5)


def test_samples_have_the_posterior_moments():
    shape = (1, 200, 200, 1)
    q = Posterior(jnp.full(shape, 0.5), jnp.full(shape, 2 * np.log(0.3)))
    z = q.sample(jax.random.key(0))
    np.testing.assert_allclose([z.mean(), z.std()], [0.5, 0.3], atol=0.01)


@pytest.fixture(scope="module")
def book():
    table = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], np.float32)
    return Codebook(4, 2), {"params": {"embedding": {"embedding": table}}}, table


def test_the_nearest_code_and_the_nearest_latent(book):
    net, given, table = book
    z = np.random.RandomState(0).uniform(-0.5, 1.5, (2, 3, 2, 2)).astype(np.float32)
    out = net.apply(given, z)
    distance = ((z.reshape(-1, 1, 2) - table) ** 2).sum(-1)
    np.testing.assert_array_equal(out.indices.ravel(), distance.argmin(1))
    np.testing.assert_allclose(out.z.reshape(-1, 2), table[distance.argmin(1)], atol=1e-6)
    np.testing.assert_allclose(out.anchors, z.reshape(-1, 2)[distance.argmin(0)])
    mean = distance.min(1).reshape(2, -1).mean(1) / 2
    np.testing.assert_allclose(out.codebook, mean, rtol=1e-5)
    np.testing.assert_allclose(out.commitment, mean, rtol=1e-5)


def test_gradients_of_the_codebook(book):
    """Straight through for the output; each of both terms moves one side only."""
    net, given, table = book
    z = jnp.array([[[[0.2, 0.1], [0.9, -0.2]]]])
    e = table[:2][None, None]

    def parts(pick):
        return jax.grad(lambda z, given: pick(net.apply(given, z)).sum(), argnums=(0, 1))(z, given)

    through, none = parts(lambda out: out.z)
    np.testing.assert_allclose(through, np.ones_like(z))
    assert not np.any(none["params"]["embedding"]["embedding"])
    none, moved = parts(lambda out: out.codebook)
    assert not np.any(none)
    expected = 2 * (e - z)[0, 0] / 4
    np.testing.assert_allclose(moved["params"]["embedding"]["embedding"][:2], expected, rtol=1e-5)
    moved, none = parts(lambda out: out.commitment)
    np.testing.assert_allclose(moved, 2 * (z - e) / 4, rtol=1e-5)
    assert not np.any(none["params"]["embedding"]["embedding"])


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 8, 1), (8, 8, 3)])
def test_images_that_do_not_fit_are_refused(shape):
    net = AutoencoderKL(8, (1, 1, 1), 1, norm_groups=2)
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\) with H and W multiples of 4, got"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
