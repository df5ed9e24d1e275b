"""Stochastic interpolants: paths, and SDEs whose diffusion is not that of the forward process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, parameterization, samplers, schedules
from diffjax.types import Level

SPREAD = 0.5  # of Gaussian data


@pytest.mark.parametrize("make", [schedules.flow, schedules.trigonometric])
@pytest.mark.parametrize("diffusion, strength", [
    ("forward", 1.0), ("forward", 0.0), ("sigma", 1.0), ("sigma", 2.0), ("sine", 1.0)
])  # fmt: skip
def test_every_diffusion_ends_at_the_data(make, diffusion, strength):
    schedule = make(t_min=0.0, t_max=0.999)
    grid = grids.uniform(schedule, 1000, final="last")
    sampler = samplers.make("euler_maruyama", {"diffusion": diffusion, "strength": strength})
    rows = jax.tree.map(jnp.asarray, sampler.plan(grid))

    # The noise of Gaussian data is a multiple of z, so that a step multiplies z and adds noise.
    def denoise(z, level):
        variance = (level.alpha * SPREAD) ** 2 + level.sigma**2
        return parameterization.eps().decode(level.sigma / variance * z, z, level)

    def step(variance, row):
        z = jnp.ones((1, 1))

        def move(scale):
            return sampler.step(lambda i, k=0: scale * z, denoise, z, sampler.init(z, rows), row)[0]

        still = move(0.0)[0, 0]
        return still**2 * variance + (move(1.0)[0, 0] - still) ** 2, None

    start = (rows.level.alpha[0] * SPREAD) ** 2 + rows.level.sigma[0] ** 2
    variance = float(jax.lax.scan(step, start, rows)[0])
    assert variance**0.5 == pytest.approx(SPREAD, rel=0.01)


def test_noise_of_the_sine_has_its_variance():
    """w = 2 sin^2(pi t / T), which is 0 at the noise and at the data."""
    grid = grids.uniform(schedules.flow(t_min=0.0, t_max=0.9), 4, final="last")
    sampler = samplers.make("euler_maruyama", {"diffusion": "sine", "strength": 2.0})
    rows, z = jax.tree.map(jnp.asarray, sampler.plan(grid)), jnp.ones((1, 1))

    def move(row, scale):
        denoise = lambda z, level: parameterization.eps().decode(0 * z, z, level)  # noqa: E731
        return sampler.step(lambda i, k=0: scale * z, denoise, z, sampler.init(z, rows), row)[0]

    t = np.asarray(grid.levels.t)
    for k in range(3):
        row = jax.tree.map(lambda leaf, k=k: leaf[k], rows)
        noise = float((move(row, 1.0) - move(row, 0.0))[0, 0])
        wanted = 2 * np.sin(np.pi * t[k] / 0.9) ** 2 * (t[k] - t[k + 1])
        assert noise**2 == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_trigonometric_path_preserves_variance_and_its_velocity_is_v():
    schedule = schedules.trigonometric(t_min=0.0, t_max=1.0)
    t = jnp.linspace(0.1, 0.9, 5)
    alpha, sigma = schedule.at(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(5), rtol=1e-6)
    lam = 2 * np.log(np.asarray(alpha, np.float64) / np.asarray(sigma, np.float64))
    np.testing.assert_allclose(schedule.t_of(lam), t, rtol=1e-5)
    x, eps = 0.7, -0.4
    slope = jax.vmap(jax.grad(lambda u: schedule.at(u)[0] * x + schedule.at(u)[1] * eps))(t)
    v = parameterization.v().target(jnp.full(5, x), jnp.full(5, eps), Level(t, alpha, sigma))
    np.testing.assert_allclose(slope, np.pi / 2 * v, rtol=1e-5)


def test_an_unknown_diffusion_is_named():
    with pytest.raises(ValueError, match="Did you mean 'sigma'"):
        samplers.make("euler_maruyama", {"diffusion": "sigm"})


def test_the_released_sde_of_sit_takes_the_same_steps():
    # 249 steps of .96 / 249 with noise, and one of .04 without; time runs from noise to data.
    schedule = schedules.flow(t_min=0.0, t_max=1.0)
    grid = grids.uniform(schedule, 250, final="clean", t_end=0.04)
    sampler = samplers.make("euler_maruyama", {"diffusion": "sigma", "strength": 2.0})
    rows = jax.tree.map(jnp.asarray, sampler.plan(grid))
    draws = np.random.default_rng(0).standard_normal((250, 1, 3)).astype("f4")
    start = np.asarray([[0.3, -1.2, 2.0]], "f4")

    def velocity(z, t, xp=jnp):
        return xp.sin(2 * z) - t * z

    def denoise(z, level):
        raw = -velocity(z, 1 - level.t)  # ours runs from data to noise
        return parameterization.velocity().decode(raw, z, level)

    def step(z, row):
        draw = lambda i, k=0: jnp.asarray(draws)[i]  # noqa: E731
        return sampler.step(draw, denoise, z, sampler.init(z, rows), row)[0], None

    found = jax.lax.scan(step, jnp.asarray(start), rows)[0]

    z, times = start.astype(np.float64), np.linspace(0, 0.96, 250)
    for i, t in enumerate(times):
        v, last = velocity(z, t, np), i == 249
        score = (t * v - z) / ((1 - t) ** 2 + t * (1 - t))
        dt = 0.04 if last else times[1]
        z = z + (v + (1 - t) * score) * dt
        z = z if last else z + np.sqrt(2 * (1 - t) * dt) * draws[i]
    np.testing.assert_allclose(found, z, rtol=2e-4, atol=2e-4)


def test_the_forward_diffusion_is_refused_where_there_is_no_signal():
    grid = grids.uniform(schedules.flow(t_min=0.0, t_max=1.0), 4)
    with pytest.raises(ValueError, match="diffusion=forward is infinite"):
        samplers.make("euler_maruyama").plan(grid)
