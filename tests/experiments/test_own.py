"""configs/own.py on folders of drawn pictures: from training to pictures."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from diffjax.config import read_config
from diffjax.runs import read_image_shape
from tests.cheap import ONE_LEVEL, SGD

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


SMALL = (
    "--config.train.steps=2", "--config.optim.warmup=0", "--config.train.sample_every=2",
    "--config.train.checkpoint_every=1", "--config.network.channels=8",
    "--config.network.norm_groups=2", "--config.data.batch_size=2",
    "--config.sample.steps=2", "--config.sample.num=2",
    *ONE_LEVEL, *SGD,
)  # fmt: skip


def train(execute, variant, folder, workdir, *more, code=0):
    config = f"--config=configs/own.py:{variant}"
    where = (f"--config.data.dir={folder}", f"--workdir={workdir}")
    return execute("train", config, *where, *SMALL, *more, code=code)


def test_classes_from_training_to_pictures(execute, folder, tmp_path):
    images, run = folder / "images", tmp_path / "run"
    out = train(execute, "classes", images, run)
    assert "2 classes: 0 cat, 1 dog" in out and "8 RGB pictures of 40x56" in out
    stored = read_config(run)
    assert isinstance(stored, ConfigDict) and read_image_shape(stored) == (40, 56, 3)
    assert stored.data.num_classes == 2
    out = execute("sample", f"--workdir={run}", "--label=dog", "--num=2")
    assert "classes in turn: dog" in out
    made = np.load(next((run / "samples").glob("*.npz")))["images"]
    assert made.shape == (2, 40, 56, 3)
    out = execute("sample", f"--workdir={run}", "--label=fox", code=2)
    assert "there is no class 'fox'; choose from cat, dog" in out
    picture(images / "cat" / "new.png", np.random.default_rng(1))
    out = train(execute, "classes", images, run, "--config.train.steps=3", code=1)
    assert "8 -> 9 images; 1 new files, cat/new.png" in out
    assert "or --config.train.override=true" in out
    train(execute, "classes", images, run, "--config.train.steps=3", "--config.train.override=true")


@pytest.mark.slow
def test_a_damaged_picture_stops_a_run_by_name_unless_it_is_skipped(execute, folder, tmp_path):
    bad = folder / "images" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:-200])
    out = train(execute, "plain", folder, tmp_path / "run", "--config.train.steps=8", code=1)
    assert f"error: {bad} cannot be read as an image" in out
    more = ("--config.train.steps=8", "--config.data.damaged=skip")
    out = train(execute, "plain", folder, tmp_path / "run", *more)
    assert out.count("takes the place of a damaged one") == 1


def test_captions_from_training_to_a_prompt(execute, folder, tmp_path):
    images, run = folder / "images", tmp_path / "run"
    train(execute, "captions", images, run)
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    shutil.rmtree(folder)  # the words are in the workdir
    execute("sample", f"--workdir={run}", "--prompt=ein süßer Hund", "--num=2")


@pytest.mark.slow
def test_hints_on_a_plain_model(execute, folder, tmp_path):
    train(execute, "plain", folder, tmp_path / "base")
    base = f"--config.control.base={tmp_path / 'base'}"
    train(execute, "hints", folder, tmp_path / "run", base)
    execute("control", f"--workdir={tmp_path / 'run'}", "--num=2")
    assert (tmp_path / "run" / "control" / "control.png").is_file()
