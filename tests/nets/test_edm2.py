"""The network of EDM2: magnitudes in closed form, sizes of the paper, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.edm2 import EDM2UNet, MPBlock
from diffjax.nets.magnitude import (
    MPConv,
    MPEmbed,
    MPFourier,
    Uncertainty,
    mp_concat,
    mp_silu,
    mp_sum,
    normalise,
    normalise_kernel,
)
from diffjax.types import ConfigError

FIXED = ("freqs", "phases")  # drawn once and not trained
# Parameters in millions (Karras et al. 2024, table 2) by width.
PUBLISHED = {128: 124.7, 192: 280.2, 256: 497.8, 320: 777.5, 384: 1119.3, 448: 1523.2}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def magnitude(x, axis=None):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=axis))


def small(**options):
    shared = dict(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_channels=4)
    return EDM2UNet(**{**shared, "num_classes": 3, "out_channels": 2, **options})


def count(net, channels):
    example = jnp.zeros((1, 64, 64, channels)), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}
    found = jax.eval_shape(net.init, jax.random.key(0), *example)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return sum(leaf.size for path, leaf in leaves if path[-1].key not in FIXED)


@pytest.mark.parametrize("width", PUBLISHED)
def test_sizes_are_the_published_ones(width):
    found = count(EDM2UNet(channels=width, num_classes=1000, out_channels=4), 4) + 128
    assert found / 1e6 == pytest.approx(PUBLISHED[width], abs=0.05)


def test_layers_preserve_magnitudes():
    x, y = normal(64, 4, 4, 48), normal(64, 4, 4, 16, seed=1)
    layer = MPConv(96, 3)
    params, run = jax.jit(layer.init)(jax.random.key(1), x), jax.jit(layer.apply)
    inside = run(params, x)[:, 1:-1, 1:-1]  # beyond the border there is nothing
    assert magnitude(inside) == pytest.approx(1.0, abs=0.02)
    larger = jax.tree.map(lambda leaf: 5 * leaf, params)
    np.testing.assert_allclose(run(larger, x), run(params, x), rtol=2e-3, atol=2e-3)
    assert magnitude(mp_silu(x)) == pytest.approx(1.0, abs=0.01)
    for share in (0.3, 0.5):
        assert magnitude(mp_sum(x, x[::-1], share)) == pytest.approx(1.0, abs=0.02)
        joined = mp_concat(x, y, share)
        assert magnitude(joined) == pytest.approx(1.0, abs=0.02)
        # Each part has its share of the sum of squares, whatever its number of channels is.
        squares = [np.square(part).sum() for part in (joined[..., :48], joined[..., 48:])]
        assert squares[1] / squares[0] == pytest.approx((share / (1 - share)) ** 2, rel=0.05)


def test_pixels_and_outputs_get_magnitude_one():
    x = normal(3, 5, 5, 7) * 9 + 4
    np.testing.assert_allclose(magnitude(normalise(x), axis=-1), 1.0, atol=1e-3)
    kernel = normalise_kernel(normal(3, 3, 6, 4) * jnp.array([0.1, 1.0, 10.0, 30.0]))
    np.testing.assert_allclose(magnitude(kernel, axis=(0, 1, 2)), 1.0, atol=2e-3)
    zero = jax.grad(lambda v: normalise(v).sum())(jnp.zeros(4))
    assert np.isfinite(zero).all()


def test_embeddings_have_magnitude_one():
    t = jnp.linspace(-1.5, 1.0, 50)
    fourier = MPFourier(512)
    params = fourier.init(jax.random.key(0), t)
    waves = fourier.apply(params, t)
    assert magnitude(waves) == pytest.approx(1.0, abs=0.02)
    f, p = params["params"]["freqs"], params["params"]["phases"]
    wanted = np.sqrt(2) * np.cos(2 * np.pi * (np.outer(t, f) + p))
    np.testing.assert_allclose(waves, wanted, atol=1e-4)
    grads = jax.grad(lambda q: fourier.apply(q, t).sum())(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))

    table = MPEmbed(10, 32)
    labels = jnp.arange(11)
    params = table.init(jax.random.key(0), labels)
    rows = table.apply(params, labels)
    np.testing.assert_allclose(magnitude(rows[:10], axis=0), 1.0, atol=1e-3)
    assert not rows[10].any()  # no class
    # It is a layer on one-hot vectors of magnitude 1.
    hot = jax.nn.one_hot(labels, 10) * 10**0.5
    dense = MPConv(32).apply(params, hot)
    np.testing.assert_allclose(rows, dense, atol=1e-5)


@pytest.mark.parametrize("decoder", [False, True])
def test_blocks_preserve_magnitudes(decoder):
    x, emb = normal(16, 8, 8, 16), mp_silu(normal(16, 32, seed=1))
    block = MPBlock(32, decoder, heads=2)

    @jax.jit
    def run(key):
        params = block.init(key, x, emb)
        return params, [block.apply(params, factor * x, emb) for factor in (1, 7)]

    params, (y, scaled) = run(jax.random.key(0))
    assert float(params["params"]["emb_gain"]) == 0
    assert magnitude(y) == pytest.approx(1.0, abs=0.1)
    # A larger input makes no difference to an encoder, whose pixels are normalised.
    assert (magnitude(scaled) / magnitude(y) > 2) == decoder


@pytest.fixture(scope="module")
def begun():
    """A small network that sees its inputs: with the gains, which begin at 0, at 1."""
    net = small(dropout=0.5, clip=3.0)
    z, t, cond = normal(2, 4, 4, 2), jnp.array([-0.5, 0.3]), {"label": jnp.array([0, 2])}
    fresh = jax.jit(net.init)(jax.random.key(0), z, t, cond)["params"]
    gains = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones(()) if path[-1].key.endswith("gain") else leaf, fresh
    )
    return net, fresh, gains, (z, t, cond)


def test_the_network_begins_at_zero_and_reads_all_its_inputs(begun):
    net, fresh, gains, (z, t, cond) = begun
    run = jax.jit(lambda p, z, t, cond: net.apply({"params": p}, z, t, cond))
    assert not np.any(run(fresh, z, t, cond))
    out = run(gains, z, t, cond)
    assert out.shape == z.shape and 0.3 < magnitude(out) < 1.5
    label = {"label": jnp.array([1, 1])}
    for other in (
        run(gains, z + 0.1, t, cond),
        run(gains, z, t + 0.1, cond),
        run(gains, z, t, label),
    ):
        assert np.abs(other - out).max() > 1e-3


def test_options_of_the_computation_change_no_value(begun):
    net, _, gains, given = begun
    out, half, again = jax.jit(
        lambda p: [
            net.clone(**options).apply({"params": p}, *given)
            for options in ({}, {"dtype": jnp.bfloat16}, {"remat": "blocks"})
        ]
    )(gains)
    assert half.dtype == jnp.float32 and 0 < np.abs(half - out).max() < 0.15
    np.testing.assert_allclose(again, out, atol=1e-5)


def test_activations_are_dropped_in_training_and_cut(begun):
    net, _, gains, given = begun

    @jax.jit
    def run(p, key):
        drop = lambda k: net.apply({"params": p}, *given, train=True, rngs={"dropout": k})  # noqa: E731
        cut = net.clone(clip=1e-3).apply({"params": p}, *given)
        return drop(key), drop(jax.random.fold_in(key, 1)), cut

    one, other, cut = run(gains, jax.random.key(0))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(cut).max() < 0.01  # of a last layer on activations of at most 0.001


def test_wrong_inputs_are_named():
    net = small()
    z, t, cond = normal(2, 4, 4, 2), jnp.zeros(2), {"label": jnp.array([0, 2])}
    for wrong, words in (
        ((z[:, :3], t, cond), "multiples of 2"),
        ((z, t, {}), r"needs cond\['label'\] in 0 .. 2"),
        ((z, t, {**cond, "context": z}), r"does not read cond\['context'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(net.init, jax.random.key(0), *wrong)
    with pytest.raises(ConfigError, match=r"head_channels=5 does not divide the 16 channels of le"):
        jax.eval_shape(small(head_channels=5).init, jax.random.key(0), z, t, cond)


def test_uncertainty_is_one_number_for_each_level():
    net, c = Uncertainty(), jnp.linspace(-1.5, 1.1, 400)
    params = net.init(jax.random.key(0), c)
    u = net.apply(params, c)
    assert u.shape == (400,) and 0.3 < magnitude(u) < 3
