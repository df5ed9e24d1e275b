"""Folders as sources: classes of all splits, damaged files, hints beside pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data.pictures import DamagedImage


def picture(path, value=0, *, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def load(root, name="image_folder", **options):
    return data.load(name, data_dir=str(root), **options)


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- classes ------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path):
    for name in ("train/ant", "train/bee", "train/cow", "test/cow", "test/bee"):
        picture(tmp_path / name / "a.png")
    return tmp_path


def test_every_split_has_the_classes_of_training(classes):
    train, test = load(classes), load(classes, split="test")
    assert train.class_names == test.class_names == ("ant", "bee", "cow")
    assert test.take([0, 1])["label"].tolist() == [1, 2] and test.num_classes == 3
    every = load(classes, split="all")
    assert every.class_names == train.class_names
    assert every.take(range(5))["label"].tolist() == [1, 2, 0, 1, 2]


def test_a_class_that_training_does_not_know_is_an_error(classes):
    picture(classes / "test" / "dog" / "a.png")
    with pytest.raises(ValueError, match=r"test has .* training does not know: dog; .* ant, bee"):
        load(classes, split="test")


def test_classes_can_be_given(classes):
    source = load(classes, classes=("cow", "bee", "ant", "zebra"))
    assert source.take([0, 1, 2])["label"].tolist() == [2, 1, 0] and source.num_classes == 4
    with pytest.raises(ValueError, match="does not know: cow"):
        load(classes, classes=("ant", "bee"))


def test_a_class_called_train_is_a_class(tmp_path):
    for name in ("bus", "car", "train"):
        picture(tmp_path / name / "a.png")
    assert load(tmp_path).class_names == ("bus", "car", "train")
    assert len(load(tmp_path)) == 3


def test_hidden_folders_are_no_classes_and_linked_ones_are(tmp_path):
    for name in (".git", ".ipynb_checkpoints", "__MACOSX", ".thumbnails", "cat"):
        picture(tmp_path / "data" / name / "a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    source = load(tmp_path / "data")
    assert source.class_names == ("cat", "dog") and len(source) == 2


def test_a_sub_folder_without_pictures_is_no_class_and_said(tmp_path, caplog):
    picture(tmp_path / "ant" / "a.png")
    (tmp_path / "bee").mkdir()
    assert load(tmp_path).class_names == ("ant",)
    assert "sub-folders without pictures are no classes: bee" in caplog.text


def test_a_label_that_is_no_class_is_an_error_when_it_is_read():
    plain = data.load("digits")
    wrong = plain.__class__(plain.shape, 5, 17, len(plain), plain.read)
    with pytest.raises(ValueError, match=r"image 5 has label 5, but there are num_classes=5"):
        wrong.take(range(10))


def test_a_plain_folder_of_images_and_hints_has_the_images(tmp_path):
    picture(tmp_path / "images" / "a.png", 1)
    picture(tmp_path / "hints" / "a.png", 2)
    source = load(tmp_path)
    assert len(source) == 1 and source.num_classes == 0
    assert source[0]["image"].max() == 1


# ---- damaged files ------------------------------------------------------------------------------


def damage(path):
    path.write_bytes(path.read_bytes()[:45])


@pytest.fixture
def numbered(tmp_path):
    for k in range(6):
        picture(tmp_path / f"{k}.png", 10 * k)
        (tmp_path / f"{k}.txt").write_text(f"number {k}")
    return tmp_path


def values(batch):
    return np.rint((batch["image"][:, 0, 0, 0] + 1) * 12.75).astype(int).tolist()


def order(root, name="image_folder", **options):
    source = load(root, name, image_size=(6, 8), **options)
    return [values(data.batch_at(source, k, batch_size=4, seed=1)) for k in range(6)]


def test_a_damaged_picture_stops_by_name(numbered):
    damage(numbered / "3.png")
    source = load(numbered)
    with pytest.raises(DamagedImage, match=r"3\.png cannot be read as an image"):
        source.take([0, 3])
    stream = data.batches(source, batch_size=6, seed=0)
    with pytest.raises(ValueError, match=r"3\.png cannot be read as an image"):
        next(stream)


@pytest.mark.parametrize("bad, instead", [((3,), {3: 4}), ((4, 5), {4: 0, 5: 0}), ((0,), {0: 1})])
@pytest.mark.parametrize("name", ["image_folder", "captioned_folder"])
def test_the_others_keep_their_places(numbered, name, bad, instead):
    whole = order(numbered, name)
    for k in bad:
        damage(numbered / f"{k}.png")
    expected = [[instead.get(k, k) for k in batch] for batch in whole]
    assert order(numbered, name, damaged="skip") == expected


def test_captions_go_with_their_pictures_and_each_is_named_once(numbered, caplog):
    damage(numbered / "2.png")
    (numbered / "5.png").write_bytes(b"")
    source = load(numbered, "captioned_folder", image_size=8, damaged="skip")
    assert source.captions([1, 2, 5]) == ["number 1", "number 3", "number 0"]
    for _ in range(3):
        batch = source.take(range(6))
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 10, 30, 30, 40, 0]
    told = [line for line in caplog.text.splitlines() if "takes the place" in line]
    assert len(told) == 2 and "2.png" in told[0] and "5.png" in told[1]


def test_a_stand_in_has_the_shape_of_the_damaged_picture(tmp_path):
    shapes = [(16, 16), (16, 30), (16, 16), (16, 30)]
    for k, size in enumerate(shapes):
        picture(tmp_path / f"{k}.png", k, size=size)
        (tmp_path / f"{k}.txt").write_text("x")
    damage(tmp_path / "1.png")
    source = load(tmp_path, "captioned_folder", image_size=16,
                  buckets=data.Buckets(4, 2.0), damaged="skip")  # fmt: skip
    for step in range(8):
        batch = data.batch_at(source, step, batch_size=2, seed=0)
        assert batch["image"].shape[0] == 2
    assert source.take([1])["image"].max() == 3


def test_only_damaged_pictures_are_an_error_and_so_is_a_wrong_choice(tmp_path):
    picture(tmp_path / "a.png")
    damage(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        load(tmp_path, damaged="skip")
    with pytest.raises(ValueError, match=r"damaged='ignore': choose from stop, skip"):
        load(tmp_path, damaged="ignore")


def test_what_is_wrong_with_the_disk_is_no_damage(numbered):
    source = load(numbered, damaged="skip")
    (numbered / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        source.take([3])


# ---- hints --------------------------------------------------------------------------------------


@pytest.fixture
def controlled(tmp_path):
    """The layout that diffusers' training of ControlNets has."""
    for k in range(3):
        picture(tmp_path / "images" / f"{k}.png", 10 * k)
        picture(tmp_path / "conditioning_images" / f"{k}.png", 100 + 10 * k)
    rows = [{"file_name": f"images/{k}.png", "conditioning_image": f"conditioning_images/{k}.png",
             "text": f"number {k}"} for k in (2, 0, 1)]  # fmt: skip
    write_rows(tmp_path / "metadata.jsonl", *rows)
    return tmp_path


def test_the_layout_of_conditioning_images(controlled):
    source = load(controlled, "paired_folder", image_size=(6, 8))
    batch = source.take([0, 2])
    assert len(source) == 3 and source.captions([1]) == ["number 1"]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 20]
    np.testing.assert_allclose(batch["hint"][:, 0, 0, 0] * 255, [100, 120], atol=1e-4)
    assert len(load(controlled)) == 3  # hints are no pictures of their own
    assert load(controlled, "captioned_folder", image_size=8).captions([2]) == ["number 2"]


def test_a_picture_without_a_hint_is_named(controlled):
    write_rows(controlled / "metadata.jsonl",
               {"file_name": "images/0.png", "conditioning_image": "conditioning_images/0.png"},
               {"file_name": "images/1.png"}, {"file_name": "images/2.png"})  # fmt: skip
    with pytest.raises(ValueError, match=r"4 images in .* have no conditioning_image.*1\.png"):
        load(controlled, "paired_folder", image_size=8)


def test_damaged_hints_take_their_pictures_with_them(controlled):
    damage(controlled / "conditioning_images" / "1.png")
    source = load(controlled, "paired_folder", image_size=(6, 8), damaged="skip")
    batch = source.take([0, 1, 2])
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 20, 20]
    assert source.captions([1]) == ["number 2"]


def test_fingerprints_know_files_captions_and_hints(controlled):
    before = load(controlled, "paired_folder", image_size=8).fingerprint()
    assert before["count"] == 3 and before["files"][0][0] == "images/0.png"
    picture(controlled / "conditioning_images" / "2.png", size=(20, 30))
    after = load(controlled, "paired_folder", image_size=8).fingerprint()
    assert {k for k in before if before[k] != after[k]} == {"hints"}
    text = (controlled / "metadata.jsonl").read_text().replace("number 0", "nothing")
    (controlled / "metadata.jsonl").write_text(text)
    other = load(controlled, "paired_folder", image_size=8).fingerprint()
    assert {k for k in other if other[k] != after[k]} == {"captions"}


def test_every_source_in_memory_has_a_fingerprint():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert train.fingerprint() == data.load("digits").fingerprint() != test.fingerprint()


# ---- captions -----------------------------------------------------------------------------------


def test_captions_of_splits_may_stand_in_one_file_and_all_has_every_split(tmp_path):
    for name in ("train/a.png", "test/b.png"):
        picture(tmp_path / name)
    write_rows(tmp_path / "metadata.jsonl",
               *({"file_name": name, "text": name} for name in ("train/a.png", "test/b.png")),
               )  # fmt: skip
    found = {split: load(tmp_path, "captioned_folder", image_size=8, split=split).captions([0])
             for split in ("train", "test")}  # fmt: skip
    assert found == {"train": ["train/a.png"], "test": ["test/b.png"]}
    assert len(load(tmp_path, "captioned_folder", image_size=8, split="all")) == 2


def test_captions_beside_pictures_have_no_mark_and_errors_name_the_file(tmp_path, caplog):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeffa \u2028 b\n".encode())
    assert load(tmp_path, "captioned_folder", image_size=8).captions([0]) == ["a \u2028 b"]
    (tmp_path / "a.txt").rename(tmp_path / "a.TXT")
    assert load(tmp_path, "captioned_folder", image_size=8).captions([0]) == ["a \u2028 b"]
    (tmp_path / "a.TXT").rename(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("alone")
    load(tmp_path, "captioned_folder", image_size=8)
    assert "1 text files belong to no picture and are not read: b.txt" in caplog.text
    (tmp_path / "a.caption").write_text("another")
    with pytest.raises(ValueError, match=r"a\.txt and a\.caption are different captions"):
        load(tmp_path, "captioned_folder", image_size=8)
    (tmp_path / "a.caption").unlink()
    (tmp_path / "a.txt").write_bytes(b"x\n\xff")
    with pytest.raises(ValueError, match=r"line 2 of .*a\.txt is not UTF-8"):
        load(tmp_path, "captioned_folder", image_size=8)


def test_metadata_that_are_not_read_are_said(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"parquet is not read, only metadata\.jsonl or .*csv"):
        load(tmp_path, "captioned_folder", image_size=8)
