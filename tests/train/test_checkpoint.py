"""Checkpoints come back bit-equal, or are refused: every kind of damage to every file."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.train import Checkpoints, State
from diffjax.train.checkpoint import Best, CheckpointMismatch
from diffjax.train.sealed_files import MANIFEST, CheckpointError
from diffjax.train.sharding import with_sharding
from diffjax.writing import write_atomically
from tests.train.tiny import assert_same


def _state(seed: int, *, width: int = 3, dtype=jnp.float32, optimizer=None) -> State:
    key = jax.random.key(seed)
    w = jax.random.normal(key, (4, width), dtype)
    params = {"to_out.0": {"kernel": w}, "bias": jnp.arange(3.0)}
    optimizer = optimizer or optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    opt = optimizer.init(params)
    return State(jnp.int32(seed), params, jax.tree.map(jnp.copy, params), opt, {"key": key})


def _abstract(state: State):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: state)
    return with_sharding(shapes, jax.tree.map(lambda _: place, shapes))


ABSTRACT = _abstract(_state(0))


def _write(folder: Path, *steps: int, keep: int = 2) -> None:
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step), {"made at": step})


def _same(a: State, b: State) -> None:
    raw = lambda s: s._replace(extra=jax.random.key_data(s.extra["key"]))  # noqa: E731
    assert_same(raw(a), raw(b))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    _write(folder, 1, 2)
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        "diffjax.train.checkpoint.logging.warning", lambda text, *a: lines.append(text % a)
    )
    return lines


def test_newest_comes_back_bit_equal(two_steps):
    checkpoints = Checkpoints(two_steps)
    assert checkpoints.steps() == [1, 2]
    step, state = checkpoints.restore(ABSTRACT)
    assert step == 2
    _same(state, _state(2))
    assert checkpoints.metadata(2) == {"made at": 2}


def test_a_step_can_be_asked_for(two_steps):
    step, state = Checkpoints(two_steps).restore(ABSTRACT, step=1)
    assert step == 1
    _same(state, _state(1))
    with pytest.raises(CheckpointError, match=r"step 7: there is no such step; found \[1, 2\]"):
        Checkpoints(two_steps).restore(ABSTRACT, step=7)


def test_nothing_there_is_not_an_error(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(ABSTRACT) is None


def test_the_newest_stay(tmp_path):
    _write(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["10", "3"]
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_a_step_that_is_there_is_not_written_again(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(2, _state(5))
        checkpoints.wait()
        _same(checkpoints.restore(ABSTRACT)[1], _state(2))


def test_a_save_keeps_its_values_while_training_goes_on(tmp_path):
    # The step donates its state: without a copy, the write would see later values.
    bump = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros((256, 1024))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = bump(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        _, loaded = checkpoints.restore(_abstract(state))
    assert float(jnp.abs(loaded["w"]).max()) == 0


def _offer(folder: Path, *values: float, mode: str = "min", start: int = 1) -> Best:
    with Best(folder, "fid", mode=mode) as best:
        for step, value in enumerate(values, start):
            best.offer(step, value, _state(step), {"made at": step})
    return best


@pytest.mark.parametrize(
    "values, mode, kept",
    [
        ((5.0, 3.0, 4.0, 9.0), "min", 2),
        ((5.0, 3.0, 4.0, 9.0), "max", 4),
        ((3.0, 3.0, float("nan")), "min", 1),  # equal is not better, and a NaN is nothing
    ],
)
def test_the_best_stays_however_much_comes_after(tmp_path, values, mode, kept):
    best = _offer(tmp_path, *values, mode=mode)
    assert (best.step, best.value) == (kept, values[kept - 1])
    assert os.listdir(tmp_path) == [str(kept)]
    again = Best(tmp_path, "fid", mode=mode)
    assert (again.step, again.value) == (kept, values[kept - 1])
    assert not again.offer(9, values[kept - 1], _state(9))
    step, state = again.restore(ABSTRACT)
    assert step == kept
    _same(state, _state(kept))
    if mode == "min":  # the same step again, better: of a run that went on with another config
        assert again.offer(kept, values[kept - 1] - 1, _state(7))
        _same(again.restore(ABSTRACT)[1], _state(7))
    again.close()


def test_the_newest_can_be_resumed_however_the_metric_worsens(tmp_path):
    with Checkpoints(tmp_path / "latest", keep=2) as latest, Best(tmp_path / "best", "fid") as best:
        for step in range(1, 8):
            latest.save(step, _state(step))
            best.offer(step, 10.0 + step, _state(step))
        latest.wait()
        assert latest.steps() == [6, 7] and best.step == 1
        assert latest.restore(ABSTRACT)[0] == 7 and best.restore(ABSTRACT)[0] == 1


def test_a_best_of_another_metric_is_refused(tmp_path):
    _offer(tmp_path, 5.0)
    with pytest.raises(ValueError, match=r"best by fid \(min\), not by kid \(min\)"):
        Best(tmp_path, "kid")
    with pytest.raises(ValueError, match="unknown mode 'least'"):
        Best(tmp_path, "fid", mode="least")


def test_a_damaged_best_is_replaced(tmp_path, warnings):
    _offer(tmp_path, 5.0)
    (tmp_path / "1" / MANIFEST).unlink()
    best = _offer(tmp_path, 8.0, start=1)
    assert (best.step, best.value) == (1, 8.0)
    assert any("the best step is lost" in line for line in warnings)
    assert Best(tmp_path, "fid").value == 8.0


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {
    "bit": _flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": Path.unlink,
}


def test_damage_to_any_file_falls_back_and_says_so(two_steps, tmp_path, warnings):
    names = [str(p.relative_to(two_steps / "2")) for p in (two_steps / "2").rglob("*")]
    names = [name for name in names if (two_steps / "2" / name).is_file()]
    assert MANIFEST in names and any("ocdbt.process_0/d/" in name for name in names)
    tried = 0
    for name in names:
        for kind, damage in DAMAGES.items():
            if kind != "deleted" and not (two_steps / "2" / name).stat().st_size:
                continue  # nothing in it to damage
            copy = Path(shutil.copytree(two_steps, tmp_path / str(tried)))
            damage(copy / "2" / name)
            warnings.clear()
            step, state = Checkpoints(copy).restore(ABSTRACT)
            assert step == 1, (kind, name)
            _same(state, _state(1))
            assert any(str(copy / "2") in line for line in warnings)
            assert "falling back to the checkpoint of step 1" in warnings
            tried += 1
    assert tried >= 20


def _empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _half(step: Path) -> None:
    shutil.rmtree(step / "state")


@pytest.mark.parametrize("damage", [_empty, _half])
def test_a_damaged_step_is_written_anew(folder, warnings, damage):
    damage(folder / "2")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[0] == 1
        assert checkpoints.steps() == [1, 2]  # reading changes nothing
        checkpoints.save(2, _state(20))
    step, state = Checkpoints(folder).restore(ABSTRACT)
    assert step == 2
    _same(state, _state(20))


def test_damaged_steps_do_not_crowd_out_good_ones(folder):
    # Kept as "newest", step 9 would have the good ones deleted one after the other.
    shutil.copytree(folder / "2", folder / "9")
    (folder / "9" / MANIFEST).unlink()
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[0] == 2
        checkpoints.save(3, _state(3))
    assert Checkpoints(folder).steps() == [3]
    assert Checkpoints(folder).restore(ABSTRACT)[0] == 3


def test_no_silent_restart_when_all_are_damaged(folder):
    for step in "12":
        _half(folder / step)
    with pytest.raises(CheckpointError, match=r"no checkpoint under .* step 2: .*; step 1: .*"):
        Checkpoints(folder).restore(ABSTRACT)
    assert Checkpoints(folder).steps() == [1, 2]


def test_overridden_what_fits_is_kept(two_steps):
    # Overridden, what has the same name and shape is kept, cast if need be; the rest is new.
    other = _state(7, width=5, dtype=jnp.bfloat16, optimizer=optax.sgd(0.1, 0.9))
    step, state = Checkpoints(two_steps).restore(_abstract(other), fresh=lambda: other)
    assert step == 2 and int(state.step) == 2
    np.testing.assert_array_equal(state.params["bias"], _state(2).params["bias"])
    np.testing.assert_array_equal(  # of another shape
        np.asarray(state.params["to_out.0"]["kernel"]),
        np.asarray(other.params["to_out.0"]["kernel"]),
    )
    cast = _state(7, dtype=jnp.bfloat16)
    _, state = Checkpoints(two_steps).restore(_abstract(cast), fresh=lambda: cast)
    kernel = state.params["to_out.0"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(kernel),
        np.asarray(_state(2).params["to_out.0"]["kernel"].astype(jnp.bfloat16)),
    )


def test_another_shape_names_the_leaf(two_steps):
    with pytest.raises(CheckpointMismatch) as caught:
        Checkpoints(two_steps).restore(_abstract(_state(0, width=5)))
    text = str(caught.value)
    assert "params.to_out.0.kernel is stored as (4, 3) float32, wanted (4, 5) float32" in text
    assert "damaged" not in text


def test_parts_are_read_without_the_others(two_steps, folder):
    abstract = {key: getattr(ABSTRACT, key) for key in ("step", "ema")}
    step, found = Checkpoints(two_steps).restore(abstract, parts=abstract.keys())
    assert found.keys() == abstract.keys()
    assert_same(found["ema"], _state(step).ema)
    bare = folder / "bare"
    with Checkpoints(bare) as checkpoints:  # most tasks have nothing extra
        checkpoints.save(1, _state(1)._replace(extra={}))
    abstract = {**abstract, "extra": {}}
    assert Checkpoints(bare).restore(abstract, parts=abstract.keys())[1]["extra"] == {}
    with pytest.raises(CheckpointMismatch, match=r"ema.* is stored, not wanted"):
        Checkpoints(two_steps).restore(
            {"step": abstract["step"], "ema": None}, parts=("step", "ema")
        )


def test_another_type_or_tree_is_refused(two_steps):
    for other, reason in [
        (
            _state(0, dtype=jnp.bfloat16),
            r"kernel is stored as \(4, 3\) float32, wanted .* bfloat16",
        ),
        (_state(0, optimizer=optax.sgd(0.1)), r"opt\.1\.0\.mu\.bias is stored, not wanted"),
        (_state(0, optimizer=optax.sgd(0.1, 0.9)), r"opt\.0\.trace\.bias is not stored, wanted"),
    ]:
        with pytest.raises(CheckpointMismatch, match=reason):
            Checkpoints(two_steps).restore(_abstract(other))


def test_leftovers_of_a_crash_are_ignored_then_removed(folder):
    # Killed while writing 3 (before and after Orbax's own commit) and while deleting 0.
    for name in ("3.partial.orbax-checkpoint-tmp", "3.partial", "0.removed"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("part")
    shutil.copytree(folder / "1", folder / "0")  # one more than `keep`: the deletion never came
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[0] == 2
        assert (folder / "3.partial").exists()  # somebody who only reads leaves a writer alone
        checkpoints.save(3, _state(3))
    assert sorted(os.listdir(folder)) == ["2", "3"]


NOT_OURS = (
    *("notes", "my.partial", "3.partial-notes", "3.removed.old", "03", "-1", "1.0", "+4"),
    *("\u0663", "\u00b2", "3.Partial", " 5"),  # digits of another script, an exponent
)


def test_what_is_not_ours_is_neither_read_nor_removed(folder, tmp_path):
    for name in (*NOT_OURS, "2024"):  # a step by its name, but not by what is in it
        (folder / name).mkdir()
        (folder / name / "photo.png").write_text("mine")
    (folder / "3.partial").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    (folder / "7.removed").symlink_to(tmp_path / "elsewhere")
    (folder / "7.partial").write_text("a file of somebody's")
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(ABSTRACT)[0] == 2
        checkpoints.save(3, _state(3))
    left = {p.name for p in folder.iterdir()}
    assert left == {*NOT_OURS, "2024", "3", "7.partial"}
    assert all((folder / name / "photo.png").exists() for name in (*NOT_OURS, "2024"))
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_failed_write_removes_only_its_own(folder, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    (folder / "3.partial-notes").mkdir()
    checkpoints = Checkpoints(folder)
    monkeypatch.setattr("diffjax.train.sealed_files.write_atomically", full)
    checkpoints.save(3, _state(3))
    with pytest.raises(CheckpointError):
        checkpoints.close()
    assert sorted(os.listdir(folder)) == ["1", "2", "3.partial-notes"]


def test_a_folder_in_the_way_of_a_step_is_named(folder):
    (folder / "3").mkdir()
    (folder / "3" / "photo.png").write_text("mine")
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, _state(3))
    with pytest.raises(CheckpointError, match=rf"{folder / '3'} exists and is not a checkpoint"):
        checkpoints.close()
    assert os.listdir(folder / "3") == ["photo.png"]


def test_of_a_step_that_was_moved_away_the_link_is_removed(folder, tmp_path):
    shutil.move(folder / "1", tmp_path / "large disk")
    (folder / "1").symlink_to(tmp_path / "large disk")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(ABSTRACT, step=1)[0] == 1
        checkpoints.save(3, _state(3))
    assert sorted(os.listdir(folder)) == ["2", "3"]
    assert (tmp_path / "large disk" / MANIFEST).exists()


def test_a_failed_write_is_loud_and_leaves_the_old_ones(folder, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(folder)
    checkpoints.restore(ABSTRACT)
    monkeypatch.setattr("diffjax.train.sealed_files.write_atomically", full)
    checkpoints.save(3, _state(3))
    reason = rf"step 3 could not be written to {folder}: .*No space left.*complete one is step 2"
    with pytest.raises(CheckpointError, match=reason):
        checkpoints.close()
    assert sorted(os.listdir(folder)) == ["1", "2"]


@contextlib.contextmanager
def small_disk(path: Path, size: str):
    """A file system of its own; skips where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk(tmp_path):
    noise = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (2**18,))}  # noqa: E731
    with small_disk(tmp_path / "disk", "3M") as disk:
        folder = disk / "checkpoints"
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save(1, noise(1))
        checkpoints.wait()
        (disk / "ballast").write_bytes(b"x" * 1_200_000)
        checkpoints.save(2, noise(2))
        with pytest.raises(
            CheckpointError, match=r"step 2 could not be .* one is step 1"
        ) as caught:
            checkpoints.wait()
        assert str(folder) in str(caught.value)
        assert os.listdir(folder) == ["1"]
        (disk / "ballast").unlink()
        step, state = checkpoints.restore(_abstract(noise(1)))
        assert step == 1
        assert_same(state, noise(1))
        checkpoints.save(2, noise(2))
        checkpoints.close()
        assert_same(Checkpoints(folder).restore(_abstract(noise(1)))[1], noise(2))


def test_atomic_write_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write {path}: No space left"):
        write_atomically(path, json.dumps(list(range(100))))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.json"]


def test_state_of_random_bits_survives(tmp_path):
    # NaN payloads, infinities and denormals: bits, not values, are kept.
    bits = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    state = {"w": jnp.asarray(bits.view(np.float32))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        _, loaded = checkpoints.restore(_abstract(state))
    np.testing.assert_array_equal(np.asarray(loaded["w"]).view(np.uint32), bits)
