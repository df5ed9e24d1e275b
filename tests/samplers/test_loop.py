import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from diffjax.types import Level, Prediction
from tests import oracle

GRID = grids.leading(schedules.linear(), 10)


def test_images_do_not_depend_on_their_batch():
    keys = jax.random.split(jax.random.key(0), 4)
    four = samplers.image_noise(keys, (3,))(5, 1)
    one = samplers.image_noise(keys[2:3], (3,))(5, 1)
    assert np.array_equal(four[2], one[0])
    assert not np.array_equal(four[2], samplers.image_noise(keys, (3,))(6, 1)[2])
    assert not np.array_equal(four[2], samplers.image_noise(keys, (3,))(5, 0)[2])


def test_padded_rows_share_one_compilation():
    traces = []

    @jax.jit
    def run(z, rows, n):
        traces.append(1)
        noise = samplers.image_noise(jax.random.split(jax.random.key(1), 2), (3,))
        return samplers.sample(noise, oracle.gaussian(0.1, 0.5), samplers.ddim(), z, rows, n=n)

    z = jax.random.normal(jax.random.key(0), (2, 3))
    for steps, sampler in (
        (5, samplers.ddim(0.0)),
        (10, samplers.ddim(0.7)),
        (20, samplers.ancestral("fixedlarge")),
    ):
        rows = sampler.plan(grids.leading(schedules.linear(), steps))
        noise = samplers.image_noise(jax.random.split(jax.random.key(1), 2), (3,))
        plain = samplers.sample(noise, oracle.gaussian(0.1, 0.5), sampler, z, rows)
        assert np.asarray(run(z, samplers.pad(rows, 32), steps)) == pytest.approx(
            np.asarray(plain), rel=1e-5
        )
    assert len(traces) == 1


def test_pad_refuses_to_cut():
    with pytest.raises(ValueError, match="cannot pad 10 rows to 4"):
        samplers.pad(samplers.ddim().plan(GRID), 4)


def level():
    return Level(0.0, jnp.asarray(0.6), jnp.asarray(0.8))


def test_clip_keeps_z_consistent():
    z = jnp.array([[2.0, -0.1]])

    def denoise(z, lv):
        return Prediction(jnp.array([[3.0, 0.2]]), jnp.array([[0.25, -0.275]]))

    p = samplers.clip(denoise)(z, level())
    assert p.x.tolist() == [[1.0, pytest.approx(0.2)]]
    assert np.asarray(0.6 * p.x + 0.8 * p.eps) == pytest.approx(np.asarray(z))
    kept = samplers.clip(denoise, rederive_eps=False)(z, level())
    assert kept.eps[0, 0] == 0.25


def test_dynamic_threshold_scales_by_the_quantile():
    x = jnp.concatenate([jnp.full((1, 90), 0.5), jnp.full((1, 10), 3.0)], axis=1)

    def denoise(z, lv):
        return Prediction(x, x)

    out = samplers.dynamic_threshold(denoise, quantile=0.95, maximum=2.0)(x, level()).x
    assert float(out.max()) == 1.0
    assert np.asarray(out)[0, 0] == pytest.approx(0.25)  # s = 3 is clamped to 2
    small = samplers.dynamic_threshold(denoise, quantile=0.5, maximum=2.0)(x, level()).x
    assert np.asarray(small)[0, 0] == pytest.approx(0.5)  # s = 0.5 is clamped to 1


def test_dynamic_threshold_refuses_bad_options():
    with pytest.raises(ValueError, match="quantile"):
        samplers.dynamic_threshold(lambda z, lv: None, quantile=0.0)
