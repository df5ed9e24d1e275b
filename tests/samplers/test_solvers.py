"""Every named sampler on every kind of schedule, at its limits, and statistics of noisy ones."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from diffjax.samplers import stochastic_adams
from diffjax.samplers.exponential import _single_orders
from diffjax.types import Level, Prediction
from tests import oracle

MEANS, STD = np.array([-0.7, 0.1, 0.8]), 0.1
SCHEDULES = {
    "vp": schedules.linear(),
    "ve": schedules.ve(0.01, 20.0),
    "edm": schedules.edm(0.01, 20.0),
    "flow": schedules.flow(),
}
# Consistency samplers need a distilled network, the Langevin ones their own step sizes.
# Euler-Maruyama and RK45 want times, not levels: see test_adaptive.py.
OTHERS = {"ddim_inverse", "lcm", "tcd", "langevin", "pc", "euler_maruyama", "rk45"}
NAMES = sorted(set(samplers.SAMPLERS) - OTHERS)
COMPILED = {}


def draw(sampler, grid, denoise, *, batch=64, seed=0):
    """Samples (batch,), compiled once per step function and denoiser."""

    def run(key, rows, n):
        def noise(i, k=0):
            return jax.random.normal(
                jax.random.fold_in(jax.random.fold_in(key, i), k), (batch, 1), jnp.float32
            )

        return samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows), rows, n=n)

    call = COMPILED.setdefault((sampler.step, denoise, batch), jax.jit(run))
    rows = sampler.plan(grid)
    count = len(rows.level.t)
    return np.asarray(call(jax.random.key(seed), samplers.pad(rows, 128), count))[:, 0]


def options(name):
    return {"variance": 0.5} if name == "ddpm" else {}


MIXTURE = oracle.mixture(MEANS, STD)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_samples_fall_on_the_data(kind, name):
    schedule = SCHEDULES[kind]
    grid = grids.uniform_logsnr(schedule, 24)
    out = draw(samplers.make(name, options(name)), grid, MIXTURE)
    oracle.check_mixture(out, MEANS, 0.15)


def test_solvers_of_equal_memory_share_one_compilation():
    traces = []

    @jax.jit
    def run(z, rows, n):
        traces.append(rows.coef.shape)
        sampler = samplers.ddim()
        return samplers.sample(lambda i, k=0: jnp.zeros_like(z), MIXTURE, sampler, z, rows, n=n)

    z = jnp.ones((4, 1))
    grid = grids.karras(schedules.edm(), 10)
    for sampler in (
        samplers.dpm_solver(order=3),
        samplers.dpm_solver(order=3, algorithm="sde-dpmsolver++"),
        samplers.heun(),
        samplers.heun(s_churn=30.0),
        samplers.dpm_solver_single(),
        samplers.deis(order=3),
        samplers.unipc(order=1),
    ):
        rows = sampler.plan(grid)
        run(z, samplers.pad(rows, 64), len(rows.level.t))
    assert len(traces) == len(set(traces)) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_predicted_data(name):
    grid = grids.trailing(schedules.linear(), 1)
    sampler = samplers.make(name)
    rows = sampler.plan(grid)
    assert len(rows.level.t) == 1
    z = jnp.linspace(-2, 2, 5)[:, None]
    out = samplers.sample(lambda i, k=0: jnp.ones_like(z), MIXTURE, sampler, z, rows)
    level = Level(*(leaf[0] for leaf in rows.level))
    assert out == pytest.approx(np.asarray(MIXTURE(z, level).x), abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zero_snr", "flow"])
def test_levels_without_signal_and_without_noise(kind, name):
    """alpha(1) = 0 at the start, sigma = 0 at the end."""
    if kind == "zero_snr":
        grid = grids.trailing(schedules.zero_terminal_snr(schedules.linear()), 20)
    else:
        schedule = schedules.flow(t_min=0.0, t_max=1.0)
        grid = grids.from_times(schedule, np.linspace(1, 0, 21), final="last")
    assert grid.levels.alpha[0] == pytest.approx(0, abs=1e-12) and grid.levels.sigma[-1] == 0
    grid.levels.alpha[0] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = samplers.make(name, options(name)).plan(grid)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        out = draw(samplers.make(name, options(name)), grid, MIXTURE)
    oracle.check_mixture(out, MEANS, 0.2)


def walk(rows, dtype=np.float32):
    """The end of an affine plan in NumPy, which compiles nothing; the network has a dtype."""
    rng = np.random.default_rng(0)
    stack = np.zeros((rows.coef.shape[1], 64), np.float32)
    stack[0] = rng.standard_normal(64)
    for k, coef in enumerate(rows.coef):
        level = Level(*(leaf[k] for leaf in rows.level))
        x, eps, _ = (v if v is None else v.astype(dtype) for v in exact(stack[0], level))
        x, eps = x.astype(np.float32), eps.astype(np.float32)
        drawn = rng.standard_normal(64).astype(np.float32)
        stack = np.tensordot(coef, np.concatenate([stack, np.stack([x, eps, drawn])]), 1)
    return stack[0]


def exact(z, level):
    """`oracle.mixture` in NumPy."""
    var, gap = level.alpha**2 * STD**2 + level.sigma**2, z[..., None] - level.alpha * MEANS
    weight = np.exp(-(gap**2 - (gap**2).min(-1, keepdims=True)) / (2 * var))
    weight /= weight.sum(-1, keepdims=True)
    x = (weight * (MEANS + level.alpha * STD**2 / var * gap)).sum(-1)
    return Prediction(x, (weight * gap).sum(-1) * level.sigma / var)


@pytest.mark.parametrize("name", NAMES)
def test_every_timestep(name):
    """T steps: no solver loses its coefficients to the smallness of the steps."""
    schedule = schedules.linear(300, 1e-3 / 3, 0.2 / 3)  # as much noise as in 1000 steps
    rows = samplers.make(name, options(name)).plan(grids.full(schedule))
    out = walk(rows)
    assert len(rows.level.t) >= 300
    oracle.check_mixture(out, MEANS, 0.15)


def test_no_solver_chooses_its_levels():
    words = {"steps", "spacing", "grid", "schedule", "rho", "sigma_min", "sigma_max", "karras"}
    for name, make in samplers.SAMPLERS.items():
        assert not words & set(inspect.signature(make).parameters), name


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpm2_ancestral", "heun", "ddim"])
def test_noisy_solvers_keep_the_gaussian(name):
    """Moments of 20,000 samples of N(0.4, 0.3^2) within the CLT bound and a small bias."""
    given = {"heun": {"s_churn": 20.0}, "ddim": {"eta": 1.0}}.get(name, {})
    grid = grids.uniform_logsnr(SCHEDULES["edm"], 60)
    sampler = samplers.make(name, given)
    out = draw(sampler, grid, GAUSSIAN, batch=20_000)
    assert out.mean() == pytest.approx(0.4, abs=4 * 0.3 / np.sqrt(20_000) + 0.004)
    bias = {"ddim": 0.08, "dpm2_ancestral": 0.03}.get(name, 0.012)  # of 60 steps
    assert out.std() == pytest.approx(0.3, rel=4 / np.sqrt(40_000) + bias)


@pytest.mark.parametrize("predict_x", [True, False])
def test_stochastic_adams_keeps_the_gaussian(predict_x):
    """Every step has noise here; the moments are those of the data after 60 steps."""
    grid = grids.uniform_logsnr(SCHEDULES["edm"], 60)
    sampler = samplers.sa_solver(low=-np.inf, high=np.inf, predict_x=predict_x)
    out = draw(sampler, grid, GAUSSIAN, batch=20_000)
    assert out.mean() == pytest.approx(0.4, abs=4 * 0.3 / np.sqrt(20_000) + 0.004)
    assert out.std() == pytest.approx(0.3, rel=4 / np.sqrt(40_000) + 0.03)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_stochastic_adams_integrates_polynomials(points):
    """A step of an output that is a polynomial of lam of degree points - 1 is exact."""
    lam = np.array([-1.0, -0.4, 0.1, 0.5, 0.8])
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    grid = grids.from_levels(schedules.linear(), np.arange(5.0)[::-1], alpha, alpha / np.exp(lam))
    rng = np.random.default_rng(0)
    powers, tau = rng.normal(size=points), 0.7
    rate = 1 + tau**2
    _, weights, _ = stochastic_adams._integrate(
        grid, 3, 4, [3 - j for j in range(points)], tau, predict_x=True
    )
    u = np.linspace(-0.3, 0, 20_001)
    values = np.exp(rate * u) * np.polyval(powers, u + lam[4])
    wanted = rate * alpha[4] * np.trapezoid(values, u)
    found = np.dot(weights, [np.polyval(powers, lam[3 - j]) for j in range(points)])
    if points == 2:  # the authors' change is of order h^3
        assert found == pytest.approx(wanted, abs=0.3**3)
    else:
        assert found == pytest.approx(wanted, rel=1e-6)


GAUSSIAN = oracle.gaussian(0.4, 0.3)


def test_part_of_a_grid_is_churned_like_the_whole():
    g, churn = grids.karras(schedules.edm(), 8), samplers.heun(s_churn=1.0)
    part = churn.plan(grids.truncate(g, strength=0.5))
    np.testing.assert_allclose(part.level.sigma, churn.plan(g).level.sigma[8:], rtol=1e-6)


def test_the_corrector_steps_by_one_minus_beta():
    # Song et al. 2021, algorithm 5: 2 alpha_i (r |z| / |g|)^2 with alpha_i = 1 - beta_i.
    g = grids.full(schedules.linear())
    rows = jax.tree.map(lambda leaf: leaf[0], samplers.ddim().plan(g))
    drawn, eps = jnp.full((1, 4), 2.0), jnp.full((1, 4), 0.5)
    still = samplers.ddim()._replace(step=lambda noise, denoise, z, state, row: (z, state))
    pc = samplers.predictor_corrector(still, snr=0.16)
    z, _ = pc.step(lambda i, k=0: drawn, lambda z, level: Prediction(z, eps), 0 * eps, (), rows)
    score = -eps / g.levels.sigma[0]
    size = 2 * (1 - 0.02) * (0.16 * 4 / np.linalg.norm(score)) ** 2
    assert np.asarray(z) == pytest.approx(
        np.asarray(size * score + np.sqrt(2 * size) * drawn), 1e-5
    )


def test_predictor_corrector_keeps_the_gaussian():
    grid = grids.uniform_logsnr(SCHEDULES["ve"], 100)
    images = 400

    def denoise(z, level):
        return GAUSSIAN(z, level)

    sampler = samplers.predictor_corrector(samplers.ddim(1.0), snr=0.16)

    @jax.jit
    def run(key, rows):
        def noise(i, k=0):
            key_i = jax.random.fold_in(jax.random.fold_in(key, i), k)
            return jax.random.normal(key_i, (images, 64))

        return samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows), rows)

    out = np.asarray(run(jax.random.key(0), sampler.plan(grid)))
    assert out.mean() == pytest.approx(0.4, abs=0.02)
    assert out.std() == pytest.approx(0.3, rel=0.05)


def test_bf16_networks_leave_the_arithmetic_in_float32():
    def rough(z, level):
        p = MIXTURE(z, level)
        rounded = (v.astype(jnp.bfloat16).astype(jnp.float32) for v in (p.x, p.eps))
        return Prediction(*rounded)

    grid = grids.uniform_logsnr(schedules.linear(), 20)
    for name in ("dpmpp_2m", "unipc", "lms", "heun"):
        sharp, out = (draw(samplers.make(name), grid, d) for d in (MIXTURE, rough))
        assert out.dtype == np.float32 and np.abs(out - sharp).max() < 0.1, name
        oracle.check_mixture(out, MEANS, 0.15)


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_bears_bf16_networks(name):
    rows = samplers.make(name, options(name)).plan(grids.uniform_logsnr(schedules.linear(), 20))
    sharp, out = walk(rows), walk(rows, jnp.bfloat16)
    # Where the ways to two means part, a rounding decides; the rest stays together.
    assert np.mean(np.abs(out - sharp) < 0.1) > 0.9
    oracle.check_mixture(out, MEANS, 0.15)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: samplers.dpm_solver(order=4), "order must be one of 1, 2, 3, got 4"),
        (lambda: samplers.dpm_solver(algorithm="dpm"), "unknown algorithm 'dpm'"),
        (lambda: samplers.dpm_solver(solver_type="bh2"), "solver_type"),
        (lambda: samplers.unipc(order=5), "order"),
        (lambda: samplers.lms(order=5), "order"),
        (lambda: samplers.plms(output="x"), "output must be 'eps' or 'v', got 'x'"),
        (lambda: samplers.heun(s_churn=-1.0), "must not be negative"),
        (lambda: samplers.tcd(gamma=2.0), "gamma"),
        (lambda: samplers.annealed_langevin(steps_per_level=0), "steps_per_level"),
        (lambda: samplers.predictor_corrector(samplers.ddim(), corrections=0), "corrections"),
        (
            lambda: samplers.annealed_langevin().plan(grids.leading(schedules.linear(), 4)),
            "variance-exploding",
        ),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n.startswith(("dpm_solver", "dpmpp", "unipc"))]
)
def test_a_last_level_that_comes_twice_is_left_alone(name, shift):
    """Grids of diffusers can end so, and the times of the two levels can differ."""
    schedule = schedules.linear()
    times, levels = (
        [900.0, 500.0, 200.0, 200.0 - shift],
        schedule.at(np.array([900, 500, 200, 200])),
    )
    grid = grids.from_levels(schedule, np.array(times), *levels)
    free = {"lower_order_final": False} if name not in ("dpmpp_2s", "dpmpp_3s") else {}
    for given in ({}, free):
        rows = samplers.make(name, given).plan(grid)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))


@pytest.mark.parametrize(("order", "steps"), [(2, 8), (3, 9)])
def test_singlestep_solvers_end_as_asked(order, steps):
    grid = grids.uniform_logsnr(SCHEDULES["edm"], steps, final="last")
    lower, free = (
        samplers.dpm_solver_single(order=order, lower_order_final=on).plan(grid).coef
        for on in (True, False)
    )
    assert np.array_equal(lower[: steps - 2], free[: steps - 2])
    assert not np.array_equal(lower[-1], free[-1])


@pytest.mark.parametrize(("steps", "lowered"), [(14, True), (15, False)])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "deis"])
def test_grids_of_fifteen_steps_keep_their_orders(name, steps, lowered):
    grid = grids.uniform_logsnr(SCHEDULES["edm"], steps, final="last")
    lower, free = (
        samplers.make(name, {"lower_order_final": on}).plan(grid).coef for on in (True, False)
    )
    assert np.array_equal(lower, free) != lowered


@pytest.mark.parametrize(
    ("count", "order", "lower", "clean", "orders"),
    [
        (9, 3, False, False, "123123123"),
        (9, 3, True, False, "123123121"),
        (9, 3, False, True, "123123121"),
        (10, 3, False, False, "1231231231"),
        (11, 3, False, False, "12312312312"),
        (11, 3, True, True, "12312312311"),
        (8, 2, False, False, "12121212"),
        (8, 2, True, False, "12121211"),
        (7, 2, True, False, "1212121"),
        (4, 1, True, True, "1111"),
    ],
)
def test_orders_of_singlestep_solvers(count, order, lower, clean, orders):
    # Lu et al. 2022a, algorithm of DPM-Solver-fast; the authors' and diffusers' code agree.
    assert _single_orders(count, order, lower, clean) == [int(c) for c in orders]


def test_the_warm_up_of_runge_kutta_evaluates_halfway():
    grid = grids.leading(schedules.linear(), 9)  # 888, 777, ...: steps of 111
    for total, middle in ((None, 832.5), (1000, 832)):
        t = samplers.plms(runge_kutta=True, total=total).plan(grid).level.t
        assert t[:5].tolist() == [888, middle, middle, 777, 777]
        assert len(t) == 9 + 9
