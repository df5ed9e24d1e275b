"""Test images with their hints, for looking at a ControlNet and measuring how it follows hints.

The callbacks of training and `experiments.control` draw with these hints; `measure_hints` then
compares the hints with the images that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.evaluation.hint_fidelity import measure_fidelity
from diffjax.model import ImageInputs, Model
from diffjax.runs.hints import make_hints
from diffjax.runs.sources import load_test_source
from diffjax.types import Cond

# What the base is told of an image: its own condition, nothing, or that of another image.
PROMPTS = ("own", "none", "other")


def take_examples(cfg: ConfigDict, count: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Take the first test images with their labels and conditions, and compute their hints.

    Args:
        count: number of images N; a smaller data set is repeated.
        folder: workdir of the run, which knows its classes and words; None outside of a run.

    Returns:
        A batch whose ``hint`` is (N, H, W, C) in [0, 1].
    """
    source = load_test_source(cfg, folder=folder)
    batch = data.batch_of(source, np.arange(count) % len(source))
    return {**batch, "hint": make_hints(cfg)(batch)}


def make_input_reader(
    model: Model, batch: dict[str, np.ndarray], hints: Sequence[np.ndarray], *, prompt: str = "own"
) -> Callable[[np.ndarray], ImageInputs]:
    """Make the function that gives each image its condition and hints.

    Args:
        batch: examples with what the model's condition needs, see `take_examples`.
        hints: for each control network of the model, (N, H, W, C) in [0, 1].
        prompt: what the base is told, an entry of `PROMPTS`: ``own`` condition of the image,
            ``none``, which is the null condition, or that of an ``other`` image, the next one in
            turn that has another condition.

    Returns:
        ``index -> ImageInputs`` of the images number ``index`` (B,), on the host. Example
        ``index % N`` is used.

    Raises:
        ValueError: an unknown prompt; or ``other`` where all conditions are the same.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {prompt!r}")
    raw = model.condition.take(batch, jax.random.key(0))
    if raw and prompt == "none":
        raw = model.condition.null(raw)
    if raw and prompt == "other":
        raw = exchange_conditions(raw)
    whole = jax.tree.map(np.asarray, ImageInputs(raw, list(hints)))

    def read(index: np.ndarray) -> ImageInputs:
        picked: ImageInputs = jax.tree.map(lambda leaf: leaf[index % len(leaf)], whole)
        return picked

    return read


def exchange_conditions(raw: Cond) -> Cond:
    """Give every image the condition of the next one in turn that has another condition.

    Args:
        raw: a tree of arrays (N, ...).

    Raises:
        ValueError: all conditions are the same.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(raw)]
    rows = [tuple(leaf[k].tobytes() for leaf in leaves) for k in range(len(leaves[0]))]
    if len(set(rows)) < 2:
        raise ValueError(
            f"all {len(rows)} images have the same condition, so none can be told another one's; "
            "take more images"
        )
    count = len(rows)
    turned = [next(j % count for j in range(k, k + count) if rows[j % count] != rows[k])
              for k in range(count)]  # fmt: skip
    exchanged: Cond = jax.tree.map(lambda leaf: np.asarray(leaf)[turned], raw)
    return exchanged


def measure_hints(cfg: ConfigDict, hints: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Measure how well images follow hints, by the metric of the kind of hint.

    Args:
        hints: (N, H, W, C) in [0, 1].
        images: (N, H, W, C) in [-1, 1].

    Returns:
        ``edge_f1`` for edges or ``mask_iou`` for masks, in [0, 1], see
        `evaluation.hint_fidelity.measure_fidelity`.
    """
    of_shapes = cfg.data.name.startswith("shapes")
    return measure_fidelity(cfg.control.hint, hints, images, of_shapes=of_shapes)


def draw_hints(hints: np.ndarray, channels: int) -> np.ndarray:
    """Turn hints into images in [-1, 1], (N, H, W, C) with ``channels`` channels.

    A hint with several channels that is not RGB (a semantic map) becomes grey: each pixel shows the
    number of its largest channel.
    """
    if hints.shape[-1] not in (1, 3):
        hints = hints.argmax(-1, keepdims=True) / max(hints.shape[-1] - 1, 1)
    hints = hints if hints.shape[-1] == channels else hints.mean(-1, keepdims=True)
    return (2 * hints - 1).repeat(channels // hints.shape[-1], -1).astype(np.float32)
