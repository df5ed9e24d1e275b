"""Captioned data sets on the Hub, in both of its layouts, against a server with its routes."""

import io
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from ml_collections import ConfigDict
from PIL import Image

from diffjax.data.hub_layout import choose_split
from diffjax.data.parquet_files import unpack
from diffjax.runs import hub_data
from diffjax.runs.loading import load_once, load_unchecked
from diffjax.types import ConfigError
from tests.hub_server import Repository
from tests.pretrained.test_hub import files, server  # noqa: F401

SIDE = 8
WHERE = "hub:owner/shapes"


def encode(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_table(values, **columns):
    picture = [{"bytes": encode(v), "path": f"{v}.png"} for v in values]
    rows = {"image": picture, "caption": [f"grey {v}" for v in values], "id": list(values)}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({**rows, **columns}), buffer)
    return buffer.getvalue()


def make_folder():
    lines = [{"file_name": f"{v}.png", "text": f"grey {v}"} for v in (10, 20)]
    return {
        "README.md": b"# a card",
        "train/metadata.jsonl": "\n".join(map(json.dumps, lines)).encode(),
        "test/metadata.jsonl": b'{"file_name": "90.png", "text": "grey 90"}',
        **{f"train/{v}.png": encode(v) for v in (10, 20)},
        "test/90.png": encode(90),
        "train.zip": b"x" * 5000,
    }


def make_tables():
    return {
        "README.md": b"# a card",
        "data/train-00000-of-00002.parquet": make_table([10, 20]),
        "data/train-00001-of-00002.parquet": make_table([30]),
        "data/test-00000-of-00001.parquet": make_table([90]),
    }


def load(split="train", where=WHERE, **options):
    load_once.cache_clear()
    part = dict(name="captioned_folder", dir=where, background="white", caption_column="")
    part |= dict(damaged="stop", captions=(), class_names=(), window=(), resize="bicubic")
    return load_unchecked(ConfigDict({"data": {**part, **options}}), split, (SIDE, SIDE, 3))


def list_contents(source):
    index = np.arange(len(source))
    images = source.take(index)["image"]
    return dict(zip(source.captions(index), images[:, 0, 0, 0].tolist(), strict=True))


TRAIN = {"folder": {"grey 10": 10, "grey 20": 20},
         "tables": {"grey 10": 10, "grey 20": 20, "grey 30": 30}}  # fmt: skip


@pytest.mark.parametrize("layout", ["folder", "tables"])
def test_the_split_that_is_needed_is_fetched_once(server, layout, monkeypatch):  # noqa: F811
    content = make_folder() if layout == "folder" else make_tables()
    server.repositories["datasets/owner/shapes"] = Repository(content)
    assert list_contents(load()) == TRAIN[layout]
    assert server.sent and not any("test" in name or "zip" in name for name in server.sent)
    server.clear()
    assert list_contents(load()) == TRAIN[layout] and not server.sent
    assert list_contents(load("test")) == {"grey 90": 90}
    assert all("test" in name for name in server.sent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.down = True
    assert list_contents(load()) == TRAIN[layout]


def test_a_revision_is_a_data_set_of_its_own(server):  # noqa: F811
    found = server.repositories["datasets/owner/shapes"] = Repository(make_tables())
    found.commit({"data/train-00000-of-00001.parquet": make_table([70])}, "small")
    assert list_contents(load(where=f"{WHERE}@small")) == {"grey 70": 70}
    assert list_contents(load("test", where=f"{WHERE}@small")) == {"grey 70": 70}
    assert list_contents(load()) == TRAIN["tables"]


def test_what_is_not_there_is_named(server):  # noqa: F811
    server.repositories["datasets/owner/zip"] = Repository({"train.zip": b"x"})
    found = server.repositories["datasets/owner/secret"] = Repository(make_tables(), gated=True)
    for where, message in (
        ("hub:owner", "must be hub:OWNER/NAME"),
        ("hub:owner/none", "shows no repository"),
        ("hub:owner/zip", r"owner/zip on the Hub: there are neither pictures .*train\.zip"),
        ("hub:owner/secret", "accept its terms at .*/datasets/owner/secret"),
    ):
        with pytest.raises(ValueError, match=message):
            load(where=where)
    found.gated = False
    with pytest.raises(ConfigError, match=r"has no revision 'smal'.*small"):
        found.commit(make_folder(), "small")
        load(where="hub:owner/secret@smal")
    with pytest.raises(ConfigError, match=r"set config\.data\.name to one of image_folder"):
        load(name="cifar10")


def test_tables_become_folders_with_all_their_texts(tmp_path):
    path = tmp_path / "t.parquet"
    hint = [{"bytes": encode(1), "path": None}, {"bytes": encode(2), "path": None}]
    path.write_bytes(make_table([10, 20], conditioning_image=hint, other=["a", None]))
    folder = unpack([path], tmp_path / "out/train")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["grey 10", "grey 20"]
    assert rows[1]["other"] == "" and "id" not in rows[0]
    for row, (picture, hinted) in zip(rows, ((10, 1), (20, 2)), strict=True):
        assert np.asarray(Image.open(folder / row["file_name"]))[0, 0, 0] == picture
        assert np.asarray(Image.open(folder / row["conditioning_image"]))[0, 0, 0] == hinted
    assert len(list(folder.parent.iterdir())) == 1  # nothing half done is left


@pytest.mark.parametrize("content, message", [
    (b"PAR1 and no more", "t.parquet is no parquet table, or a damaged one"),
    ({"caption": ["a"]}, "has no column of pictures"),
    ({"before": [{"bytes": b"x"}], "after": [{"bytes": b"x"}]}, "columns of pictures: before, aft"),
    ({"image": [{"bytes": None, "path": "x.png"}]}, "row 0 has no picture in the column 'image'"),
])  # fmt: skip
def test_tables_that_cannot_be_read_leave_nothing(tmp_path, content, message):
    path = tmp_path / "t.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pyarrow.parquet.write_table(pyarrow.table(content), path)
    with pytest.raises(ValueError, match=message):
        unpack([path], tmp_path / "out/train")
    assert not list((tmp_path / "out").iterdir())


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffjax\[parquet\]'"):
        unpack([tmp_path / "t.parquet"], tmp_path / "out/train")


@pytest.mark.parametrize("names, split, wanted", [
    (["a.png", "metadata.jsonl", "b.txt"], "train", {"a.png", "metadata.jsonl", "b.txt"}),
    (["train/a.png", "train/a.txt", "val/b.png", "val/b.txt"], "val", {"val/b.png", "val/b.txt"}),
    (["cats/a.png", "dogs/test.png"], "test", {"cats/a.png", "dogs/test.png"}),
    (["default/train/0.parquet", "default/test/0.parquet"], "train", {"default/train/0.parquet"}),
    (["train-0.parquet", "a.png"], "train", {"train-0.parquet"}),
    (["train-0.parquet", "test-0.parquet"], "all", {"train-0.parquet", "test-0.parquet"}),
    (["metadata.csv", "train/a.png", "test/b.png"], "train",
     {"metadata.csv", "train/a.png", "test/b.png"}),  # it may name pictures of both
    (["x.parquet"], "test", {"x.parquet"}),
])  # fmt: skip
def test_splits_are_found_by_names(names, split, wanted):
    assert set(choose_split(names, split).names) == wanted


def test_tables_of_several_data_sets_need_a_folder():
    names = ["small/train-0.parquet", "large/train-0.parquet"]
    with pytest.raises(ValueError, match="several data sets, in large, small"):
        choose_split(names, "train")
    assert choose_split(names, "train", "small").names == ("small/train-0.parquet",)


def test_folders_of_this_machine_stay_as_they_are():
    assert hub_data.find_folder("runs/pictures", "train") == "runs/pictures"
