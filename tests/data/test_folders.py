"""Which files of a folder are data, and how it is split into parts and classes."""

import json
import os

import numpy as np
import pytest

from diffjax.data import folders


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def listed(root):
    return [path.relative_to(root).as_posix() for path in folders.list_images(root)]


def split_names(root, split="train"):
    paths = folders.list_images(root)
    return [f.relative_to(root).as_posix() for f in folders.split_folders(root, paths, split)]


HIDDEN = (".git/a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", ".thumbnails/a.png",
          "@eaDir/a.png", "cats/.hidden/a.png", "cats/._a.png", "cats/.a.png")  # fmt: skip


def test_hidden_folders_and_those_of_systems_hold_no_pictures(tmp_path):
    make(tmp_path, "cats/a.png", *HIDDEN)
    assert listed(tmp_path) == ["cats/a.png"]


def test_links_are_followed_without_loops(tmp_path):
    make(tmp_path / "elsewhere", "deep/b.png", "a.png")
    make(tmp_path / "data", "dogs/c.png")
    data = tmp_path / "data"
    (data / "cats").symlink_to(tmp_path / "elsewhere")
    (data / "dogs" / "self").symlink_to(data / "dogs")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "data")
    (data / "dogs" / "d.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert listed(data) == ["cats/a.png", "cats/deep/b.png", "dogs/c.png", "dogs/d.png"]


def test_a_link_to_a_picture_that_is_not_there_is_an_error(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png is a link to .*gone\.png, which is not"):
        folders.list_images(tmp_path)


def test_folders_that_cannot_be_read_are_an_error(tmp_path, monkeypatch):
    make(tmp_path, "cats/a.png")
    plain = os.scandir

    def scan(path):
        if os.fspath(path).endswith("cats"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(PermissionError, match="cats"):
        folders.list_images(tmp_path)


def test_pictures_of_other_kinds_are_warned_of(tmp_path, caplog):
    make(tmp_path, "a.png", "b.HEIC", "c.jxl", "notes.txt")
    assert listed(tmp_path) == ["a.png"]
    assert "2 pictures are left out" in caplog.text and "b.HEIC, c.jxl" in caplog.text


@pytest.mark.parametrize(
    "names, split, found",
    [
        (["train/a.png", "test/b.png"], "train", ["train"]),
        (["train/x/a.png", "test/x/b.png"], "all", ["test", "train"]),
        (["Train/a.png", "TEST/b.png"], "test", ["TEST"]),
        (["train/a.png"], "train", ["train"]),
        (["a.png", "b.png"], "train", ["."]),
        (["a.png", "b.png"], "all", ["."]),
        (["x/a.png", "y/b.png"], "train", ["."]),
        (["bus/a.png", "car/b.png", "train/c.png"], "train", ["."]),
        (["test/a.png", "x/b.png", "y/c.png"], "train", ["."]),
        (["train/a.png", "test/b.png", "__MACOSX/train/c.png"], "train", ["train"]),
        (["train/train/a.png", "train/bus/b.png"], "train", ["train"]),
        (["train/a.png", "holdout/b.png"], "holdout", ["holdout"]),
    ],
)
def test_which_folders_a_split_is(tmp_path, names, split, found):
    make(tmp_path, *names)
    assert split_names(tmp_path, split) == found


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.png", "extra/b.png"],
        ["train/a.png", "test/b.png", "extra/c.png"],
        ["train/x/a.png", "bus/b.png", "car/c.png"],
    ],
)
def test_splits_among_other_folders_are_refused_with_what_to_do(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=r"mix names of splits .*train.*move .*folder named train"):
        split_names(tmp_path)


def test_a_picture_beside_the_splits_is_left_out_and_said(tmp_path, caplog):
    make(tmp_path, "train/a.png", "test/b.png", "preview.png")
    assert split_names(tmp_path) == ["train"]
    assert "1 pictures outside of the splits are left out: preview.png" in caplog.text


def test_two_folders_of_one_split_are_refused(tmp_path):
    make(tmp_path, "Train/a.png", "train/b.png")
    with pytest.raises(ValueError, match="two folders of one split: Train, train"):
        split_names(tmp_path)


def test_a_link_to_itself_holds_nothing(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert listed(tmp_path) == ["a.png"]


def test_names_of_any_bytes_have_a_fingerprint(tmp_path):
    make(tmp_path, "c/a\nb.png")
    os.rename(tmp_path / "c" / "a\nb.png", os.fsencode(tmp_path / "c") + b"/\xff.png")
    found = folders.make_fingerprint(tmp_path, folders.list_images(tmp_path))
    assert json.loads(json.dumps(found)) == found and len(found["files"]) == 1


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    make(tmp_path, "train/a.png", "val/b.png")
    with pytest.raises(folders.NoSuchSplit, match=r"no split 'test': choose from train, val, all"):
        split_names(tmp_path, "test")


def test_classes_are_numbered_by_those_that_training_knows(tmp_path):
    labels, names = folders.number_classes(["b", "a", "b"], (), "here")
    assert labels.tolist() == [1, 0, 1] and names == ("a", "b")
    labels, names = folders.number_classes(["b"], ("a", "b", "c"), "here")
    assert labels.tolist() == [1] and names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"here has .* does not know: d; the classes are a, b"):
        folders.number_classes(["d", "a"], ("a", "b"), "here")
    labels, names = folders.number_classes(["", ""], (), "here")
    assert labels.tolist() == [0, 0] and names == ()
    assert folders.number_classes(["", ""], ("a",), "here")[1] == ()  # no class, not the first one


def test_classes_are_equal_in_any_form_of_unicode(tmp_path):
    make(tmp_path, "caf\u0065\u0301/a.png")
    assert folders.find_classes(folders.list_images(tmp_path), [tmp_path]) == ["caf\u00e9"]


def test_a_fingerprint_is_of_names_and_sizes_and_not_of_the_place(tmp_path):
    for place in ("x", "y"):
        make(tmp_path / place, "a.png", "b.png")
    found = [folders.make_fingerprint(tmp_path / place, folders.list_images(tmp_path / place))
             for place in ("x", "y")]  # fmt: skip
    assert found[0] == found[1]
    assert found[0]["count"] == 2 and found[0]["files"] == [["a.png", 0], ["b.png", 0]]
    (tmp_path / "y" / "b.png").write_bytes(b"1")
    paths = folders.list_images(tmp_path / "y")
    other = folders.make_fingerprint(tmp_path / "y", paths)
    assert other["digest"] != found[0]["digest"] and other["bytes"] == 1
    texts = [folders.make_fingerprint(tmp_path / "y", paths, words)["captions"]
             for words in (["a", "b"], ["a", "c"])]  # fmt: skip
    assert texts[0] != texts[1]


def test_a_fingerprint_of_many_files_lists_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LISTED", 2)
    make(tmp_path, *(f"{k}.png" for k in range(4)))
    found = folders.make_fingerprint(tmp_path, folders.list_images(tmp_path))
    assert found["count"] == 4 and len(found["files"]) == 2
    (tmp_path / "3.png").write_bytes(b"1")
    other = folders.make_fingerprint(tmp_path, folders.list_images(tmp_path))
    assert np.all(found["files"] == other["files"]) and found["digest"] != other["digest"]
