"""Captions of folders, and batches of one aspect ratio each."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import captions, pictures

SHAPES = [(16, 16), (16, 16), (30, 16), (16, 30), (16, 30), (16, 30), (8, 9)]  # (height, width)
BUCKETS = data.Buckets(step=4, ratio=2.0)


def picture(path, height, width, value=128):
    pixels = np.full((height, width, 3), value, np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    for k, (height, width) in enumerate(SHAPES):
        picture(root / f"{k}.png", height, width, 20 * k)
        (root / f"{k}.txt").write_text(f"number {k}\n")
    return root


def load(folder, **options):
    options = {"image_size": 16, **options}
    return data.load("captioned_folder", data_dir=str(folder), **options)


def test_captions_beside_the_images_and_in_one_file(folder, tmp_path):
    source = load(folder)
    assert source.captions([2, 0]) == ["number 2", "number 0"]
    assert source.take([2, 6])["image"].shape == (2, 16, 16, 3)
    (tmp_path / "b").mkdir()
    picture(tmp_path / "a.png", 8, 8)
    picture(tmp_path / "b" / "c.png", 8, 8)
    lines = [{"file_name": "b/c.png", "text": "second"}, {"file_name": "a.png", "text": "first"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load(tmp_path).captions([0, 1]) == ["first", "second"]


def test_test_images_are_those_there_are(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        picture(tmp_path / split / "a.png", 8, 8)
        (tmp_path / split / "a.txt").write_text(split)
        assert load(tmp_path, split="test").captions([0]) == [split]
        assert load(tmp_path).captions([0]) == ["train"]


def test_shapes_say_what_they_are():
    source = data.load("shapes", split="test")
    assert source.captions([0])[0].startswith("a ")


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        load(tmp_path)
    picture(tmp_path / "a.png", 8, 8)
    with pytest.raises(ValueError, match=r"a\.png in .* have no caption.*\.txt"):
        load(tmp_path)
    file = tmp_path / "metadata.jsonl"
    file.write_text('{"file_name": "b.png", "text": "x"}')
    with pytest.raises(ValueError, match=r"not there: b\.png"):
        load(tmp_path)
    file.write_text('{"file_name": "a.png", "words": "x"}')
    with pytest.raises(
        ValueError, match=r"no captions for a\.png: its columns are file_name, words.*column"
    ):
        load(tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match=r"no captions for a\.png"):
        load(tmp_path)
    with pytest.raises(ValueError, match="shapes has no buckets"):
        data.load("shapes", buckets=BUCKETS)


def test_shapes_of_buckets_have_bounded_area_and_ratio():
    found = data.Buckets(64, 2.0).shapes(512)
    assert (512, 512) in found and len(found) <= 2 * 512 // 64
    assert {(w, h) for h, w in found if h == w} <= set(found)
    for h, w in found:
        assert h % 64 == w % 64 == 0
        assert 512 * 512 * 0.8 < h * w <= 512 * 512
        assert max(h, w) <= 2 * min(h, w)
    with pytest.raises(ValueError, match="size 500, step 64"):
        data.Buckets(64).shapes(500)


def test_every_image_goes_to_the_nearest_ratio_and_says_where_it_was_cut():
    layout = captions.lay_out([(16, 16), (160, 300), (64, 16)], 16, BUCKETS)
    assert layout.target(0) == (16, 16)
    assert layout.target(1)[0] < 16 < layout.target(1)[1]
    assert layout.target(2)[0] == 2 * layout.target(2)[1] or layout.target(2)[0] > 16
    np.testing.assert_array_equal(layout.time_ids[0], [16, 16, 0, 0, 16, 16])
    square = captions.lay_out([(32, 64)], 16, None)
    np.testing.assert_array_equal(square.time_ids[0], [32, 64, 0, 8, 16, 16])


def test_header_and_picture_agree_on_the_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert pictures.read_size(tmp_path / "a.jpg") == (6, 4)
    assert pictures.read_image(tmp_path / "a.jpg").shape == (6, 4, 3)


def test_a_batch_has_one_shape_and_a_round_shows_every_image_equally(folder):
    source, size = load(folder, buckets=BUCKETS), 2
    steps = data.dataset(source, batch_size=size, seed=3)
    shapes, seen = set(), np.zeros(len(source), int)
    for step in range(2 * len(source)):
        batch = steps[step]
        shapes.add(batch["image"].shape)
        for image in batch["image"]:
            seen[round((image[0, 0, 0] + 1) * 127.5 / 20)] += 1
        np.testing.assert_array_equal(batch["time_ids"][0, 4:], batch["image"].shape[1:3])
    np.testing.assert_array_equal(seen, 2 * size)
    assert len(shapes) == len(np.unique(source.groups)) > 2


def test_batches_depend_on_seed_and_step_alone(folder):
    source = load(folder, buckets=BUCKETS)

    def some(step, **options):
        stream = data.batches(source, batch_size=2, seed=3, step=step, **options)
        return [next(stream)["image"] for _ in range(3)]

    for a, b in zip(some(9)[1:], some(10), strict=False):
        np.testing.assert_array_equal(a, b)
    both = [some(4, process_index=k, process_count=2) for k in range(2)]
    for whole, *halves in zip(some(4), *both, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(halves))
    means = [[data.batch_at(source, k, batch_size=2, seed=s)["image"].mean() for k in range(9)]
             for s in (3, 4)]  # fmt: skip
    assert means[0] != means[1]


def test_given_captions_take_the_place_of_those_in_files(tmp_path):
    for k in range(2):
        picture(tmp_path / f"{k}.png", 16, 16, 20 * k)  # without a caption of its own
    source = load(tmp_path, captions=("a thing", "the thing"))
    assert len(source) == 4
    seen = {(int(source[k]["image"][0, 0, 0]), source.captions([k])[0]) for k in range(4)}
    assert seen == {(v, text) for v in (0, 20) for text in ("a thing", "the thing")}
