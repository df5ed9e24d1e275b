"""Hints of drawn pictures whose edges are known."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import hint_makers, load_pairs, make_hints


def pictures(*planes):
    """Images (B, H, W, 1) in [-1, 1] of grey levels in [0, 1]."""
    return np.stack(planes).astype(np.float32)[..., None] * 2 - 1


def step(height=1.0, at=6, size=12):
    plane = np.zeros((size, size))
    plane[:, at:] = height
    return plane


def disc(radius=8.0, size=32):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(x, y) < radius).astype(float)


def test_the_gradient_of_a_slope_is_its_steepness():
    y, x = np.mgrid[:9, :9]
    dy, dx = hint_makers.gradient((0.03 * y + 0.05 * x)[None], 0.0)
    np.testing.assert_allclose(dy[:, 1:-1, 1:-1], 0.03, atol=1e-6)
    np.testing.assert_allclose(dx[:, 1:-1, 1:-1], 0.05, atol=1e-6)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_step_has_one_thin_edge(turn):
    edges = hint_makers.canny(pictures(np.rot90(step(), turn)), sigma=1.0)[0]
    edges = np.rot90(edges, -turn)
    assert edges.sum(1).tolist() == [1] * 12
    assert set(edges.argmax(1)) <= {5, 6}


def test_the_edge_of_a_disc_is_a_closed_thin_curve():
    edges = hint_makers.canny(pictures(disc()))[0] > 0
    y, x = np.nonzero(edges)
    radii = np.hypot(y - 15.5, x - 15.5)
    assert np.abs(radii - 8).max() < 1.2
    assert 40 <= edges.sum() <= 70  # 50 is the circumference
    angles = np.sort(np.arctan2(y - 15.5, x - 15.5))
    assert np.diff(angles).max() < 0.3


def test_hysteresis_keeps_weak_edges_that_touch_strong_ones():
    ramp = step(at=6) * np.linspace(1.0, 0.4, 12)[:, None]
    options = dict(low=0.1, high=0.2, sigma=1.0)
    kept = hint_makers.canny(pictures(ramp), **options)[0]
    assert kept.any(1).sum() >= 11
    alone = hint_makers.canny(pictures(step(0.4)), **options)[0]
    assert alone.sum() == 0
    assert hint_makers.canny(pictures(step(0.4)), low=0.1, high=0.1)[0].sum() == 12


@pytest.mark.parametrize("name", ["canny", "sobel", "soft", "scribble"])
def test_hints_of_images(name):
    images = pictures(disc(), step(size=32, at=16), np.full((32, 32), 0.5))
    hints = make_hints(name)({"image": images})
    assert hints.shape == (3, 32, 32, 1) and hints.dtype == np.float32
    assert hints.min() >= 0 and hints.max() == pytest.approx(1, abs=1e-6)
    assert hints[2].max() < 1e-3  # nothing to see
    assert hints[0, 15, 15] < 0.05 and hints[0, 15, 6:9].max() > 0.4
    for i in range(3):  # an image does not depend on its batch
        np.testing.assert_array_equal(make_hints(name)({"image": images[i : i + 1]})[0], hints[i])


def test_scribbles_are_thicker_than_edges():
    images = {"image": pictures(disc())}
    assert make_hints("scribble")(images).sum() > 2 * make_hints("canny")(images).sum()


def test_colours_count_equally_and_channels_are_repeated():
    grey, colours = pictures(disc()), np.repeat(pictures(disc()), 3, -1)
    hints = make_hints("canny", channels=3)
    np.testing.assert_array_equal(hints({"image": grey}), hints({"image": colours}))
    assert hints({"image": grey}).shape == (1, 32, 32, 3)


def test_masks_edges_depth_and_given_hints():
    classes = np.array([[[0, 2], [1, 1]]])
    one_hot = make_hints("mask", {"num_classes": 3}, channels=3)({"mask": classes})
    assert one_hot[0].argmax(-1).tolist() == classes[0].tolist()
    assert one_hot.sum() == 4
    near = make_hints("depth")({"depth": np.array([[[2.0, 4.0], [3.0, 6.0]]])})
    assert near[0, ..., 0].tolist() == [[1.0, 0.5], [0.75, 0.0]]
    flat = make_hints("depth")({"depth": np.ones((1, 2, 2))})
    assert flat.max() == 0
    edges = np.random.default_rng(0).uniform(size=(2, 4, 4))
    assert make_hints("edges")({"edges": edges})[..., 0] == pytest.approx(edges)
    given = np.ones((2, 4, 4, 3), np.float32)
    assert make_hints("given", channels=3)({"hint": given}) is not None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hed", {}, "unknown hint 'hed'; choose one of canny, depth, edges"),
        ("canny", {"lo": 1}, "unknown hint option 'lo'; 'canny' takes low, high, sigma"),
    ],
)
def test_unknown_hints_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_hints(name, options)


def test_what_a_hint_needs_is_named():
    images = {"image": pictures(disc())}
    with pytest.raises(ValueError, match="needs 'mask', but the data have image"):
        make_hints("mask", {"num_classes": 2}, channels=2)(images)
    with pytest.raises(ValueError, match="has 2 channels, not 3"):
        make_hints("mask", {"num_classes": 2}, channels=3)({"mask": np.zeros((1, 4, 4), int)})
    with pytest.raises(ValueError, match=r"mask of classes 0 to 5, but num_classes=3"):
        make_hints("mask", {"num_classes": 3}, channels=3)({"mask": np.array([[[0, 5]]])})
    with pytest.raises(ValueError, match=r"0 <= low <= high, got 0\.5 and 0\.1"):
        make_hints("canny", {"low": 0.5})(images)


def test_hints_are_made_by_the_threads_that_read():
    names, canny = set(), make_hints("canny")

    def hints(batch):
        names.add(threading.current_thread().name)
        return canny(batch)

    batches = data.batches(data.load("digits"), batch_size=2, seed=0, hints=hints)
    batch = next(batches)
    assert set(batch) == {"image", "label", "hint"}
    np.testing.assert_array_equal(batch["hint"], canny(batch))
    batches.close()
    assert names and threading.current_thread().name not in names


@pytest.fixture
def folder(tmp_path):
    for kind, suffix in (("images", "png"), ("hints", "bmp")):
        (tmp_path / kind / "a").mkdir(parents=True)
        for k, name in enumerate(["a/x", "a/y", "a/z"]):
            value = 40 * k + (100 if kind == "hints" else 0)
            picture = Image.fromarray(np.full((10, 8 + k, 3), value, np.uint8))
            picture.save(tmp_path / kind / f"{name}.{suffix}")
    return tmp_path


def test_paired_folders(folder):
    source = load_pairs(folder, image_size=8)
    batch = data.batch_at(source, 3, batch_size=2, seed=0)
    assert batch["hint"].shape == (2, 8, 8, 3)
    grey = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5)
    np.testing.assert_allclose(batch["hint"][:, 0, 0, 0] * 255, grey + 100, atol=1e-4)
    with pytest.raises(ValueError, match="would no longer fit"):
        data.batch_at(source, 0, batch_size=2, seed=0, flip=True)


def test_arrays_beside_the_images(folder):
    np.save(folder / "text.npy", np.arange(6).reshape(3, 2))
    source = data.load("paired_folder", data_dir=str(folder), image_size=8)
    assert source.take([2, 0])["text"].tolist() == [[4, 5], [0, 1]]
    np.save(folder / "text.npy", np.arange(2))
    with pytest.raises(ValueError, match=r"text.npy has 2 rows for 3 images"):
        load_pairs(folder, image_size=8)


def test_captions_beside_paired_images(folder):
    (folder / "images" / "notes.txt").write_text("of no image")
    assert load_pairs(folder, image_size=8).captions is None
    for k, name in enumerate("xyz"):
        (folder / "images" / "a" / f"{name}.txt").write_text(f"caption {k}")
    source = data.load("paired_folder", data_dir=str(folder), image_size=8)
    assert source.captions([2, 0]) == ["caption 2", "caption 0"]
    batch = source.take([1])
    assert batch["hint"].shape == (1, 8, 8, 3)
    assert batch["time_ids"].tolist() == [[10, 9, 0, 0, 8, 8]]


def test_pairs_that_are_not(folder):
    (folder / "hints/a/y.bmp").rename(folder / "hints/a/w.bmp")
    with pytest.raises(ValueError, match=r"2 files .* such as a/w, a/y"):
        load_pairs(folder)
    with pytest.raises(FileNotFoundError, match="images"):
        load_pairs(folder / "hints")


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("low, high", [(100, 200), (10, 30)])
def test_edges_of_colour_pictures_are_those_of_opencv(norm, low, high):
    with np.load(Path(__file__).parents[1] / "golden" / "canny.npz") as recorded:
        images = recorded["pictures"].astype(np.float32) / 127.5 - 1
        wanted = recorded[f"{norm}-{low}-{high}"]
    options = dict(low=low / 2040, high=high / 2040, sigma=0.0, norm=norm)
    found = hint_makers.canny(images, **options) > 0
    np.testing.assert_array_equal(found, wanted)
    assert 0.05 < found.mean() < 0.5
    # The mean of the channels has other edges.
    means = np.round(images.mean(-1, keepdims=True) * 127.5 + 127.5) / 127.5 - 1
    assert np.mean((hint_makers.canny(means, **options) > 0) != found) > 0.02
