"""The images that those of a model are compared with: of data sets, and behind stored latents."""

from pathlib import Path

import numpy as np
import pytest
from absl import flags

from diffjax import runs
from diffjax.config import load_config
from diffjax.data import latents
from diffjax.runs import real_images
from diffjax.types import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def parsed_flags():
    """Sources of folders ask --workdir for the classes that the run knows."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])


def test_data_come_in_a_fixed_random_order():
    cfg = load_config(f"{ROOT}/configs/ddpm.py:digits")
    found = real_images.open_split(cfg)
    np.testing.assert_array_equal(found.read(3, 9), real_images.take_images(cfg, 9)[0][3:])
    assert found.num == 1500
    assert found.name == "digits  train (8, 8, 1)"  # as in the features that older runs kept
    assert runs.load_source(cfg) is runs.load_source(cfg)  # read once


def test_stored_latents_are_compared_with_the_images_behind_them(tmp_path):
    cfg = load_config(f"{ROOT}/configs/ddpm.py:digits")
    expected = real_images.take_images(cfg, 5)
    cfg.data.update(name="latents", dir=str(tmp_path))
    rows = {"moments": np.zeros((2, 4, 4, 2), np.float32), "label": np.zeros(2, np.int32)}
    about = dict(count=2, image_shape=(8, 8, 1), num_classes=10, levels=17, encoder="x")
    latents.write(tmp_path / "train", [rows], **about)
    with pytest.raises(ConfigError, match=r"do not say .* config\.data\.name=.* a reference"):
        real_images.open_split(cfg)
    latents.write(tmp_path / "train", [rows], **about, images={"name": "digits", "dir": ""})
    for found, wanted in zip(real_images.take_images(cfg, 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(real_images.open_split(cfg).read(0, 5), expected[0])
