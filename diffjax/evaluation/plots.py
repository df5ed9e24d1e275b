"""What the plots share: no window, one look, plain numbers on logarithmic axes.

Matplotlib is imported when a figure is started: it is slow to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# Curves that have their labels at their ends; more have a legend.
FEW = 8


def start(width: float = 6.5, height: float = 4.0) -> tuple[Figure, Axes]:
    """Start a figure of a size in inches; returns the figure and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def colours(count: int) -> Sequence[tuple[float, ...]]:
    """Return colours that can be distinguished, for ``count`` curves: 10, or at most 20."""
    import matplotlib.pyplot as plt

    table = plt.get_cmap("tab10" if count <= 10 else "tab20")
    return [table(k) for k in range(table.N)]


def finish(
    figure: Figure,
    axes: Axes,
    out: Path | BinaryIO,
    *,
    beside: bool = False,
    direct: bool = False,
) -> None:
    """Write a PNG with a grid and a legend, and close the figure.

    Args:
        figure, axes: from `start`.
        out: a path, or a stream of bytes.
        beside: put the legend beside the curves, for many of them.
        direct: label the curves at their ends in place of a legend.
    """
    import matplotlib.pyplot as plt

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _write_plain_numbers(axis)
    axes.grid(alpha=0.3, which="both")
    if direct:
        _label_ends(figure, axes)
    elif beside:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    else:
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=110, bbox_inches="tight", format="png")
    plt.close(figure)


def _label_ends(figure: Figure, axes: Axes) -> None:
    """Write the label of every curve right of the plot, at the height of the curve's last point.

    Labels that would overlap are moved apart.
    """
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    figure.canvas.draw()
    ends = [
        axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1])) for line in lines
    ]
    order = sorted(range(len(lines)), key=lambda k: ends[k][1])
    heights = _move_apart([ends[k][1] for k in order], 11 * figure.dpi / 72)
    for k, height in zip(order, heights, strict=True):
        _, y = axes.transAxes.inverted().transform((0, height))
        axes.text(1.01, y, labels[k], color=lines[k].get_color(), fontsize=8, va="center",
                  transform=axes.transAxes)  # fmt: skip


def _move_apart(heights: list[float], least: float) -> list[float]:
    """Move increasing heights apart until neighbours differ by a least distance.

    Heights that are too close become a group with equal distances around its mean.
    """
    groups: list[tuple[float, int]] = []  # mean and number of heights
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= least * (below + above) / 2:
                break
            count = below + above
            groups[-2:] = [((low * below + high * above) / count, count)]
    return [mean + least * (k - (count - 1) / 2) for mean, count in groups for k in range(count)]


def _write_plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with numbers such as 200, as many as there is room for."""
    low, high = axis.get_view_interval()
    few = range(2, 10) if high < 15 * low else (2, 5)

    def minor(value: float, _: float) -> str:
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return f"{value:g}" if digit in few else ""

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(minor)
