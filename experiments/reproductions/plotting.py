"""Plots of the pages of results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffjax.evaluation import plots

# Name of the axis of distances.
DISTANCE = "Fréchet distance (not FID)"

Curve = tuple[Sequence[float], Sequence[Any]]  # x, and y or y over seeds


def plot_lines(
    curves: dict[str, Curve], axes: tuple[str, str], path: Path, *, log: bool = False
) -> None:
    """Plot curves, with bars of one standard deviation where there are seeds.

    Args:
        curves: x and y by label.
        axes: names of x and y.
        path: of the picture.
        log: whether both axes are logarithmic; otherwise y begins at 0.
    """
    figure, axis = plots.start()
    for label, (x, y) in curves.items():
        drawn = [np.atleast_1d(v) for v in y]
        bar = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in drawn]
        axis.errorbar(x, [v.mean() for v in drawn], bar, marker=".", label=label)
    scale = "log" if log else "linear"
    ending = ", log scale" if log else ""
    axis.set(xlabel=axes[0], ylabel=axes[1] + ending, xscale=scale, yscale=scale)
    if not log:
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    plots.finish(figure, axis, path, direct=len(curves) <= plots.FEW)


def plot_bars(
    groups: dict[str, list[np.ndarray]], names: Sequence[str], axis: str, path: Path
) -> None:
    """Plot the mean of each name in each group as a bar with its standard deviation.

    Args:
        groups: values of each name, by label of the group.
        names: of the bars in a group.
        axis: name of the y axis, which begins at 0.
        path: of the picture.
    """
    figure, plot = plots.start()
    width = 0.8 / len(groups)
    for k, (label, cells) in enumerate(groups.items()):
        place = np.arange(len(names)) + width * (k - (len(groups) - 1) / 2)
        error = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in cells]
        plot.bar(place, [v.mean() for v in cells], width, yerr=error, label=label)
    plot.set_xticks(range(len(names)), names)
    plot.set(ylabel=axis, ylim=(0, None))
    plots.finish(figure, plot, path)


def label_rows(source: Path | np.ndarray, target: Path, rows: Sequence[str], columns: str) -> None:
    """Write a sheet of pictures with a name left of every row, and what columns are above.

    Args:
        source: the sheet, a file or (H, W, 3) uint8, whose rows have the same height.
        target: the file to write.
        rows: names from the top; long ones are broken into lines.
        columns: what the columns are.
    """
    found = Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(source)
    sheet = found.convert("RGB")
    font = ImageFont.load_default(12)
    names = [textwrap.fill(row, 32) for row in rows]
    left = 8 + max(int(font.getlength(line)) for name in names for line in name.split("\n"))
    top = 18
    size = (max(left + sheet.width, left + int(font.getlength(columns)) + 4), top + sheet.height)
    out = Image.new("RGB", size, "white")
    out.paste(sheet, (left, top))
    draw = ImageDraw.Draw(out)
    draw.text((left, top / 2), columns, "black", font, anchor="lm")
    for k, name in enumerate(names):
        y = top + (k + 0.5) * sheet.height / len(names)
        draw.multiline_text((left - 4, y), name, "black", font, anchor="rm", align="right")
    out.save(target)
