"""Data of folders of drawn pictures: what is read from them, kept, compared and said."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import own
from diffjax import runs
from diffjax.data.survey import reduce_size, survey_images
from diffjax.runs import loading
from diffjax.types import ConfigError

COUNT = 8


def picture(path, rng, *, size=(40, 56), grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, size if grey else (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Eight pictures of 40x56 in two classes, with captions and hints."""
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        name = f"{'cat' if k % 2 else 'dog'}/{k}.png"
        picture(tmp_path / "data" / "images" / name, rng)
        picture(tmp_path / "data" / "hints" / name, rng)
        text = (tmp_path / "data" / "images" / name).with_suffix(".txt")
        text.write_text(f"Ein süßer {'Kater' if k % 2 else 'Hund'}, Nr. {k}")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def read_anew():
    loading.load_once.cache_clear()


def make(variant, folder, **values):
    config = own.VARIANTS[variant]()
    config.data.dir = str(folder)
    config.update_from_flattened_dict(values)
    return config


def settled(variant, folder, **values):
    config = make(variant, folder, **values)
    runs.fill_from_data(config)
    return config


def test_size_channels_levels_and_classes_are_those_of_the_folder(folder):
    config = settled("classes", folder / "images")
    assert runs.read_image_shape(config) == (40, 56, 3)
    assert (config.data.levels, config.data.num_classes) == (256, 2)
    source = runs.load_source(config)
    assert source.class_names == ("cat", "dog") and source.shape == (40, 56, 3)


def test_grey_pictures_and_large_ones(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        picture(tmp_path / f"{k}.png", rng, size=(300, 400), grey=True)
    config = settled("plain", tmp_path)
    assert runs.read_image_shape(config) == (48, 64, 1)
    assert runs.load_source(config).shape == (48, 64, 1)
    assert runs.read_image_shape(settled("plain", tmp_path, **{"data.longest_side": 32}))[:2] == (
        24,
        32,
    )


def test_what_is_set_is_kept(folder):
    config = settled("plain", folder, **{"data.image_size": (16, 24), "data.channels": 1})
    assert runs.read_image_shape(config) == (16, 24, 1)
    assert config.data.num_classes == 0  # the plain variant is not told classes
    assert runs.load_source(config).shape == (16, 24, 1)


def test_other_data_sets_settle_too():
    config = settled("classes", "", **{"data.name": "digits"})
    assert runs.read_image_shape(config) == (8, 8, 1)
    assert (config.data.levels, config.data.num_classes) == (17, 10)


@pytest.mark.parametrize(
    "size, step, found",
    [((40, 56), 4, (40, 56)), ((41, 57), 4, (40, 56)), ((3000, 4000), 4, (48, 64)),
     ((10, 1000), 4, (4, 64)), ((1000, 1000), 6, (60, 60)), ((3, 3), 4, (4, 4))],
)  # fmt: skip
def test_sizes_are_reduced_to_multiples(size, step, found):
    assert reduce_size(size, longest=64, step=step) == found


def test_a_survey_passes_over_damaged_pictures(folder):
    paths = sorted((folder / "images").rglob("*.png"))
    paths[0].write_bytes(b"no picture")
    found = survey_images(paths)
    assert found.size == (40, 56) and found.equal and found.channels == 3
    with pytest.raises(ValueError, match=r"and all others cannot be read"):
        survey_images(paths[:1])


def test_a_folder_is_asked_for(folder, monkeypatch):
    monkeypatch.delenv("DIFFJAX_DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match=r"^config\.data\.dir=FOLDER is needed"):
        settled("plain", "")
    with pytest.raises(ConfigError, match=r"has 0 classes, but .*classes; .* sub-folders"):
        runs.load_source(settled("classes", folder / "images" / "cat"))


# ---- classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, 3])
def test_the_number_of_classes_is_compared(folder, wanted):
    config = settled("classes", folder / "images", **{"data.num_classes": wanted})
    message = rf"has 2 classes \(cat, dog\), but config\.data\.num_classes={wanted}"
    with pytest.raises(ConfigError, match=message):
        runs.load_source(config)
    plain = settled("plain", folder / "images", **{"data.num_classes": wanted})
    assert len(runs.load_source(plain)) == COUNT  # which is not told them


def test_names_are_kept_and_used_for_every_folder(folder, tmp_path):
    config, workdir = settled("classes", folder / "images"), tmp_path / "run"
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    runs.keep_classes(config, workdir, runs.load_source(config))
    assert json.loads((workdir / "classes.json").read_text()) == ["cat", "dog"]
    shutil.rmtree(folder / "images" / "cat")
    source = runs.load_source(config, folder=workdir)
    assert source.take([0])["label"].tolist() == [1]  # a dog, as before
    (folder / "images" / "dog").rename(folder / "images" / "fox")
    loading.load_once.cache_clear()
    with pytest.raises(ValueError, match=r"does not know: fox; the classes are cat, dog"):
        runs.load_source(config, folder=workdir)
    (workdir / "classes.json").write_text('{"cat": 0}')
    with pytest.raises(ConfigError, match=r"classes\.json is damaged: .* list of names"):
        runs.load_source(config, folder=workdir)
    shutil.rmtree(workdir / "checkpoints")  # a run that never began knows nothing
    assert runs.read_known_classes(config, workdir) == ()


def test_test_images_of_a_strange_class_are_an_error_and_none_are_none(folder):
    config = settled("classes", folder / "images")
    assert len(runs.load_test_source(config)) == COUNT  # there is no split
    for name in ("cat", "dog"):
        (folder / "images" / name).rename(folder / "images" / f"_{name}")
        for split in ("train", "test"):
            target = folder / "images" / split
            target.mkdir(exist_ok=True)
            shutil.copytree(folder / "images" / f"_{name}", target / name)
        shutil.rmtree(folder / "images" / f"_{name}")
    loading.load_once.cache_clear()
    assert runs.load_test_source(config).class_names == ("cat", "dog")
    (folder / "images" / "test" / "dog").rename(folder / "images" / "test" / "fox")
    loading.load_once.cache_clear()
    with pytest.raises(ValueError, match="does not know: fox"):
        runs.load_test_source(config)


def test_a_class_is_called_by_name_or_number():
    assert runs.find_class("dog", ("cat", "dog"), 2) == 1
    assert runs.find_class("1", ("cat", "dog"), 2) == 1
    assert runs.find_class("1", ("7", "1"), 2) == 1
    for wrong in ("fox", "2", "-1", "²", "٣"):
        with pytest.raises(ConfigError, match=r"no class .* choose from cat, dog"):
            runs.find_class(wrong, ("cat", "dog"), 2)


# ---- captions -----------------------------------------------------------------------------------


def test_captions_become_tokens_of_their_words(folder):
    config = settled("captions", folder / "images")
    source = runs.load_source(config)
    found = runs.make_tokenizers(config)["text"]
    assert config.cond.text.vocabulary == found.backend.get_vocab_size()
    assert (
        found.ids("süßer") == found.ids("SÜSSER".replace("SS", "ß"))
        and len(found.ids("süßer")) == 1
    )
    ids = source.take(range(COUNT))["text"]
    assert (
        ids.shape == (COUNT, config.cond.text.positions)
        and ids.max() < found.backend.get_vocab_size()
    )
    assert len({tuple(row) for row in ids}) == COUNT
    assert "time_ids" not in source.take([0])


def test_a_prompt_of_unknown_words_is_said(folder, caplog):
    config = settled("captions", folder / "images")
    ids = runs.tokenize(config, runs.make_tokenizers(config), ["ein süßer Vogel"])
    assert ids.shape == (1, config.cond.text.positions)
    assert "no caption has the words vogel of 'ein süßer Vogel'" in caplog.text


def test_pictures_without_captions_are_refused(folder):
    for text in (folder / "images").rglob("*.txt"):
        text.unlink()
    with pytest.raises(ValueError, match="have no caption"):
        settled("captions", folder / "images")
