"""``network.remat=auto``: the first policy that fits is taken, said, kept, and taken again."""

import json

import jax
import pytest

from diffjax.remat import POLICIES, read_auto_policy, resolve_remat
from diffjax.train import Preempted, memory, train
from tests.train.tiny import assert_same, batches, batches_that, make_config, make_task, send


def test_the_first_that_fits_is_taken():
    tried = []

    def attempt(peaks):
        def one(policy):
            tried.append(policy)
            if peaks[policy] is None:
                raise memory.DoesNotFit(0, {"state_bytes": 0})
            return policy.upper(), peaks[policy]

        return one

    peaks = dict(zip(POLICIES, (None, 9, 5), strict=True))
    assert memory.take_first_that_fits(attempt(peaks), 10) == ("products", "PRODUCTS", 9)
    assert tried == ["none", "products"]
    assert memory.take_first_that_fits(attempt(peaks), 8) == ("blocks", "BLOCKS", 5)
    # The compiler accepts the last one: it may run, and it says itself if it does not.
    assert memory.take_first_that_fits(attempt(peaks), 4) == ("blocks", "BLOCKS", 5)
    with pytest.raises(memory.DoesNotFit):
        memory.take_first_that_fits(attempt(dict.fromkeys(POLICIES)), 10)


def test_a_policy_holds_inside_of_its_context_only():
    assert read_auto_policy() == "none"
    with resolve_remat("blocks"):
        assert read_auto_policy() == "blocks"
    assert read_auto_policy() == "none"
    with pytest.raises(ValueError, match="unknown policy 'most'; choose one of none, products"):
        resolve_remat("most").__enter__()


def _train(workdir, start=batches, traced=None):
    config = make_config()
    config.network.remat = "auto"
    task = make_task()

    def loss(*given):
        if traced is not None:
            traced.append(read_auto_policy())
        return task.loss(*given)

    return train(task._replace(loss=loss), config, workdir, start)


def test_a_run_takes_what_fits_and_a_resumed_run_takes_the_same(monkeypatch, tmp_path, caplog):
    plain = _train(tmp_path / "plain")
    assert not (tmp_path / "plain" / memory.FILE).exists()  # CPUs do not say what they have
    peaks = iter((150.0, 90.0))
    monkeypatch.setattr(memory, "read_limit", lambda mesh: 100.0)
    monkeypatch.setattr(memory, "read_peak", lambda program: next(peaks))
    workdir, traced = tmp_path / "run", []
    with caplog.at_level("INFO"), pytest.raises(Preempted):
        _train(workdir, batches_that(send(12), at=6), traced)
    assert traced == ["none", "products"]  # the program that was compiled is the one that ran
    stored = json.loads((workdir / memory.FILE).read_text())
    assert stored["remat"] == "products" and stored["peak_bytes"] == 90.0
    assert "network.remat=auto: products, with which the step needs 0.00 of 0.00 GiB" in caplog.text
    traced.clear()
    assert_same(_train(workdir, traced=traced), plain)
    assert traced == ["products"]  # no more peaks are asked for
    # With another amount of memory the choice is made again.
    monkeypatch.setattr(memory, "read_limit", lambda mesh: 50.0)
    situation = {**stored["situation"], "bytes": 50.0}
    assert memory.read_choice(workdir, situation) is None
    assert memory.read_choice(workdir, stored["situation"]) == "products"


def test_batches_of_another_shape_are_compiled_when_they_come(monkeypatch, tmp_path):
    def start(step, sharding):
        for number, batch in enumerate(batches(step, sharding), step):
            yield batch if number % 2 == 0 else jax.tree.map(lambda leaf: leaf[:4], batch)

    wanted = _train(tmp_path / "plain", start)
    monkeypatch.setattr(memory, "read_limit", lambda mesh: 1e12)
    assert_same(_train(tmp_path / "run", start), wanted)


def test_a_damaged_choice_is_made_again(tmp_path):
    (tmp_path / memory.FILE).write_text("{")
    assert memory.read_choice(tmp_path, {}) is None
    (tmp_path / memory.FILE).write_text('{"remat": "most", "situation": {}}')
    assert memory.read_choice(tmp_path, {}) is None
