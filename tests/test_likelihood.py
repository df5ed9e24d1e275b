import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, likelihood, samplers, schedules
from diffjax.samplers.ancestral import reverse_rows, variances
from tests import oracle

LN2 = np.log(2)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, -1.0), (0.93, -3.0), (-1.4, 0.5)])
def test_discretised_decoder_sums_to_one(levels, mean, log_scale):
    x = jnp.linspace(-1, 1, levels)
    logp = likelihood.discretized_gaussian(x, mean, jnp.asarray(log_scale), levels=levels)
    assert float(jnp.exp(logp).sum()) == pytest.approx(1, abs=1e-5)  # D13


def test_normal_kl_closed_form():
    kl = likelihood.normal_kl(0.3, np.log(0.5), -0.2, np.log(2.0))
    assert float(kl) == pytest.approx(0.5 * (np.log(4) + 0.25 + 0.25 / 2 - 1))
    assert float(likelihood.normal_kl(1.0, 0.2, 1.0, 0.2)) == 0


def test_bound_weight_identity():
    # KL with equal variances is expm1(lam_s - lam_t) / 2 |eps - eps_hat|^2 (nats)  (D5)
    g = grids.full(schedules.linear())
    rows = reverse_rows(g)
    a, s = g.levels.alpha, g.levels.sigma
    lam = 2 * (np.log(a[:-1]) - np.log(s[:-1]))
    beta, post = variances(g)
    # mean difference for a unit error of eps at fixed z: eps_hat = eps + 1, x_hat = x - sigma/alpha
    shift = rows.coef["eps"] - rows.coef["x"] * s[:-1] / a[:-1]
    weight = shift[:-1] ** 2 / (2 * post[:-1])
    assert weight == pytest.approx(np.expm1(lam[1:] - lam[:-1]) / 2, rel=2e-3)
    alpha_step = a[:-2] / a[1:-1]
    classic = beta[:-1] ** 2 / (2 * post[:-1] * alpha_step**2 * s[:-2] ** 2)
    assert np.expm1(lam[1:] - lam[:-1]) / 2 == pytest.approx(classic, rel=1e-6)


def gap(grid, std, used):
    """Expected bound minus entropy and prior KL for N(0, std^2) data, nats per dimension.

    ``used`` (N,): the model's variances; with the exact mean only they differ from the truth.
    """
    a, s = grid.levels.alpha, grid.levels.sigma
    prior = a[1:] ** 2 * std**2 + s[1:] ** 2
    beta, _ = variances(grid)
    exact = 1 / (1 / prior + (a[:-1] / a[1:]) ** 2 / beta)  # true reverse variance
    return 0.5 * (exact / used - 1 - np.log(exact / used)).sum()


@pytest.mark.parametrize(("steps", "large"), [(100, 0.01096), (1000, 0.00109), (4000, 0.00027)])
def test_gaps_of_the_fixed_variances(steps, large):
    g = grids.full(schedules.linear(steps=steps, beta_start=0.1 / steps, beta_end=20 / steps))
    beta, post = variances(g)
    small = np.append(post[:-1], post[-2])
    assert gap(g, 0.5, beta) == pytest.approx(large, rel=0.02)
    assert gap(g, 0.5, small) > 20 * gap(g, 0.5, beta)
    # Each is exact for the data it is optimal for: unit variance, and a single point.
    assert gap(g, 1.0, beta) == pytest.approx(0, abs=1e-9)
    inner = grids.from_times(schedules.linear(steps), g.levels.t[:-1], final="last")
    assert gap(inner, 1e-9, variances(inner)[1]) == pytest.approx(0, abs=1e-9)


def test_bound_of_gaussian_data_matches_closed_form():
    # E KL_t = 0.5 log(beta_t / post_t) when the exact reverse has variance beta (std 1)  (D6)
    g = grids.full(schedules.linear(steps=20, beta_start=1e-3, beta_end=0.5))
    n = 4000
    x = jax.random.normal(jax.random.key(0), (n, 1))
    noise = samplers.image_noise(jax.random.split(jax.random.key(1), n), (1,))
    out = likelihood.vlb_bits(oracle.gaussian(0.0, 1.0), x, noise, g, variance="fixedlarge")
    beta, post = variances(g)
    expected = 0.5 * np.log(beta[:-1] / post[:-1]) / LN2
    terms = np.asarray(out["terms"])[:-1]
    bound = 5 * terms.std(1) / np.sqrt(n)
    assert (np.abs(terms.mean(1) - expected) < bound + 1e-4).all()
    assert np.asarray(out["prior"]).mean() == pytest.approx(
        np.mean([prior_kl(float(v), g) for v in x[:, 0]]) / LN2, rel=1e-4
    )
    assert np.asarray(out["total"]) == pytest.approx(
        np.asarray(out["prior"]) + np.asarray(out["terms"]).sum(0), rel=1e-5
    )


def prior_kl(x, grid):
    a, s = grid.levels.alpha[0], grid.levels.sigma[0]
    return 0.5 * (-np.log(s**2) - 1 + s**2 + (a * x) ** 2)


def test_rate_distortion_starts_at_the_prior_and_ends_at_the_rate():
    g = grids.full(schedules.linear(steps=20, beta_start=1e-3, beta_end=0.5))
    x = 0.5 * jax.random.normal(jax.random.key(0), (500, 1))
    noise = samplers.image_noise(jax.random.split(jax.random.key(1), 500), (1,))
    out = likelihood.vlb_bits(oracle.gaussian(0.0, 0.5), x, noise, g)
    curve = likelihood.rate_distortion(out)
    rate = np.asarray(out["total"]).mean() - np.asarray(out["terms"])[-1].mean()
    assert curve["rate"][0] == pytest.approx(float(out["prior"].mean()))
    assert curve["rate"][-1] == pytest.approx(float(rate), rel=1e-5)
    assert (np.diff(curve["rate"]) > 0).all()
    assert curve["distortion"][0] == pytest.approx(0.5 * 127.5, rel=0.15)
    assert curve["distortion"][-1] < curve["distortion"][0] / 5


@pytest.mark.parametrize("schedule", ["linear", "vp_sde", "sub_vp", "ve", "log_snr"])
def test_ode_likelihood_of_gaussian_data(schedule):
    std, n, dims = 0.3, 200, 2
    x = std * jax.random.normal(jax.random.key(0), (n, dims))
    noise = samplers.image_noise(jax.random.split(jax.random.key(1), n), (dims,))
    s = schedules.make(schedule)
    bits = likelihood.ode_bits(oracle.gaussian(0.0, std), x, noise, s, steps=200, levels=256)
    density = -0.5 * np.log(2 * np.pi * std**2) - 0.5 * np.asarray(x) ** 2 / std**2
    exact = -(density.mean(1) / LN2 + np.log2(2 / 255))
    assert float(bits.mean()) == pytest.approx(exact.mean(), abs=0.03)
    assert np.asarray(bits) == pytest.approx(exact, abs=0.25)


def test_unknown_variance():
    g = grids.full(schedules.linear(steps=4))
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="fixedsmall, fixedlarge or"):
        likelihood.vlb_bits(oracle.gaussian(0, 1), x, lambda i: x, g, variance="learned")


def test_ode_needs_a_finite_noisy_end():
    s = schedules.make("linear", {"zero_snr": True})
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="terminal SNR"):
        likelihood.ode_bits(oracle.gaussian(0, 1), x, lambda i: x, s)


def test_prior_kl_is_its_closed_form():
    g = grids.truncate(grids.leading(schedules.linear(), 10), strength=0.4)  # sigma is 0.8
    x = jnp.array([[0.5, -1.0], [0.1, 0.2]])
    wanted = np.mean(prior_kl(np.asarray(x), g), axis=1) / LN2
    assert np.asarray(likelihood.prior_kl(x, g)) == pytest.approx(wanted, rel=1e-5)
    top = grids.uniform_logsnr(schedules.ve(0.01, 5.0), 4)  # the prior has the variance 25
    wanted = np.mean(np.asarray(x) ** 2 / 25 / 2, axis=1) / LN2
    assert np.asarray(likelihood.prior_kl(x, top)) == pytest.approx(wanted, rel=1e-5)
