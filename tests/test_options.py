"""Every option of every registry: its documented default, and that it changes what is computed."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, losses, parameterization, samplers, schedules
from diffjax.types import Level

# (documented default, another value) of every option; defaults are those of the papers.
SCHEDULES = {
    "linear": dict(steps=(1000, 900), beta_start=(1e-4, 2e-4), beta_end=(0.02, 0.03)),
    "scaled_linear": dict(steps=(1000, 900), beta_start=(0.00085, 0.001), beta_end=(0.012, 0.02)),
    "cosine": dict(steps=(1000, 900), s=(0.008, 0.02), max_beta=(0.999, 0.99)),
    "sigmoid": dict(
        steps=(1000, 900),
        start=(-3.0, -2.0),
        end=(3.0, 2.0),
        tau=(1.0, 0.7),
        max_beta=(0.999, 0.9),
    ),
    "vp_sde": dict(beta_min=(0.1, 0.2), beta_max=(20.0, 10.0), t_min=(1e-5, 1e-3)),
    "sub_vp": dict(beta_min=(0.1, 0.2), beta_max=(20.0, 10.0), t_min=(1e-5, 1e-3)),
    "ve": dict(sigma_min=(0.01, 0.02), sigma_max=(50.0, 20.0), t_min=(0.0, 1e-3)),
    "ve_discrete": dict(sigma_min=(0.01, 0.02), sigma_max=(50.0, 20.0), steps=(1000, 900)),
    "edm": dict(sigma_min=(0.002, 0.01), sigma_max=(80.0, 50.0)),
    "log_snr": dict(logsnr_min=(-20.0, -10.0), logsnr_max=(20.0, 10.0)),
    "flow": dict(shift=(1.0, 3.0), t_min=(1e-3, 1e-2), t_max=(0.999, 0.99)),
    "trigonometric": dict(t_min=(1e-3, 1e-2), t_max=(0.999, 0.99)),
}
GRIDS = {
    "leading": dict(offset=(0, 1), final=("clean", "first")),
    "strided": dict(offset=(0, 1), final=("clean", "first")),
    "trailing": {},
    "linspace": {},
    "quadratic": dict(fraction=(0.8, 0.5)),
    "uniform": dict(final=("last", "clean"), t_end=(None, 0.1)),
    "logsnr": dict(final=("clean", "last")),
    "exponential": dict(final=("clean", "last")),
    "karras": dict(
        rho=(7.0, 3.0), sigma_min=(None, 0.1), sigma_max=(None, 10.0), final=("clean", "last")
    ),
    "beta": dict(a=(0.6, 0.8), b=(0.6, 0.8), final=("clean", "last")),
    "lcm": dict(original_steps=(50, 30)),
    "full": {},
}
_DPM = dict(
    solver_type=("midpoint", "heun"),
    lower_order_final=(True, False),
    euler_at_final=(False, True),
)
_PLMS = dict(runge_kutta=(False, True), output=("eps", "v"), total=(None, 1000))
SAMPLERS = {
    "ddim": dict(eta=(0.0, 0.5), total=(None, 1000)),
    "ddim_inverse": {},
    "ddpm": dict(variance=("fixedsmall", "fixedlarge")),
    "euler": {},
    "euler_ancestral": {},
    "heun": dict(s_churn=(0.0, 5.0), s_tmin=(0.0, 1.0), s_tmax=(np.inf, 1.0), s_noise=(1.0, 1.1)),
    "flow_heun": {},
    "dpm2": dict(ancestral=(False, True)),
    "dpm2_ancestral": {},
    "lms": dict(order=(4, 2)),
    **dict.fromkeys(("plms", "pndm"), _PLMS),
    "ipndm": dict(order=(4, 2), blind=(False, True)),
    "deis": dict(order=(3, 2), lower_order_final=(True, False)),
    **dict.fromkeys(("dpm_solver_2m", "dpmpp_2m", "dpmpp_2m_sde"), _DPM),
    **dict.fromkeys(("dpm_solver_3m", "dpmpp_3m", "dpmpp_3m_sde"), _DPM),
    "dpmpp_2s": {},
    "dpmpp_3s": {},
    "unipc": dict(lower_order_final=(True, False)),
    "unipc_3": dict(lower_order_final=(True, False)),
    "sa_solver": dict(lower_order_final=(True, False)),
    "consistency": {},
    "lcm": dict(sigma_data=(0.5, 5.0), timestep_scaling=(10.0, 0.1)),
    "tcd": dict(gamma=(0.3, 0.5)),
    "langevin": dict(
        steps_per_level=(100, 50),
        step_size=(2e-5, 1e-5),
        denoise=(False, True),
        rule=("printed", "released"),
        start=("normal", "uniform"),
    ),
    "pc": dict(
        variance=("fixedlarge", "fixedsmall"),
        snr=(0.16, 0.3),
        corrections=(1, 2),
        norm=("image", "batch"),
    ),
    "euler_maruyama": dict(diffusion=("forward", "sigma"), strength=(1.0, 0.5)),
    "rk45": dict(rtol=(1e-5, 1e-2), atol=(1e-5, 1e-2)),
}
WEIGHTS = {
    "simple": {},
    "snr": {},
    "p2": dict(k=(1.0, 2.0), gamma=(1.0, 0.5)),
    "min_snr": dict(gamma=(5.0, 1.0)),
    "truncated_snr": {},
    "snr_plus_one": {},
    "edm": dict(sigma_data=(0.5, 1.0)),
    "likelihood": {},
}
TIMES = {
    "uniform": dict(share=(1.0, 0.5)),
    "low_discrepancy": dict(share=(1.0, 0.5)),
    "cubic": {},
    "antithetic": {},
    "log_normal": dict(mean=(-1.2, 0.0), std=(1.2, 0.5), truncate=(False, True)),
    "karras": dict(rho=(7.0, 3.0)),
    "mode": dict(scale=(1.29, 0.5)),
    "cosmap": {},
    "logit_normal": dict(mean=(0.0, 1.0), std=(1.0, 0.5)),
    "loss_second_moment": dict(history=(10, 5), uniform_prob=(0.001, 0.5)),
}
PARAMETERIZATIONS = {
    **{name: {} for name in ("eps", "x0", "v", "velocity")},
    "score": dict(score_scale=(1.0, 2.0)),
    "edm": dict(sigma_data=(0.5, 1.0)),
    "consistency": dict(sigma_data=(0.5, 1.0), sigma_least=(0.002, 0.02)),
}
LINEAR = schedules.linear()
TABLES = {
    "schedule": (schedules.SCHEDULES, SCHEDULES),
    "grid": (grids.GRIDS, GRIDS),
    "sampler": (samplers.SAMPLERS, SAMPLERS),
    "weight": (losses.WEIGHTS, WEIGHTS),
    "times": (losses.TIME_SAMPLERS, TIMES),
    "parameterization": (parameterization.PARAMETERIZATIONS, PARAMETERIZATIONS),
}
# An option that counts only beside others, or on another grid than the one below.
BESIDE = {
    ("sampler", "heun", "s_tmin"): {"s_churn": 5.0},
    ("sampler", "heun", "s_tmax"): {"s_churn": 5.0},
    ("sampler", "heun", "s_noise"): {"s_churn": 5.0},
}


def _numbers(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def _same(one, other):
    one, other = _numbers(one), _numbers(other)
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def _of_schedule(name, options):
    schedule = schedules.make(name, options)
    t = np.linspace(*schedule.span, 50)
    return schedule.at(np.round(t) if schedule.steps else t), schedule.span, schedule.steps or 0


def _of_grid(name, options):
    schedule = schedules.vp_sde() if name in ("uniform", "logsnr") else LINEAR
    grid = grids.make(name, schedule, 10, options)
    return grid.levels, grid.init_std, grid.steps


def _of_sampler(name, options):
    """Where a run ends, in float32, without a compiled loop."""
    grid = grids.linspace(LINEAR, 8)
    if name == "langevin":
        grid = grids.uniform(schedules.ve(0.01, 1.0), 3)
    elif "total" in options:
        grid = grids.from_times(LINEAR, [900, 700, 450, 300, 50])  # uneven steps
    elif "blind" in options:
        grid = grids.trailing(schedules.zero_terminal_snr(LINEAR), 8)
    elif "euler_at_final" in options:
        grid = grids.uniform_logsnr(LINEAR, 20, final="last")  # too long for lower orders
    elif "lower_order_final" in options:
        grid = grids.uniform_logsnr(LINEAR, 8, final="last")  # a step to the data has order 1
    sampler = samplers.make(name, options)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = sampler.plan(grid)
    if sampler.start is not None:
        return sampler.start(jnp.linspace(-1, 1, 4)), rows.coef, rows.level
    if name not in ("pc", "rk45"):
        return rows.coef, rows.level
    z = jnp.stack([jnp.linspace(-1, 1, 4), jnp.linspace(0, 2, 4)])

    def noise(i, k=0):
        return jnp.full((2, 4), 0.5 + k) * jnp.array([[1.0], [2.0]])

    row = jax.tree.map(lambda leaf: leaf[0 if name == "rk45" else 2], rows)

    def denoise(z, level):
        return parameterization.x0().decode(0.5 * z, z, level)

    return sampler.step(noise, denoise, z, sampler.init(z, rows), row)


def _of_weight(name, options):
    t = np.array([10.0, 300.0, 700.0, 990.0])
    level = Level(t, *map(jnp.asarray, LINEAR.at(t)))
    return losses.make_weight(name, options)(level, parameterization.eps())


def _of_times(name, options):
    schedule = schedules.edm() if name in ("log_normal", "karras") else schedules.linear(steps=20)
    sampler = losses.make_time_sampler(name, schedule, options)
    state = sampler.init()
    for k in range(10 if name == "loss_second_moment" else 0):  # enough history
        state = sampler.update(state, jnp.arange(20.0), jnp.arange(20.0) * k % 7)
    return sampler.draw(jax.random.key(0), state, 500)


def _of_parameterization(name, options):
    level = Level(0.0, np.float64(0.8), np.float64(0.5))
    p = parameterization.make(name, options)
    x, eps = np.array([[0.3, -0.2]]), np.array([[1.0, 0.5]])
    return p.target(x, eps, level), p.decode(x, eps, level)[:2], p.scale_in(level), p.gain(level)


COMPUTE = {
    "schedule": _of_schedule,
    "grid": _of_grid,
    "sampler": _of_sampler,
    "weight": _of_weight,
    "times": _of_times,
    "parameterization": _of_parameterization,
}
OPTIONS = [
    (kind, name, option)
    for kind, (_, table) in TABLES.items()
    for name, options in table.items()
    for option in options
]


@pytest.mark.parametrize("kind", TABLES)
def test_every_option_is_in_the_tables_above(kind):
    constructors, table = TABLES[kind]
    assert set(table) == set(constructors)
    for name, constructor in constructors.items():
        taken = set(inspect.signature(constructor).parameters) - {"schedule"}
        assert taken - ({"steps"} if kind == "grid" else set()) == set(table[name]), name


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS)
def test_defaults_are_the_documented_ones_and_every_option_changes_the_result(kind, name, option):
    constructors, table = TABLES[kind]
    default, other = table[name][option]
    assert inspect.signature(constructors[name]).parameters[option].default == default
    given = BESIDE.get((kind, name, option), {})
    results = [COMPUTE[kind](name, {**given, option: value}) for value in (default, other)]
    assert not _same(*results)
