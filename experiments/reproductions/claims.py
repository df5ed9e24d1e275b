"""Claims of papers, judged by what sweeps measured, and the tables of their pages.

Every claim has an effect with an interval, from which the verdict follows: see `verdicts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.types import JsonObject
from diffjax.writing import read_json_lines
from experiments.reproductions.verdicts import (
    CONTRADICTED,
    UNDECIDED,
    Effect,
    Values,
    estimate_difference,
    estimate_ratio,
    format_effect,
    judge_range,
)

# Share of an untrained network's distance above which a cell has learned too little to judge by.
_LEARNED = 0.8


class Claim(NamedTuple):
    """One claim of a paper, and what was found.

    Attributes:
        text: the claim in a sentence.
        verdict: an entry of `verdicts.VERDICTS`.
        effect: the effect that decides, with its interval.
        figures: the values that it was judged by.
        why: two sentences about what may explain a contradiction.
    """

    text: str
    verdict: str
    effect: Effect
    figures: str
    why: str = ""


class Scale(NamedTuple):
    """Distances between which those of a model lie.

    Attributes:
        floor: of other real images.
        untrained: of images of an untrained network.
    """

    floor: float
    untrained: float

    def share(self, values: np.ndarray) -> float:
        """Compute the mean distance as a share: 0 is the floor, 1 an untrained network."""
        return float((values.mean() - self.floor) / (self.untrained - self.floor))


def read_scale(path: Path, prefix: str = "") -> Scale | None:
    """Read the scale of distances from an evaluation with the metric ``baselines``.

    Args:
        path: of the evaluation.
        prefix: ``texture_`` for texture distances.

    Returns:
        The scale; None if the file is missing.
    """
    if not path.exists():
        return None
    found = read_file(path)["baselines"]
    return Scale(found[f"{prefix}real_floor"], found[f"{prefix}untrained_network"])


def read_file(path: Path) -> Any:
    """Read a JSON file, or the list of rows of a .jsonl file."""
    return read_json_lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())


def read_turns(cost: JsonObject) -> dict[str, list[float]]:
    """Read the seconds of every turn from a benchmark of costs, by what was timed.

    Files from before turns were written have medians alone, which are then the only turn.
    """
    found = cost["turns"]["wall"] if "turns" in cost else cost["step_seconds"]
    return {name: list(np.atleast_1d(times)) for name, times in found.items()}


def select_values(
    rows: Iterable[JsonObject], metric: str = "distance", **wanted: object
) -> np.ndarray:
    """Select the values of a metric from the rows with certain other values.

    Args:
        rows: of a sweep.
        metric: name of the values.
        wanted: values that the rows must have, such as ``steps=10``.

    Returns:
        One value for each sampling seed, in the order of the seeds.

    Raises:
        ValueError: the seeds are not 0, 1, ... once each, so that values could not be paired.
    """
    found = sorted(
        (r["seed"], r[metric]) for r in rows if all(r[k] == v for k, v in wanted.items())
    )
    if [seed for seed, _ in found] != list(range(len(found))):
        raise ValueError(f"rows with {wanted} have the seeds {[seed for seed, _ in found]}")
    return np.asarray([value for _, value in found], np.float64)


def compare(
    text: str,
    high: Values,
    low: Values,
    *,
    factor: float = 1.0,
    scale: Scale | None = None,
    why: str = "",
) -> Claim:
    """Judge whether positive values are above others, or at least some times as large.

    Args:
        text: the claim.
        high, low: distances, bits or speeds of the same units in the same order.
        factor: the least ratio.
        scale: of distances, which are then shown as shares too; cells that learned too little leave
            the claim undecided.
        why: for a contradiction.
    """
    effect = estimate_ratio(high, low)
    verdict, figures = judge_range(effect, factor), format_pair(high, low, scale)
    shares = [scale.share(np.asarray(v)) for v in (high, low) if len(v)] if scale else []
    if max(shares, default=0.0) > _LEARNED:
        verdict, figures = UNDECIDED, f"excluded, hardly above an untrained network: {figures}"
    return Claim(text, verdict, effect, figures, why)


def compare_shares(
    text: str,
    high: Values,
    low: Values,
    *,
    factor: float = 1.0,
    above: float = 0.0,
    why: str = "",
) -> Claim:
    """Judge whether shares or scores are above others, ``high - factor low > above``.

    Args:
        text: the claim.
        high, low: values of the same units in the same order.
        factor: of the second.
        above: the least difference, which is below 0 for "no smaller than" with a margin.
        why: for a contradiction.
    """
    effect = estimate_difference(high, low, factor)
    return Claim(text, judge_range(effect, above), effect, format_pair(high, low), why)


def compare_closeness(text: str, a: Values, b: Values, margin: float, *, why: str = "") -> Claim:
    """Judge whether values are as large as others within a margin, such as 0.1 for 10 %.

    Args:
        text: the claim.
        a, b: positive values of the same units in the same order.
        margin: the ratio must lie between ``1 / (1 + margin)`` and ``1 + margin``.
        why: for a contradiction.
    """
    effect = estimate_ratio(a, b)
    verdict = judge_range(effect, 1 / (1 + margin), 1 + margin)
    return Claim(text, verdict, effect, format_pair(a, b), why)


def format_pair(a: Values, b: Values, scale: Scale | None = None) -> str:
    """Format two sets of values as "mean ± s.d. against mean ± s.d."."""
    return f"{format_spread(a, scale)} against {format_spread(b, scale)}"


def format_spread(values: Values, scale: Scale | None = None) -> str:
    """Format values as their mean ± standard deviation, with their share on a scale."""
    v = np.asarray(values)
    if not len(v):
        return "missing"
    share = f" ({100 * scale.share(v):.0f} %)" if scale else ""
    spread = f" ± {v.std(ddof=1):.2g}" if len(v) > 1 else ""
    return f"{v.mean():.4g}{spread}{share}"


def format_verdicts(claims: list[Claim]) -> str:
    """Format claims as a Markdown table, and what is to be said about those contradicted."""
    lines = [
        "| claim | verdict | effect [99 % interval] | measured: mean ± s.d. |",
        "|---" * 4 + "|",
    ]
    for c in claims:
        lines.append(f"| {c.text} | {c.verdict} | {format_effect(c.effect)} | {c.figures} |")
    reasons: dict[str, list[str]] = {}
    for c in claims:
        if c.verdict == CONTRADICTED:
            reasons.setdefault(c.why, []).append(f"*{c.text}*")
    contradicted = [f"- {'; '.join(texts)}: {why}" for why, texts in reasons.items()]
    if contradicted:
        lines += ["", "Contradicted:", "", *contradicted]
    return "\n".join(lines)


def format_metrics(evaluation: JsonObject) -> dict[str, str]:
    """Format the image metrics of an evaluation as a column of `format_comparison`.

    Args:
        evaluation: an evaluation.json; metrics that it lacks are left out.
    """
    keys = ("distance", "inception_score", "precision", "recall", "density", "coverage")
    return {k: f"{evaluation[k]:.4g}" for k in keys if k in evaluation}


def format_comparison(columns: dict[str, dict[str, str]]) -> str:
    """Format a Markdown table with one column for each system, and one row for each figure.

    Args:
        columns: figures by name, by the title of the column. A figure that a system lacks is "-".
    """
    rows = list(dict.fromkeys(key for column in columns.values() for key in column))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in rows:
        lines.append(f"| {key} | {' | '.join(c.get(key, '-') for c in columns.values())} |")
    return "\n".join(lines)


def format_training(summary: JsonObject) -> dict[str, str]:
    """Format what a summary.json says of a training, as a column of `format_comparison`.

    Args:
        summary: sizes, steps and times, see `runs.record`; baselines write the same keys.
    """
    return {
        "parameters": f"{summary['parameters']:,}",
        "optimiser steps": f"{summary['steps']:,}",
        "images seen": f"{summary['images']:,}",
        "wall-clock minutes": f"{summary['wall_seconds'] / 60:.1f}",
        "CPU minutes": f"{summary['cpu_seconds'] / 60:.1f}",
    }


def format_floor(path: Path) -> str:
    """Format what the distances are of other sets of images, as a sentence for each kind.

    Args:
        path: an evaluation with the metric ``baselines``, of as many images as a cell has.
    """
    scale = read_file(path)["baselines"]
    kinds = {"distance": "", "texture distance": "texture_"}
    # Floors of earlier runs lack the texture.
    found = [
        f"With {scale['real_floor_num']} images the {kind} of other real images (the floor) is "
        f"{scale[f'{prefix}real_floor']:.4g}, of the matched Gaussian "
        f"{scale[f'{prefix}matched_gaussian']:.4g}, of an untrained network "
        f"{scale[f'{prefix}untrained_network']:.4g}."
        for kind, prefix in kinds.items()
        if f"{prefix}real_floor" in scale
    ]
    return "\n".join(found)


NOTE = """Distances are Frechet distances between features of a small frozen classifier of ours
(`{features}`, {num} generated against {num_reference} real training images). They are **not FID**
and compare only with each other. Percentages in brackets are shares of the way from the floor
to an untrained network, (distance - floor) / (untrained - floor).
"""
