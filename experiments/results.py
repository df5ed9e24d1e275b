"""Write docs/results from the files that runs wrote.

    python -m experiments.results

Reads docs/results/data (copied there from workdirs: evaluation.json, summary.json and sweeps) and
writes the tables, the verdicts on the papers' claims and the plots. Nothing is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging

from experiments import common, sampler_sweep

FOLDER = flags.DEFINE_string("folder", "docs/results", "Where the pages go; data/ is inside.")


class Claim(NamedTuple):
    """One claim of a paper, and whether the effect exceeds three standard deviations."""

    text: str
    held: bool | None
    figures: str


def read(path: Path) -> Any:
    """JSON, or the list of rows of a .jsonl file."""
    return common.read_jsonl(path) if path.suffix == ".jsonl" else json.loads(path.read_text())


def values(rows: Iterable[dict[str, Any]], **wanted: Any) -> np.ndarray:
    """Distances over seeds of the rows with these values."""
    found = [r["distance"] for r in rows if all(r[k] == v for k, v in wanted.items())]
    return np.asarray(found, np.float64)


def above(high: np.ndarray, low: np.ndarray, factor: float = 1.0) -> bool | None:
    """Whether ``mean(high) > factor mean(low)`` by more than three pooled standard deviations."""
    if len(high) < 2 or len(low) < 2:
        return None
    spread = np.sqrt(high.var(ddof=1) + factor**2 * low.var(ddof=1))
    return bool(high.mean() - factor * low.mean() > 3 * spread)


def _pair(a: np.ndarray, b: np.ndarray) -> str:
    def show(v: np.ndarray) -> str:
        return f"{v.mean():.4g} ± {v.std(ddof=1):.2g}" if len(v) > 1 else "missing"

    return f"{show(a)} against {show(b)}"


def ddim_claims(rows: list[dict[str, Any]], hat: list[dict[str, Any]]) -> list[Claim]:
    """DDIM's table 1 in its shape (Song et al. 2020)."""
    out = []
    for steps in (10, 20):
        most, least = values(rows, eta=1.0, steps=steps), values(rows, eta=0.0, steps=steps)
        text = f"eta 1 is worse than eta 0 at {steps} steps"
        out.append(Claim(text, above(most, least), _pair(most, least)))
    most_steps = max(r["steps"] for r in rows)
    few, many = values(rows, eta=0.0, steps=5), values(rows, eta=0.0, steps=most_steps)
    text = f"at eta 0 the distance falls from 5 to {most_steps} steps"
    out.append(Claim(text, above(few, many), _pair(few, many)))
    large, zero = values(hat, variance="fixedlarge", steps=10), values(rows, eta=0.0, steps=10)
    text = "sigma-hat at 10 steps is at least 5 times worse than eta 0"
    out.append(Claim(text, above(large, zero, 5), _pair(large, zero)))
    return out


def variance_claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """fixedlarge against fixedsmall at few steps."""
    out = []
    for steps in sorted({r["steps"] for r in rows if r["steps"] <= 100}):
        large = values(rows, variance="fixedlarge", steps=steps)
        small = values(rows, variance="fixedsmall", steps=steps)
        text = f"fixedlarge is at least 2 times worse than fixedsmall at {steps} steps"
        out.append(Claim(text, above(large, small, 2), _pair(large, small)))
    return out


def verdicts(claims: list[Claim]) -> str:
    """Markdown table of claims."""
    words = {True: "held", False: "not held", None: "not run"}
    lines = ["| claim | verdict | distance, mean ± s.d. over seeds |", "|---|---|---|"]
    return "\n".join(lines + [f"| {c.text} | {words[c.held]} | {c.figures} |" for c in claims])


def _figures(evaluation: dict[str, Any]) -> dict[str, str]:
    keys = ("distance", "inception_score", "precision", "recall", "density", "coverage")
    return {k: f"{evaluation[k]:.4g}" for k in keys if k in evaluation}


def compare(columns: dict[str, dict[str, str]]) -> str:
    """Markdown table, one column a system, one row a figure."""
    rows = list(dict.fromkeys(key for column in columns.values() for key in column))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in rows:
        lines.append(f"| {key} | {' | '.join(c.get(key, '-') for c in columns.values())} |")
    return "\n".join(lines)


def _training(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "parameters": f"{summary['parameters']:,}",
        "optimiser steps": f"{summary['steps']:,}",
        "images seen": f"{summary['images']:,}",
        "wall-clock minutes": f"{summary['wall_seconds'] / 60:.1f}",
        "CPU minutes": f"{summary['cpu_seconds'] / 60:.1f}",
    }


NOTE = """Distances are Frechet distances between features of a small frozen classifier of ours
(`{features}`, {num} generated against {num_reference} real training images). They are
**not FID** and compare only with each other. Two disjoint real sets of {floor_num} images are
{floor:.3g} apart.
"""


def ddpm_page(data: Path) -> str:
    """DDPM on Fashion-MNIST beside diffusers and beside the scale of the distance."""
    ours, base = read(data / "ddpm-evaluation.json"), read(data / "diffusers-evaluation.json")
    summary, theirs = read(data / "ddpm-summary.json"), read(data / "diffusers-summary.json")
    scale = ours["baselines"]
    note = NOTE.format(
        **{k: ours[k] for k in ("features", "num", "num_reference")},
        floor_num=scale["real_floor_num"],
        floor=scale["real_floor"],
    )
    columns = {
        "diffjax": _training(summary) | _figures(ours),
        "diffusers": _training(theirs) | _figures(base),
    }
    levels = "\n".join(
        f"| {name} | {scale[key]:.4g} |"
        for name, key in (
            ("other real images (floor)", "real_floor"),
            ("Gaussian of the same pixel mean and covariance", "matched_gaussian"),
            ("untrained network", "untrained_network"),
        )
    )
    bits = (data / "ddpm-bits.json").exists() and read(data / "ddpm-bits.json")
    likelihood = (
        f"Variational bound on {bits['bits_images']} test images, all {1000} steps, "
        f"{bits['bits_variance']}: **{bits['bits_per_dim']:.3f} ± {bits['bits_per_dim_se']:.3f} "
        f"bits/dim** (rate {bits['rate']:.3f} + distortion {bits['distortion_bits']:.3f}; the last "
        f"tenth of the reverse steps takes {100 * bits['rate_in_last_tenth']:.0f} % of the rate)."
        if bits
        else "Bits/dim: not run."
    )
    sampler = ours["sampler"]
    return f"""# DDPM on Fashion-MNIST

Written by `python -m experiments.results` from `docs/results/data`.

{note}
Both networks were trained at the same time on one machine, each pinned to one of its two cores
({summary["machine"]}, no accelerator, Python {summary["python"]}, JAX {summary["jax"]}, torch
{theirs["torch"]}, diffusers {theirs["diffusers"]}), seed {summary["seed"]} each, one training run:

    taskset -c 0 python -m experiments.train --config=configs/ddpm.py:fashion_mnist \\
        --workdir=runs/fashion --config.train.minutes={summary["wall_seconds"] / 60:.0f}
    taskset -c 1 python -m experiments.baseline_diffusers --workdir=runs/baseline \\
        --minutes={theirs["wall_seconds"] / 60:.0f} --num={ours["num"]} \\
        --sample_steps={sampler["steps"]}

diffusers' side is its UNet2DModel and DDPMScheduler with the network and the recipe of the Hugging
Face course for 28x28 grey images (Adam 1e-3, batch {theirs["batch"]}, cosine betas), and an
exponential moving average that the course does without. Other work shared the machine; CPU minutes
are what each process really got. Both are sampled with {sampler["steps"]} DDIM steps
(eta {sampler["eta"]:g}).

{compare(columns)}

At this length of training many samples of both are over-exposed: at high noise an error of eps
counts 1/alpha times in x, and clipping then drives pixels to white or black.

The same distance for other sets of images:

| images | distance |
|---|---|
{levels}

{likelihood}

![samples](fashion_mnist-ddpm.png)
"""


def _command(name: str, rows: list[dict[str, Any]], keys: list[str]) -> str:
    """The command that measured these rows."""
    axes = {k: ",".join(str(v) for v in dict.fromkeys(r[k] for r in rows)) for k in keys}
    parts = [f"--sweep={k}={v}" for k, v in axes.items()]
    tail = [f"--seeds={len({r['seed'] for r in rows})}", f"--num={rows[0]['num']}"]
    head = f"    python -m experiments.evaluate --workdir=runs/fashion --name={name}"
    return " \\\n        ".join([head, " ".join(parts), " ".join(tail)])


def ddim_page(data: Path) -> str:
    """DDIM's steps and eta, and DDPM's two variances, on that checkpoint."""
    ddim, ddpm = read(data / "ddim.jsonl"), read(data / "variances.jsonl")
    tables = [
        sampler_sweep.table(rows, keys)
        for rows, keys in ((ddim, ["grid", "eta", "steps"]), (ddpm, ["variance", "steps"]))
    ]
    parts = [verdicts(ddim_claims(ddim, ddpm) + variance_claims(ddpm))]
    extra = data / "reconstruction.json"
    if extra.exists():
        found = read(extra)
        slope = found["reconstruction_slope"]
        errors = ", ".join(f"{s} steps {e:.2g}" for s, e in found["reconstruction_mse"].items())
        held = "held" if -1.6 <= slope <= -0.8 else "not held"
        parts.append(
            f"Encoding and decoding test images with S deterministic steps, mean squared error on "
            f"[0, 1]: {errors}. Slope {slope:.2f} on log axes (claimed: -0.8 to -1.6): **{held}**."
        )
    return f"""# DDIM's steps and eta, DDPM's variances, on Fashion-MNIST

Written by `python -m experiments.results` from `docs/results/data`, for the checkpoint of
[ddpm.md](ddpm.md) (where the distance is explained). A claim holds if the effect exceeds three
standard deviations over sampling seeds. The claims are the papers' on CIFAR-10; the distances are
not FID.

{_command("ddim", ddim, ["sampler", "grid", "eta", "steps"])}
{_command("variances", ddpm, ["sampler", "variance", "steps"])}

## Claims

{(chr(10) * 2).join(parts)}

## DDIM

{tables[0]}
![ddim](ddim.png)

## DDPM: fixedsmall and fixedlarge (sigma-hat)

{tables[1]}
![variances](variances.png)
"""


def main() -> None:
    folder = Path(FOLDER.value)
    data = folder / "data"
    if not data.is_dir():
        raise common.UsageError(f"there is no {data}: copy the files of runs there first")
    (folder / "ddpm.md").write_text(ddpm_page(data))
    (folder / "ddim.md").write_text(ddim_page(data))
    sampler_sweep.plot(read(data / "ddim.jsonl"), ["grid", "eta", "steps"], folder / "ddim.png")
    plotted = read(data / "variances.jsonl"), ["variance", "steps"]
    sampler_sweep.plot(*plotted, folder / "variances.png")
    logging.info("written to %s", folder)


if __name__ == "__main__":
    common.run(main)
