"""The compiled step: averages, accumulation, counters, donation, and what a bad loss does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.train import init_state, make_step
from diffjax.train.averages import ema_decay, ema_half_life
from diffjax.train.optimizer import learning_rate
from diffjax.types import Task
from tests.train.tiny import assert_same, batch_at, make_config, make_task


def _run(task, optimizer, steps, **options):
    step = jax.jit(make_step(task, optimizer, **options))
    state = init_state(task, optimizer, jax.random.key(0), None, batch_at(0))
    states, logs = [state], []
    for n in range(steps):
        state, metrics = step(state, None, batch_at(n))
        states.append(state)
        logs.append(metrics)
    return states, logs


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_its_recurrence(warmup):
    states, _ = _run(make_task(), optax.sgd(0.1), 30, decay=ema_decay(0.6, warmup=warmup))
    average = np.asarray(states[0].params["net"]["w"], np.float64)
    for n, state in enumerate(states[1:]):
        rate = min(0.6, (1 + n) / (10 + n)) if warmup else 0.6  # the warm-up ends at n = 13
        average = rate * average + (1 - rate) * np.asarray(state.params["net"]["w"], np.float64)
        np.testing.assert_allclose(state.ema["net"]["w"], average, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(parts):
    section = make_config().optim
    optimizer = optax.sgd(learning_rate(section, 6))
    whole, logs = _run(make_task(random=False), optimizer, 5, decay=ema_decay(0.5, warmup=True))
    split, split_logs = _run(
        make_task(random=False), optimizer, 5, decay=ema_decay(0.5, warmup=True), accumulate=parts
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, whole[-1], split[-1])
    jax.tree.map(close, logs, split_logs)
    # Every counter counts optimiser steps, and every example is seen once.
    assert int(split[-1].step) == 5
    counts = optax.tree_utils.tree_get_all_with_path(split[-1].opt, "count")
    assert counts and all(int(count) == 5 for _, count in counts)
    assert int(split[-1].extra["seen"]) == 5 * 8


def test_accumulated_parts_have_their_own_noise():
    def loss(params, frozen, extra, key, step, batch):
        value = params * jax.random.normal(key)
        return value, (extra, {"loss": value})

    task = Task(lambda key, frozen, batch: (jnp.ones(()), ()), loss)
    states, _ = _run(task, optax.sgd(1.0), 1, accumulate=2)
    base = jax.random.fold_in(jax.random.key(0), 0)
    draws = [float(jax.random.normal(jax.random.fold_in(base, i))) for i in (0, 1)]
    assert draws[0] != draws[1]
    assert float(states[1].params) == pytest.approx(1 - sum(draws) / 2, rel=1e-5)


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch of 8 does not divide into 3"):
        _run(make_task(), optax.sgd(0.1), 1, accumulate=3)
    with pytest.raises(ValueError, match="accumulate=0"):
        make_step(make_task(), optax.sgd(0.1), accumulate=0)


def test_randomness_is_a_function_of_seed_and_step():
    first, _ = _run(make_task(), optax.adam(0.1), 3, seed=1)
    again, _ = _run(make_task(), optax.adam(0.1), 3, seed=1)
    other, _ = _run(make_task(), optax.adam(0.1), 3, seed=2)
    assert_same(first[-1], again[-1])
    assert not np.array_equal(first[-1].params["net"]["w"], other[-1].params["net"]["w"])


def test_donated_state_gives_the_same_and_is_gone():
    task, optimizer = make_task(), optax.adam(0.1)
    plain, _ = _run(task, optimizer, 2)
    step = jax.jit(make_step(task, optimizer), donate_argnums=0)
    start = state = init_state(task, optimizer, jax.random.key(0), None, batch_at(0))
    for n in range(2):
        state, _ = step(state, None, batch_at(n))
    assert_same(plain[-1], state)
    assert start.ema["net"]["w"].is_deleted()
    assert step._cache_size() == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_bad_step_changes_nothing_but_the_counter(parts):
    states, logs = _run(make_task(nan_at=3), optax.adam(0.1), 4, accumulate=parts)
    assert [float(log["finite"]) for log in logs] == [1, 1, 0, 1]
    assert int(states[3].step) == 3
    assert_same(states[2]._replace(step=states[3].step), states[3])


def test_a_gradient_that_is_not_finite_is_a_bad_step():
    def loss(params, frozen, extra, key, step, batch):
        value = jnp.sqrt(params)  # finite at 0, its slope is not
        return value, (extra, {"loss": value})

    task = Task(lambda key, frozen, batch: (jnp.zeros(()), ()), loss)
    states, logs = _run(task, optax.sgd(0.1), 1)
    assert float(logs[0]["loss"]) == 0 and float(logs[0]["finite"]) == 0
    assert float(states[1].params) == 0


def test_parameters_that_overflow_are_not_taken():
    # The loss and its gradient are finite; lr times the gradient is not.
    states, logs = _run(make_task(), optax.sgd(3e38), 1)
    assert np.isfinite(float(logs[0]["grad_norm"])) and float(logs[0]["finite"]) == 0
    assert_same(states[0].params, states[1].params)


def test_half_life_halves_the_memory_of_the_past():
    decay = ema_half_life(1000, 10, ramp=0.5)
    late = float(decay(jnp.asarray(10_000)))
    assert late ** (1000 / 10) == pytest.approx(0.5, rel=1e-4)
    early = float(decay(jnp.asarray(20)))  # 200 images seen: a half-life of 100
    assert early ** (100 / 10) == pytest.approx(0.5, rel=1e-4)
    assert float(decay(jnp.asarray(0))) == 0
    with pytest.raises(ValueError, match="must be positive"):
        ema_half_life(0, 10)
