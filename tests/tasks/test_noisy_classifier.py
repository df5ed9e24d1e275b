"""The classifier of classifier guidance: what it learns, and what its gradient does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import adm
from diffjax.model import make_schedule
from diffjax.tasks.classifier_task import (
    make_classifier_log_prob,
    make_noisy_classifier,
    make_noisy_classifier_task,
)
from diffjax.types import Level

SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def config():
    config = adm.get_config("digits_classifier,smoke")
    config.network.update(multipliers=(1,), attention_levels=(0,))
    return config


@pytest.fixture(scope="module")
def learned(config):
    """Parameters after a few steps on two kinds of images: black ones and white ones."""
    task = make_noisy_classifier_task(config, SHAPE, 256, 2)
    label = jnp.arange(32) % 2
    image = jnp.where(label == 1, 0.9, -0.9)[:, None, None, None] * jnp.ones((32, *SHAPE))
    batch = {"image": image, "label": label}
    params, extra = jax.jit(lambda: task.init(jax.random.key(0), None, batch))()

    @jax.jit
    def step(params, i):
        def loss(params):
            total, (_, metrics) = task.loss(params, None, extra, jax.random.key(i), i, batch)
            return total, metrics

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), metrics

    history = []
    for i in range(60):
        params, metrics = step(params, i)
        history.append({k: float(v) for k, v in metrics.items()})
    return params, history


def test_it_learns_to_see_through_noise(learned):
    _, history = learned
    start, end = history[:5], history[-5:]
    assert np.mean([m["loss"] for m in end]) < 0.8 * np.mean([m["loss"] for m in start])
    assert np.mean([m["accuracy"] for m in end]) > 0.7


def test_its_gradient_points_to_the_class(config, learned):
    params, _ = learned
    of = make_classifier_log_prob(make_noisy_classifier(config, 2))
    schedule = make_schedule(config)
    level = Level(0.2, *schedule.at(0.2))
    z, label = jnp.zeros((2, *SHAPE)), jnp.array([0, 1])
    gradient = jax.jit(jax.grad(lambda z: of(params, z, level, label).sum()))(z)
    assert gradient[0].mean() < 0 < gradient[1].mean()
    total = jnp.exp(of(params, z, level, jnp.array([0, 0]))) + jnp.exp(
        of(params, z, level, jnp.array([1, 1]))
    )
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_bad_input(config):
    with pytest.raises(ValueError, match="labelled data, but there are 0 classes"):
        make_noisy_classifier_task(config, SHAPE, 256, 0)
    task = make_noisy_classifier_task(config, SHAPE, 256, 2)
    wrong = {"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, int)}
    with pytest.raises(ValueError, match="expected, got"):
        task.init(jax.random.key(0), None, wrong)
