"""Sets of images from files, folders, arrays, data sources and models; and pictures of them."""

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.evaluation import image_sets
from diffjax.evaluation.image_grids import interleave_rows, save_png, tile, to_uint8
from diffjax.types import ConfigError


def test_images_of_files_and_folders(digits, tmp_path):
    np.savez(tmp_path / "ours.npz", images=digits[:5])
    np.savez_compressed(tmp_path / "adm.npz", arr_0=digits[:5])
    for name in ("ours.npz", "adm.npz"):
        found = image_sets.from_file(tmp_path / name)
        assert found.num == 5
        np.testing.assert_array_equal(found.read(1, 3), digits[1:3])
        assert found.first(3).num == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(digits[k, ..., 0]).save(folder / f"{k}.png")
    found = image_sets.from_file(folder)
    np.testing.assert_array_equal(found.read(0, 3), digits[:3].repeat(3, -1))
    Image.fromarray(digits[3, ..., 0]).save(folder / "2.png")
    assert image_sets.from_file(folder).name != found.name  # kept features are of other images
    np.savez(tmp_path / "bad.npz", images=digits[0])
    for bad, message in (("bad.npz", "must hold uint8 images"), ("none.npz", "none.npz")):
        with pytest.raises(ConfigError, match=message):
            image_sets.from_file(tmp_path / bad)


def test_a_folder_holds_images_of_one_size(digits, tmp_path):
    for k, size in enumerate((8, 8, 6)):
        Image.fromarray(digits[k, :size, ..., 0]).save(tmp_path / f"{k}.png")
    with pytest.raises(ConfigError, match=r"0\.png is 8x8 .* and .*2\.png 6x8 \(height x width"):
        image_sets.from_file(tmp_path)


def test_arrays_are_named_by_what_they_hold(digits):
    a, b = (image_sets.from_array(images) for images in (digits[:9], digits[9:18]))
    assert a.name != b.name
    assert image_sets.from_array(digits[:9].copy()).name == a.name
    as_float = digits[:9].astype(np.float32)
    assert image_sets.from_array(as_float).name != a.name
    np.testing.assert_array_equal(a.read(2, 5), digits[2:5])
    assert [len(part) for part in a.read_chunks(4)] == [4, 4, 1]
    for wrong in (digits[0], digits[:3].astype(np.int32)):
        with pytest.raises(ConfigError, match=r"must be \(N, H, W, C\), uint8 or float"):
            image_sets.from_array(wrong)


def test_a_source_comes_in_a_fixed_random_order(digits):
    labels = (np.arange(300) % 10).astype(np.int32)
    source = data.from_arrays(digits[:300], labels, num_classes=10)
    found = image_sets.from_source(source, "some")
    images, first = image_sets.take_labelled(source, 40)
    np.testing.assert_array_equal(found.read(3, 40), images[3:])
    assert found.num == 300
    order = np.random.default_rng(0).permutation(300)[:40]
    np.testing.assert_array_equal(first, labels[order])
    np.testing.assert_array_equal(to_uint8(images), digits[:300][order])


def test_samples_are_named_by_model_and_seed():
    asked = []

    def make(*, num, first, seed):
        asked.append((num, first, seed))
        return np.zeros((num, 4, 4, 1), np.float32)

    one = image_sets.from_maker(make, 30, seed=5, settings={"step": 1})
    assert len(one.read(10, 25)) == 15 and asked == [(15, 10, 5)]
    others = [
        image_sets.from_maker(make, 30, seed=seed, settings={"step": step}).name
        for seed, step in ((5, 1), (6, 1), (5, 2))
    ]
    assert others[0] == one.name and len(set(others)) == 3


def test_saved_images_are_read_again(digits, tmp_path):
    x = data.to_float(digits[:7], 256)
    image_sets.save_images(image_sets.from_array(x), tmp_path / "new" / "images.npz")
    found = image_sets.from_file(tmp_path / "new" / "images.npz")
    np.testing.assert_array_equal(found.read_all(), digits[:7])


def test_grey_and_rgb_stand_for_each_other_where_nothing_is_lost(digits):
    grey, rgb = digits[:4], digits[:4].repeat(3, -1)
    for images in (grey, rgb):
        np.testing.assert_array_equal(image_sets.match_channels(images, 1), grey)
        np.testing.assert_array_equal(image_sets.match_channels(images, 3), rgb)
    with pytest.raises(ConfigError, match="in colour cannot be measured as images of 1 channel"):
        image_sets.match_channels(np.stack([rgb[..., 0], 0 * rgb[..., 0], rgb[..., 0]], -1), 1)


def test_levels_are_rounded_and_clipped_and_stay():
    values = np.array([-2, -1, -0.5 / 127.5, 0.1 / 127.5, 1, 3])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 127, 128, 255, 255])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels), levels)
    np.testing.assert_array_equal(to_uint8(image_sets.to_float(levels)), levels)


def test_tile_lays_out_rows_and_enlarges():
    images = np.stack([np.full((8, 8, 1), v, np.float32) for v in (-1, 0, 1)])
    picture = tile(images, columns=2, scale=2)
    assert picture.shape == (36, 36, 3)
    assert picture[5, 5].tolist() == [0, 0, 0]
    assert picture[5, 23].tolist() == [128, 128, 128]
    assert picture[23, 5].tolist() == [255, 255, 255]


def test_rows_stand_above_their_counterparts(tmp_path):
    above = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((5, 56, 56, 1))
    picture = interleave_rows(above, -above, columns=2)  # the fifth image makes no full row
    centres = picture[29::58, 29::58, 0]
    expected = to_uint8(np.array([[0, 0.25], [0, -0.25], [0.5, 0.75], [-0.5, -0.75]]))
    np.testing.assert_array_equal(centres, expected)
    assert interleave_rows(above[:1], -above[:1]).shape == (2 * 58, 58, 3)
    save_png(picture, tmp_path / "new" / "x.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "x.png")), picture)
