"""Runs beside each other: one table, their curves, and the best by a metric."""

from __future__ import annotations

import html
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax.evaluation import plots
from diffjax.types import choose
from diffjax.writing import read_json_lines
from experiments import common

SECONDS = 10.0  # between two tables where output is not a terminal
INCEPTIONS_OWN = ("fid", "rfid", "sfid", "kid")  # names that no other network's measures have


def last_metrics(folder: Path) -> dict[str, Any]:
    """The newest line of a run's log, {} if there is none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return {}
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 8192))
        lines = stream.read().decode(errors="replace").split("\n")
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue  # being written
    return {}


def values_of(folder: Path) -> dict[str, float]:
    """Every number a run has: its evaluation's, else its log's last.

    Inception's are ``fid``, ``rfid``, ``sfid``, ``kid``, and the others ``inception.precision`` and
    so on, because our own networks' have the same names.
    """
    path = folder / "evaluation.json"
    evaluated = json.loads(path.read_text()) if path.exists() else {}
    inception = {
        key if key in INCEPTIONS_OWN else f"inception.{key}": value
        for key, value in evaluated.get("inception", {}).items()
    }
    found = {**last_metrics(folder), **evaluated, **inception}
    return {k: v for k, v in found.items() if isinstance(v, int | float)}


def metric_of(folder: Path, metric: str) -> float | None:
    """A number of a run, or None."""
    return values_of(folder).get(metric)


def best(rows: Sequence[Mapping[str, Any]], metric: str, mode: str) -> Mapping[str, Any] | None:
    """The row with the best finite value, or None.

    Raises:
        ValueError: unknown mode.
    """
    pick = choose("mode", mode, {"min": min, "max": max})
    good = [r for r in rows if math.isfinite(r.get(metric, math.nan))]
    return pick(good, key=lambda row: row[metric]) if good else None


def collect(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per run: its name, what differs between their configs, and its numbers.

    Raises:
        UsageError: a folder is not a run.
    """
    configs = []
    for folder in folders:
        if not (folder / "config.json").exists():
            raise common.UsageError(f"{folder} is not a run: it has no config.json")
        configs.append(_flat(json.loads((folder / "config.json").read_text())))
    varied = {k for c in configs for k in c if any(c.get(k) != other.get(k) for other in configs)}
    return [
        {"run": f.name, **{k: c[k] for k in sorted(varied) if k in c}, **values_of(f)}
        for f, c in zip(folders, configs, strict=True)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
    return {key: value for part in flat for key, value in part.items()}


def cell(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned columns under their keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    grid = [keys, *[[cell(row.get(key, "")) for key in keys] for row in rows]]
    widths = [max(len(line[i]) for line in grid) for i in range(len(keys))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


def progress(folder: Path, runs: Sequence[Any]) -> list[dict[str, Any]]:
    """How far each run of a sweep is."""
    rows = []
    for run in runs:
        last = last_metrics(folder / run.name)
        stored = folder / run.name / "config.json"
        steps = json.loads(stored.read_text())["train"]["steps"] if stored.exists() else "?"
        rows.append({
            "run": run.name,
            "status": run.status,
            "step": f"{last.get('step', 0)}/{steps}",
            "loss": last.get("loss", ""),
            "steps/s": last.get("steps_per_second", ""),
            "tries": run.tries,
        })  # fmt: skip
    return rows


def progress_table(folder: Path, runs: Sequence[Any]) -> Callable[..., None]:
    """A function that shows the table: in place on a terminal, else when it changed, now and then.

    It is shown every second at most; with ``last=True`` in any case.
    """
    state = {"lines": 0, "time": -math.inf, "text": ""}
    terminal = sys.stdout.isatty()

    def show(*, last: bool = False) -> None:
        if not last and time.monotonic() - state["time"] < (1.0 if terminal else SECONDS):
            return
        text = text_table(progress(folder, runs))
        if text == state["text"] and not last:
            return
        up = f"\x1b[{state['lines']}A\x1b[J" if terminal and state["lines"] else ""
        print(f"{up}{text}" + ("" if terminal else "\n"), flush=True)
        state.update(lines=text.count("\n") + 1, time=time.monotonic(), text=text)

    return show


def curves(folders: Sequence[Path], metric: str) -> bytes:
    """PNG of a logged metric of every run against the step."""
    figure, axis = plots.start(8, 4.5)
    for folder in folders:
        rows = [r for r in read_json_lines(folder / "metrics.jsonl") if metric in r]
        axis.plot([r["step"] for r in rows], [r[metric] for r in rows], label=folder.name)
    axis.set(xlabel="step", ylabel=metric)
    buffer = io.BytesIO()
    plots.finish(figure, axis, buffer)
    return buffer.getvalue()


def html_table(rows: Sequence[Mapping[str, Any]], winner: Mapping[str, Any] | None) -> str:
    """Rows as an HTML table, the winner in bold."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    lines = []
    for row in rows:
        mark = ("<b>", "</b>") if row is winner else ("", "")
        cells = (html.escape(cell(row.get(key, ""))) for key in keys)
        lines.append("".join(f"<td>{mark[0]}{text}{mark[1]}</td>" for text in cells))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
