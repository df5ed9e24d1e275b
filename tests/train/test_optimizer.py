"""Schedules against their formulas, optimisers against their first update."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.train import learning_rate, make_optimizer
from tests.train.tiny import make_config


def _section(**values):
    section = make_config().optim
    section.update(values)
    return section


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_rate_of_every_step(decay, warmup):
    lr, end, steps = 0.2, 0.1, 20
    rate = learning_rate(_section(lr=lr, warmup=warmup, decay=decay, lr_end=end), steps)
    for n in range(steps + 1):
        u = (n - warmup) / (steps - warmup)
        after = {
            "constant": 1.0,
            "cosine": end + (1 - end) * (1 + math.cos(math.pi * u)) / 2,
            "linear": 1 - (1 - end) * u,
        }[decay]
        wanted = (n + 1) / warmup if n < warmup else after
        assert float(rate(n)) == pytest.approx(lr * wanted, rel=1e-5, abs=1e-8)


def test_first_update_of_each_optimizer():
    # Adam's first step is lr g / (|g| + eps); AdamW adds the decay; SGD moves along the gradient.
    p, g = jnp.array([1.0, -2.0]), jnp.array([0.3, -4.0])
    options = dict(lr=0.1, warmup=0, decay="constant", clip=0.0, weight_decay=0.5)
    wanted = {
        "adam": -0.1 * np.sign(g),
        "adamw": -0.1 * (np.sign(g) + 0.5 * p),
        "sgd": -0.1 * g,
    }
    for name, update in wanted.items():
        optimizer = make_optimizer(_section(name=name, **options), 10)
        got, _ = optimizer.update(g, optimizer.init(p), p)
        np.testing.assert_allclose(got, update, rtol=1e-5)


@pytest.mark.parametrize("scale, kept", [(0.1, True), (10.0, False)])
def test_clip_bounds_the_global_norm(scale, kept):
    g = {"a": jnp.array([3.0]) * scale, "b": jnp.array([[4.0]]) * scale}  # norm 5 scale
    section = _section(name="sgd", lr=1.0, warmup=0, decay="constant", clip=1.0)
    optimizer = make_optimizer(section, 10)
    got, _ = optimizer.update(g, optimizer.init(g), g)
    assert float(optax.tree.norm(got)) == pytest.approx(5 * scale if kept else 1.0)
    assert float(got["b"][0, 0] / got["a"][0]) == pytest.approx(4 / 3)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"optimizer 'lion'.*adam, adamw, sgd"):
        make_optimizer(_section(name="lion"), 10)
    with pytest.raises(ValueError, match=r"decay 'step'.*constant, cosine, linear"):
        learning_rate(_section(decay="step"), 10)


def test_warmup_must_leave_steps_to_decay_in():
    with pytest.raises(ValueError, match=r"warmup=10.*steps=10"):
        learning_rate(_section(warmup=10, decay="linear"), 10)
    learning_rate(_section(warmup=10, decay="constant"), 10)


def test_groups_have_their_own_options_and_norms():
    tree = {"own": {"w": jnp.array([3.0])}, "judge": {"w": jnp.array([8.0])}}
    options = dict(name="sgd", lr=1.0, warmup=0, decay="constant", clip=2.0)
    groups = {"judge": {"match": r"judge\.", "lr": 0.5, "clip": 4.0}}
    optimizer = make_optimizer(_section(**options, groups=groups), 10)
    update, _ = optimizer.update(tree, optimizer.init(tree), tree)
    # Clipped by their own norms, 3 and 8; then each has its rate.
    assert float(update["own"]["w"][0]) == pytest.approx(-2.0)
    assert float(update["judge"]["w"][0]) == pytest.approx(-0.5 * 4.0)


def test_a_group_without_parameters_is_an_error():
    groups = {"judge": {"match": "critic"}}
    optimizer = make_optimizer(_section(groups=groups), 10)
    with pytest.raises(ValueError, match=r"optim\.groups\.judge: no parameter.*'critic'"):
        optimizer.init({"own": jnp.zeros(1)})
