import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
