"""Sections of a config: defaults of what is chosen, options that nobody takes, ranges."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import config, grids, losses, parameterization, samplers, schedules
from diffjax.model import make_model, make_schedule
from diffjax.tasks import make_task
from diffjax.types import Level, build, build_section, choose, select_options

# Options of constructors that are for reading diffusers' schedulers, or that are no settings.
INTERNAL = {
    *("sample.total", "sample.blind", "sample.runge_kutta", "sample.output", "sample.ancestral"),
    "sample.sigma_data",
}


def _base(**sections):
    cfg = config.make()
    cfg.network.update(channels=8, norm_groups=2, multipliers=(1, 1), attention_levels=())
    for name, values in sections.items():
        cfg[name].update(values)
    return cfg


def _task(cfg):
    return make_task(cfg, (8, 8, 1), 17, 10)


@pytest.mark.parametrize("choice", config.CHOICES, ids=lambda choice: choice.kind)
def test_base_holds_every_option_and_leaves_it_open(choice):
    """So every option can be set by a flag, and none overrides the default of another choice."""
    cfg = config.make().to_dict()
    section = config.find(cfg, choice.section)
    if section is None:
        pytest.skip("not in every config")
    for path in choice.list_all_options() - INTERNAL - {"schedule.steps"}:
        assert path.rpartition(".")[2] in config.find(cfg, path.rpartition(".")[0]), path
        assert config.find(cfg, path) is None, path


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
def test_name_alone_gives_the_constructors_own_schedule(name):
    got, own = make_schedule(_base(schedule={"name": name})), schedules.SCHEDULES[name]()
    t = np.linspace(*own.span, 7) if own.steps is None else np.arange(0, 1000, 111)
    np.testing.assert_array_equal(got.at(t), own.at(t))


def test_scaled_linear_has_its_own_betas():
    alpha, _ = make_schedule(_base(schedule={"name": "scaled_linear"})).at(np.arange(1))
    assert alpha[0] ** 2 == pytest.approx(1 - 0.00085)


def test_a_value_that_is_set_counts_for_every_choice_that_has_it():
    for name in ("linear", "scaled_linear"):
        cfg = _base(schedule={"name": name, "beta_start": 0.01})
        assert make_schedule(cfg).at(np.arange(1))[0][0] ** 2 == pytest.approx(0.99)


@pytest.mark.parametrize("name, gamma", [("p2", 1.0), ("min_snr", 5.0)])
def test_gamma_is_that_of_the_weight(name, gamma):
    resolved = config.resolve(_base(loss={"weight": name}))
    assert resolved["loss"]["gamma"] == gamma
    level = Level(jnp.zeros(1), jnp.asarray([0.8]), jnp.asarray([0.6]))
    section = config.find(_base(loss={"weight": name}).to_dict(), "loss")
    made = build_section(
        "loss weight", name, losses.WEIGHTS, {k: section[k] for k in ("gamma", "k")}
    )
    own = losses.WEIGHTS[name]()
    eps = parameterization.eps()
    np.testing.assert_array_equal(made(level, eps), own(level, eps))


def test_one_sigma_data_for_network_and_weight():
    """EDM's weight of the raw output is 1 whatever sigma_data is (Karras et al. 2022, table 1)."""
    for sd in (0.5, 1.0):
        cfg = _base(
            schedule={"name": "edm"},
            parameterization={"name": "edm", "sigma_data": sd},
            loss={"weight": "edm"},
            times={"name": "log_normal"},
        )
        cfg.network.channels = 8
        task = _task(cfg)
        model = make_model(cfg, (8, 8, 1), 17, 10)
        batch = {"image": jnp.zeros((64, 8, 8, 1)), "label": jnp.zeros(64, jnp.int32)}
        params, extra = jax.jit(task.init)(jax.random.key(0), None, batch)
        # A network whose last layer is zero predicts raw = 0, so the loss is the mean squared
        # target, which is 1 for data of variance sd^2; of x = 0 it is sd^2 / (sigma^2 + sd^2).
        key = jax.random.key(1)
        loss, _ = jax.jit(task.loss)(params, None, extra, key, jnp.zeros((), jnp.int32), batch)
        time_key, noise_key, _ = jax.random.split(key, 3)
        t = -1.2 / 4 + 0.3 * jax.random.normal(time_key, (64,))
        sigma = jnp.exp(4 * t)
        eps = jax.random.normal(noise_key, (64, 8, 8, 1))
        # target = (0 - c_skip z)/c_out = -sd/sqrt(sigma^2 + sd^2) eps
        wanted = (sd**2 / (sigma**2 + sd**2) * jnp.square(eps).mean((1, 2, 3))).mean()
        assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
        assert model.parameterization.channels == 1


def test_pc_has_the_variance_of_reverse_diffusion():
    section = config.make().sample
    options = select_options("sampler", "pc", samplers.SAMPLERS, section)
    assert "variance" not in options
    assert config.resolve(_base(sample={"sampler": "pc"}))["sample"]["variance"] == "fixedlarge"


@pytest.mark.parametrize("table", [
    *(schedules.SCHEDULES, losses.WEIGHTS, losses.TIME_SAMPLERS, samplers.SAMPLERS, grids.GRIDS),
])  # fmt: skip
def test_registries_refuse_what_the_chosen_one_does_not_take(table):
    options = {o: n for n, entry in table.items() for o in inspect.signature(entry).parameters}
    for name, entry in table.items():
        takes = inspect.signature(entry).parameters
        for option in options.keys() - takes.keys():
            with pytest.raises(ValueError, match=f"{name!r} does not take the option {option!r}"):
                build("thing", name, table, {option: 1})


def test_heun_takes_no_eta():
    with pytest.raises(ValueError, match=r"'heun' does not take the option 'eta'.*ddim"):
        samplers.make("heun", {"eta": 0.7})


@pytest.mark.parametrize("name, closest", [("dpmp_2m", "dpmpp_2m"), ("DDIM", None), (3, None)])
def test_unknown_names_suggest_the_closest(name, closest):
    with pytest.raises(ValueError) as error:
        choose("sampler", name, samplers.SAMPLERS)
    assert (f"Did you mean {closest!r}" in str(error.value)) == bool(closest)


@pytest.mark.parametrize("name", ["x" * 10_000, ["x"] * 10_000, {"x": 10**2000}])
def test_names_of_any_length_are_shown_in_part(name):
    with pytest.raises(ValueError, match=r"unknown schedule .*; choose one of cosine") as caught:
        choose("schedule", name, {"cosine": 0, "linear": 0})
    assert len(str(caught.value)) < 200


def test_unknown_options_suggest_the_closest():
    with pytest.raises(ValueError, match=r"option 'beta_strat'.*Did you mean 'beta_start'"):
        build("schedule", "linear", schedules.SCHEDULES, {"beta_strat": 1})


def test_options_nobody_takes_are_found():
    cfg = _base(sample={"sampler": "heun", "eta": 0.5})
    reason = config.explain_unused(cfg, ["sample.eta"])["sample.eta"]
    assert "sample.sampler is 'heun'" in reason and "ddim" in reason
    assert config.explain_unused(cfg, ["sample.s_churn", "sample.grid", "network.channels"]) == {}
    # Of two choices in a section, one that takes it is enough.
    cfg = _base(parameterization={"name": "eps"}, loss={"weight": "edm"})
    assert config.explain_unused(cfg, ["parameterization.sigma_data"]) == {}
    assert config.explain_unused(_base(), ["parameterization.sigma_data"])


def test_resolved_configs_that_compute_the_same_are_equal():
    stored = _base().to_dict()  # as configs were stored that held every default
    stored["schedule"].update(beta_start=1e-4, beta_end=0.02)
    stored["loss"]["gamma"], stored["parameterization"]["sigma_data"] = 5.0, 0.5
    assert config.resolve(stored) == config.resolve(_base())
    assert config.resolve(_base(schedule={"beta_end": 0.03})) != config.resolve(_base())


@pytest.mark.parametrize("path, value", [
    ("data.batch_size", 0), ("sample.steps", -1), ("optim.lr", float("nan")), ("ema.decay", 1.0),
    ("network.dropout", -0.1), ("cond.drop", 1.5), ("optim.lr", 0.0), ("train.steps", -1),
    ("sample.eta", -0.5), ("data.levels", 1), ("schedule.steps", 0), ("sample.gamma", 2.0),
])  # fmt: skip
def test_values_out_of_range_are_named(path, value):
    cfg = config.make()
    section, key = path.split(".")
    cfg[section][key] = value
    with pytest.raises(ValueError, match=rf"config\.{path} (must be|is not a number)"):
        config.check(cfg)


def test_an_unknown_task_is_named():
    cfg = config.make()
    cfg.task = "difusion"
    with pytest.raises(ValueError, match=r"unknown task 'difusion'.* Did you mean 'diffusion'"):
        config.check(cfg)


def test_defaults_are_in_range():
    config.check(config.make())
    config.check(ConfigDict({"seed": 1}))


ZERO = {"name": "scaled_linear", "zero_snr": True}


@pytest.mark.parametrize("name", ["eps", "score", "edm"])
def test_zero_terminal_snr_needs_another_prediction(name):
    cfg = _base(schedule=ZERO, parameterization={"name": name})
    with pytest.raises(ValueError, match="predict v or x0"):
        _task(cfg)


@pytest.mark.parametrize("name", ["v", "x0"])
def test_v_and_x0_take_zero_terminal_snr(name):
    cfg = _base(schedule=ZERO, parameterization={"name": name}, loss={"weight": "min_snr"})
    task = _task(cfg)
    batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.zeros(2, jnp.int32)}
    params, extra = jax.jit(task.init)(jax.random.key(0), None, batch)
    loss, _ = jax.jit(task.loss)(params, None, extra, jax.random.key(1), jnp.int32(0), batch)
    assert np.isfinite(loss)


def test_only_levels_that_are_visited_count():
    """Leading steps leave out the last timestep, so eps works on them as it does in diffusers."""
    schedule = schedules.zero_terminal_snr(schedules.scaled_linear())
    eps = parameterization.learned_range(parameterization.eps())
    parameterization.check_levels(eps, grids.leading(schedule, 10).levels)
    with pytest.raises(ValueError, match="alpha, which is 0"):
        parameterization.check_levels(eps, grids.trailing(schedule, 10).levels)
