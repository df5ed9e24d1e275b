"""Sweeps over ``config.sample``: measures of every combination, resumable, as table and plot."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from diffjax.config import explain_unused
from diffjax.evaluation import plots
from diffjax.types import ConfigError, JsonObject, suggest
from diffjax.writing import read_json_lines, write_atomically

AXIS_NAMES = {"distance": "Fréchet distance (not FID)", "all": "share of obeyed captions"}
_TICK_RATIO = 1.15  # least ratio of neighbouring ticks; labels of closer ones would overlap

Value = bool | int | float | str
# One line of a sweep's file: values by axis, ``seed``, ``num`` and what was measured.
Row: TypeAlias = JsonObject
Curve = dict[int, np.ndarray]  # network evaluations -> a metric over seeds
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse_axes(axes: Sequence[str], section: ConfigDict) -> dict[str, list[Value]]:
    """Parse axes such as ``["eta=0,1", "steps=5,10"]`` to values of a section's types.

    Args:
        axes: texts KEY=VALUE,...
        section: whose keys the axes vary.

    Raises:
        ConfigError: an axis is not of that form, is no key of the section, or has a value of
            another type.
    """
    out: dict[str, list[Value]] = {}
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not equals or key not in section:
            raise ConfigError(
                f"{axis!r} must be KEY=VALUE,... with KEY one of {', '.join(section)}"
                f"{suggest(key, section)}"
            )
        kind = section.get_type(key)
        out[key] = [_parse_value(axis, kind, value) for value in values.split(",")]
    return out


def _parse_truth(text: str) -> bool:
    if text.lower() not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text.lower()]


_PARSERS: dict[type, tuple[Callable[[str], Value], str]] = {
    bool: (_parse_truth, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
}


def _parse_value(axis: str, kind: type, text: str) -> Value:
    """Parse one value of an axis.

    Raises:
        ConfigError: the text is no value of that type.
    """
    parse, wanted = _PARSERS.get(kind, (kind, kind.__name__))
    try:
        return parse(text)
    except ValueError:
        raise ConfigError(f"{axis}: {text!r} is not {wanted}") from None


def check_axes(config: ConfigDict, axes: Sequence[str]) -> None:
    """Refuse axes of options that the chosen sampler or grid does not take.

    Raises:
        ConfigError: an axis is not used; the message has the option, what is chosen, and what the
            option belongs to.
    """
    paths = [f"sample.{key}" for key in axes]
    for path, reason in explain_unused(config, paths).items():
        raise ConfigError(f"{path} is not used: {reason}; leave it out of this sweep")


class Sweep(NamedTuple):
    """What is measured: every combination of the values of the axes, with every seed.

    Attributes:
        axes: values of keys of ``config.sample``, see `parse_axes`.
        seeds: sampling seeds 0, 1, ... of every combination.
        num: images per cell.
        stamp: a digest of all that the sweep keeps fixed, see `stamp_settings`.
    """

    axes: Mapping[str, Sequence[Value]]
    seeds: int
    num: int
    stamp: str

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Yield values by axis, the last axis fastest."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def cells(self) -> list[Row]:
        """List all that is to be measured: values of the axes, ``seed`` and ``num``."""
        return [
            {**values, "seed": seed, "num": self.num}
            for seed in range(self.seeds)
            for values in self.combinations()
        ]

    def key(self, row: Row) -> tuple[Value | None, ...]:
        """Return what distinguishes the cell of a row from other cells."""
        return (*(row.get(axis) for axis in self.axes), row["seed"], row["num"])


def stamp_settings(
    axes: Mapping[str, Sequence[Value]], section: ConfigDict, settings: Mapping[str, object]
) -> str:
    """Return a digest of all that a sweep keeps fixed; rows with another stamp are not reused.

    Args:
        axes: what varies.
        section: ``config.sample``, of which the axes vary.
        settings: what else changes the measures, as JSON can hold it: the model, its data, the
            metric.
    """
    varied = (*axes, "num", "batch_size", "classifier")  # the last is a path to one of the weights
    sample = {k: v for k, v in section.to_dict().items() if k not in varied}
    text = json.dumps({"axes": sorted(axes), "sample": sample, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_sweep(
    sweep: Sweep, measure: Callable[[Row], Row], out: Path, *, metric: str = "distance"
) -> None:
    """Measure the cells that are missing in OUT.jsonl, and write OUT.jsonl, OUT.md and OUT.png.

    Args:
        sweep: what is measured.
        measure: cell -> what is measured of it as JSON can hold it, with ``evaluations``, the
            number of network evaluations, and the metric.
        out: path of the files without their suffix.
        metric: which of the measures table and plot show.

    Raises:
        ConfigError: OUT.jsonl has rows that were measured with other settings.
        ValueError: a cell cannot be measured; the message names it. Those before are kept.
    """
    lines = out.with_name(out.name + ".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    rows = _read_rows(lines, sweep)
    # The file is rewritten first: a cut last line would swallow the row appended after it.
    write_atomically(lines, "".join(json.dumps(row) + "\n" for row in rows))
    done = {sweep.key(row) for row in rows}
    cells = sweep.cells()
    with lines.open("a") as stream:
        for cell in tqdm([c for c in cells if sweep.key(c) not in done], desc=out.name):
            row = {**cell, "settings": sweep.stamp, **_measure_cell(measure, cell)}
            rows.append(row)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
    wanted = {sweep.key(cell) for cell in cells}
    rows = [row for row in rows if sweep.key(row) in wanted]
    axes = list(sweep.axes)
    out.with_name(out.name + ".md").write_text(format_table(rows, axes, metric))
    plot(rows, axes, out.with_name(out.name + ".png"), metric)
    logging.info("written to %s, .md and .png", lines)


def _measure_cell(measure: Callable[[Row], Row], cell: Row) -> Row:
    """Measure a cell, and put it before the message of an error.

    Raises:
        ValueError: that of the measure.
    """
    try:
        return measure(cell)
    except ValueError as error:
        name = ", ".join(f"{key}={value}" for key, value in cell.items())
        raise type(error)(f"{name}: {error}") from error


def _read_rows(lines: Path, sweep: Sweep) -> list[Row]:
    """Read the rows of earlier runs of a sweep.

    Raises:
        ConfigError: some rows are of another sweep.
    """
    rows = read_json_lines(lines)
    if others := sum(row.get("settings") != sweep.stamp for row in rows):
        raise ConfigError(
            f"{others} of {len(rows)} rows of {lines} come from another model, checkpoint, config, "
            "metric or set of axes, or do not record it: choose another name, or remove the file"
        )
    return rows


def group_curves(
    rows: Sequence[Row], axes: Sequence[str], metric: str = "distance"
) -> dict[str, Curve]:
    """Group rows into curves: ``label -> evaluations -> metric over seeds``.

    Args:
        rows: of one sweep.
        axes: its axes; labels name those other than steps that vary.
        metric: which of the measures.
    """
    names = [axis for axis in axes if axis != "steps" and len({row[axis] for row in rows}) > 1]
    out: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        label = ", ".join(f"{name} {row[name]}" for name in names) or metric
        out.setdefault(label, {}).setdefault(row["evaluations"], []).append(row[metric])
    return {a: {s: np.asarray(v) for s, v in sorted(c.items())} for a, c in out.items()}


def _format_cell(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}"


def format_table(rows: Sequence[Row], axes: Sequence[str], metric: str = "distance") -> str:
    """Return a table in Markdown: a row per curve, a column per number of network evaluations.

    Cells have mean and standard deviation over the seeds.
    """
    curves = group_curves(rows, axes, metric)
    steps = sorted({count for curve in curves.values() for count in curve})
    head = [
        f"| {metric} at evaluations | {' | '.join(map(str, steps))} |",
        "|---" * (len(steps) + 1) + "|",
    ]
    body = [
        f"| {label} | {' | '.join(_format_cell(curve.get(s)) for s in steps)} |"
        for label, curve in curves.items()
    ]
    seeds, num = len({row["seed"] for row in rows}), rows[0]["num"]
    note = f"{num} images per cell, {seeds} sampling seed(s){_name_features(rows)}."
    return "\n".join([*head, *body, "", note]) + "\n"


def _name_features(rows: Sequence[Row]) -> str:
    return f", features {rows[0]['features']}" if "features" in rows[0] else ""


def plot(rows: Sequence[Row], axes: Sequence[str], path: Path, metric: str = "distance") -> None:
    """Plot a metric against evaluations on logarithmic axes, with bars of one s.d., as a PNG."""
    figure, axis = plots.start(7, 4.5)
    curves = group_curves(rows, axes, metric)
    axis.set_prop_cycle(color=plots.colours(len(curves)))
    for label, curve in curves.items():
        steps = list(curve)
        spread = [v.std(ddof=1) if len(v) > 1 else 0 for v in curve.values()]
        axis.errorbar(steps, [v.mean() for v in curve.values()], spread, marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="network evaluations")
    axis.set_ylabel(f"{AXIS_NAMES.get(metric, metric)}, log scale")
    axis.set_title(f"{rows[0]['num']} images{_name_features(rows)}", fontsize=10)
    ticks: list[int] = []
    for count in sorted({row["evaluations"] for row in rows}):
        if not ticks or count > _TICK_RATIO * ticks[-1]:
            ticks.append(count)
    axis.set_xticks(ticks)
    axis.set_xticks([], minor=True)
    few = len(curves) <= plots.FEW
    plots.finish(figure, axis, path, beside=not few, direct=few)
