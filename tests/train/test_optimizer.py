"""Schedules against their formulas, optimisers against their first update."""

import functools
import inspect
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from diffjax.train import init_state, learning_rate, make_optimizer, make_step
from diffjax.train.optimizer import OPTIMIZERS
from tests.train.tiny import batch_at, make_config, make_task


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


@pytest.mark.parametrize("flat", [None, 6, 12])
def test_inverse_square_root_counts_from_the_first_step(flat):
    section = _section(lr=0.2, warmup=4, decay="inverse_sqrt", decay_steps=flat, lr_start=0.0)
    rate = learning_rate(section, 20)
    for n in range(40):
        wanted = 0.2 * min(n / 4, 1) / max(n / (flat or 20), 1) ** 0.5
        assert float(rate(n)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("groups", [None, {"rest": {"match": "layer", "lr": 0.1}}])
def test_kernels_stay_at_magnitude_one_and_all_else_moves_freely(groups):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    params = {"layer": {"kernel": draw(3, 3, 2, 4), "gain": draw(), "bias": draw(4)}}
    grads = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    section = _section(name="adam", lr=0.3, warmup=0, decay="constant")
    section = {**section, **({"groups": groups} if groups else {})}
    results = []
    for unit in (False, True):
        optimizer = make_optimizer({**section, "unit_kernels": unit}, 10)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        results.append(optax.apply_updates(params, updates)["layer"])
    free, kept = results
    size = jnp.sqrt(jnp.mean(free["kernel"] ** 2, axis=(0, 1, 2)))
    np.testing.assert_allclose(kept["kernel"], free["kernel"] / size, rtol=1e-5, atol=1e-6)
    assert np.abs(size - 1).max() > 0.03
    for name in ("gain", "bias"):
        np.testing.assert_array_equal(kept[name], free[name])


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


# What the trainer cannot use, and why.
LEFT_OUT = {
    "lbfgs": "a line search needs the loss",
    "momo": "needs the loss",
    "momo_adam": "needs the loss",
    "sophia": "needs the loss as a function",
    "rprop": "takes no schedule",
    "sm3": "takes no schedule",
    "optimistic_adam": "deprecated",
    "dpsgd": "needs options that have no default",
    "noisy_sgd": "needs a key",
    "galore": "needs a rank",
    "schedule_free_adamw": "has other parameters to evaluate",
    "schedule_free_sgd": "has other parameters to evaluate",
}


def _optimizers_of_optax():
    """Names of all that are constructed from a learning rate, in optax and its contrib."""
    for module in (optax, optax.contrib):
        for name in dir(module):
            value = getattr(module, name)
            function = isinstance(value, types.FunctionType | functools.partial)
            if not function or name.startswith(("_", "scale_by_")):
                continue
            if next(iter(inspect.signature(value).parameters), "") == "learning_rate":
                yield name


def test_every_optimizer_of_optax_is_there_or_left_out_for_a_reason():
    assert set(_optimizers_of_optax()) == OPTIMIZERS.keys() | LEFT_OUT.keys()
    assert not OPTIMIZERS.keys() & LEFT_OUT.keys()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_steps_that_equal_those_of_optax(name):
    """Two steps of the trainer move the parameters as optax's own constructor would."""
    task, batch, key = make_task(random=False), batch_at(0), jax.random.key(0)
    section = _section(name=name, lr=0.01, warmup=0, decay="constant", clip=0.0)
    optimizer = make_optimizer(section, 10)
    state = start = init_state(task, optimizer, key, None, batch)
    own = getattr(optax, name, None) or getattr(optax.contrib, name)
    plain = own(learning_rate=optax.constant_schedule(0.01))
    params, inner = start.params, plain.init(start.params)
    step = make_step(task, optimizer)
    for _ in range(2):
        state, metrics = step(state, None, batch)
        grads = jax.grad(lambda p: task.loss(p, None, {"seen": 0}, key, 0, batch)[0])(params)
        updates, inner = plain.update(grads, inner, params)
        params = optax.apply_updates(params, updates)
        assert metrics["finite"] == 1.0
    for got, wanted, before in zip(
        *map(jax.tree.leaves, (state.params, params, start.params)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-7)
        assert not np.array_equal(got, before)


def test_options_of_the_section_reach_the_optimizer():
    p, g = jnp.array([1.0, -2.0]), jnp.array([0.3, -4.0])
    base = dict(lr=0.1, warmup=0, decay="constant", clip=0.0)
    lion = make_optimizer(_section(name="lion", weight_decay=0.5, **base), 10)
    update, _ = lion.update(g, lion.init(p), p)
    np.testing.assert_allclose(update, -0.1 * (np.sign(g) + 0.5 * p), rtol=1e-6)
    sgd = make_optimizer(_section(name="sgd", momentum=0.5, nesterov=True, **base), 10)
    update, _ = sgd.update(g, sgd.init(p), p)
    np.testing.assert_allclose(update, -0.1 * 1.5 * g, rtol=1e-6)


def test_defaults_of_the_first_three_stay():
    """Configs of runs before there were others resolve to the same values."""
    options = {
        name: {k: p.default for k, p in inspect.signature(OPTIMIZERS[name]).parameters.items()}
        for name in ("adam", "adamw", "sgd")
    }
    for found in options.values():
        del found["lr"]
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "nesterov": False}
    assert options["adam"] == adam
    assert options["adamw"] == {**adam, "weight_decay": 1e-4}
    assert options["sgd"] == {"momentum": 0.0, "nesterov": False}


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"optim\.nesterov=True needs optim\.momentum.*'sgd'"):
        make_optimizer(_section(name="sgd", nesterov=True), 10)


@pytest.mark.parametrize("scale, kept", [(0.1, True), (10.0, False)])
def test_clip_bounds_the_global_norm(scale, kept):
    g = {"a": jnp.array([3.0]) * scale, "b": jnp.array([[4.0]]) * scale}  # norm 5 scale
    section = _section(name="sgd", lr=1.0, warmup=0, decay="constant", clip=1.0)
    optimizer = make_optimizer(section, 10)
    got, _ = optimizer.update(g, optimizer.init(g), g)
    assert float(optax.tree.norm(got)) == pytest.approx(5 * scale if kept else 1.0)
    assert float(got["b"][0, 0] / got["a"][0]) == pytest.approx(4 / 3)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"optimizer 'lions'.*adam, .*sgd.*mean 'lion'\?"):
        make_optimizer(_section(name="lions"), 10)
    with pytest.raises(ValueError, match=r"decay 'step'.*constant, cosine, inverse_sqrt, linear"):
        learning_rate(_section(decay="step"), 10)


def test_warmup_must_leave_steps_to_decay_in():
    with pytest.raises(ValueError, match=r"warmup=10.*steps=10"):
        learning_rate(_section(warmup=10, decay="linear"), 10)
    learning_rate(_section(warmup=10, decay="constant"), 10)


def test_the_schedule_of_latent_diffusion():
    # Multipliers 0.001 over 0.1 to 0.0001 of a rate of 2 (LambdaWarmUpCosineScheduler).
    options = dict(lr=0.2, warmup=100, lr_start=0.01, decay="cosine", decay_steps=500, lr_end=0.001)
    approx = functools.partial(pytest.approx, rel=1e-4)
    rate = learning_rate(_section(**options), 10_000)
    assert float(rate(0)) == approx(0.002)
    assert float(rate(50)) == approx(2 * (0.001 + (0.1 - 0.001) * 50 / 100))
    assert float(rate(100)) == approx(0.2)
    assert float(rate(300)) == approx(2 * (0.0001 + 0.5 * (0.1 - 0.0001)))
    assert float(rate(500)) == float(rate(9000)) == approx(0.0002)


def test_a_warmup_may_begin_at_zero():
    rate = learning_rate(_section(lr=1.0, warmup=4, lr_start=0.0, decay="constant"), 10)
    assert [float(rate(k)) for k in (0, 1, 3, 4, 5)] == pytest.approx([0, 0.25, 0.75, 1, 1])


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
