"""Classifier-free guidance on Fashion-MNIST at 14x14 (Ho & Salimans 2022, tables 1 and 2).

Three dropping probabilities, guidance weights w (guidance scale 1 + w) from 0 to 4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.evaluation import plots
from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    compare_closeness,
    compare_shares,
    format_floor,
    read_file,
    read_scale,
    read_turns,
    select_values,
)
from experiments.reproductions.pieces import Piece, make_measurement, make_sweep, make_training
from experiments.reproductions.plotting import DISTANCE, label_rows
from experiments.reproductions.verdicts import estimate_ratio, judge_range

# What the paper reports, for the end of the page.
PAPER = """ImageNet 64x64, 50,000 images, 256 ancestral steps (table 1):

| w | FID, p = 0.1 / 0.2 / 0.5 | IS |
|---|---|---|
| 0 | 1.80 / 1.80 / 2.21 | 53.71 / 52.90 / 47.61 |
| 0.1 | 1.55 / 1.62 / 1.91 | 66.11 / 64.58 / 56.10 |
| 0.2 | 2.04 / 2.10 / 2.08 | 78.91 / 76.99 / 65.60 |
| 0.3 | 3.03 / 2.93 / 2.65 | 92.80 / 88.64 / 74.92 |
| 0.5 | 5.74 / 5.19 / 4.34 | 119.3 / 112.2 / 92.95 |
| 1 | 12.60 / 11.21 / 9.13 | 170.1 / 158.3 / 131.1 |
| 2 | 21.03 / 18.79 / 16.16 | 225.5 / 213.0 / 183.0 |
| 4 | 26.22 / 23.84 / 21.48 | 260.2 / 249.0 / 225.1 |
"""
# Probabilities of dropping the class in training, by their names in files (percent).
PROBABILITIES = {"10": 0.1, "20": 0.2, "50": 0.5}
# Guidance scales s = 1 + w of the sweeps.
SCALES = (1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0)
# Scales around the best, for comparing trainings.
FEW = (1.0, 1.1, 1.3)
# Columns of the tables.
METRICS = ("distance", "inception_score", "class_accuracy", "precision", "recall")
# For contradictions, if there will be any.
_WHY = (
    "The model is small and knows ten classes, so that unguided images show their class already. "
    "Guidance has less to gain than on ImageNet."
)
# Steps of the deterministic sampler.
STEPS = 10
# The paper's own sampler on small images: 64 ancestral steps with v = 0.3.
ANCESTRAL = {"sampler": "ddpm", "variance": "0.3", "grid": "uniform", "steps": "64"}
# Guidance scales with it: none, the paper's best, and one that is too large.
NONE, BEST, MUCH = 1.0, 1.1, 2.0
# For contradictions of what is found with it, if there will be any.
_WHY_ANCESTRAL = (
    "The paper takes 256 steps of images that are larger and of a thousand classes. Ten classes "
    "that are told apart easily leave less to guidance."
)


def _make_training(probability: str, seed: int) -> Piece:
    """Make the piece that trains a model with some probability of dropping the class.

    Args:
        probability: a key of `PROBABILITIES`, in percent.
        seed: of the training.
    """
    name = f"cfg14-p{probability}" + (f"-seed{seed}" if seed else "")
    drop = PROBABILITIES[probability]
    overrides = (f"--config.cond.drop={drop}", f"--config.seed={seed}")
    return make_training("cfg.py:fashion_mnist14", name, 10, *overrides)


def _make_sweep(model: str, scales: tuple[float, ...], minutes: float, seeds: int = 3) -> Piece:
    """Make the piece that measures a model at several guidance scales.

    Args:
        model: name of the kept model.
        scales: s = 1 + w.
        minutes: about what it takes on one core.
        seeds: sampling seeds of a cell.
    """
    axes = {
        "sampler": "ddim",
        "grid": "uniform",
        "steps": str(STEPS),
        "guidance": ",".join(f"{scale:g}" for scale in scales),
    }
    return make_sweep(f"{model}-guidance", model, minutes, axes, num=5000, seeds=seeds)


# A picture with a row for each scale.
_PICTURE = Piece(
    "cfg-picture",
    (
        (
            "sample",
            "--weights={results}/models/cfg14-p10.safetensors",
            "--workdir={runs}/cfg14-p10",
            "--rows=guidance=" + ",".join(f"{scale:g}" for scale in SCALES),
            "--steps=64",
            "--num=20",
            "--out={runs}/cfg14-p10/picture",
        ),
    ),
    {"cfg14-p10/picture.png": "data/sheets/cfg-rows.png"},
    3,
)

# Time and memory of a guided step.
_COST = Piece(
    "guidance-cost",
    (
        (
            "benchmarks.guidance_cost",
            "--config=configs/cfg.py:fashion_mnist",
            "--json={runs}/guidance-cost.json",
        ),
    ),
    {"guidance-cost.json": "data/guidance-cost.json"},
    2,
)

# What is run, the cheapest first; the classifier guides the first model.
PIECES = (
    _COST,
    _make_training("10", 0),
    _make_sweep("cfg14-p10", SCALES, 28),
    _PICTURE,
    make_training("adm.py:fashion_mnist14_classifier", "cfg14-classifier", 8),
    make_sweep(
        "cfg14-classifier-guidance",
        "cfg14-p10",
        18,
        {"sampler": "ddim", "grid": "uniform", "steps": str(STEPS), "guidance": "1,2,5"},
        "--config.sample.classifier={results}/models/cfg14-classifier.safetensors",
        num=5000,
    ),
    _make_training("20", 0),
    _make_sweep("cfg14-p20", SCALES, 28),
    _make_training("50", 0),
    _make_sweep("cfg14-p50", SCALES, 28),
    _make_training("10", 1),
    _make_sweep("cfg14-p10-seed1", FEW, 3, seeds=1),
    _make_training("20", 1),
    _make_sweep("cfg14-p20-seed1", FEW, 3, seeds=1),
    make_sweep(
        "cfg14-p10-ancestral",
        "cfg14-p10",
        13,
        ANCESTRAL | {"guidance": f"{NONE:g},{BEST:g},{MUCH:g}"},
        num=500,
        seeds=6,
    ),
    make_measurement(
        "cfg-floor",
        "cfg14-p10",
        2,
        *("--metrics=baselines", "--num=5000", "--sampler=ddim", f"--steps={STEPS}"),
    ),
)


def _read_rows(data: Path, model: str) -> list[JsonObject]:
    """Read the rows of a model's sweep over guidance scales."""
    return list(read_file(data / f"{model}-guidance.jsonl"))


def judge_claims(data: Path) -> list[Claim]:
    """Judge what guidance does to images, how often to drop the class, and what guidance costs.

    Guidance trades recall for precision: the score rises with w while the distance has a minimum at
    a small w (Ho & Salimans 2022, table 1).

    Args:
        data: folder of the files that the pieces left.
    """
    rows = _read_rows(data, "cfg14-p10")

    def select(scale: float, metric: str = "distance") -> np.ndarray:
        """Select a metric at a guidance scale, over seeds."""
        return select_values(rows, metric, guidance=scale)

    out, scale = [], read_scale(data / "cfg-floor.json")
    # Guidance makes images show their class more clearly.
    for metric in ("class_accuracy", "precision"):
        text = f"{metric.replace('_', ' ')} is higher at w = 1 than at w = 0"
        out.append(compare_shares(text, select(2.0, metric), select(1.0, metric), why=_WHY))
    # It costs variety.
    text = "recall falls from w = 0 to w = 4"
    out.append(compare_shares(text, select(1.0, "recall"), select(5.0, "recall"), why=_WHY))
    high, low = select(2.0, "inception_score"), select(1.0, "inception_score")
    out.append(compare("the score rises from w = 0 to w = 1", high, low, why=_WHY))
    # In between lies the smallest distance, seed by seed.
    near, far = (
        np.min([select(s) for s in SCALES if (s <= 2.0) is inside], 0) for inside in (True, False)
    )
    text = "the smallest distance lies in 0 <= w <= 1"
    out.append(compare(text, far, near, scale=scale, why=_WHY))
    text, worst = "the distance at w = 4 is at least 3 times the smallest", select(SCALES[-1])
    out.append(compare(text, worst, near, factor=3, scale=scale, why=_WHY))
    return [*out, *_judge_ancestral(data), _judge_dropping(data), _judge_cost(data)]


def _judge_ancestral(data: Path) -> list[Claim]:
    """Judge what the paper's own sampler gives, without guidance, with a little and with much.

    The paper has FID 1.80, 1.55 and 12.60 and scores of 54, 66 and 170 at w = 0, 0.1 and 1.
    """
    rows = read_file(data / "cfg14-p10-ancestral.jsonl")
    none, best, much = (select_values(rows, guidance=s) for s in (NONE, BEST, MUCH))
    # As many images are in a cell of the ablation's and EDM's.
    scale, sampler = read_scale(data / "edm-floor.json"), "64 ancestral steps"
    out = [
        compare(f"{sampler}: the distance at w = 0 is larger than at w = 0.1", none, best,
                scale=scale, why=_WHY_ANCESTRAL),
        compare(f"{sampler}: the distance at w = 1 is larger than at w = 0", much, none,
                scale=scale, why=_WHY_ANCESTRAL),
    ]  # fmt: skip
    for low, high in ((NONE, BEST), (BEST, MUCH)):
        a, b = (select_values(rows, "inception_score", guidance=s) for s in (high, low))
        text = f"{sampler}: the score rises from w = {low - 1:.3g} to w = {high - 1:.3g}"
        out.append(compare(text, a, b, why=_WHY_ANCESTRAL))
    return out


def _judge_cost(data: Path) -> Claim:
    """Judge whether a guided step takes at most twice the time of an unguided one.

    Both halves of guidance are one batch of twice the size, or two passes in turn; the faster of
    the two ways counts. Times of the same turn are pairs.
    """
    cost = read_file(data / "guidance-cost.json")
    ratio, memory, turns = cost["time_ratio"], cost["memory_ratio"], read_turns(cost)
    text = "a guided step takes at most 2.0 times the time of an unguided one at the same batch"
    figures = (
        f"{ratio['guided']:.2f} (one pass), {ratio['guided_sequential']:.2f} (two passes); memory "
        f"{memory['guided']:.2f} and {memory['guided_sequential']:.2f}"
    )
    faster = min(("guided", "guided_sequential"), key=ratio.__getitem__)
    effect = estimate_ratio(turns[faster], turns["unguided"])
    return Claim(text, judge_range(effect, high=2.0), effect, figures, _WHY)


def _judge_dropping(data: Path) -> Claim:
    """Judge whether p = 0.1 and 0.2 give about the same best distance, as in the paper.

    The paper has FID 1.55 and 1.62. Here the ratio of the best means must lie within 10 %, over
    pairs of trainings.
    """
    best = {
        p: np.asarray([_find_best(_read_rows(data, f"cfg14-p{p}{s}")) for s in ("", "-seed1")])
        for p in ("10", "20")
    }
    text = "the best distances with p = 0.1 and 0.2 are within 10 % of each other (trainings)"
    return compare_closeness(text, best["20"], best["10"], 0.1, why=_WHY)


def _find_best(rows: list[JsonObject]) -> float:
    """Find the smallest mean distance among the scales that all trainings were measured at.

    Args:
        rows: of one model's sweep.
    """
    return float(min(select_values(rows, guidance=scale).mean() for scale in FEW))


def _format_table(rows: list[JsonObject], name: str = "w") -> str:
    """Format the metrics of a sweep, with a row for each scale.

    Args:
        rows: of the sweep.
        name: of the first column. With ``w`` it holds weights ``w = s - 1``, and the network
            evaluations of an image are a column; otherwise it holds scales.
    """
    scales = sorted({row["guidance"] for row in rows})
    heads = [name, *(m.replace("_", " ") for m in METRICS), *["evaluations"] * (name == "w")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for scale in scales:
        cells = [select_values(rows, metric, guidance=scale) for metric in METRICS]
        shown = " | ".join(f"{v.mean():.4g} ± {v.std(ddof=1):.2g}" for v in cells)
        count = next(f" {r['evaluations']} |" for r in rows if r["guidance"] == scale)
        shift, last = (1, count) if name == "w" else (0, "")
        lines.append(f"| {scale - shift:.3g} | {shown} |{last}")
    return "\n".join(lines)


def draw_plots(data: Path) -> None:
    """Draw distance against score, with a point for each weight, and label the rows of samples.

    Args:
        data: folder of the files that the pieces left; the picture is written beside it.
    """
    figure, axis = plots.start(6.5, 4.5)
    for name, drop in PROBABILITIES.items():
        rows = _read_rows(data, f"cfg14-p{name}")
        scales = sorted({row["guidance"] for row in rows})
        score = [select_values(rows, "inception_score", guidance=s).mean() for s in scales]
        distance = [select_values(rows, guidance=s).mean() for s in scales]
        axis.plot(score, distance, marker="o", label=f"p = {drop}")
        for scale, x, y in zip(scales, score, distance, strict=True):
            axis.annotate(f"{scale - 1:.3g}", (x, y), fontsize=7, xytext=(3, 3),
                          textcoords="offset points")  # fmt: skip
    axis.set(xlabel="Inception-style score", ylabel=f"{DISTANCE}, log scale", yscale="log")
    axis.set_title("points: guidance weight w; features fashion_mnist14", fontsize=10)
    plots.finish(figure, axis, data.parent / "cfg.png", direct=True)
    label_rows(
        data / "sheets/cfg-rows.png",
        data.parent / "cfg-rows.png",
        [f"w = {scale - 1:.3g}" for scale in SCALES],
        "columns: ten classes in turn, a seed each",
    )


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    rows = _read_rows(data, "cfg14-p10")
    ancestral = _format_table(read_file(data / "cfg14-p10-ancestral.jsonl"))
    parts = [
        f"## p = {PROBABILITIES[p]}\n\n{_format_table(_read_rows(data, f'cfg14-p{p}'))}"
        for p in PROBABILITIES
    ]
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged. If not said otherwise, a cell is
5,000 images, three sampling seeds, {STEPS} deterministic steps of equal width in t; guided steps
cost two network evaluations. The score is computed as the Inception score is, from the classes that
a small classifier of ours sees; it is not the paper's IS.

{NOTE.format(**rows[0])}
{format_floor(data / "cfg-floor.json")}

![distance against score](cfg.png)

![rows](cfg-rows.png)

{(chr(10) * 2).join(parts)}

## Classifier guidance (Dhariwal & Nichol 2021) of the model with p = 0.1

A classifier on noisy images, trained for 1,500 steps, guides the conditional predictions; its
gradient costs about one more network evaluation a step.

{_format_table(_read_rows(data, "cfg14-classifier"), "scale")}

## The paper's own sampler, p = 0.1

64 ancestral steps, v = 0.3, 500 images and six sampling seeds a cell: distances are larger than
those of 5,000 images.

{ancestral}

## The paper's figures

{PAPER}"""
