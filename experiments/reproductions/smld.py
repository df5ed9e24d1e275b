"""Annealed Langevin dynamics on Fashion-MNIST at 14x14 (Song & Ermon 2019 and 2020: NCSN, NCSNv2).

What the largest noise level, the number of Langevin steps and the final denoising are worth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.data.pictures import read_image
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    compare_shares,
    format_spread,
    read_file,
    read_scale,
    select_values,
)
from experiments.reproductions.pieces import Piece, make_drawn_trial, make_sweep
from experiments.reproductions.plotting import label_rows

# What the papers report, for the end of the page.
PAPER = """CIFAR-10, pixels in [0, 1]: NCSN (10 levels, sigma 1 to 0.01, 100 steps each) FID 25.32,
IS 8.87; NCSNv2 (232 levels, sigma 50 to 0.01, 5 steps each, denoised) FID 10.87, IS 8.40. NCSNv2
begins with about the largest distance of two images, since less leaves less variety (technique 1).
"""
# The largest noise levels by their names in files: about the largest distance of two images, and
# the 1 of NCSN, which is 2 where pixels lie in [-1, 1].
LARGEST = {"wide": 20.0, "narrow": 2.0}
# Seeds of the trainings, which are the units where the largest level differs.
SEEDS = (0, 1, 2)
# Langevin steps at each of the 32 levels.
FEW, MANY = 1, 5
# What is drawn of the first training with each level, and the names of these rows.
DRAWN = {"wide": f"steps_per_level={FEW},{MANY}", "narrow": f"steps_per_level={MANY}"}
ROWS = (
    f"sigma from 20, {FEW} step at a level",
    f"sigma from 20, {MANY} steps",
    f"sigma from 2, {MANY} steps",
)
# Images of a cell.
NUM = 500
# The model that is sampled with other settings, and the sampling seeds.
MODEL, SAMPLING_SEEDS = "smld-wide", 5
# For contradictions.
_WHY = (
    "Images have 14 pixels a side and the network is small and trained for 1,000 steps. What "
    "variety costs and what noise of 0.02 hides count for less than on CIFAR-10."
)


def _name_run(largest: str, seed: int) -> str:
    """Name a run by its largest level and its seed; the first seed has no suffix."""
    return f"smld-{largest}" + (f"-seed{seed}" if seed else "")


def _make_trial(largest: str, seed: int) -> Piece:
    """Make the piece that trains with a largest level, and measures the distance."""
    name = _name_run(largest, seed)
    return make_drawn_trial(
        "smld.py:fashion_mnist14",
        name,
        3,
        (f"--config.schedule.sigma_max={LARGEST[largest]}", f"--config.seed={seed}"),
        "--metrics=distance",
        rows="" if seed else DRAWN[largest],
        model=name == MODEL,
    )


def _make_sweep(name: str, denoise: bool, counts: str, minutes: float) -> Piece:
    """Make the piece that measures `MODEL` with some numbers of Langevin steps at a level."""
    axes = {"denoise": str(denoise), "steps_per_level": counts}
    return make_sweep(f"smld-{name}", MODEL, minutes, axes, num=NUM, seeds=SAMPLING_SEEDS)


# The trainings, both levels of a seed first, and what is drawn with the first of them.
PIECES = (
    *(_make_trial(largest, seed) for seed in SEEDS for largest in LARGEST),
    _make_sweep("denoised", True, f"{FEW},{MANY}", 5),
    _make_sweep("last", False, f"{MANY}", 4),
)


def _read_values(data: Path, largest: str, key: str) -> np.ndarray:
    """Read a measure of the trainings with a largest level, (trainings,)."""
    files = [data / f"{_name_run(largest, seed)}.json" for seed in SEEDS]
    return np.asarray([read_file(file)[key] for file in files])


def _read_samplers(data: Path, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a metric of `MODEL` over sampling seeds.

    Returns:
        With few steps at a level, with many, and with many but without the final denoising.
    """
    rows, last = (read_file(data / f"smld-{name}.jsonl") for name in ("denoised", "last"))
    few, many = (select_values(rows, metric, steps_per_level=count) for count in (FEW, MANY))
    return few, many, select_values(last, metric)


def judge_claims(data: Path) -> list[Claim]:
    """Judge what a large first level, several steps at a level and the final denoising give.

    Args:
        data: folder of the files that the pieces left.
    """
    # EDM's page measures the floor and an untrained network with as many images.
    scale = read_scale(data / "edm-floor.json")
    wide, narrow = (_read_values(data, largest, "distance") for largest in LARGEST)
    recall = [_read_values(data, largest, "recall") for largest in LARGEST]
    few, many, _ = _read_samplers(data, "distance")
    _, denoised, last = _read_samplers(data, "texture_distance")
    text = "a largest sigma of 2 gives a larger distance than one of 20 (trainings)"
    return [
        compare(text, narrow, wide, scale=scale, why=_WHY),
        compare_shares("recall is higher with 20 than with 2 (trainings)", *recall, why=_WHY),
        compare(f"{FEW} Langevin step at a level gives a larger distance than {MANY}", few, many,
                scale=scale, why=_WHY),
        compare("the texture distance is larger without the final denoising", last, denoised,
                why=_WHY),
    ]  # fmt: skip


def _format_levels(data: Path) -> str:
    """Format distance, precision and recall over trainings, with a row for each largest level."""
    scale = read_scale(data / "edm-floor.json")
    lines = ["| largest sigma | distance | precision | recall |", "|---" * 4 + "|"]
    for largest, sigma in LARGEST.items():
        distance = format_spread(_read_values(data, largest, "distance"), scale)
        others = [format_spread(_read_values(data, largest, k)) for k in ("precision", "recall")]
        lines.append(f"| {sigma:g} | {distance} | {' | '.join(others)} |")
    return "\n".join(lines)


def _format_samplers(data: Path) -> str:
    """Format the distances of the samplers of `MODEL`."""
    metrics = ("distance", "texture_distance", "background_rms")
    names = (f"{FEW} step", f"{MANY} steps", f"{MANY} steps, not denoised")
    found = [_read_samplers(data, metric) for metric in metrics]
    heads = [metric.replace("_", " ") for metric in metrics]
    lines = [f"| at each level | {' | '.join(heads)} |", "|---" * 4 + "|"]
    for name, *cells in zip(names, *found, strict=True):
        lines.append(f"| {name} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(lines)


def draw_plots(data: Path) -> None:
    """Draw pictures of the first training with each largest level.

    Args:
        data: folder of the files that the pieces left; the picture is written beside it.
    """
    sheets = [read_image(data / f"sheets/{_name_run(largest, 0)}.png") for largest in LARGEST]
    label_rows(np.concatenate(sheets), data.parent / "smld.png", ROWS, "columns: seeds")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    one = read_file(data / f"{MODEL}.json")
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged. {len(SEEDS)} trainings of
{one["step"]:,} steps with each largest level; 32 levels down to 0.02, at each {MANY} Langevin
steps, and the prediction of the last level as the picture. Pixels lie in [-1, 1]; the largest
distance of two images is 20, and NCSN's sigma of 1 is 2 here. The network is DDPM's, its output
scaled as in EDM: this shows the noise levels and the sampler of the papers, not their RefineNets.

{NOTE.format(**one)}
## The largest noise level

{NUM} images, one sampling seed for each training.

{_format_levels(data)}

![pictures](smld.png)

## Langevin steps and the final denoising, first model with 20

{NUM} images, {SAMPLING_SEEDS} sampling seeds. Texture distance and background (its root mean
square, of 255) see noise, which the classifier looks past.

{_format_samplers(data)}

## The papers' figures

{PAPER}"""
