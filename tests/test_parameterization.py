import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, parameterization, schedules
from diffjax.types import Level

LINEAR = schedules.linear()
GRID = grids.full(LINEAR)
NAMES = ["eps", "x0", "mean", "v", "score", "velocity", "edm"]


def setup(schedule="linear", seed=0):
    rng = np.random.default_rng(seed)
    s = schedules.make(schedule)
    t = np.array([3.0, 400.0, 999.0]) if s.steps else np.linspace(*s.span, 5)[1:4]
    level = Level(jnp.asarray(t), *(jnp.asarray(v) for v in s.at(t)))
    x, eps = (jnp.asarray(rng.standard_normal((3, 4, 4, 2))) for _ in range(2))
    z = level.alpha[:, None, None, None] * x + level.sigma[:, None, None, None] * eps
    return level, x, eps, z


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def cases():
    for name in NAMES:
        for schedule in ["linear", "vp_sde", "sub_vp", "ve", "edm", "log_snr", "flow"]:
            if name != "mean" or schedule == "linear":
                yield name, schedule


@pytest.mark.parametrize(("name", "schedule"), list(cases()))
def test_decode_inverts_target(name, schedule):
    level, x, eps, z = setup(schedule)
    p = parameterization.make(name, grid=GRID)
    out = p.decode(p.target(x, eps, level), z, level)
    tolerance = 1e-5 if name == "mean" else 1e-9  # mean keeps its coefficients in float32
    scale = 1 / min(1.0, float(level.alpha.min()))
    assert np.asarray(out.x) == pytest.approx(np.asarray(x), abs=tolerance * scale * 1e3)
    assert np.asarray(out.eps) == pytest.approx(np.asarray(eps), abs=tolerance * 1e5)


@pytest.mark.parametrize("name", NAMES)
def test_gain_is_the_derivative_of_x(name):
    level, x, eps, z = setup()
    p = parameterization.make(name, grid=GRID)
    raw = p.target(x, eps, level)
    _, slope = jax.jvp(lambda r: p.decode(r, z, level).x, (raw,), (jnp.ones_like(raw),))
    gain = np.broadcast_to(np.asarray(p.gain(level)), (3,))
    assert np.asarray(slope)[:, 0, 0, 0] == pytest.approx(gain, rel=1e-6)


def test_errors_scale_as_the_snr():
    # |dv|^2 = |deps|^2 / alpha^2 = (SNR + 1) |dx|^2
    level, *_ = setup()
    e, v = (parameterization.make(n).gain(level) for n in ("eps", "v"))
    snr = np.asarray(level.alpha / level.sigma) ** 2
    dx = 1.0
    assert np.asarray((dx / v) ** 2) == pytest.approx((snr + 1) * dx**2)
    assert np.asarray((dx / e) ** 2 / level.alpha**2) == pytest.approx((snr + 1) * dx**2)


def test_v_is_alpha_eps_minus_sigma_x():
    level, x, eps, _ = setup()
    a, s = (leaf[:, None, None, None] for leaf in level[1:3])
    assert jnp.array_equal(parameterization.v().target(x, eps, level), a * eps - s * x)


def test_edm_with_unit_data_is_minus_v():
    # In VP coordinates of the same SNR, F = -v when sigma_data = 1 (papers: identity 10).
    level, x, eps, _ = setup("edm")
    norm = jnp.sqrt(level.alpha**2 + level.sigma**2)
    vp = level._replace(alpha=level.alpha / norm, sigma=level.sigma / norm)
    f = parameterization.edm(1.0).target(x, eps, level)
    assert np.asarray(f) == pytest.approx(np.asarray(-parameterization.v().target(x, eps, vp)))


def test_edm_scales_input_to_unit_variance():
    level, *_ = setup("edm")
    p = parameterization.edm(0.5)
    var = p.scale_in(level) ** 2 * (level.alpha**2 * 0.25 + level.sigma**2)
    assert np.asarray(var) == pytest.approx(np.ones(3))


def test_mean_is_the_posterior_mean():
    level, x, eps, z = setup()
    t = np.asarray(level.t).astype(int)
    bar = LINEAR.at(np.arange(1000))[0] ** 2
    before = np.append(1.0, bar)[t]
    beta = 1 - bar[t] / before
    c1 = np.sqrt(before) * beta / (1 - bar[t])
    c2 = np.sqrt(1 - beta) * (1 - before) / (1 - bar[t])
    expected = c1[:, None, None, None] * x + c2[:, None, None, None] * z
    mu = parameterization.make("mean", grid=GRID).target(x, eps, level)
    assert np.asarray(mu) == pytest.approx(np.asarray(expected), abs=1e-6)


def test_learned_range_splits_channels():
    level, x, eps, z = setup()
    p = parameterization.make("eps", learned_variance=True)
    raw = jnp.concatenate([eps, jnp.full_like(eps, -1.0)], -1)
    out = p.decode(raw, z, level)
    assert p.channels == 2
    assert jnp.array_equal(out.var, jnp.zeros_like(eps))
    assert out.x.shape == x.shape


def test_bad_input():
    with pytest.raises(ValueError, match="unknown parameterization 'epsilon'; choose one of c"):
        parameterization.make("epsilon")
    with pytest.raises(ValueError, match="needs a discrete schedule"):
        parameterization.make("mean")


def test_levels_without_signal_are_refused_where_decoding_divides_by_it():
    schedule = schedules.zero_terminal_snr(LINEAR)
    empty, kept = grids.trailing(schedule, 5).levels, grids.leading(schedule, 5).levels
    for name in ("eps", "score", "edm", "x0", "v", "velocity"):
        p = parameterization.make(name)
        parameterization.check_levels(p, kept)
        if name in ("x0", "v", "velocity"):
            parameterization.check_levels(p, empty)
            continue
        for param in (p, parameterization.learned_range(p)):
            with pytest.raises(ValueError, match="divides by alpha, which is 0"):
                parameterization.check_levels(param, empty)
