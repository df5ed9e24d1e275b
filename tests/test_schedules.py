import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.schedules import logsnr

DISCRETE = ["linear", "scaled_linear", "cosine", "sigmoid"]
CONTINUOUS = ["vp_sde", "sub_vp", "ve", "edm", "log_snr", "flow"]


def abar(schedule, t):
    return np.asarray(schedule.at(np.asarray(t, float))[0]) ** 2


def test_ddpm_endpoints():
    s = schedules.linear()
    assert abar(s, 999) == pytest.approx(4.0358e-5, rel=1e-4)
    ends = [float(logsnr(*s.at(np.float64(t)))) for t in (0, 999)]
    assert ends == pytest.approx([9.2102, -10.1177], abs=1e-4)


@pytest.mark.parametrize(
    ("beta_end", "start", "value"),
    [(0.0195, 0.0015, 1.423e-4), (0.0155, 0.0015, 6.687e-4), (0.0205, 0.0015, 9.69e-5)],
)
def test_latent_diffusion_endpoints(beta_end, start, value):
    s = schedules.scaled_linear(beta_start=start, beta_end=beta_end)
    assert abar(s, 999) == pytest.approx(value, rel=1e-3)


def test_stable_diffusion_endpoints():
    s = schedules.scaled_linear()
    assert abar(s, 999) == pytest.approx(0.00466, rel=1e-3)
    a, sig = s.at(np.array([0.0, 999.0]))
    assert sig / a == pytest.approx([0.0292, 14.61], rel=2e-3)


def test_vp_sde_endpoints():
    s = schedules.vp_sde()
    a, sig = s.at(np.array([1e-3, 1.0]))
    assert sig / a == pytest.approx([0.010486, 152.17], rel=1e-4)


def test_log_snr_of_the_cfg_paper():
    s = schedules.log_snr()
    assert logsnr(*s.at(np.array([0.0, 0.5, 1.0]))) == pytest.approx([20, 0, -20], abs=1e-6)


def test_cosine_caps_exactly_one_beta():
    a = abar(schedules.cosine(4000), np.arange(4000))
    betas = 1 - a[1:] / a[:-1]
    assert (betas > 0.999 - 1e-9).sum() == 1


@pytest.mark.parametrize("name", DISCRETE + CONTINUOUS)
def test_log_snr_falls_and_t_of_inverts_it(name):
    s = schedules.make(name)
    t = np.linspace(*s.span, 33)[1:-1]
    if s.steps:
        t = np.round(t)
    lam = logsnr(*s.at(t))
    assert (np.diff(lam) < 0).all()
    assert s.t_of(lam) == pytest.approx(t, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", DISCRETE + CONTINUOUS)
def test_traced_float32_agrees_with_host_float64(name):
    s = schedules.make(name)
    t = np.linspace(*s.span, 17)
    t = np.round(t) if s.steps else t
    host, device = s.at(t), s.at(jnp.asarray(t, jnp.float32))
    for h, d in zip(host, device, strict=True):
        assert np.asarray(d) == pytest.approx(h, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("name", [*DISCRETE, "vp_sde", "log_snr"])
def test_variance_preserving(name):
    s = schedules.make(name)
    a, sig = s.at(np.linspace(*s.span, 100))
    assert a**2 + sig**2 == pytest.approx(np.ones(100), abs=1e-12)


def test_sub_vp_variance_is_the_square_of_vp():
    t = np.linspace(0.01, 1, 20)
    assert schedules.sub_vp().at(t)[1] == pytest.approx(schedules.vp_sde().at(t)[1] ** 2)


def test_zero_terminal_snr():
    plain, zero = schedules.linear(), schedules.make("linear", {"zero_snr": True})
    a, _ = zero.at(np.array([0.0, 999.0]))
    assert a[1] == 0
    assert a[0] == pytest.approx(plain.at(np.float64(0))[0])


def test_fractional_times_interpolate_log_sigma():
    s = schedules.linear()
    lam = [float(logsnr(*s.at(np.float64(t)))) for t in (10, 10.5, 11)]
    assert lam[1] == pytest.approx((lam[0] + lam[2]) / 2)


def test_bad_input_lists_the_choices():
    with pytest.raises(ValueError, match="unknown schedule 'lin'; choose one of cosine, edm"):
        schedules.make("lin")
    with pytest.raises(ValueError, match=r"unknown schedule option 'beta_stop'.*beta_start"):
        schedules.make("linear", {"beta_stop": 1})
    with pytest.raises(ValueError, match="decreasing"):
        schedules.from_abar(np.array([0.1, 0.2]))
    for table in ([1.0, 0.5], [0.5, -0.1]):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            schedules.from_abar(np.array(table))
    for betas in ([0.1, 0.0], [0.1, 1.1]):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            schedules.from_betas(np.array(betas))
    with pytest.raises(ValueError, match="discrete"):
        schedules.make("ve", {"zero_snr": True})


def test_options_of_another_schedule_are_refused():
    message = "'cosine' does not take the option 'beta_start', which belongs to linear, scaled"
    with pytest.raises(ValueError, match=message):
        schedules.make("cosine", {"steps": 10, "beta_start": 1e-4})


def test_discrete_ve_is_a_geometric_sequence():
    schedule = schedules.ve_discrete(0.01, 1.0, steps=10)
    _, sigma = schedule.at(np.arange(10))
    assert sigma == pytest.approx(np.geomspace(0.01, 1.0, 10))
    assert schedule.t_of(-2 * np.log(sigma)) == pytest.approx(np.arange(10))
    assert schedule.steps == 10


def test_sigmoid_is_its_closed_form():
    steps, start, end, tau = 500, -2.0, 3.0, 0.7
    u = np.arange(1, steps + 1) / steps
    falls = lambda v: 1 / (1 + np.exp(-(start + v * (end - start)) / tau))  # noqa: E731
    wanted = (falls(1) - falls(u)) / (falls(1) - falls(0))
    s = schedules.sigmoid(steps, start, end, tau)
    assert abar(s, np.arange(steps - 1)) == pytest.approx(wanted[:-1], rel=1e-9)
    assert abar(s, steps - 1) == pytest.approx(wanted[-2] * (1 - 0.999))  # the last beta is capped


def test_cosine_is_its_closed_form():
    steps, s = 400, 0.02
    f = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
    found = abar(schedules.cosine(steps, s), np.arange(steps - 1))
    assert found == pytest.approx((f / f[0])[1:-1], rel=1e-9)


@pytest.mark.parametrize("name", [*DISCRETE, "ve_discrete"])
def test_a_table_holds_its_steps(name):
    s = schedules.make(name, {"steps": 70})
    assert (s.steps, s.span) == (70, (0.0, 69.0))
    assert schedules.make(name).steps == 1000


def test_shifted_flow():
    assert schedules.flow(3.0).at(np.float64(0.5)) == pytest.approx((0.25, 0.75))
    assert schedules.flow(3.0).t_of(2 * np.log(0.25 / 0.75)) == pytest.approx(0.5)


def test_log_snr_of_numbers_and_traced_values():
    for one in (lambda v: logsnr(v, 0.5), lambda v: logsnr(0.5, v)):
        assert float(jax.jit(one)(jnp.float32(0.25))) == pytest.approx(float(one(0.25)), rel=1e-6)
    assert logsnr(0.25, 0.5) == pytest.approx(-2 * np.log(2))
    assert logsnr(np.float64(1), np.float64(0)) == np.inf
