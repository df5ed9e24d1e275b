"""Windows of pictures, and the ways to resize of the releases."""

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data.formats import RESIZERS


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture of 40x30 pixels whose values say where they are from."""
    rows, columns = np.mgrid[:40, :30]
    picture = np.stack([5 * rows, 7 * columns, 0 * rows], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    return picture, str(tmp_path)


def load(root, window=(), resize="bicubic", size=8):
    framing = data.make_framing(window, resize)
    return data.load("image_folder", data_dir=root, image_size=size, framing=framing)


def test_a_window_is_cut_before_anything_else(folder):
    picture, root = folder
    source = load(root, window=(10, 4, 8, 8))
    assert np.array_equal(source.take([0])["image"][0], picture[10:18, 4:12])
    [original], _ = source.take_originals([0])  # of random crops
    assert np.array_equal(original, picture[10:18, 4:12])


def test_a_window_that_leaves_the_picture_is_refused(folder):
    source = load(folder[1], window=(33, 0, 8, 8))
    with pytest.raises(ValueError, match=r"data.window=\(33, 0, 8, 8\) .* leaves .* 40x30"):
        source.take([0])


@pytest.mark.parametrize("window", [(1, 2, 3), (0, 0, 0, 4), (-1, 0, 4, 4), (0.5, 0, 4, 4)])
def test_windows_that_are_none_are_refused(window):
    with pytest.raises(ValueError, match=r"data.window=.* must be \(top, left, height, width\)"):
        data.make_framing(window, "bicubic")
    with pytest.raises(ValueError, match=r"unknown data\.resize 'half'"):
        data.make_framing((), "half")


def test_only_pictures_that_are_read_one_by_one_are_framed(folder):
    framing = data.make_framing((0, 0, 4, 4), "bicubic")
    for name in ("digits", "captioned_folder"):
        with pytest.raises(ValueError, match=f"data.window=.* not for {name}"):
            data.load(name, data_dir=folder[1], framing=framing)


def test_halves_are_averages_and_then_the_middle():
    """20x32 to 4: halved to 10x16 and 5x8, resized to 4x6, of which the middle is kept."""
    image = np.random.default_rng(0).integers(0, 256, (20, 32, 1), np.uint8)
    averages = np.asarray(image[..., 0], float)
    for _ in range(2):
        rows, columns = averages.shape
        averages = averages.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
        averages = np.floor(averages + 0.5)
    whole = Image.fromarray(averages.astype(np.uint8)).resize((6, 4), Image.Resampling.BICUBIC)
    found = RESIZERS["halves"](image, 4)
    assert found.shape == (4, 4, 1)
    assert np.abs(found[..., 0].astype(int) - np.asarray(whole)[:, 1:5]).max() <= 1


def test_a_picture_that_needs_no_halving_is_only_resized():
    image = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
    assert np.array_equal(RESIZERS["halves"](image, 4), RESIZERS["bicubic"](image, 4))
    assert np.array_equal(RESIZERS["halves"](image, 7), image)


@pytest.mark.parametrize("name", RESIZERS)
def test_ways_to_resize_differ_and_keep_what_is_even(name, folder):
    image = np.full((33, 20, 3), (10, 200, 77), np.uint8)
    found = RESIZERS[name](image, (6, 4))
    assert found.shape == (6, 4, 3)
    assert (found == (10, 200, 77)).all()
    others = [
        load(folder[1], resize=other).take([0])["image"] for other in RESIZERS if other != name
    ]
    mine = load(folder[1], resize=name).take([0])["image"]
    assert not any(np.array_equal(mine, other) for other in others)


def test_random_crops_are_resized_in_the_chosen_way(folder):
    source = load(folder[1])
    batches = [
        data.batch_at(
            source, 0, batch_size=1, seed=0, crop=data.make_crop("random", (1.0, 1.0), name)
        )
        for name in ("bicubic", "halves")
    ]
    assert not np.array_equal(batches[0]["image"], batches[1]["image"])


def resize_before_a_crop(image, side):
    """As Dhariwal & Nichol 2021 do: halves by averages, then the shorter side to ``side``."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * side:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    near = [round(n * side / min(picture.size)) for n in picture.size]
    return np.asarray(picture.resize(near, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("sides", [(50, 37), (90, 130), (16, 16)])
def test_crops_after_resizing_have_a_random_side_and_place(sides):
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    source = data.Source(
        (16, 16, 3), 1, 256, 3, lambda indices: None,
        originals=lambda indices: ([image] * len(indices), np.zeros(len(indices), np.int32)),
    )  # fmt: skip
    crop = data.make_crop("random_after", (0.8, 1.0), "halves")
    taken = crop.take(source, np.zeros(400, int), 0, np.arange(400))["image"]
    found = {picture.tobytes() for picture in taken}
    wanted = set()
    for side in range(16, 21):
        whole = resize_before_a_crop(image, side)
        places = ((y, x) for y in range(whole.shape[0] - 15) for x in range(whole.shape[1] - 15))
        wanted |= {whole[y : y + 16, x : x + 16].tobytes() for y, x in places}
    assert found <= wanted
    # A side has as many places as it is longer than the crop, and is drawn as often as the others.
    assert len(found) > 0.3 * min(len(wanted), 400)


def test_areas_are_means_of_what_a_pixel_covers():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    middle = image[:, 1:4].astype(np.float64)  # the largest square
    halves = np.array([[1, 0.5, 0], [0, 0.5, 1]]) / 1.5
    wanted = np.einsum("yh,xw,hwc->yxc", halves, halves, middle)
    assert np.abs(RESIZERS["area"](image, 2) - wanted).max() <= 0.5 + 1e-4
    assert np.array_equal(RESIZERS["area"](image[:, :3], 3), image[:, :3])
