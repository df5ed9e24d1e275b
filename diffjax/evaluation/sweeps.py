"""Sweeps over ``config.sample``: measures of every combination, resumable, as table and plot."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from diffjax.config import explain_unused
from diffjax.evaluation import plots
from diffjax.types import suggest
from diffjax.writing import write_atomically
from experiments import command_line, common, generation

NAMES = {"distance": "Frechet distance", "all": "share of obeyed captions"}


def parse(axes: list[str], cfg: Any) -> dict[str, list[Any]]:
    """``["eta=0,1", "steps=5,10"]`` to values of the config's types.

    Raises:
        UsageError: not of that form, or not a key of config.sample.
    """
    out: dict[str, list[Any]] = {}
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not equals or key not in cfg.sample:
            raise common.UsageError(
                f"{axis!r} must be KEY=VALUE,... with KEY one of {', '.join(cfg.sample)}"
                f"{suggest(key, cfg.sample)}"
            )
        out[key] = [_parse_value(axis, cfg.sample.get_type(key), v) for v in values.split(",")]
    return out


def _parse_value(axis: str, kind: type, text: str) -> Any:
    """
    Raises:
        UsageError: the text is no value of that type.
    """
    parsers = {bool: flags.BooleanParser().parse, int: int, float: float}
    try:
        return parsers.get(kind, kind)(text)
    except ValueError:
        wanted = command_line.WANTED.get(kind.__name__, kind.__name__)
        raise common.UsageError(f"{axis}: {text!r} is not {wanted}") from None


def check_axes(cfg: Any, axes: Sequence[str]) -> None:
    """Refuse axes of options that the chosen sampler or grid does not take.

    Raises:
        UsageError: naming the option, what is chosen and what it belongs to.
    """
    paths = [f"sample.{key}" for key in axes]
    for path, reason in explain_unused(cfg, paths).items():
        raise common.UsageError(f"{path} is not used: {reason}; sweep it apart")


def run(
    cfg: Any,
    maker: generation.ImageMaker,
    judge: Callable[[np.ndarray], dict[str, Any]],
    out: Path,
    *,
    axes: list[str],
    seeds: int,
    num: int,
    settings: dict[str, Any],
    metric: str = "distance",
) -> None:
    """Run what is missing of a sweep and write OUT.jsonl, OUT.md and OUT.png, which show a metric.

    Args:
        judge: what is measured of the images of a cell.
        settings: what else changes the measures than the axes, seed, num and ``config.sample``.

    Raises:
        UsageError: OUT.jsonl has rows that were measured with other settings.
    """
    grid = parse(axes, cfg)
    for values in itertools.product(*grid.values()):
        check_axes(generation.with_sample(cfg, **dict(zip(grid, values, strict=True))), [*grid])
    lines = out.with_name(out.name + ".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    rows = common.read_jsonl(lines)
    stamp = _stamp(cfg, grid, settings)
    if others := sum(row.get("settings") != stamp for row in rows):
        raise common.UsageError(
            f"{others} of {len(rows)} rows of {lines} are of another model, checkpoint, config or "
            "metric, of other axes, or do not say of which: choose another --name, or remove the "
            "file"
        )
    # Rewritten first: a cut last line would swallow the row appended after it.
    write_atomically(lines, "".join(json.dumps(row) + "\n" for row in rows))
    done = {_key(row, grid) for row in rows}
    cells = [
        {**dict(zip(grid, values, strict=True)), "seed": seed, "num": num}
        for seed in range(seeds)
        for values in itertools.product(*grid.values())
    ]
    with lines.open("a") as stream:
        for cell in tqdm([c for c in cells if _key(c, grid) not in done], desc=out.name):
            chosen = generation.with_sample(cfg, **{k: cell[k] for k in grid})
            sampler, plan = generation.sampler_of(chosen, maker.model)
            started = time.monotonic()
            scale = chosen.sample.get("guidance", 1.0)
            twice = scale != 1 and not chosen.sample.get("classifier", "")
            images = maker.make(num=num, seed=cell["seed"], sampler=sampler, rows=plan, scale=scale)
            result = {
                **cell,
                "settings": stamp,
                "evaluations": len(plan.level.t) * (1 + twice),
                "seconds": time.monotonic() - started,
                **judge(images),
            }
            rows.append(result)
            stream.write(json.dumps(result) + "\n")
            stream.flush()
    wanted = {_key(c, grid) for c in cells}
    rows = [row for row in rows if _key(row, grid) in wanted]
    out.with_name(out.name + ".md").write_text(table(rows, list(grid), metric))
    plot(rows, list(grid), out.with_name(out.name + ".png"), metric)
    logging.info("written to %s, .md and .png", lines)


def _stamp(cfg: Any, grid: dict[str, Any], settings: dict[str, Any]) -> str:
    """A digest of all that a sweep keeps fixed."""
    varied = (*grid, "num", "batch_size", "classifier")  # the last is a path to one of the weights
    sample = {k: v for k, v in cfg.sample.to_dict().items() if k not in varied}
    text = json.dumps({"axes": sorted(grid), "sample": sample, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _key(row: dict[str, Any], grid: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row.get(k) for k in grid), row["seed"], row["num"])


def curves(
    rows: list[dict[str, Any]], keys: list[str], metric: str = "distance"
) -> dict[str, dict[int, np.ndarray]]:
    """``label -> steps -> metric over seeds``; labels name the swept keys other than steps."""
    names = [k for k in keys if k != "steps" and len({row[k] for row in rows}) > 1]
    out: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        label = ", ".join(f"{k} {row[k]}" for k in names) or metric
        out.setdefault(label, {}).setdefault(row["evaluations"], []).append(row[metric])
    return {a: {s: np.asarray(v) for s, v in sorted(c.items())} for a, c in out.items()}


def _cell(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}"


def table(rows: list[dict[str, Any]], keys: list[str], metric: str = "distance") -> str:
    """Markdown: one row a curve, one column a number of network evaluations; mean and s.d."""
    data = curves(rows, keys, metric)
    steps = sorted({s for curve in data.values() for s in curve})
    head = [
        f"| {metric} at evaluations | {' | '.join(map(str, steps))} |",
        "|---" * (len(steps) + 1) + "|",
    ]
    body = [
        f"| {label} | {' | '.join(_cell(curve.get(s)) for s in steps)} |"
        for label, curve in data.items()
    ]
    seeds, num = len({row["seed"] for row in rows}), rows[0]["num"]
    note = f"{num} images per cell, {seeds} sampling seed(s){_judge_of(rows)}."
    return "\n".join([*head, *body, "", note]) + "\n"


def _judge_of(rows: list[dict[str, Any]]) -> str:
    return f", features {rows[0]['features']}" if "features" in rows[0] else ""


def plot(rows: list[dict[str, Any]], keys: list[str], path: Path, metric: str = "distance") -> None:
    """A metric against evaluations on log axes, bars of one s.d."""
    figure, axis = plots.start(7, 4.5)
    data = curves(rows, keys, metric)
    axis.set_prop_cycle(color=plots.colours(len(data)))
    for label, curve in data.items():
        steps = list(curve)
        spread = [v.std(ddof=1) if len(v) > 1 else 0 for v in curve.values()]
        axis.errorbar(steps, [v.mean() for v in curve.values()], spread, marker="o", label=label)
    axis.set(
        xscale="log", yscale="log", xlabel="network evaluations", ylabel=NAMES.get(metric, metric)
    )
    axis.set_title(f"{rows[0]['num']} images{_judge_of(rows)}", fontsize=10)
    ticks: list[int] = []
    for count in sorted({row["evaluations"] for row in rows}):
        if not ticks or count > 1.15 * ticks[-1]:  # labels of closer ones would overlap
            ticks.append(count)
    axis.set_xticks(ticks)
    axis.set_xticks([], minor=True)
    plots.finish(figure, axis, path, beside=True)
