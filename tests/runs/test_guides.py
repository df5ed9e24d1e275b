"""The networks that guide sampling in place of the null condition, read from runs of their own."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cfg as cfg_configs
from configs import controlnet
from configs.base import smoke
from diffjax import guidance, runs, samplers
from diffjax.model import denoiser, make_sampler
from diffjax.model.image_maker import make_keys
from diffjax.model.steering_options import Steering
from diffjax.runs import callbacks, guides
from diffjax.types import ConfigError


def make_config():
    config = smoke(cfg_configs.digits())
    config.sample.update(sampler="ddim", steps=3, clip=False)
    return config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two exported models, of which the first is wanted and the second is worse."""
    folder = tmp_path_factory.mktemp("guides")
    config = make_config()
    begun = runs.init_untrained(config)
    strong = begun._replace(ema=jax.tree.map(lambda leaf: leaf + 0.05, begun.ema))
    weak = begun._replace(ema=jax.tree.map(lambda leaf: 0.9 * leaf + 0.02, begun.ema))
    for name, state in {"strong": strong, "weak": weak}.items():
        runs.write_export(folder / f"{name}.safetensors", config, state)
    return folder / "strong.safetensors", folder / "weak.safetensors"


def draw(file, guide="", scale=1.0, **sample):
    config = make_config()
    config.sample.update(guide=str(guide), guidance=scale, **sample)
    run = runs.open_run(file, config=config)
    return run, runs.make_drawer(run).draw(num=2, seed=1)


def test_a_model_is_guided_away_from_the_one_that_the_config_names(files):
    strong, weak = files
    run, found = draw(strong, weak, 2.5)
    model, other = run.model, runs.open_run(weak).model
    cond = model.condition.encode(model.params, {}, {}, {"label": jnp.arange(2)})
    theirs = other.condition.encode(other.params, {}, {}, {"label": jnp.arange(2)})
    both = guidance.contrast(denoiser(model, cond), denoiser(other, theirs), 2.5)
    sampler, rows = make_sampler(run.config, model)
    keys = jax.random.wrap_key_data(jnp.asarray(make_keys(1, np.arange(2))))
    noise = samplers.image_noise(keys, model.space.shape)
    wanted = samplers.sample(noise, both, sampler, samplers.prior(noise, rows), rows)
    np.testing.assert_allclose(found, np.clip(wanted, -1, 1), atol=2e-5)
    assert np.abs(found - draw(strong)[1]).max() > 1e-3


def test_the_model_itself_as_guide_and_scale_1_change_nothing(files):
    strong, weak = files
    plain = draw(strong, scale=1.0)[1]
    np.testing.assert_allclose(draw(strong, strong, 3.0)[1], plain, atol=1e-5)
    np.testing.assert_allclose(draw(strong, weak, 1.0)[1], plain, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "judge.safetensors"}, "exclude each other"),
        ({"skip_scale": 2.0}, r"skip_scale=2 has no effect beside sample.guide"),
        ({"guide_ema_length": 0.1}, "holds one average; give the workdir"),
    ],
)
def test_settings_without_effect_beside_a_guide_are_refused(files, change, message):
    with pytest.raises(ConfigError, match=message):
        draw(files[0], files[1], 2.0, **change)


def test_rules_of_two_predictions_are_refused_beside_a_classifier(files):
    config = make_config()
    config.sample.update(classifier="judge.safetensors", guidance_rescale=0.7)
    with pytest.raises(ConfigError, match=r"sample.guidance_rescale=0.7 has no effect beside"):
        guides.read_guides(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.schedule.update(name="linear"), "another noise schedule than the model"),
        (lambda c: c.data.update(image_size=8), r"is of \(image shape, classes\)"),
        (lambda c: c.cond.update(context="label"), r"conditioned on label \(cond.context\)"),
        (lambda c: c.network.update(conditional=False), "only one of them is conditioned"),
    ],
)
def test_a_guide_of_another_problem_is_refused(tmp_path, change, message):
    found = make_config()
    change(found)
    (tmp_path / "config.json").write_text(json.dumps(found.to_dict()))
    config = make_config()
    config.sample.guide = str(tmp_path)
    with pytest.raises(ConfigError, match=message):
        guides.make_weak_model(config)


def test_a_guide_that_is_no_whole_model_is_refused(tmp_path):
    found = smoke(controlnet.fashion_mnist_edges())
    (tmp_path / "config.json").write_text(json.dumps(found.to_dict()))
    config = make_config()
    config.sample.guide = str(tmp_path)
    with pytest.raises(ConfigError, match="holds a run of task 'controlnet', no whole model"):
        guides.make_weak_model(config)


def test_previews_of_a_training_are_guided_too(files, tmp_path):
    strong, weak = files
    config, shown = make_config(), {}
    config.sample.update(guidance=2.5, num=2, batch_size=2)
    state = runs.open_run(strong, config=config).state
    for name, guide in {"guided": str(weak), "plain": ""}.items():
        config.sample.guide = guide
        (tmp_path / name / "samples").mkdir(parents=True)
        reporter = types.SimpleNamespace(image=lambda *a, name=name: shown.update({name: a[2]}))
        callbacks.choose_preview(config, tmp_path / name)(state, None, 1, reporter)
    assert shown["guided"].shape == shown["plain"].shape
    assert (shown["guided"] != shown["plain"]).any()


def test_programs_compiled_with_a_guide_serve_the_next_drawer(files):
    config = make_config()
    config.sample.guide = str(files[1])
    first, second = (guides.make_weak_model(config) for _ in range(2))
    assert first is not second and len({first, second}) == 1
    other = make_config()
    other.sample.guide = str(files[0])
    assert guides.make_weak_model(other) == first  # of an equal config: parameters are arguments


def test_steering_without_a_guide_has_none():
    assert guides.make_weak_model(make_config()) is None
    assert guides.read_guides(make_config()) == {}
    assert Steering().guide is None
