"""RefineNets of NCSN and NCSNv2: what their layers compute, and recorded outputs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smld
from diffjax.model import make_network
from diffjax.nets.refinenet import LevelNorm, RefineNet, resize_by_corners
from diffjax.types import ConfigError
from tests.filled import fill
from tests.parity import cases, refinenet_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "refinenet.npz"
Z = jax.random.normal(jax.random.key(1), (2, 6, 4, 3))
TINY = dict(channels=4, multipliers=(1, 1, 1), blocks=1)


@pytest.mark.parametrize("name", refinenet_cases.NETS)
def test_recorded_output_of_the_release(name):
    with np.load(GOLDEN) as recorded:
        assert cases.relative_error(refinenet_cases.ours(name), recorded[name]) < 1e-5


def test_a_line_is_interpolated_exactly_and_corners_stay():
    y, x = jnp.mgrid[:3, :4]
    plane = (2.0 * y - x)[None, :, :, None]
    found = resize_by_corners(plane, (5, 10))[0, :, :, 0]
    wanted = 2 * np.linspace(0, 2, 5)[:, None] - np.linspace(0, 3, 10)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_norm_of_a_level_is_that_of_the_paper():
    norm, x = LevelNorm(levels=3), np.asarray(Z)
    table = np.random.default_rng(0).normal(size=(3, 9)).astype("f4")
    level = np.array([2, 0])
    found = norm.apply({"params": {"embed": {"embedding": table}}}, x, jnp.asarray(level))
    for image, row, out in zip(x, table[level], found, strict=True):
        gamma, alpha, beta = row[:3], row[3:6], row[6:]
        means = image.mean((0, 1))
        inside = (image - means) / np.sqrt(image.var((0, 1)) + 1e-5)
        apart = (means - means.mean()) / np.sqrt(means.var(ddof=1) + 1e-5)
        np.testing.assert_allclose(out, gamma * (inside + alpha * apart) + beta, atol=1e-5)


def test_only_norms_of_levels_are_told_the_time():
    for levels, told in ((3, True), (0, False)):
        net = RefineNet(**TINY, noise_levels=levels)
        params, run = {"params": fill(net, Z, jnp.zeros(2))}, jax.jit(net.apply)
        outs = [run(params, Z, t) for t in (0.0, 1.0, 2.0, 1.4, 7.0)]
        assert all(np.array_equal(outs[0], o) for o in outs) != told
        assert np.array_equal(outs[1], outs[3])  # the nearest level
        assert np.array_equal(outs[2], outs[4])  # none beyond the last
        assert outs[0].shape == Z.shape


def test_norms_begin_near_one_and_without_a_shift():
    params = LevelNorm(levels=10).init(
        jax.random.key(0), jnp.zeros((1, 2, 2, 64)), jnp.zeros(1, int)
    )
    gamma, alpha, beta = jnp.split(params["params"]["embed"]["embedding"], 3, axis=1)
    for part in (gamma, alpha):
        assert abs(part.mean() - 1) < 0.01
        assert part.std() == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(beta, 0)


def test_extra_channels_join_the_image():
    net, extra = RefineNet(**TINY), jnp.ones((2, 6, 4, 2))
    params = {"params": fill(net, Z, jnp.zeros(2), {"concat": extra})}
    assert params["params"]["begin_conv"]["kernel"].shape == (3, 3, 5, 4)
    run = jax.jit(net.apply)
    outs = [run(params, Z, 0.0, {"concat": k * extra}) for k in (1, 2)]
    assert not np.allclose(*outs)


@pytest.mark.parametrize(
    ("net", "z", "cond", "error", "message"),
    [
        (RefineNet(**TINY, num_classes=2), Z, None, ConfigError, "network.conditional=False"),
        (RefineNet(**TINY), Z[:, :5], None, ValueError, "multiples of 2"),
        (RefineNet(**TINY), Z, {"control": ()}, ValueError, r"does not read cond\['control'\]"),
    ],
)
def test_what_does_not_fit_is_refused(net, z, cond, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(net.init, jax.random.key(0), z, jnp.zeros(len(z)), cond)


def test_the_config_says_whether_norms_are_told_the_level():
    config = smld.ncsn()
    assert make_network(config, 3).noise_levels == config.schedule.steps == 10
    assert make_network(smld.ncsnv2(), 3).noise_levels == 0
    config.schedule.name = "ve"
    with pytest.raises(ConfigError, match=r"network.level_norms .*=ve has continuous time"):
        make_network(config, 3)
