"""RK45 against SciPy's, and Euler-Maruyama against the SDEs' own formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffjax import grids, samplers, schedules
from diffjax.samplers.euler_maruyama import drift_and_diffusion
from diffjax.types import Prediction, expand

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
MEAN, STD = 0.3, 0.5


def denoise(z, level):
    """What is known of z if the data are N(MEAN, STD^2)."""
    alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    x = MEAN + gain * (z - alpha * MEAN)
    return Prediction(x, (z - alpha * x) / jnp.maximum(sigma, 1e-6))


def slope(schedule, t, z):
    """dz/dt of the same in float64."""
    (alpha, sigma), width = map(float, schedule.at(np.float64(t))), 1e-6
    ends = [schedule.at(np.float64(t + s * width)) for s in (1, -1)]
    rates = [float(high - low) / (2 * width) for high, low in zip(*ends, strict=True)]
    x = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)
    return rates[0] * x + rates[1] * (z - alpha * x) / sigma


@pytest.mark.parametrize(
    "schedule",
    [schedules.flow(t_min=1e-4), schedules.vp_sde(t_min=1e-3), schedules.ve(0.01, 50.0)],
    ids=["flow", "vp", "ve"],
)
def test_the_flow_ends_where_scipy_ends_it(schedule):
    grid = grids.uniform(schedule, 2)
    sampler = samplers.make("rk45")
    rows = sampler.plan(grid)
    start = samplers.prior(lambda i, k=0: Z, rows)
    found = jax.jit(lambda z: samplers.sample(lambda i, k=0: Z, denoise, sampler, z, rows))(start)
    assert len(rows.level.t) == 1
    for z, end in zip(np.asarray(start, np.float64), found, strict=True):
        ends = (grid.levels.t[0], grid.levels.t[-1])
        exact = solve_ivp(lambda t, y: slope(schedule, t, y), ends, z.ravel(), rtol=1e-9, atol=1e-9)
        assert np.abs(exact.y[:, -1] - np.asarray(end).ravel()).max() < 5e-5


def test_evaluations_are_those_of_scipy():
    def rate(t, y):
        return -5 * y * np.cos(3 * t)

    end, count = samplers.integrate(lambda z, t: -5 * z * jnp.cos(3 * expand(t, z)), Z, 2.0)
    for k, z in enumerate(np.asarray(Z, np.float64)):
        found = solve_ivp(rate, (0, 2), z.ravel(), rtol=1e-5, atol=1e-5)
        assert count[k] == found.nfev
        assert np.abs(found.y[:, -1] - np.asarray(end[k]).ravel()).max() < 2e-5


def test_the_first_step_through_a_flat_field_is_that_of_scipy():
    end, count = samplers.integrate(lambda z, t: 0 * z, Z, 2.0)
    found = solve_ivp(lambda t, y: 0 * y, (0, 2), np.ravel(Z[0]), rtol=1e-5, atol=1e-5)
    assert (np.asarray(count) == found.nfev).all()
    np.testing.assert_array_equal(end, Z)


def test_an_image_does_not_depend_on_its_batch():
    def field(z, t):
        return -z * jnp.square(z) * 10

    whole, counts = samplers.integrate(field, Z * jnp.arange(1.0, 4.0)[:, None, None, None], 1.0)
    assert len(set(counts.tolist())) > 1
    alone, _ = samplers.integrate(field, 3 * Z[2:], 1.0)
    assert np.allclose(whole[2:], alone, atol=1e-6)


def test_what_never_ends_is_not_a_number():
    end, _ = samplers.integrate(lambda z, t: z**2 * 1e3, jnp.ones((1, 2)), 1.0)
    assert np.isnan(end).all()


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}])
def test_tolerances_are_positive(options):
    with pytest.raises(ValueError, match="rtol and atol must be positive"):
        samplers.make("rk45", options)


def test_a_grid_of_one_time_is_refused():
    with pytest.raises(ValueError, match="two different times"):
        samplers.make("rk45").plan(grids.uniform(schedules.vp_sde(), 1, final="clean"))


def test_drift_and_diffusion_are_those_of_the_paper():
    # Song et al. 2021, eq. 32 and 35.
    t = np.linspace(1, 1e-3, 50)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
    for make, expected in (
        (schedules.vp_sde, beta),
        (schedules.sub_vp, beta * (1 - np.exp(-2 * integral))),
    ):
        grid = grids.uniform(make(), 50, final="clean", t_end=1e-3)
        f, g2 = drift_and_diffusion(grid, np.asarray(grid.levels.t)[:-1])
        assert np.allclose(f, -beta / 2, atol=1e-4)
        assert np.allclose(g2, expected, atol=1e-4)


def test_an_euler_maruyama_step_is_that_of_the_release():
    # x - (f x - g^2 score) / N + g noise / sqrt(N), at N times from 1 to 1e-3.
    schedule = schedules.vp_sde()
    rows = samplers.make("euler_maruyama").plan(
        grids.uniform(schedule, 100, final="clean", t_end=1e-3)
    )
    times = np.linspace(1, 1e-3, 100)
    assert np.allclose(rows.level.t, times, atol=1e-6)
    beta, (alpha, sigma) = 0.1 + 19.9 * times, schedule.at(times)
    kept, noise = 1 + beta / 200, np.sqrt(beta / 100)
    noise[-1] = 0  # the last step adds no noise
    expected = np.stack([kept * alpha, kept * sigma - beta / 100 / sigma, noise], -1)
    of_z, of_x, of_eps, of_noise = np.asarray(rows.coef, np.float64)[:, 0].T
    found = np.stack([of_z * alpha + of_x, of_z * sigma + of_eps, of_noise], -1)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_released_langevin_step_is_twice_the_printed_one():
    grid = grids.full(schedules.ve_discrete(0.02, 2.0, steps=3))
    released = samplers.make("langevin", {"rule": "released", "step_size": 1e-5}).plan(grid)
    printed = samplers.make("langevin", {"step_size": 2e-5}).plan(grid)
    assert np.array_equal(released.coef, printed.coef)


def test_a_uniform_start_is_uniform():
    sampler = samplers.make("langevin", {"start": "uniform"})
    rows = sampler.plan(grids.full(schedules.ve_discrete(0.02, 2.0, steps=3)))
    normal = jax.random.normal(jax.random.key(0), (10_000,))
    z = samplers.prior(lambda i, k=0: normal, rows, sampler)
    assert np.abs(np.sort(z) - np.linspace(-1, 1, 10_000)).max() < 0.05


def test_the_norms_of_a_batch_are_their_mean():
    grid = grids.uniform(schedules.ve(0.1, 1.0), 2)
    made = {}
    for norm in ("image", "batch"):
        sampler = samplers.make("pc", {"norm": norm})
        rows = sampler.plan(grid)
        row = jax.tree.map(lambda leaf: leaf[0], rows)
        for size in (1, 3):
            z = 2 * Z[:size]
            out, _ = sampler.step(lambda i, k=0: Z[:size], denoise, z, sampler.init(z, rows), row)  # noqa: B023
            made[norm, size] = np.asarray(out[0])
    assert np.allclose(made["image", 1], made["image", 3], atol=1e-6)
    assert np.allclose(made["batch", 1], made["image", 1], atol=1e-6)
    assert not np.allclose(made["batch", 1], made["batch", 3], atol=1e-4)


def test_a_schedule_that_reaches_the_data_is_followed_to_its_end():
    """Else the result is the prediction of x at the last time before."""
    reaches, stops = schedules.flow(t_min=0.0), schedules.flow(t_min=1e-3)
    followed = samplers.make("rk45").plan(grids.uniform(reaches, 3, final="last"))
    predicted = samplers.make("rk45").plan(grids.uniform(stops, 3, final="clean"))
    assert not followed.coef["clean"].any() and followed.coef["last"] == 0
    assert predicted.coef["clean"].all() and predicted.coef["last"] == np.float32(1e-3)
