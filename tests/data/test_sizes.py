"""Sizes of (height, width) and grey levels of folders of images."""

import numpy as np
import pytest
from PIL import Image

from diffjax import data

SIZE = (40, 56)


@pytest.fixture(params=["image_folder", "captioned_folder", "paired_folder"])
def folder(request, tmp_path):
    """A folder of three pictures of 45x60 pixels, and the name of its kind."""
    images = tmp_path / "images" if request.param == "paired_folder" else tmp_path
    images.mkdir(exist_ok=True)
    for i in range(3):
        picture = np.full((45, 60, 3), (200, 40 * i, 7), np.uint8)
        Image.fromarray(picture).save(images / f"{i}.png")
        if request.param == "captioned_folder":
            (images / f"{i}.txt").write_text("a wall")
    if request.param == "paired_folder":
        (tmp_path / "hints").mkdir()
        for i in range(3):
            Image.fromarray(np.full((45, 60), 51 * i, np.uint8)).save(tmp_path / f"hints/{i}.png")
    return request.param, str(tmp_path)


def test_a_folder_is_cropped_to_height_and_width(folder):
    name, root = folder
    source = data.load(name, data_dir=root, image_size=SIZE)
    assert source.shape == (*SIZE, 3)
    batch = source.take([0, 2])
    assert batch["image"].shape == (2, *SIZE, 3)
    assert (batch["image"][1] == (200, 80, 7)).all()
    if "hint" in batch:
        assert batch["hint"].shape == (2, *SIZE, 3)
        np.testing.assert_allclose(batch["hint"][1], 0.4, atol=1e-6)


def test_a_folder_is_read_as_grey(folder):
    name, root = folder
    source = data.load(name, data_dir=root, image_size=list(SIZE), channels=1)
    assert source.shape == (*SIZE, 1)
    expected = [np.rint(0.299 * 200 + 0.587 * 40 * i + 0.114 * 7) for i in range(3)]
    np.testing.assert_allclose(source.take(range(3))["image"].mean((1, 2, 3)), expected, atol=1)


@pytest.mark.parametrize("size", [0, (40,), (40, 56, 3), (40, 0), 4.5, "40", True, (40, None)])
def test_sizes_that_are_none_are_refused(folder, size):
    name, root = folder
    with pytest.raises(ValueError, match=r"image_size=.*number of pixels or \(height, width\)"):
        data.load(name, data_dir=root, image_size=size)


def test_other_channels_are_refused(folder):
    name, root = folder
    with pytest.raises(ValueError, match=r"channels=2: images are read as 3 \(RGB\) or 1 \(grey\)"):
        data.load(name, data_dir=root, image_size=8, channels=2)
    with pytest.raises(ValueError, match="channels=1: the images of digits have their own"):
        data.load("digits", channels=1)


def test_arrays_in_memory_have_any_size():
    assert data.load("digits", image_size=(6, 4))[0]["image"].shape == (6, 4, 1)


def test_drawn_shapes_are_squares():
    with pytest.raises(ValueError, match="shapes are drawn as squares"):
        data.load("shapes", image_size=(16, 32))
    assert data.load("shapes", image_size=(16, 16)).shape == (16, 16, 3)


def test_buckets_need_one_number(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black")
    with pytest.raises(ValueError, match=r"buckets .* need one number as image_size, not \(8, 16"):
        data.load(
            "captioned_folder",
            data_dir=str(tmp_path),
            image_size=(8, 16),
            buckets=data.Buckets(step=4),
        )
