"""What a ControlNet is looked at with: hints of test images, and how images keep to them."""

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


def take_examples(cfg: ConfigDict, count: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Image, label and hint of the first test images."""
    source = load_test_source(cfg, folder=folder)
    batch = data.batch_of(source, np.arange(count) % len(source))
    return {**batch, "hint": make_hints(cfg)(batch)}


def make_input_reader(
    model: Model, batch: dict[str, np.ndarray], hints: Sequence[np.ndarray], *, prompt: bool = True
) -> Callable[[np.ndarray], ImageInputs]:
    """What images number ``index`` are made of: the conditions of a batch, and hints.

    Args:
        hints: (N, H, W, C) for each control network.
        prompt: whether the base is told the condition.
    """
    raw = model.condition.take(batch, jax.random.key(0))
    raw = raw if prompt or not raw else model.condition.null(raw)
    whole = jax.tree.map(np.asarray, ImageInputs(raw, list(hints)))

    def read(index: np.ndarray) -> ImageInputs:
        picked: ImageInputs = jax.tree.map(lambda leaf: leaf[index % len(leaf)], whole)
        return picked

    return read


def measure_hints(cfg: ConfigDict, hints: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Edge F1 or mask IoU between hints and images, see `measure_fidelity`."""
    of_shapes = cfg.data.name.startswith("shapes")
    return measure_fidelity(cfg.control.hint, hints, images, of_shapes=of_shapes)


def draw_hints(hints: np.ndarray, channels: int) -> np.ndarray:
    """Hints as images in [-1, 1]; of several channels, the largest one's number as a grey level."""
    if hints.shape[-1] not in (1, 3):
        hints = hints.argmax(-1, keepdims=True) / max(hints.shape[-1] - 1, 1)
    hints = hints if hints.shape[-1] == channels else hints.mean(-1, keepdims=True)
    return (2 * hints - 1).repeat(channels // hints.shape[-1], -1).astype(np.float32)
