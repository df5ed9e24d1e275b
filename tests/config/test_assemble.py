"""Configs that the library makes itself, and those that it completes."""

import json

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from configs import adm, autoencoder, controlnet, ddpm, ldm, stable_diffusion
from diffjax.config import complete, make, make_section
from diffjax.config.ranges import flatten
from diffjax.types import ConfigError

CONFIGS = (adm, autoencoder, controlnet, ddpm, ldm, stable_diffusion)
VARIANTS = [(module, name) for module in CONFIGS for name in module.VARIANTS]
KEYS = [key for key, _ in flatten(make().to_dict())]


def plain(config):
    return json.loads(config.to_json_best_effort())


def test_values_are_set_by_dotted_key():
    config = make({"schedule.name": "cosine", "sample.eta": 1, "data.image_size": (8, 16)})
    assert config.schedule.name == "cosine" and config.data.image_size == (8, 16)
    assert config.sample.eta == 1.0 and type(config.sample.eta) is float
    assert make().schedule.name == "linear"  # nothing is shared
    assert make().sample.eta is None and make().data.image_size == 8


@pytest.mark.parametrize("values, task, message", [
    ({"netwrk.channels": 8}, "diffusion", "unknown config key 'netwrk.channels'; .* 'network'"),
    ({"network.chanels": 8}, "diffusion", r"config\.network has .* Did you mean 'channels'"),
    ({"seed.x": 8}, "diffusion", r"config\.seed is a value: it has no key 'x'"),
    ({"network.channels": "x"}, "diffusion", r"config\.network\.channels='x'"),
    ({"schedule.name": "linear"}, "autoencoder", "unknown config key"),
    ({}, "difusion", "unknown task 'difusion'.* Did you mean 'diffusion'"),
])  # fmt: skip
def test_wrong_keys_are_named_with_the_closest(values, task, message):
    with pytest.raises(ConfigError, match=message):
        make(values, task=task)


@pytest.mark.parametrize(
    "task, has, lacks",
    [
        ("diffusion", {"schedule", "cond"}, {"model", "control", "lora"}),
        ("classifier", {"schedule", "cond"}, {"model", "control", "lora"}),
        ("autoencoder", {"network", "loss"}, {"schedule", "cond", "times", "parameterization"}),
        ("controlnet", {"control"}, {"lora"}),
        ("lora", {"lora", "model"}, {"control"}),
    ],
)
def test_a_task_has_its_sections(task, has, lacks):
    config = make(task=task)
    assert config.task == task and has <= set(config) and not lacks & set(config)


def test_a_section_by_itself():
    assert make_section("lora", rank=4).to_dict() == {
        "rank": 4, "alpha": 16.0, "targets": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_targets": (),
    }  # fmt: skip


@pytest.mark.parametrize("module, name", VARIANTS, ids=lambda v: getattr(v, "__name__", v))
def test_a_whole_config_stays_as_it_is(module, name):
    config = module.VARIANTS[name]()
    before = plain(config)
    assert complete(config) is config and plain(config) == before


@given(st.sets(st.sampled_from(KEYS)))
def test_keys_that_are_lacking_become_the_defaults(lacking):
    flat = {key: value for key, value in flatten(make().to_dict()) if key not in lacking}
    config = complete(_nest(flat))
    wanted = plain(make())
    if "eval.best" in lacking:  # runs from before that key kept none
        wanted["eval"]["best"] = ""
    assert plain(config) == wanted
    config.sample.eta = 0.5
    config.data.image_size = (8, 16)


def _nest(flat):
    out = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        part = out
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return out


def test_values_and_keys_of_ones_own_stay():
    config = complete({"seed": 3, "mine": {"key": 1}, "optim": {"lr": 1, "eps": None}})
    assert (config.seed, config.mine.key, config.optim.lr) == (3, 1, 1.0)
    config.optim.update(lr=0.5, eps=1e-6)  # JSON has 1 for 1.0, and null for what is open
    with pytest.raises(TypeError):
        config.optim.eps = "small"


def test_a_locked_config_is_completed_and_locked():
    config = ConfigDict({"seed": 3}).lock()
    assert complete(config).is_locked and config.train.steps == make().train.steps


def test_the_sections_of_a_first_stage_are_its_own():
    lacking = autoencoder.fashion_mnist()
    del lacking.network["remat"], lacking.eval["best"]
    config = complete(lacking)
    assert "remat" not in config.network and "heads" not in config.network
    assert "cond" not in config and "schedule" not in config and config.eval.best == ""


def test_the_options_of_another_network_are_its_own():
    network = {"name": "mine", "width": 3}
    config = complete({"network": network})
    assert config.network.to_dict() == {**network, "conditional": False, "dtype": "float32"}


def test_an_open_option_of_ones_own_keeps_its_type():
    config = make()
    config.mine = ConfigDict({"width": placeholder(int)})
    complete(config).mine.width = 3
    with pytest.raises(TypeError):
        config.mine.width = "x"


@pytest.mark.parametrize("text, entries", [
    ("wandb", ("wandb",)),
    ("wandb,trackio", ("wandb", "trackio")),
    ("(wandb, trackio)", ("wandb", "trackio")),
    ("('wandb','trackio')", ("wandb", "trackio")),
    ("attn2.to_k,to_out.0", ("attn2.to_k", "to_out.0")),  # no Python at all
    ("", ()),
    ("()", ()),
    ("1,2", (1, 2)),
    ("(0.5,1)", (0.5, 1)),
    ("3", (3,)),
])  # fmt: skip
def test_lists_on_the_command_line_need_no_quotes(monkeypatch, text, entries):
    config, values = make({"train.trackers": ("before",)}), flags.FlagValues()
    command = ["test", f"--config.train.trackers={text}"]
    monkeypatch.setattr("sys.argv", command)  # where ml_collections looks for the flags
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(command)
    assert config.train.trackers == entries
