"""What a ControlNet does when the prompt says nothing, or something else than the hint.

Zhang et al. (2023, figures 1 and 7) show pictures that keep to the hint without a prompt, with an
insufficient one and with a conflicting one. Here the base is told the class or caption of the
image, nothing, or that of another image, with the ControlNet and without it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.reproductions.claims import Claim, compare_shares, format_spread, read_file
from experiments.reproductions.controlnet_pieces import TOLD, TOLD_NUM, TOLD_SEEDS

# Measures by kind of hint.
MEASURES = {"edges": ("edge_f1", "F1"), "masks": ("mask_iou", "IoU")}
# The least gain over the base alone, and the most that a conflicting prompt may cost.
GAIN, LOSS = 0.1, 0.05
# For contradictions.
_WHY = {
    "edges": "The base is told a class, and garments of two classes may share few edges. With 400 "
    "steps of training the ControlNet may not outweigh that.",
    "masks": "A caption of shapes says what lies where, so another one contradicts the mask. "
    "Prompts of Stable Diffusion hardly ever do, and training showed no such pair.",
}


def _select(data: Path, hint: str, prompt: str, scale: float) -> np.ndarray:
    """Select the measure of a hint over sampling seeds.

    Args:
        hint: a key of `MEASURES`.
        prompt: a key of `TOLD`.
        scale: 0 for the base alone, 1 with the ControlNet.

    Returns:
        (seeds,).
    """
    rows = read_file(data / f"control-prompts-{hint}.json")["settings"]
    key = MEASURES[hint][0]
    return np.asarray([r[key] for r in rows if r["prompt"] == prompt and r["scale"] == scale])


def judge_prompts(data: Path) -> list[Claim]:
    """Judge whether pictures keep to the hint whatever the base is told.

    Args:
        data: folder of the files that the pieces left.
    """
    out = []
    for hint, (_, name) in MEASURES.items():
        for prompt, words in (("none", "without prompts"), ("other", "with another's prompt")):
            text = f"{hint}: {words} the {name} is at least {GAIN} above that of the base alone"
            pair = (_select(data, hint, prompt, scale) for scale in (1.0, 0.0))
            out.append(compare_shares(text, *pair, above=GAIN, why=_WHY[hint]))
        text = f"{hint}: another's prompt costs at most {LOSS} of the {name}"
        pair = (_select(data, hint, prompt, 1.0) for prompt in ("other", "own"))
        out.append(compare_shares(text, *pair, above=-LOSS, why=_WHY[hint]))
    return out


def format_prompts(data: Path) -> str:
    """Format the measures for every prompt, with the base alone in a column of its own."""
    lines = ["| hint | prompt | the base alone | with the ControlNet |", "|---" * 4 + "|"]
    for hint, (_, name) in MEASURES.items():
        for prompt, words in TOLD.items():
            cells = (format_spread(_select(data, hint, prompt, scale)) for scale in (0.0, 1.0))
            lines.append(f"| {hint}, {name} | {words} | {' | '.join(cells)} |")
    return f"""The base is told the class or caption of the image, nothing, or that of the next
image with another one. {TOLD_NUM} images and {TOLD_SEEDS} sampling seeds of one training each;
claims and margins were written before these were drawn.

{chr(10).join(lines)}"""
