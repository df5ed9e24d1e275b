"""Parts of the pages about runs: the frame with its style sheet, pictures, tables and the bar.

A page is one HTML file that needs nothing else: pictures are embedded, and there are no scripts.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import NamedTuple

from diffjax.cli.tables import format_value
from diffjax.evaluation import plots

# Colours are variables, so that dark mode changes them in one place. Plots stay on white.
STYLE = """
:root{color-scheme:light dark;--text:#222;--faint:#5d5d5d;--line:#d4d4d4;--back:#fff;--box:#f4f4f4;
--good:#12805c;--rest:#dfe3e8}
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--faint:#a3a3a3;--line:#444;--back:#161616;
--box:#232323;--good:#3fb58a;--rest:#3a3f45}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:0 auto;padding:1em 16px 3em;
color:var(--text);background:var(--back);overflow-wrap:break-word}
h1{font-size:1.7em;line-height:1.2;margin:.6em 0 .2em}h2{font-size:1.25em;margin:1.8em 0 .4em}
.faint,figcaption{color:var(--faint);font-size:.92em}.lead{font-size:1.15em;margin:1em 0 .4em}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.6em 0}
td,th{border-bottom:1px solid var(--line);padding:.35em .8em .35em 0;text-align:left;
vertical-align:top}td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:0 24px}
figure{margin:.8em 0}img{max-width:100%;height:auto;display:block}
img.pixels{width:100%;image-rendering:pixelated}
img.plot{background:#fff;padding:6px;border-radius:6px}
pre{background:var(--box);padding:.8em 1em;overflow:auto;max-height:24em;border-radius:6px;
font-size:.88em}pre.command{white-space:pre-wrap}
summary{cursor:pointer;margin:1em 0 .4em;font-weight:600}
.bar{position:relative;height:18px;border-radius:9px;background:var(--rest);margin:2.2em 0 .3em}
.bar .done{position:absolute;left:0;top:0;bottom:0;border-radius:9px;background:var(--good)}
.bar .mark{position:absolute;top:-1.75em;white-space:nowrap;font-weight:600;font-size:.92em}
@media(max-width:560px){.explained tr{display:grid;grid-template-columns:1fr auto;
border-bottom:1px solid var(--line)}.explained td{border:0}.explained td:nth-child(3){
grid-column:1/-1;padding-top:0;color:var(--faint)}}
.ends{display:flex;justify-content:space-between;gap:1em}.ends span:last-child{text-align:right}
"""


def make_page(title: str, body: str) -> str:
    """Make an HTML page.

    Args:
        title: of the window, as plain text.
        body: HTML.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def format_image(data: bytes, caption: str, kind: str = "pixels") -> str:
    """Format a PNG as an HTML figure with a caption.

    Args:
        data: the bytes of the PNG, which become part of the page.
        caption: below the picture, and its text for those who do not see it.
        kind: ``pixels`` for pictures of a model, which are enlarged without blurring, or ``plot``.
    """
    encoded = base64.b64encode(data).decode()
    text = html.escape(caption)
    return (
        f'<figure><img class="{kind}" alt="{text}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def format_pairs(rows: Mapping[str, object]) -> str:
    """Format names and values as an HTML table of two columns; all texts are escaped.

    Numbers have four digits and are aligned to the right.
    """
    return format_explained({name: (value, None) for name, value in rows.items()})


def format_explained(rows: Mapping[str, tuple[object, str | None]]) -> str:
    """Format names, values and what they mean as an HTML table; all texts are escaped.

    Args:
        rows: by name, the value and a line about it. The column is left out if no row has a line.
    """
    explained = any(about for _, about in rows.values())

    def format_row(name: str, value: object, about: str | None) -> str:
        kind = ' class="n"' if isinstance(value, int | float) else ""
        more = f"<td>{html.escape(about or '')}</td>" if explained else ""
        text = html.escape(format_value(value))
        return f"<tr><td>{html.escape(name)}</td><td{kind}>{text}</td>{more}</tr>"

    body = "".join(format_row(name, *pair) for name, pair in rows.items())
    kind = ' class="explained"' if explained else ""
    return f"<table{kind}>{body}</table>"


def fold(title: str, body: str) -> str:
    """Put HTML under a title that opens it when it is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def plot_losses(rows: list[dict[str, float]]) -> bytes:
    """Plot the logged losses against the step, on a logarithmic axis.

    Args:
        rows: lines of metrics.jsonl.

    Returns:
        The bytes of a PNG.
    """
    figure, axis = plots.start(7, 3.5)
    for name in (k for k in ("loss", "mse", "bound") if k in rows[0]):
        axis.plot([r["step"] for r in rows], [r[name] for r in rows], label=name)
    axis.set(xlabel="step", yscale="log", ylabel="mean over the logging interval")
    buffer = io.BytesIO()
    plots.finish(figure, axis, buffer)
    return buffer.getvalue()


class Scale(NamedTuple):
    """A distance between that of an untrained network and that of real pictures, all positive.

    Attributes:
        distance: of the model's samples to real pictures.
        real: between two sets of real pictures.
        untrained: of samples of the untrained network to real pictures.
    """

    distance: float
    real: float
    untrained: float

    @property
    def done(self) -> float:
        """The share of the way from ``untrained`` to ``real``, logarithmic, in [0, 1]."""
        whole = math.log(self.untrained / self.real)
        return min(max(math.log(self.untrained / self.distance) / whole, 0.0), 1.0)


def format_bar(scale: Scale) -> str:
    """Format a bar from an untrained network (left) to real pictures (right) as HTML."""
    percent = 100 * scale.done
    # The label ends at the mark on the right half and begins there on the left, to stay inside.
    side = f"right:{100 - percent:.1f}%" if percent > 50 else f"left:{percent:.1f}%"
    return (
        f'<div class="bar"><div class="done" style="width:{percent:.1f}%"></div>'
        f'<div class="mark" style="{side}">this model {scale.distance:.3g}</div></div>'
        f'<div class="ends faint"><span>untrained network {scale.untrained:.3g}</span>'
        f"<span>real pictures {scale.real:.3g}</span></div>"
    )
