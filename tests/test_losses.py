import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from diffjax import losses, parameterization, schedules
from diffjax.types import Level

LINEAR = schedules.linear()


def levels(name="linear"):
    s = schedules.make(name)
    t = np.linspace(*s.span, 7)[1:-1]
    t = np.round(t) if s.steps else t
    return Level(t, *(jnp.asarray(v, jnp.float32) for v in s.at(t)))


def weight(name, param, level, **options):
    return np.asarray(losses.make_weight(name, options)(level, parameterization.make(param)))


def test_simple_is_one():
    assert (weight("simple", "v", levels()) == 1).all()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_of_eps_x_and_v(gamma):
    level = levels()
    snr = np.asarray(level.alpha / level.sigma, np.float64) ** 2
    m = np.minimum(snr, gamma)
    assert weight("min_snr", "eps", level, gamma=gamma) == pytest.approx(m / snr, rel=1e-4)
    assert weight("min_snr", "x0", level, gamma=gamma) == pytest.approx(m, rel=1e-4)
    assert weight("min_snr", "v", level, gamma=gamma) == pytest.approx(m / (snr + 1), rel=1e-4)


def test_p2_of_eps():
    level = levels()
    snr = np.asarray(level.alpha / level.sigma, np.float64) ** 2
    assert weight("p2", "eps", level) == pytest.approx(1 / (1 + snr), rel=1e-4)


def test_edm_weight_is_one_on_the_preconditioned_output():
    assert weight("edm", "edm", levels("edm")) == pytest.approx(np.ones(5), rel=1e-4)


def test_snr_weight_is_one_on_eps():
    assert weight("snr", "eps", levels()) == pytest.approx(np.ones(5), rel=1e-4)


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy", "loss_second_moment"])
def test_discrete_times_are_whole_and_cover_all(name):
    s = schedules.linear(steps=20)
    sampler = losses.make_time_sampler(name, s)
    t, w = sampler.draw(jax.random.key(0), sampler.init(), 4000)
    assert np.asarray(w) == pytest.approx(np.ones(4000), rel=1e-5)
    counts = np.bincount(np.asarray(t, int), minlength=20)
    assert len(counts) == 20
    assert counts == pytest.approx(np.full(20, 200), abs=5 * np.sqrt(200))
    assert np.array_equal(t, np.round(t))


def test_low_discrepancy_hits_every_stratum():
    s = schedules.vp_sde()
    t, _ = losses.make_time_sampler("low_discrepancy", s).draw(jax.random.key(1), (), 64)
    assert np.diff(np.sort(np.asarray(t))) == pytest.approx(np.full(63, 1 / 64), abs=1e-4)


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy"])
def test_a_share_of_the_times_is_that_with_the_least_noise(name):
    sampler = losses.make_time_sampler(name, LINEAR, {"share": 0.2})
    t, _ = sampler.draw(jax.random.key(0), (), 4000)
    assert t.min() == 0 and t.max() == 199
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0"):
        losses.make_time_sampler(name, LINEAR, {"share": 0})


def test_cubic_times_are_mostly_late():
    t, importance = losses.make_time_sampler("cubic", LINEAR).draw(jax.random.key(0), (), 50_000)
    assert float(t.min()) >= 0 and float(t.max()) == LINEAR.steps - 1
    u = 1 - np.asarray(t) / LINEAR.steps  # = u^3, whose mean is 1/4 and whose median 1/8
    assert u.mean() == pytest.approx(0.25, abs=0.01)
    assert np.median(u) == pytest.approx(0.125, abs=0.01)
    assert np.all(np.asarray(importance) == 1)


def test_log_normal_of_edm():
    s = schedules.edm()
    t, _ = losses.make_time_sampler("log_normal", s).draw(jax.random.key(0), (), 20_000)
    logs = 4 * np.asarray(t)
    assert logs.mean() == pytest.approx(-1.2, abs=5 * 1.2 / np.sqrt(20_000))
    assert logs.std() == pytest.approx(1.2, rel=0.03)


@pytest.mark.parametrize("options", [{}, {"mean": 0.7, "std": 0.4}])
def test_logit_normal_has_its_mean_and_spread(options):
    s = schedules.flow(t_min=0.0, t_max=1.0)
    t, _ = losses.make_time_sampler("logit_normal", s, options).draw(jax.random.key(0), (), 20_000)
    logits = np.log(np.asarray(t, np.float64)) - np.log1p(-np.asarray(t, np.float64))
    mean, std = options.get("mean", 0.0), options.get("std", 1.0)
    assert logits.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(20_000))
    assert logits.std() == pytest.approx(std, rel=0.03)


def test_loss_second_moment_prefers_large_losses_and_stays_unbiased():
    s = schedules.linear(steps=8)
    sampler = losses.make_time_sampler("loss_second_moment", s, {"history": 3})
    state = sampler.init()
    values = jnp.arange(1.0, 9.0)
    for _ in range(3):
        t = jnp.arange(8.0)
        state = sampler.update(state, t, values)
    t, w = sampler.draw(jax.random.key(0), state, 50_000)
    counts = np.bincount(np.asarray(t, int), minlength=8) / 50_000
    assert counts == pytest.approx(np.asarray(values) / 36, abs=0.01)
    estimate = np.mean(np.asarray(w) * np.asarray(values)[np.asarray(t, int)])
    assert estimate == pytest.approx(4.5, rel=0.01)


def test_loss_history_keeps_the_newest_and_handles_repeats():
    sampler = losses.make_time_sampler(
        "loss_second_moment", schedules.linear(steps=2), {"history": 2}
    )
    state = sampler.update(sampler.init(), jnp.array([0.0, 0, 0, 1]), jnp.array([1.0, 2, 3, 4]))
    assert np.asarray(state["losses"]).tolist() == [[2, 3], [0, 4]]
    assert np.asarray(state["counts"]).tolist() == [3, 1]


def test_noise_without_options_is_what_it_was():
    key, shape = jax.random.key(3), (5, 4, 4, 2)
    eps, added = losses.draw_noise(key, shape)
    np.testing.assert_array_equal(eps, jax.random.normal(key, shape))
    assert added is eps


def test_offset_noise_shifts_every_channel_of_an_image():
    # The covariance of two pixels of a channel is offset^2, and the variance of one 1 + offset^2.
    key, shape = jax.random.key(3), (20_000, 3, 1, 2)  # rows and channels differ
    eps, added = losses.draw_noise(key, shape, offset=0.5)
    assert added is eps
    shift = np.asarray(eps - jax.random.normal(key, shape))
    np.testing.assert_allclose(np.ptp(shift, axis=(1, 2)), 0, atol=1e-6)
    one, other = np.asarray(eps)[:, 0, 0], np.asarray(eps)[:, 1, 0]
    assert (one**2).mean() == pytest.approx(1.25, rel=0.03)
    assert (one * other).mean() == pytest.approx(0.25, abs=0.02)
    assert (one[:, 0] * other[:, 1]).mean() == pytest.approx(0, abs=0.02)


def test_perturbed_inputs_keep_their_target():
    key, shape = jax.random.key(3), (4000, 2, 2, 3)
    eps, added = losses.draw_noise(key, shape, perturbation=0.1)
    np.testing.assert_array_equal(eps, jax.random.normal(key, shape))
    more = np.asarray(added - eps)
    assert more.std() == pytest.approx(0.1, rel=0.02)
    assert (more * np.asarray(eps)).mean() == pytest.approx(0, abs=0.002)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown loss weight 'snrs'; choose one of"):
        losses.make_weight("snrs")
    with pytest.raises(ValueError, match="discrete"):
        losses.make_time_sampler("loss_second_moment", schedules.ve())
    with pytest.raises(ValueError, match="edm schedule"):
        losses.make_time_sampler("log_normal", LINEAR)


def test_antithetic_times_are_pairs():
    schedule = schedules.linear(steps=100)
    sampler = losses.make_time_sampler("antithetic", schedule)
    t, weight = sampler.draw(jax.random.key(0), (), 7)
    assert np.array_equal(t[4:], 99 - t[:3])
    assert np.all(weight == 1)
    with pytest.raises(ValueError, match="discrete schedule"):
        losses.make_time_sampler("antithetic", schedules.vp_sde())


@pytest.mark.parametrize("make", [schedules.vp_sde, schedules.sub_vp])
def test_the_likelihood_weight_is_that_of_the_sde(make):
    # On the error of eps: g^2 / sigma^2 (Song et al. 2021, released code).
    schedule, t = make(), np.array([0.05, 0.5, 0.9])
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
    g2 = beta if make is schedules.vp_sde else beta * (1 - np.exp(-2 * integral))
    level = Level(jnp.asarray(t), *map(jnp.asarray, schedule.at(t)))
    weight = losses.make_weight("likelihood", {"schedule": schedule})
    found = weight(level, parameterization.eps())
    assert np.allclose(found, g2 / np.asarray(level.sigma) ** 2, rtol=1e-4)


def test_the_likelihood_weight_needs_continuous_time():
    with pytest.raises(ValueError, match="continuous schedule"):
        losses.make_weight("likelihood", {"schedule": schedules.linear()})


def test_the_weights_of_progressive_distillation_are_of_x():
    lam = np.array([-4.0, 0.0, 3.0])
    level = Level(np.zeros(3), *map(jnp.asarray, schedules.scales_of(lam)))
    snr = np.exp(lam)
    for name, wanted in (("truncated_snr", np.maximum(snr, 1)), ("snr_plus_one", snr + 1)):
        np.testing.assert_allclose(
            losses.make_weight(name)(level, parameterization.x0()), wanted, rtol=1e-5
        )
    # The error of v with the weight 1 is that of x with the weight SNR + 1.
    weight = losses.make_weight("snr_plus_one")(level, parameterization.v())
    np.testing.assert_allclose(weight, np.ones(3), rtol=1e-5)


def test_times_between_the_levels_of_a_grid_are_uniform_among_its_intervals():
    s = schedules.edm()
    t, _ = losses.make_time_sampler("karras", s).draw(jax.random.key(0), (), 40_000)
    share = (np.exp(4 * np.asarray(t) / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_truncated_times_stay_in_the_span_and_have_the_same_shape_within():
    s = schedules.edm(0.1, 1.0)
    options = {"mean": -1.1, "std": 2.0, "truncate": True}
    t, _ = losses.make_time_sampler("log_normal", s, options).draw(jax.random.key(0), (), 40_000)
    assert s.span[0] <= float(t.min()) < float(t.max()) <= s.span[1] + 1e-6
    plain = (-1.1 + 2 * np.random.default_rng(0).normal(size=200_000)) / 4
    inside = plain[(plain >= s.span[0]) & (plain <= s.span[1])]
    assert float(t.mean()) == pytest.approx(inside.mean(), abs=0.005)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29])
def test_times_by_mode_have_the_quantiles_of_their_formula(scale):
    s = schedules.flow(t_min=0.0, t_max=1.0)
    t, _ = losses.make_time_sampler("mode", s, {"scale": scale}).draw(jax.random.key(0), (), 40_000)
    u = np.array([0.9, 0.6, 0.2])  # t falls with u
    wanted = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    np.testing.assert_allclose(np.quantile(t, 1 - u), wanted, atol=0.01)
    with pytest.raises(ValueError, match=r"times.scale must lie in \[-1, 1.75\]"):
        losses.make_time_sampler("mode", s, {"scale": 2.0})


def test_times_by_cosmap_have_the_log_snr_of_the_cosine_schedule():
    s = schedules.flow(t_min=0.0, t_max=1.0)
    t, _ = losses.make_time_sampler("cosmap", s).draw(jax.random.key(0), (), 40_000)
    found = np.quantile(2 * np.log(np.asarray(t) / (1 - np.asarray(t))), [0.25, 0.5, 0.8])
    wanted = 2 * np.log(np.tan(np.pi / 2 * np.array([0.25, 0.5, 0.8])))
    np.testing.assert_allclose(found, wanted, atol=0.06)


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_the_assignment_has_the_least_cost(size):
    rng, solve = np.random.default_rng(size), jax.jit(losses.assign)
    for _ in range(5):
        cost = rng.normal(size=(size, size)).astype(np.float32)
        columns = np.asarray(solve(cost))
        assert sorted(columns) == list(range(size))
        rows, wanted = optimize.linear_sum_assignment(cost)
        assert cost[np.arange(size), columns].sum() == pytest.approx(
            cost[rows, wanted].sum(), abs=1e-4
        )


def test_noise_is_paired_with_the_images_that_are_near():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2, 1)), jnp.float32)
    shuffled = np.array([3, 0, 5, 1, 4, 2])
    order = losses.pair_optimally(x, 2.0 * x[shuffled])
    np.testing.assert_array_equal(shuffled[np.asarray(order)], np.arange(6))
