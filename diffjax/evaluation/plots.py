"""What the plots share: no window, one look, plain numbers on logarithmic axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO


def start(width: float = 6.5, height: float = 4.0) -> tuple[Any, Any]:
    """A figure of a size in inches, and its axes."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def colours(count: int) -> Any:
    """That many that can be told apart, as far as there are."""
    import matplotlib.pyplot as plt

    return plt.get_cmap("tab10" if count <= 10 else "tab20").colors


def finish(figure: Any, axes: Any, out: Path | BinaryIO, *, beside: bool = False) -> None:
    """Write a PNG with a grid and a legend, that one ``beside`` the curves if they are many."""
    import matplotlib.pyplot as plt

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _plain(axis)
    axes.grid(alpha=0.3, which="both")
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if beside else {}
    axes.legend(fontsize=8, **place)
    figure.savefig(out, dpi=110, bbox_inches="tight", format="png")
    plt.close(figure)


def _plain(axis: Any) -> None:
    """200 in place of 2 x 10^2, as many as there is room for."""
    low, high = axis.get_view_interval()
    few = range(2, 10) if high < 15 * low else (2, 5)

    def minor(value: float, _: Any) -> str:
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return f"{value:g}" if digit in few else ""

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(minor)
