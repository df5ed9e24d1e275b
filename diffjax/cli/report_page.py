"""Pages about runs: one self-contained HTML file each, from what the runs wrote.

`experiments.report` writes them. Pictures are embedded, so a page can be sent as one file.
"""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.cli.tables import format_html_table, format_table, format_value
from diffjax.evaluation import plots
from diffjax.runs import comparison
from diffjax.types import ConfigError
from diffjax.writing import read_json_lines

# Values of the papers, on their data and with Inception features: for orientation, not comparison.
PAPERS = {
    "DDPM (Ho et al. 2020), CIFAR-10, 1000 steps": "FID 3.17, IS 9.46, at most 3.75 bits/dim "
    "(rate 1.78 + distortion 1.97)",
    "DDIM (Song et al. 2020), CIFAR-10, eta 0, 10/20/50/100 steps": "FID 13.36/6.84/4.67/4.16",
    "Improved DDPM (Nichol & Dhariwal 2021), CIFAR-10": "FID 3.19 at 3.17 bits/dim (hybrid), "
    "11.47 at 2.94 (vlb)",
}

# The style sheet of the pages.
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .7em;
text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}
figure{margin:1em 0}figcaption{color:#555;font-size:.9em}pre{background:#f6f6f6;padding:1em;
overflow:auto;max-height:24em}
"""


def format_image(data: bytes, caption: str) -> str:
    """Format a PNG as an HTML figure with a caption.

    Args:
        data: the bytes of the PNG, which become part of the page.
        caption: below the picture, and its text for those who do not see it.
    """
    encoded = base64.b64encode(data).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def plot_losses(rows: list[dict[str, float]]) -> bytes:
    """Plot the logged losses against the step, on a logarithmic axis.

    Args:
        rows: lines of metrics.jsonl.

    Returns:
        The bytes of a PNG.
    """
    figure, axis = plots.start(7, 3.5)
    names = [k for k in ("loss", "mse", "bound") if k in rows[0]]
    for name in names:
        axis.plot([r["step"] for r in rows], [r[name] for r in rows], label=name)
    axis.set(xlabel="step", yscale="log", ylabel="mean over the logging interval")
    buffer = io.BytesIO()
    plots.finish(figure, axis, buffer)
    return buffer.getvalue()


def format_pairs(rows: dict[str, Any]) -> str:
    """Format names and values as an HTML table of two columns.

    Numbers have four digits and are aligned to the right; all texts are escaped.
    """

    def format_cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        kind = ' class="n"' if isinstance(value, int | float) else ""
        return f"<td{kind}>{html.escape(text)}</td>"

    body = "".join(f"<tr><td>{html.escape(k)}</td>{format_cell(v)}</tr>" for k, v in rows.items())
    return f"<table>{body}</table>"


def _format_evaluation(folder: Path) -> str:
    """Format the results in evaluation.json of a workdir as HTML, with a note on what they are."""
    path = folder / "evaluation.json"
    if not path.exists():
        return "<p>Not evaluated yet: run experiments.evaluate.</p>"
    result = json.loads(path.read_text())
    flat = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
    baselines = {f"distance of: {k}": v for k, v in result.get("baselines", {}).items()}
    note = (
        "Distances and scores use the features of a small classifier of our own: they are not "
        "FID or IS and compare only with each other."
    )
    inception = result.get("inception")
    more = f"<p>With Inception's features:</p>{format_pairs(inception)}" if inception else ""
    return f"<p>{note}</p>{format_pairs(flat | baselines)}{more}"


def format_run(cfg: ConfigDict, folder: Path) -> str:
    """Format the page about a run as HTML: losses, samples, evaluation, sweeps and config.

    Args:
        folder: the workdir.
    """
    title = f"{cfg.data.name}: {cfg.parameterization.name} prediction, {cfg.schedule.name} schedule"
    rows = read_json_lines(folder / "metrics.jsonl")
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if rows:
        last = rows[-1]
        parts += [
            "<h2>Training</h2>",
            format_image(plot_losses(rows), "training loss"),
            format_pairs(last),
        ]
    # The page shows the newest pictures, and the first preview to compare them with.
    pictures = sorted((folder / "samples").glob("*.png"), key=lambda p: p.stat().st_mtime)
    if pictures:
        parts.append("<h2>Samples</h2>")
        previews = [p for p in pictures if p.stem.isdigit()]
        final = [p for p in pictures if not p.stem.isdigit()][-2:]
        chosen = final[::-1] + (previews[-1:] if not final else [previews[0]] if previews else [])
        parts += [format_image(p.read_bytes(), p.stem) for p in chosen]
    parts += ["<h2>Evaluation</h2>", _format_evaluation(folder)]
    for sweep in sorted((folder / "sweeps").glob("*.png")):
        parts.append(format_image(sweep.read_bytes(), f"sweep {sweep.stem}"))
    parts += ["<h2>The papers, for orientation</h2>", format_pairs(PAPERS)]
    parts += ["<h2>Config</h2>", f"<pre>{html.escape(json.dumps(cfg.to_dict(), indent=2))}</pre>"]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>"


def format_comparison(folders: list[Path], metric: str, mode: str) -> tuple[str, str]:
    """Format a page that compares runs, and a table of them for the terminal.

    Args:
        folders: workdirs.
        metric: by which the best run is chosen.
        mode: min or max, whether the smallest or the largest value is best.

    Returns:
        The page as HTML, and the table as text.

    Raises:
        ConfigError: no run has the metric.
    """
    rows = comparison.collect_rows(folders)
    # Runs without the metric are in the table, but cannot win.
    winner = comparison.find_best(rows, metric, mode)
    if winner is None:
        known = sorted({key for row in rows for key in row})
        raise ConfigError(f"no run has a finite {metric!r}; there are {', '.join(known)}")
    title = html.escape(f"{len(rows)} runs by {metric}")
    drawn = [m for m in dict.fromkeys(("loss", metric)) if any(m in row for row in rows)]
    pictures = "".join(format_image(comparison.plot_curves(folders, m), m) for m in drawn)
    best = f"<p>Best by {html.escape(metric)} ({mode}): <b>{html.escape(winner['run'])}</b></p>"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = f"<h1>{title}</h1>{best}{format_html_table(rows, winner)}{pictures}"
    page = f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"
    value = format_value(winner[metric])
    return page, f"{format_table(rows)}\nbest by {metric} ({mode}): {winner['run']} with {value}"
