"""How well images fit texts: CLIP score of any prompts, and captions that a program can check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax import metrics
from diffjax.data import shapes
from diffjax.data.text_files import read_text, split_lines
from diffjax.evaluation.image_grids import to_uint8
from diffjax.evaluation.image_sets import ImageSet, StrPath, match_channels, to_float
from diffjax.pretrained.clip import CLIP, load_clip
from diffjax.pretrained.tokenizers import Tokenizer, load_tokenizer
from diffjax.types import ConfigError

BATCH = 32  # images or texts that CLIP takes at a time


class TextScorer(NamedTuple):
    """CLIP and the tokenizer that it was trained with.

    Attributes:
        clip: both encoders.
        tokenizer: of the texts.
    """

    clip: CLIP
    tokenizer: Tokenizer


def load_text_scorer(folder: StrPath) -> TextScorer:
    """Load CLIP from a folder that holds a CLIPModel of transformers with its tokenizer.

    Args:
        folder: the folder, or its name on the Hub.

    Raises:
        FileNotFoundError, ValueError: as `load_clip` and `load_tokenizer`.
    """
    return TextScorer(load_clip(folder), load_tokenizer(folder))


def read_prompts(path: StrPath) -> list[str]:
    """Read the texts of a file, one per line.

    Raises:
        ConfigError: the file holds no text, or a line between texts is empty.
        OSError: the file cannot be read.
    """
    lines = split_lines(read_text(str(path)).rstrip())
    if not lines:
        raise ConfigError(f"{path} holds no text")
    if empty := [k for k, line in enumerate(lines, 1) if not line.strip()]:
        raise ConfigError(f"line {empty[0]} of {path} is empty, but line k is the text of image k")
    return lines


def measure_clip_score(
    images: ImageSet, clip: TextScorer, prompts: Sequence[str]
) -> dict[str, float]:
    """Measure the mean of ``100 max(cos(image, text), 0)`` (Hessel et al. 2021), in percent.

    Args:
        images: the samples.
        clip: from `load_text_scorer`.
        prompts: text k belongs to image k; they start over when there are more images.

    Returns:
        ``clip_score`` and its standard error ``clip_score_se``.

    Raises:
        ValueError: fewer than 2 images.
    """
    ids = np.concatenate([clip.tokenizer.plain(prompt).ids for prompt in prompts])
    starts = range(0, len(ids), BATCH)
    texts = np.concatenate([clip.clip.texts(ids[k : k + BATCH]) for k in starts])
    parts = [
        clip.clip.images(to_float(match_channels(to_uint8(part), 3)))
        for part in images.read_chunks(BATCH)
    ]
    found = np.concatenate(parts)
    mean, error = metrics.clip_score(found, texts[np.arange(len(found)) % len(texts)])
    return {"clip_score": mean, "clip_score_se": error}


def measure_captions(
    images: ImageSet, scenes: Sequence[Sequence[shapes.Thing]]
) -> dict[str, float | int]:
    """Measure what share of their captions images show, in [0, 1]; see `shapes.Verdict`.

    Args:
        images: in colour.
        scenes: the shapes that the caption of each image asks for, as many as images.

    Returns:
        ``colour``, ``shape``, ``size``, ``place`` and ``all``, and ``num``, the number of images.

    Raises:
        ValueError: there are not as many scenes as images.
    """
    pictures = to_uint8(images.read_all())
    verdicts = [shapes.check_picture(p, things) for p, things in zip(pictures, scenes, strict=True)]
    means = map(float, np.mean(verdicts, axis=0))
    return dict(zip(shapes.Verdict._fields, means, strict=True), num=images.num)
