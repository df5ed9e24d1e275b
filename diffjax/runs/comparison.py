"""Tables and curves that compare runs: what differs between their configs, and what they measured.

`experiments.report` and `experiments.sweep` show them. Everything is read from the files of the
workdirs (config.json, metrics.jsonl, evaluation.json); nothing is computed anew.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from diffjax.evaluation import plots
from diffjax.types import ConfigError, JsonObject, choose
from diffjax.writing import read_json_lines

INCEPTIONS_OWN = ("fid", "rfid", "sfid", "kid")  # names that no other network's measures have
Row = Mapping[str, Any]  # values by title, of one run


class RunSummary(Protocol):
    """What is needed of a run of a sweep; `diffjax.launch.manifest.SweepRun` has it.

    Attributes:
        name: of its folder in that of the sweep.
        status: waiting, running, done or failed.
        tries: how often it was started.
    """

    name: str
    status: str
    tries: int


def read_last_metrics(folder: Path) -> JsonObject:
    """Read the newest complete line of metrics.jsonl in a workdir; empty if there is none.

    A line that is being written is skipped. Only the last 8 KiB of the file are read.
    """
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


def read_measures(folder: Path) -> dict[str, float]:
    """Read every number of a run: those of its evaluation, and the last ones of its log.

    Returns:
        Numbers by name. Metrics of Inception are ``fid``, ``rfid``, ``sfid`` and ``kid``, and else
        have the prefix ``inception.`` (``inception.precision``), because the metrics of our own
        networks have the same names.
    """
    path = folder / "evaluation.json"
    evaluated = json.loads(path.read_text()) if path.exists() else {}
    inception = {
        key if key in INCEPTIONS_OWN else f"inception.{key}": value
        for key, value in evaluated.get("inception", {}).items()
    }
    found = {**read_last_metrics(folder), **evaluated, **inception}
    return {k: v for k, v in found.items() if isinstance(v, int | float)}


def read_measure(folder: Path, metric: str) -> float | None:
    """Read one number of a run by its name in `read_measures`; None if the run does not have it."""
    return read_measures(folder).get(metric)


def find_best(rows: Sequence[Row], metric: str, mode: str) -> Row | None:
    """Find the row with the best finite value of a metric; None if no row has one.

    Args:
        mode: ``min`` or ``max``, whether the smallest or the largest value is best.

    Raises:
        ValueError: unknown mode.
    """
    pick = choose("mode", mode, {"min": min, "max": max})
    good = [r for r in rows if math.isfinite(r.get(metric, math.nan))]
    return pick(good, key=lambda row: float(row[metric])) if good else None


def collect_rows(folders: Sequence[Path]) -> list[JsonObject]:
    """Make a table with one row per run.

    A row holds the name of the run (``run``), the config values in which the runs differ (by dotted
    key), and the numbers of `read_measures`.

    Raises:
        ConfigError: a folder is not a run.
    """
    configs = []
    for folder in folders:
        if not (folder / "config.json").exists():
            raise ConfigError(f"{folder} is not a run: it has no config.json")
        configs.append(_flatten(json.loads((folder / "config.json").read_text())))
    varied = {k for c in configs for k in c if any(c.get(k) != other.get(k) for other in configs)}
    return [
        {"run": f.name, **{k: c[k] for k in sorted(varied) if k in c}, **read_measures(f)}
        for f, c in zip(folders, configs, strict=True)
    ]


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Flatten nested dicts to values by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = [_flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
    return {key: value for part in flat for key, value in part.items()}


def list_progress(folder: Path, runs: Sequence[RunSummary]) -> list[JsonObject]:
    """Make a table of how far each run of a sweep has come: step, loss, speed and number of tries.

    Args:
        folder: of the sweep; each run has a folder of its name in it.
    """
    rows = []
    for run in runs:
        last = read_last_metrics(folder / run.name)
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


def plot_curves(folders: Sequence[Path], metric: str) -> bytes:
    """Plot a logged metric of every run against the step.

    Returns:
        The plot as the bytes of a PNG. Runs are labelled by the names of their folders.
    """
    figure, axis = plots.start(8, 4.5)
    for folder in folders:
        rows = [r for r in read_json_lines(folder / "metrics.jsonl") if metric in r]
        axis.plot([r["step"] for r in rows], [r[metric] for r in rows], label=folder.name)
    axis.set(xlabel="step", ylabel=metric)
    buffer = io.BytesIO()
    plots.finish(figure, axis, buffer)
    return buffer.getvalue()
