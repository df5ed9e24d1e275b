"""Training without the condition now and then, and sampling with guidance, through the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cfg as cfg_config
from diffjax import grids, guidance, samplers
from diffjax.model import denoiser, make_model, make_steering, sample
from diffjax.runs import drawing
from diffjax.types import ConfigError
from tests.tasks.test_diffusion import SHAPE, config, loss, start


def rows_of(cfg, model):
    grid = grids.make("uniform", model.schedule, 4, {"final": "clean"})
    return samplers.ancestral(0.3), samplers.ancestral(0.3).plan(grid)


def draw(cfg, params, sampler, rows, scale, label=3):
    model = make_model(cfg, SHAPE, 17, 10)._replace(params=params)
    keys, steering = jax.random.split(jax.random.key(0), 2), make_steering(cfg)
    cond = {"label": jnp.full(2, label)}
    run = jax.jit(lambda s: sample(model, cond, sampler, rows, keys, scale=s, steering=steering))
    return np.asarray(run(scale))


def test_the_null_condition_has_a_row_of_its_own():
    learned, zero = config(cfg_config), config(cfg_config, cond={"null": "zero"})
    tables = [start(c)[1]["class_embedding"]["embedding"].shape[0] for c in (learned, zero)]
    assert tables == [11, 10]
    undropped = config(cfg_config, cond={"drop": 0.0})
    assert start(undropped)[1]["class_embedding"]["embedding"].shape[0] == 10


def test_training_drops_labels():
    never, often = config(cfg_config, cond={"drop": 1e-9}), config(cfg_config, cond={"drop": 0.999})
    task, params, extra, batch = start(often)
    other = {**batch, "label": batch["label"][::-1]}
    assert float(loss(task, params, extra, batch)[0]) == float(loss(task, params, extra, other)[0])
    task, params, extra, batch = start(never)
    assert float(loss(task, params, extra, batch)[0]) != float(loss(task, params, extra, other)[0])


def test_guided_samples_are_those_of_the_guided_denoiser():
    cfg = config(cfg_config)
    _, params, *_ = start(cfg)
    model = make_model(cfg, SHAPE, 17, 10)
    sampler, rows = rows_of(cfg, model)
    out = {s: draw(cfg, params, sampler, rows, np.full(4, s, np.float32)) for s in (0, 1, 3)}
    null = draw(cfg, params, sampler, rows, np.ones(4, np.float32), label=10)
    assert out[0] == pytest.approx(null, abs=1e-5)
    assert np.abs(out[3] - out[1]).max() > 1e-3

    cond, nothing = {"label": jnp.full(2, 3)}, {"label": jnp.full(2, 10)}

    def conditional(z, level, c):
        return denoiser(model._replace(params=params), c)(z, level)

    denoise = samplers.clip(guidance.guide(conditional, cond, nothing, 3.0))
    noise = samplers.image_noise(jax.random.split(jax.random.key(0), 2), SHAPE)
    z = samplers.prior(noise, rows)
    expected = jnp.clip(samplers.sample(noise, denoise, sampler, z, rows), -1, 1)
    assert out[3] == pytest.approx(np.asarray(expected), abs=1e-4)


def test_bad_conditioning_is_refused():
    with pytest.raises(ValueError, match=r"config.cond.drop must lie in \[0, 1\), got -0.1"):
        start(config(cfg_config, cond={"drop": -0.1}))
    with pytest.raises(ValueError, match="unknown null condition 'none'; choose one of learned"):
        start(config(cfg_config, cond={"null": "none"}))


def test_guidance_is_checked_against_the_model(caplog):
    cfg = config(cfg_config, cond={"drop": 0.0})
    model = make_model(cfg, SHAPE, 17, 10)
    _, rows = rows_of(cfg, model)
    assert drawing._make_guidance(cfg, model, rows, 1.0) is None
    with caplog.at_level("WARNING"):
        assert drawing._make_guidance(cfg, model, rows, 2.0).tolist() == [2.0] * 4
    assert "never seen the null" in caplog.text
    plain = make_model(config(), SHAPE, 17, 10)
    with pytest.raises(ConfigError, match="needs a model with a condition"):
        drawing._make_guidance(cfg, plain, rows, 2.0)
    for labels in (np.array([-1, 2]), np.array([0, 11])):
        with pytest.raises(ConfigError, match=r"labels must lie in 0 \.\. 10"):
            drawing._check_labels(labels, model)
