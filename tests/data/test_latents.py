"""Latents on disk: what was written is read, and damage is found."""

import numpy as np
import pytest

from diffjax import data
from diffjax.data import latents


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 4000)
    rng = np.random.default_rng(0)
    rows = {
        "moments": rng.normal(size=(10, 4, 4, 8)).astype(np.float32),
        "label": np.arange(10, dtype=np.int32),
        "text": rng.integers(0, 9, (10, 5), dtype=np.int32),
    }
    write(tmp_path / "train", rows)
    return tmp_path, rows


def write(folder, rows, count=10):
    parts = [{k: v[i : i + 4] for k, v in rows.items()} for i in range(0, 10, 4)]
    about = dict(image_shape=(8, 8, 1), num_classes=10, levels=256, encoder="abc")
    latents.write(folder, parts, count=count, **about)


def test_what_was_written_is_read(written):
    folder, rows = written
    assert len(list((folder / "train").glob("*.array_record"))) == 2
    source = data.load("latents", data_dir=str(folder))
    assert (len(source), source.shape, source.num_classes) == (10, (8, 8, 1), 10)
    taken = source.take([7, 0, 7])
    assert set(taken) == set(rows)
    for key, value in rows.items():
        np.testing.assert_array_equal(taken[key], value[[7, 0, 7]])
    batch = data.batch_at(source, 1, batch_size=4, seed=0)
    assert batch["moments"].shape == (4, 4, 4, 8) and "image" not in batch


def test_a_flipped_byte_is_found(written):
    shard = sorted((written[0] / "train").glob("*.array_record"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name} is damaged: its checksum differs"):
        data.load("latents", data_dir=str(written[0]))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
        data.load("latents", data_dir=str(written[0]))


@pytest.mark.parametrize("text", ['{"name": "a web app"}', "[]", "no JSON"])
def test_a_manifest_of_something_else_is_not_removed(written, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"manifest\.json was not written with latents"):
        write(tmp_path, written[1])
    assert (tmp_path / "manifest.json").read_text() == text
    write(written[0] / "train", written[1])  # ours may be


def test_interrupted_writing_leaves_nothing_to_read(written):
    folder, rows = written
    with pytest.raises(ValueError, match="got 10 rows of latents, expected 11"):
        write(folder / "train", rows, count=11)
    with pytest.raises(FileNotFoundError, match="no latents in"):
        data.load("latents", data_dir=str(folder))
