import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, likelihood, samplers, schedules
from diffjax.samplers.ancestral import log_variances, mean_eps, reverse_rows, variances
from diffjax.types import Prediction
from tests import oracle

SCHEDULES = [
    "linear",
    "scaled_linear",
    "cosine",
    "vp_sde",
    "sub_vp",
    "ve",
    "edm",
    "log_snr",
    "flow",
]
VARIANCES = ["fixedsmall", "fixedlarge", 0.3]


def grid_of(name, steps=20):
    s = schedules.make(name)
    return grids.leading(s, steps) if s.steps else grids.uniform_logsnr(s, steps)


def all_samplers():
    yield from ((f"ddim({eta})", samplers.ddim(eta)) for eta in (0.0, 0.5, 1.0))
    yield from ((f"ddpm({v})", samplers.ancestral(v)) for v in VARIANCES)


def test_posterior_identities():
    # c1 + c2 sqrt(abar_t) = sqrt(abar_s) and c2^2 (1 - abar_t) + post = 1 - abar_s  (D1)
    g = grids.full(schedules.linear())
    a, s = g.levels.alpha, g.levels.sigma
    c2 = mean_eps(g) / s[:-1]  # coefficient of z where eps = (z - alpha x) / sigma
    c1 = a[1:] - c2 * a[:-1]
    _, post = variances(g)
    assert c1 + c2 * a[:-1] == pytest.approx(a[1:], abs=1e-12)
    assert c2**2 * s[:-1] ** 2 + post == pytest.approx(s[1:] ** 2, abs=1e-12)


def test_beta_and_posterior_of_the_paper():
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    beta, post = variances(grids.full(schedules.linear()))
    assert beta[::-1] == pytest.approx(betas, rel=1e-9)
    assert post[::-1] == pytest.approx(betas * (1 - before) / (1 - bar), rel=1e-9)


def test_fixedlarge_table_of_ddpm():
    betas = np.linspace(1e-4, 0.02, 1000)
    g = grids.full(schedules.linear())
    _, post = variances(g)
    log_beta, log_post = log_variances(g)
    assert np.exp(log_beta[::-1]) == pytest.approx(betas, rel=1e-9)
    assert log_post[-1] == log_post[-2] == pytest.approx(np.log(post[-2]))
    table = np.append(post[-2], betas[1:])
    row = jax.tree.map(np.asarray, reverse_rows(g))
    found = likelihood.log_variance(None, row.coef, "fixedlarge")
    assert np.exp(found[::-1]) == pytest.approx(table, rel=1e-5)


def test_respaced_ddim_variances():
    # sigma(1)^2 is the respaced posterior and sigma-hat^2 the respaced beta  (D2)
    g = grids.leading(schedules.linear(), 50)
    bar, bar_next = g.levels.alpha[:-1] ** 2, g.levels.alpha[1:] ** 2
    small = samplers.ddim(1.0).plan(g).coef[:, 0, -1] ** 2
    large = samplers.ancestral("fixedlarge").plan(g).coef[:-1, 0, -1] ** 2
    expected = (1 - bar_next) / (1 - bar) * (1 - bar / bar_next)
    assert small == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert large == pytest.approx((1 - bar / bar_next)[:-1], rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_eta_one_is_ddpm_fixedsmall(schedule):
    g = grid_of(schedule)
    a, b = samplers.ddim(1.0).plan(g), samplers.ancestral("fixedsmall").plan(g)
    assert a.coef == pytest.approx(b.coef, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_keeps_the_marginals(schedule, eta):
    # With the true x and eps: var = coef_eps^2 + coef_noise^2 = sigma_s^2  (D1)
    g = grid_of(schedule)
    coef = samplers.ddim(eta).plan(g).coef[:, 0].astype(np.float64)
    assert coef[:, 1] == pytest.approx(g.levels.alpha[1:], rel=1e-5)
    assert coef[:, 2] ** 2 + coef[:, 3] ** 2 == pytest.approx(g.levels.sigma[1:] ** 2, rel=1e-4)


def test_variance_interpolation_ends():
    # v = 0 is the posterior, v = 1 the forward variance  (D3)
    g = grid_of("log_snr")
    for v, name in ((0.0, "fixedsmall"), (1.0, "fixedlarge")):
        a, b = samplers.ancestral(v).plan(g).coef, samplers.ancestral(name).plan(g).coef
        assert np.array_equal(a, b)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "sampler"), list(all_samplers()))
def test_gaussian_data_by_recursion_and_monte_carlo(schedule, name, sampler):
    # Mean and variance of the compiled loop equal the scalar recursion within CLT bounds  (D7)
    mean, std, n = 0.4, 0.5, 20_000
    rows = sampler.plan(grid_of(schedule))
    noise = samplers.image_noise(jax.random.split(jax.random.key(0), n), (1,))
    z = samplers.prior(noise, rows)
    init = grid_of(schedule).init_std
    out = np.asarray(_run(sampler, z, rows))
    m, sd = oracle.gaussian_moments(rows, (0.0, init), mean, std)
    assert out.mean() == pytest.approx(m, abs=5 * sd / np.sqrt(n) + 1e-5)
    assert out.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * n) + 1e-4)


_DENOISE = oracle.gaussian(0.4, 0.5)


@jax.jit
def _loop(z, rows):
    noise = samplers.image_noise(jax.random.split(jax.random.key(7), z.shape[0]), z.shape[1:])
    return samplers.sample(noise, _DENOISE, samplers.ddim(), z, rows)


def _run(sampler, z, rows):
    # All affine samplers of equal memory share `step`, so one executable serves every case.
    assert sampler.step is samplers.ddim().step
    return _loop(z, rows)


@pytest.mark.parametrize("schedule", ["linear", "vp_sde", "log_snr"])
def test_ddpm_reaches_gaussian_data(schedule):
    # Many steps of either variance end at N(mean, std^2)
    g = grid_of(schedule, 500)
    for v in ("fixedsmall", "fixedlarge"):
        m, sd = oracle.gaussian_moments(samplers.ancestral(v).plan(g), (0.0, 1.0), 0.4, 0.5)
        assert (m, sd) == pytest.approx((0.4, 0.5), rel=0.05)


def test_one_ddim_step_is_exact_for_delta_data():
    g = grids.from_times(schedules.linear(), [999.0])  # D9
    rows = samplers.ddim().plan(g)
    z = jax.random.normal(jax.random.key(0), (4, 2))
    out = samplers.sample(lambda i: 0 * z, oracle.gaussian(0.3, 0.0), samplers.ddim(), z, rows)
    assert np.asarray(out) == pytest.approx(np.full((4, 2), 0.3), abs=1e-4)


def test_ddim_converges_to_the_probability_flow():
    # x(sigma) = m + (x(smax) - m) sqrt((s^2 + sigma^2) / (s^2 + smax^2)), first order  (D9)
    s = schedules.ve(0.02, 20.0)
    x0 = 15.0
    exact = 0.4 + (x0 - 0.4) * np.sqrt((0.25 + 0.02**2) / (0.25 + 20.0**2))
    errors = []
    for steps in (100, 200, 400):
        rows = samplers.ddim().plan(grids.karras(s, steps, final="last"))
        m, _ = oracle.gaussian_moments(rows, (x0, 0.0), 0.4, 0.5)
        errors.append(abs(m - exact))
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    assert order == pytest.approx([1, 1], abs=0.15)


def test_ddim_is_euler_in_sigma():
    # VP: z / alpha moves by (sigma'/alpha' - sigma/alpha) eps  (D10)
    g = grids.leading(schedules.linear(), 7)
    rows = samplers.ddim().plan(g)
    a, s = g.levels.alpha, g.levels.sigma
    _, cx, ce, _ = rows.coef[:, 0].T
    # z' = a' x + s' eps with x = (z - s eps) / a
    assert cx / a[:-1] == pytest.approx(a[1:] / a[:-1], rel=1e-6)
    slope = (ce - cx * s[:-1] / a[:-1]) / a[1:]
    assert slope == pytest.approx(np.diff(s / a), rel=1e-5)


def test_inverse_ddim_undoes_ddim():
    g = grids.leading(schedules.linear(), 500)
    denoise = oracle.gaussian(0.4, 0.5)
    x = 0.4 + 0.5 * jax.random.normal(jax.random.key(0), (64,))

    def still(i):
        return jnp.zeros_like(x)

    up, down = samplers.ddim_inverse(), samplers.ddim()
    z = samplers.sample(still, denoise, up, x, up.plan(g))
    back = samplers.sample(still, denoise, down, z, down.plan(g))
    assert np.asarray(z).std() == pytest.approx(np.asarray(x).std() / 0.5, rel=0.05)
    assert np.asarray(back) == pytest.approx(np.asarray(x), abs=0.02)


@pytest.mark.parametrize("final", ["clean", "first"])
def test_inverse_ddim_asks_about_levels_with_noise(final):
    # At the data eps = (z - alpha x) / sigma is 0 / 0.
    offset = int(final == "first")
    g = grids.leading(schedules.linear(), 20, offset=offset, final=final)
    rows = samplers.ddim_inverse().plan(g)
    assert (rows.level.sigma > 0).all()
    first = [0, *g.levels.t[-2:0:-1]] if final == "clean" else g.levels.t[:0:-1]
    assert rows.level.t.tolist() == list(first)


@pytest.mark.parametrize(("fraction", "name"), [(0.0, "fixedsmall"), (1.0, "fixedlarge")])
def test_learned_variance_ends_are_the_fixed_ones(fraction, name):
    g = grids.leading(schedules.cosine(), 12)
    base = oracle.gaussian(0.4, 0.5)

    def denoise(z, level):
        return base(z, level)._replace(var=jnp.full_like(z, fraction))

    noise = samplers.image_noise(jax.random.split(jax.random.key(0), 3), (2,))
    z = noise(0, 1)
    out = [
        samplers.sample(noise, denoise, s, z, s.plan(g))
        for s in (samplers.ancestral("learned"), samplers.ancestral(name))
    ]
    assert np.asarray(out[0]) == pytest.approx(np.asarray(out[1]), rel=1e-4, abs=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="must not be negative"):
        samplers.ddim(-1)
    with pytest.raises(ValueError, match="too large for this grid"):
        samplers.ddim(3.0).plan(grid_of("linear"))
    with pytest.raises(ValueError, match="fixedsmall, fixedlarge, learned"):
        samplers.ancestral("large")
    with pytest.raises(ValueError, match="unknown sampler 'plm'; choose one of consistency"):
        samplers.make("plm")
    z = jnp.zeros((1, 2))
    learned = samplers.ancestral("learned")
    with pytest.raises(ValueError, match="predicts a variance"):
        rows = learned.plan(grid_of("linear"))
        samplers.sample(lambda i: z, lambda z, lv: Prediction(z, z), learned, z, rows)


def test_the_first_step_of_inverse_ddim_keeps_the_data_and_adds_noise():
    g = grids.leading(schedules.linear(), 10)
    rows = samplers.ddim_inverse().plan(g)
    alpha, sigma = g.levels.alpha[::-1], g.levels.sigma[::-1]
    assert rows.coef[0, 0] == pytest.approx([alpha[1], 0, sigma[1], 0], rel=1e-6)
    assert rows.coef[1:, 0, 1:3] == pytest.approx(np.stack([alpha[2:], sigma[2:]], 1), rel=1e-6)
    assert not rows.coef[..., -1].any()
