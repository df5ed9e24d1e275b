"""Power-function averages: their profile, what is stored of them, and what is made of that."""

import shutil
import signal

import jax
import numpy as np
import optax
import pytest

from diffjax.config.assemble import complete
from diffjax.train import CheckpointError, Checkpoints, Preempted, train
from diffjax.train.averages import (
    LONGEST,
    Tracked,
    ema_decay,
    find_exponent,
    find_length,
    make_averages,
    power_decay,
    skip_steps,
    track,
)
from diffjax.train.snapshots import FOLDER, reconstruct, weigh_snapshots
from diffjax.types import ConfigError
from tests.train.tiny import assert_same, batches, batches_that, make_config, make_task, send


def average(values, decay):
    """The averages after each of some steps, in float64."""
    found, now = [], values[0] * 0
    for step, value in enumerate(values):
        rate = float(decay(step))
        now = rate * now + (1 - rate) * value
        found.append(now)
    return np.array(found)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(length, gamma):
    assert find_exponent(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [0.001, 0.013, 0.1, 0.25, 0.288])
def test_the_length_is_the_deviation_of_the_profile(length):
    gamma = find_exponent(length)
    assert find_length(gamma) == pytest.approx(length, rel=1e-9)
    s = (np.arange(200_000) + 0.5) / 200_000
    weight = s**gamma / (s**gamma).sum()
    deviation = ((s - (s * weight).sum()) ** 2 * weight).sum() ** 0.5
    assert deviation == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 1.0, float("nan")])
def test_lengths_that_do_not_exist_are_refused(length):
    with pytest.raises(ValueError, match=r"no average has length .* such as 0.05"):
        find_exponent(length)


@pytest.mark.parametrize("length", [0.05, 0.2])
def test_steps_have_the_weights_of_the_profile(length):
    steps, power = 40, find_exponent(length) + 1
    found = average(np.eye(steps), power_decay(length))[-1]
    edges = (np.arange(steps + 1) / steps) ** power
    np.testing.assert_allclose(found, np.diff(edges), rtol=1e-5, atol=1e-9)
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("length", [0.02, 0.13, 0.25])
def test_snapshots_of_every_step_give_any_average(length):
    steps = 30
    values = np.random.default_rng(0).standard_normal((steps, 5)).cumsum(0)
    stored = average(values, power_decay(0.1))
    weights = weigh_snapshots(range(1, steps + 1), [0.1] * steps, steps, length)
    wanted = average(values, power_decay(length))[-1]
    np.testing.assert_allclose(weights @ stored, wanted, rtol=1e-4, atol=1e-4)


def test_few_snapshots_of_two_lengths_come_close():
    """Steps that are no multiple of the pieces of time, and many more than these."""
    steps, every = 20_011, 1000
    when = [*range(every, steps, every), steps]
    edges = np.arange(steps + 1.0)[:, None]
    shares = lambda t, length: np.diff(  # noqa: E731
        np.minimum(edges / t, 1) ** (find_exponent(length) + 1), axis=0
    )
    kept = [(t, length) for t in when for length in (0.05, 0.1)]
    profiles = np.hstack([shares(t, length) for t, length in kept])
    # Shorter averages need more snapshots at the end, longer ones at the beginning.
    for length, most in ((0.03, 0.05), (0.075, 0.01), (0.15, 0.01), (0.25, 0.07)):
        weights = weigh_snapshots(*zip(*kept, strict=True), steps, length)
        wanted = shares(steps, length)[:, 0]
        error = np.linalg.norm(profiles @ weights - wanted) / np.linalg.norm(wanted)
        assert error < most, (length, error)
        assert weights.sum() == pytest.approx(1.0)


def test_least_squares_are_those_of_the_inner_products():
    """Of the profiles ``(g+1) s^g / t^(g+1)`` on [0, t], which have a closed form."""

    def inner(one, other):
        (t, g), (u, h) = sorted((one, other))  # the first ends first
        return (g + 1) * (h + 1) / (g + h + 1) * t**h / u ** (h + 1)

    kept = [(t * 1000.0, find_exponent(x)) for t in (4, 7, 10) for x in (0.05, 0.1)]
    target = (10_000.0, find_exponent(0.13))
    gram = np.array([[inner(a, b) for a in kept] for b in kept])
    wanted = np.linalg.solve(gram, [inner(a, target) for a in kept])
    lengths = [find_length(g) for _, g in kept]
    found = weigh_snapshots([int(t) for t, _ in kept], lengths, 10_000, 0.13)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-4)


@pytest.mark.parametrize("steps", [[], [0, 5], [5, 11]])
def test_snapshots_outside_of_the_training_are_refused(steps):
    with pytest.raises(ValueError, match=r"snapshots of steps 1 .. 10 are needed"):
        weigh_snapshots(steps, [0.1] * len(steps), 10, 0.1)


def test_an_optimiser_keeps_averages_and_its_updates():
    plain = optax.adam(0.1)
    tracked = track(plain, (ema_decay(0.5), power_decay(0.1)))
    assert track(plain, ()) is plain
    params = {"w": np.ones(3, np.float32)}
    state, other, seen = tracked.init(params), plain.init(params), []
    for step in range(5):
        grads = {"w": np.full(3, step - 1.5, np.float32)}
        updates, state = tracked.update(grads, state, params)
        wanted, other = plain.update(grads, other, params)
        assert_same(updates, wanted)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params["w"], np.float64))
    assert_same(state.inner, other)
    np.testing.assert_allclose(
        state.averages[1]["w"], average(np.array(seen), power_decay(0.1))[-1], rtol=1e-5
    )
    by_half = 0.5**5 * 1 + sum(0.5 ** (5 - k) * value for k, value in enumerate(seen))
    np.testing.assert_allclose(state.averages[0]["w"], by_half, rtol=1e-5)


def _power_config(**ema):
    config = make_config()
    config.ema.update(kind="power", lengths=(0.05, 0.1), snapshot_every=2)
    config.ema.update(ema)
    return config


def test_an_average_that_moves_rarely_moves_as_far():
    rare, often = skip_steps(ema_decay(0.9), 4), ema_decay(0.9)
    assert [float(rare(step)) for step in range(8)] == pytest.approx([1, 1, 1, 0.9**4] * 2)
    assert skip_steps(often, 1) is often
    section = make_config().ema
    section.update(decay=0.9, every=4, half_life=0, warmup=False)
    assert float(make_averages(section, 8)[0](3)) == pytest.approx(0.9**4)


def test_the_kind_is_chosen_by_name():
    section = _power_config(lengths=(0.05, 0.1, 0.2)).ema
    assert len(make_averages(section, 8)) == 3
    section.kind = "exponential"
    assert [decay(5) for decay in make_averages(section, 8)] == [pytest.approx(6 / 15)]
    section.kind = "powr"
    with pytest.raises(ValueError, match=r"unknown ema.kind 'powr'.*Did you mean 'power'"):
        make_averages(section, 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 12 steps, and the parameters after each of them."""
    folder, config = tmp_path_factory.mktemp("whole"), _power_config()
    config.train.keep = 12
    config.train.checkpoint_every = 1
    return folder, train(make_task(), config, folder, batches)


def test_averages_of_a_run_are_those_of_its_parameters(whole):
    folder, state = whole
    with Checkpoints(folder / "checkpoints", keep=12) as checkpoints:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        path = [checkpoints.restore(like, step=k)[1].params["net"]["w"] for k in range(1, 13)]
    path = np.array(path, np.float64)
    assert isinstance(state.opt, Tracked) and int(state.opt.done) == 12
    for length, kept in ((0.05, state.ema), (0.1, state.opt.averages[0])):
        np.testing.assert_allclose(
            kept["net"]["w"], average(path, power_decay(length))[-1], rtol=1e-5
        )
        step, found = reconstruct(folder, state.params, 12, length)
        assert step == 12
        np.testing.assert_allclose(found["net"]["w"], kept["net"]["w"], rtol=1e-4, atol=1e-6)
    # Of a length that was not kept, and at a step before the end.
    for last, length in ((12, 0.15), (7, 0.08)):
        step, found = reconstruct(folder, state.params, last, length)
        assert step == last - last % 2
        wanted = average(path[:step], power_decay(length))[-1]
        error = np.linalg.norm(found["net"]["w"] - wanted) / np.linalg.norm(wanted)
        shift = np.linalg.norm(state.ema["net"]["w"] - wanted) / np.linalg.norm(wanted)
        assert error < 0.01 and shift > 2 * error, (error, shift)


def test_a_run_that_was_stopped_has_the_same_averages(whole, tmp_path):
    config = _power_config()
    with pytest.raises(Preempted):
        train(make_task(), config, tmp_path, batches_that(send(signal.SIGUSR2), at=6))
    config.ema.snapshot_every = 3  # may change, as it changes no value
    state = train(make_task(), config, tmp_path, batches)
    assert_same(state, whole[1])
    assert sorted(int(p.name) for p in (tmp_path / FOLDER).iterdir()) == [2, 4, 6, 9, 12]


def test_without_snapshots_nothing_is_reconstructed(whole, tmp_path):
    config = _power_config(snapshot_every=0)
    state = train(make_task(), config, tmp_path, batches)
    assert not (tmp_path / FOLDER).exists()
    for folder, step, length, words in (
        (tmp_path, 12, 0.1, r"holds no averages up to step 12.*ema.kind=power"),
        (whole[0], 1, 0.1, r"holds no averages up to step 1"),
        (whole[0], 12, 0.5, r"ema_length=0.5: no average has length"),
    ):
        with pytest.raises(ConfigError, match=words):
            reconstruct(folder, state.params, step, length)


def test_a_damaged_snapshot_is_named(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    next(p for p in (folder / FOLDER / "4").rglob("*") if p.is_file()).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"step 4"):
        reconstruct(folder, whole[1].params, 12, 0.1)


def test_older_configs_have_the_exponential_average():
    config = make_config()
    with config.unlocked():
        for key in ("kind", "lengths", "snapshot_every"):
            del config.ema[key]
    assert complete(config).ema.kind == "exponential"
