"""The data set of a config, compared with what the config says of it, with captions as tokens."""

from __future__ import annotations

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.folders import NoSuchSplit
from diffjax.runs.batches import NOISE, has_prior, make_buckets, make_noise, read_image_shape
from diffjax.runs.classes import check_classes
from diffjax.runs.loading import load_unchecked
from diffjax.runs.tokens import Tokenizers, add_tokens, check_captions, make_tokenizers
from diffjax.types import ConfigError


def load_source(
    cfg: ConfigDict,
    split: str | None = None,
    *,
    folder: Path | None = None,
    tokenizers: Tokenizers | None = None,
) -> data.Source:
    """Load the data set of a config, check it, and turn its captions into tokens.

    Args:
        split: in place of the training split. Aspect-ratio buckets are made for training alone.
        folder: workdir; classes and words are those of a run that was trained there.
        tokenizers: those of `make_tokenizers`, if they have been made already.

    Raises:
        ConfigError: shape, grey levels, classes or captions differ from what the config says.
        ValueError, OSError: the data cannot be read.
    """
    if cfg.data.name == NOISE:
        return make_noise(cfg)
    wanted, buckets = read_image_shape(cfg), None if split else make_buckets(cfg)
    source = load_unchecked(cfg, split or cfg.data.split, wanted, buckets, folder=folder)
    found = tuple(source.shape)
    if found != wanted:
        raise ConfigError(
            f"the images of {cfg.data.name} are {found}, but the config says {wanted}; set "
            "config.data.image_size and config.data.channels"
        )
    if source.levels != cfg.data.levels:
        raise ConfigError(f"{cfg.data.name} has {source.levels} grey levels, not {cfg.data.levels}")
    check_classes(cfg, source)
    check_captions(cfg, source)
    if tokenizers is None:
        tokenizers = make_tokenizers(cfg, folder)
    source = add_tokens(source, tokenizers, wanted)
    return source if split or not has_prior(cfg) else _join_prior(cfg, source, tokenizers)


def _join_prior(cfg: ConfigDict, source: data.Source, tokenizers: Tokenizers) -> data.Source:
    """Join the training data with the pictures of ``config.prior``, which share one caption.

    Raises:
        ConfigError: the section is incomplete, or the data are no folder with captions.
    """
    section, wanted = cfg.prior, read_image_shape(cfg)
    if not section.dir or not section.prompt:
        raise ConfigError(
            "config.prior.dir and config.prior.prompt are needed: a folder of pictures of the kind "
            "and their caption, which `diffjax generate --model=MODEL --prompt=PROMPT --num=200 "
            "--out=FOLDER` makes; config.prior.weight=0 does without"
        )
    if cfg.data.name != "captioned_folder" or cfg.data.bucket_step:
        raise ConfigError(
            "config.prior needs config.data.name=captioned_folder with config.data.bucket_step=0, "
            f"got {cfg.data.name!r} and {cfg.data.bucket_step}"
        )
    there = ConfigDict(cfg.to_dict())
    there.data.update(dir=section.dir, captions=(section.prompt,), split="train")
    prior = add_tokens(load_unchecked(there, "train", wanted), tokenizers, wanted)
    return data.join_alternating(source, prior, section.weight)


def load_test_source(cfg: ConfigDict, *, folder: Path | None = None) -> data.Source:
    """Load the test images of a config; if its data have none, the training images with a warning.

    Args:
        folder: workdir, see `load_source`.

    Raises:
        ValueError: a folder has test images, but something is wrong with them.
    """
    try:
        return load_source(cfg, "test", folder=folder)
    except (ValueError, OSError) as error:
        absent = isinstance(error, OSError | NoSuchSplit)
        if cfg.data.name in data.FOLDERS and not absent:
            raise
        logging.warning("there are no test images, training images take their place: %s", error)
        return load_source(cfg, folder=folder)
