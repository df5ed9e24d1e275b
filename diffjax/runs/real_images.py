"""The real images of a config, which samples of its model are compared with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data import latents
from diffjax.data.datasets import ENV_DIR
from diffjax.evaluation import ImageSet, from_source
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.evaluation.image_sets import take_each, take_labelled
from diffjax.runs.sources import load_source as load_any
from diffjax.runs.sources import load_test_source
from diffjax.types import ConfigError

SHOWN_REAL = "real.png"  # in a workdir: some pictures of the training data
MOST_SHOWN = 100  # images in a grid of samples


def find_image_config(cfg: ConfigDict) -> ConfigDict:
    """Return a config whose data are images.

    A data set of stored latents (``data.name=latents``) names the images that it was made of; the
    config gets those in its place. Other configs are returned as they are.

    Raises:
        ConfigError: the latents do not say what they were made of.
    """
    if cfg.data.name != "latents":
        return cfg
    folder = cfg.data.dir or os.environ.get(ENV_DIR, "")
    found = latents.read_origin(Path(folder)) if folder else {}
    if not found:
        raise ConfigError(
            f"the latents in {folder} do not say what they were made of, and there are no images "
            "to compare with: name their data set, as in config.data.name=fashion_mnist "
            "config.data.dir=FOLDER, or give a reference with metrics of Inception"
        )
    copy = ConfigDict(cfg.to_dict())
    copy.data.update(found)
    return copy


def load_source(cfg: ConfigDict, split: str = "train") -> data.Source:
    """Load a split of a config's data set as images, see `find_image_config`.

    Raises:
        ConfigError: as `find_image_config` and `runs.load_source`.
    """
    return load_any(find_image_config(cfg), split)


def open_split(cfg: ConfigDict, split: str = "train") -> ImageSet:
    """Open the images of a split as an `ImageSet`, in a fixed random order.

    If the data have no test images, the training images are used in their place, with a warning.

    Raises:
        ConfigError: as `load_source`.
    """
    cfg = find_image_config(cfg)
    source = load_test_source(cfg) if split == "test" else load_any(cfg, split)
    return from_source(source, f"{cfg.data.name} {cfg.data.dir} {split} {source.shape}")


def take_images(cfg: ConfigDict, num: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Take the first images of a split in the order of `open_split`, with their labels.

    Returns:
        Images (N, H, W, C) in [-1, 1] and labels (N,).
    """
    return take_labelled(load_source(cfg, split), num)


def keep_real_pictures(cfg: ConfigDict, folder: Path, source: data.Source) -> None:
    """Write a grid of training images to `SHOWN_REAL`, as many as a grid of samples shows.

    Stored latents have no images to show, and nothing is written for them. Of images of several
    sizes (``config.data.bucket_step``), those of the first one's size are shown.

    Args:
        folder: workdir of the run.
        source: the training data.
    """
    if cfg.data.name == "latents":
        return
    wanted = cfg.sample.num if "sample" in cfg else MOST_SHOWN
    found = [one["image"][0] for one in take_each(source, min(wanted, MOST_SHOWN, len(source)))]
    same = np.stack([image for image in found if image.shape == found[0].shape])
    save_png(tile(data.to_float(same, source.levels)), folder / SHOWN_REAL)
