"""Claims of papers, judged by what sweeps measured, and the tables and plots of their pages.

An effect holds if it exceeds three standard deviations over seeds. With one seed nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.evaluation import plots
from diffjax.types import JsonObject
from diffjax.writing import read_json_lines


class Claim(NamedTuple):
    """One claim of a paper, and what was found.

    Attributes:
        text: the claim in a sentence.
        held: whether it holds here; None if it cannot be judged.
        figures: the values that it was judged by.
    """

    text: str
    held: bool | None
    figures: str


def read_file(path: Path) -> Any:
    """Read a JSON file, or the list of rows of a .jsonl file."""
    return read_json_lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())


def select_values(
    rows: Iterable[JsonObject], metric: str = "distance", **wanted: object
) -> np.ndarray:
    """Select the values of a metric from the rows with certain other values; one for each seed.

    Args:
        rows: of a sweep.
        metric: name of the values.
        wanted: values that the rows must have, such as ``steps=10``.
    """
    found = [r[metric] for r in rows if all(r[k] == v for k, v in wanted.items())]
    return np.asarray(found, np.float64)


def is_above(high: np.ndarray, low: np.ndarray, factor: float = 1.0) -> bool | None:
    """Judge whether ``mean(high) > factor mean(low)`` by more than three standard deviations.

    The deviation is that of the difference of two values, ``sqrt(var(high) + factor^2 var(low))``.

    Args:
        high, low: values over seeds.
        factor: how many times as large the first must be.

    Returns:
        Whether it is; None if either has fewer than two values.
    """
    if len(high) < 2 or len(low) < 2:
        return None
    spread = np.sqrt(high.var(ddof=1) + factor**2 * low.var(ddof=1))
    return bool(high.mean() - factor * low.mean() > 3 * spread)


def format_pair(a: np.ndarray, b: np.ndarray) -> str:
    """Format two sets of values as "mean ± s.d. against mean ± s.d."."""

    return f"{format_spread(a)} against {format_spread(b)}"


def format_spread(v: np.ndarray) -> str:
    """Format values as their mean ± standard deviation."""
    return f"{v.mean():.4g} ± {v.std(ddof=1):.2g}" if len(v) > 1 else "missing"


def is_falling(curve: list[np.ndarray]) -> bool | None:
    """Judge whether a curve ends below where it starts, by three standard deviations.

    Args:
        curve: values over seeds at each point.

    Returns:
        Whether it does; None for a curve of one point.
    """
    return is_above(curve[0], curve[-1]) if len(curve) > 1 else None


def format_verdicts(claims: list[Claim]) -> str:
    """Format claims as a Markdown table: the claim, whether it held, and its figures."""
    words = {True: "held", False: "not held", None: "not run"}
    lines = ["| claim | verdict | measured: mean ± s.d. where over seeds |", "|---|---|---|"]
    return "\n".join(lines + [f"| {c.text} | {words[c.held]} | {c.figures} |" for c in claims])


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
    """Format what the distance is of other sets of images, as a sentence.

    Args:
        path: an evaluation with the metric ``baselines``, of as many images as a cell has.
    """
    scale = read_file(path)["baselines"]
    return (
        f"With {scale['real_floor_num']} images the distance of other real images (the floor) is "
        f"{scale['real_floor']:.4g}, of the matched Gaussian {scale['matched_gaussian']:.4g}, of "
        f"an untrained network {scale['untrained_network']:.4g}."
    )


NOTE = """Distances are Frechet distances between features of a small frozen classifier of ours
(`{features}`, {num} generated against {num_reference} real training images). They are **not FID**
and compare only with each other.
"""


# ---- plots --------------------------------------------------------------------------------------

Curve = tuple[Sequence[float], Sequence[Any]]  # x, and y or y over seeds


def plot_lines(
    curves: dict[str, Curve], axes: tuple[str, str], path: Path, *, log: bool = False
) -> None:
    """Plot curves, with bars of one standard deviation where there are seeds.

    Args:
        curves: x and y by label.
        axes: names of x and y.
        path: of the picture.
        log: whether both axes are logarithmic.
    """
    figure, axis = plots.start()
    for label, (x, y) in curves.items():
        drawn = [np.atleast_1d(v) for v in y]
        bar = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in drawn]
        axis.errorbar(x, [v.mean() for v in drawn], bar, marker=".", label=label)
    scale = "log" if log else "linear"
    axis.set(xlabel=axes[0], ylabel=axes[1], xscale=scale, yscale=scale)
    plots.finish(figure, axis, path)


def plot_bars(
    groups: dict[str, list[np.ndarray]], names: Sequence[str], axis: str, path: Path
) -> None:
    """Plot the mean of each name in each group as a bar with its standard deviation.

    Args:
        groups: values of each name, by label of the group.
        names: of the bars in a group.
        axis: name of the logarithmic y axis.
        path: of the picture.
    """
    figure, plot = plots.start()
    width = 0.8 / len(groups)
    for k, (label, cells) in enumerate(groups.items()):
        place = np.arange(len(names)) + width * (k - (len(groups) - 1) / 2)
        error = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in cells]
        plot.bar(place, [v.mean() for v in cells], width, yerr=error, label=label)
    plot.set_xticks(range(len(names)), names)
    plot.set(ylabel=axis, yscale="log")
    plots.finish(figure, plot, path)
