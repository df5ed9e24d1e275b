"""DDIM's steps, eta and spacings, and DDPM's variances (Song et al. 2020, table 1).

On Fashion-MNIST at 14x14.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.evaluation.sweeps import format_table, plot
from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    format_floor,
    format_spread,
    read_file,
    read_scale,
    select_values,
)
from experiments.reproductions.pieces import Piece, make_measurement, make_sweep, make_training
from experiments.reproductions.verdicts import estimate_slope, judge_range

# What the paper reports, for the end of the page.
PAPER = """FID of the paper on CIFAR-10 (table 1; quadratic spacing):

| steps | 10 | 20 | 50 | 100 | 1000 |
|---|---|---|---|---|---|
| eta 0 | 13.36 | 6.84 | 4.67 | 4.16 | 4.04 |
| eta 0.2 | 14.04 | 7.11 | 4.77 | 4.25 | 4.09 |
| eta 0.5 | 16.66 | 8.35 | 5.25 | 4.46 | 4.29 |
| eta 1 | 41.07 | 18.36 | 8.01 | 5.78 | 4.73 |
| sigma-hat | 367.43 | 133.37 | 32.72 | 9.99 | 3.17 |

Its reconstruction error at 10, 20, 50, 100, 200 steps: .014, .0065, .0023, .0009, .0004.
"""

# Name of the one model that all samplers draw with.
MODEL = "ddpm14"
# Images of a cell: of up to 100 steps, and of all 1000.
NUM, NUM_FULL = 2000, 400
# Images and steps of the cells that claims about eta are judged by.
NUM_PAIRED, PAIRED_STEPS, PAIRED_LARGE = 500, (5, 10, 20), (10, 20)
# The cell that six seeds left undecided, grid and steps, and its seeds.
CLOSE, CLOSE_SEEDS = ("quadratic", 20), 16
# DDPM's larger variance, which the paper's table has in place of an eta.
SIGMA_HAT = "sigma-hat"
# Numbers of steps that are cheap.
FEW = "5,10,20,50"


def _make_sweep(name: str, minutes: float, num: int = NUM, **axes: str) -> Piece:
    """Make a piece that sweeps sampler options of the model.

    Args:
        name: of the sweep.
        minutes: about what it takes on one core.
        num: images of a cell.
        axes: values by key of ``config.sample``, joined by commas.
    """
    return make_sweep(name, MODEL, minutes, axes, num=num)


def _make_sigma_hat(name: str, grid: str) -> Piece:
    """Make the sweep of DDPM's larger variance, sigma-hat in the paper, over a spacing of steps.

    ``sigma_hat^2 = 1 - alpha_t / alpha_{t-1}`` (Song et al. 2020, section 5), the variance of the
    forward step.
    """
    axes = {"sampler": "ddpm", "grid": grid, "variance": "fixedlarge", "steps": f"{FEW},100"}
    return _make_sweep(name, 22, **axes)


def _make_full(variance: str) -> Piece:
    """Make the measurement of all 1000 steps of DDPM with a variance."""
    axes = {"sampler": "ddpm", "variance": variance, "steps": "1000"}
    return _make_sweep(f"ddim-1000-{variance}", 25, NUM_FULL, **axes)


# For contradictions.
_WHY = (
    "The noise of too large a variance is there, as the background shows below, but the classifier "
    "looks past it. What the small model does wrong at any number of steps is part of both "
    "distances as well, so ratios are smaller than the paper's."
)
_WHY_TEXTURE = (
    "With more steps the noise that is left is small beside what the model does wrong with "
    "textures, which is part of both distances. The background, where a perfect model leaves "
    "nothing, shows the noise."
)
_WHY_STEEP = (
    "A deterministic step is of first order, so the squared error of an exact network falls with "
    "the steps to the power -2. The slope here is near that; the paper's -1.2 must have another "
    "error besides that of the steps."
)
# Measures of the noise that is left, and what the page calls them.
NOISE = {"texture_distance": "texture distance", "background_rms": "background noise"}
# What the page calls the grids.
SPACINGS = {"leading": "linear", "quadratic": "quadratic"}
# Rows of the tables, in their order.
ETAS = (0.0, 0.2, 0.5, 1.0, SIGMA_HAT)
# The sweeps with evenly spaced steps.
LINEAR = (
    _make_sweep("ddim", 40, sampler="ddim", grid="leading", eta="0,0.2,0.5,1", steps=FEW),
    _make_sweep("ddim-100", 25, sampler="ddim", grid="leading", eta="0,1", steps="100"),
    _make_sweep("ddim-100-between", 22, sampler="ddim", grid="leading", eta="0.2,0.5", steps="100"),
    _make_sigma_hat("ddim-sigma-hat", "leading"),
)
# The sweeps with quadratically spaced steps.
QUADRATIC = (
    _make_sweep("ddim-quadratic", 20, sampler="ddim", grid="quadratic", eta="0,1", steps=FEW),
    _make_sweep(
        "ddim-quadratic-between", 16, sampler="ddim", grid="quadratic", eta="0.2,0.5", steps=FEW
    ),
    _make_sweep(
        "ddim-quadratic-100", 43, sampler="ddim", grid="quadratic", eta="0,0.2,0.5,1", steps="100"
    ),
    _make_sigma_hat("ddim-quadratic-sigma-hat", "quadratic"),
)
# What claims about eta are judged by: more seeds of fewer images, and both kinds of features.
PAIRED = (
    make_sweep(
        "ddim-paired",
        MODEL,
        9,
        {
            "sampler": "ddim",
            "grid": "leading,quadratic",
            "eta": "0,1",
            "steps": ",".join(map(str, PAIRED_STEPS)),
        },
        num=NUM_PAIRED,
        seeds=6,
    ),
    make_sweep(
        "ddim-paired-sigma-hat",
        MODEL,
        5,
        {"sampler": "ddpm", "grid": "leading", "variance": "fixedlarge", "steps": "10,20"},
        num=NUM_PAIRED,
        seeds=6,
    ),
    make_sweep(
        "ddim-paired-close",
        MODEL,
        4,
        {"sampler": "ddim", "grid": CLOSE[0], "eta": "0,1", "steps": str(CLOSE[1])},
        num=NUM_PAIRED,
        seeds=CLOSE_SEEDS,
    ),
    make_measurement(
        "ddim-paired-floor",
        MODEL,
        1,
        *("--metrics=baselines", f"--num={NUM_PAIRED}", "--sampler=ddim", "--steps=20"),
    ),
)
# What is run: one training, both spacings, all 1000 steps, reconstruction and the floor.
PIECES = (
    make_training("ddpm.py:fashion_mnist14", MODEL, 35, "--config.train.steps=6000"),
    *LINEAR,
    *QUADRATIC,
    *PAIRED,
    _make_full("fixedlarge"),
    _make_full("fixedsmall"),
    make_measurement("reconstruction", MODEL, 3, "--metrics=reconstruction"),
    make_measurement(
        "ddim-floor",
        MODEL,
        1,
        "--metrics=baselines",
        f"--num={NUM}",
        "--sampler=ddim",
        "--steps=20",
    ),
)


def _read_rows(data: Path, pieces: tuple[Piece, ...]) -> list[JsonObject]:
    """Read all rows of a spacing; sigma-hat is a value of eta, as in the paper's table.

    Args:
        data: folder of the files that the pieces left.
        pieces: `LINEAR` or `QUADRATIC`.

    Returns:
        Rows in the order of `ETAS`.
    """
    rows = [
        {**row, "eta": SIGMA_HAT} if piece.name.endswith(SIGMA_HAT) else row
        for piece in pieces
        for row in read_file(data / f"{piece.name}.jsonl")
    ]
    return sorted(rows, key=lambda row: ETAS.index(row["eta"]))


def _read_paired(data: Path) -> list[JsonObject]:
    """Read the rows that claims about eta are judged by; sigma-hat is a value of eta."""
    large = read_file(data / "ddim-paired-sigma-hat.jsonl")
    return [
        *read_file(data / "ddim-paired.jsonl"),
        *({**row, "eta": SIGMA_HAT} for row in large),
    ]


def judge_claims(data: Path) -> list[Claim]:
    """Judge the shape of DDIM's table 1: steps, eta, spacings and variances.

    With few steps, less noise is better: eta 0 beats eta 1, and both beat sigma-hat by far. With
    all 1000 steps sigma-hat is the best.

    Args:
        data: folder of the files that the pieces left.
    """
    rows, scale = _read_rows(data, LINEAR), read_scale(data / "ddim-floor.json")

    def select(eta: float | str, steps: int) -> np.ndarray:
        """Select the distances of a cell with even spacing, over seeds."""
        return select_values(rows, eta=eta, steps=steps)

    out = _judge_eta(data)
    text = "at eta 0 the distance falls from 5 to 100 steps"
    out.append(compare(text, select(0.0, 5), select(0.0, 100), scale=scale, why=_WHY))
    # The variance of the forward step is far too large for few steps.
    large, zero = select(SIGMA_HAT, 10), select(0.0, 10)
    text = "sigma-hat at 10 steps is at least 5 times worse than eta 0"
    out.append(compare(text, large, zero, factor=5, scale=scale, why=_WHY))
    for steps in (10, 20, 50, 100):
        # eta = 1 has the posterior variance of the steps taken: DDPM's fixedsmall.
        large, small = select(SIGMA_HAT, steps), select(1.0, steps)
        text = f"fixedlarge is at least 2 times worse than fixedsmall at {steps} steps"
        out.append(compare(text, large, small, factor=2, scale=scale, why=_WHY))
    out += _judge_texture(data)
    # With all steps it is the better one.
    large, small = (select_values(_read_full(data, v)) for v in ("fixedlarge", "fixedsmall"))
    text = "fixedsmall is worse than fixedlarge at 1000 steps"
    out.append(compare(text, small, large, scale=scale, why=_WHY))
    return [*out, _judge_reconstruction(data)]


def _judge_eta(data: Path) -> list[Claim]:
    """Judge whether noise makes images worse with few steps, with either spacing."""
    rows, scale, out = _read_paired(data), read_scale(data / "ddim-paired-floor.json"), []
    close = read_file(data / "ddim-paired-close.jsonl")
    for grid, spacing in SPACINGS.items():
        for steps in PAIRED_STEPS:
            found = close if (grid, steps) == CLOSE else rows
            most, least = (
                select_values(found, grid=grid, eta=eta, steps=steps) for eta in (1.0, 0.0)
            )
            text = f"eta 1 is worse than eta 0 at {steps} steps, {spacing} spacing"
            out.append(compare(text, most, least, scale=scale, why=_WHY))
    return out


def _judge_texture(data: Path) -> list[Claim]:
    """Judge whether fixedlarge leaves noise, which a classifier looks past."""
    rows, out = _read_paired(data), []
    for steps in PAIRED_LARGE:
        for key, name in NOISE.items():
            large, small = (
                select_values(rows, key, grid="leading", eta=eta, steps=steps)
                for eta in (SIGMA_HAT, 1.0)
            )
            text = f"fixedlarge at {steps} steps has at least 2 times the {name} of fixedsmall"
            out.append(compare(text, large, small, factor=2, why=_WHY_TEXTURE))
    return out


def _format_noise(data: Path) -> str:
    """Format all measures of the cells that have both kinds of features, with even spacing."""
    rows, measures = _read_paired(data), {"distance": "distance", **NOISE}
    lines = [f"| eta, steps | {' | '.join(measures.values())} |", "|---" * 4 + "|"]
    for eta in (0.0, 1.0, SIGMA_HAT):
        for steps in PAIRED_LARGE:
            cells = (
                select_values(rows, key, grid="leading", eta=eta, steps=steps) for key in measures
            )
            lines.append(f"| {eta}, {steps} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(lines)


def _read_full(data: Path, variance: str) -> list[JsonObject]:
    """Read the rows of all 1000 steps with a variance."""
    return list(read_file(data / f"ddim-1000-{variance}.jsonl"))


def _judge_reconstruction(data: Path) -> Claim:
    """Judge whether the error of encoding and decoding falls as a power of the number of steps.

    The paper's table 2 has a slope of about -1.2 on a log-log scale; here it must lie in -1.6 ..
    -0.8.
    """
    found = read_file(data / "reconstruction.json")
    steps, error = zip(*found["reconstruction_mse"].items(), strict=True)
    slope = estimate_slope(np.log([float(n) for n in steps]), np.log(error))
    errors = ", ".join(f"{e:.2g} at {s}" for s, e in found["reconstruction_mse"].items())
    text = "the error of encoding and decoding falls with the steps, log-log slope -0.8 to -1.6"
    verdict = judge_range(slope, -1.6, -0.8)
    return Claim(text, verdict, slope, f"squared error {errors}", _WHY_STEEP)


def draw_plots(data: Path) -> None:
    """Draw distances against steps, of all etas and of both spacings.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    rows, quadratic = _read_rows(data, LINEAR), _read_rows(data, QUADRATIC)
    plot(rows, ["eta", "steps"], data.parent / "ddim.png")
    both = [row for row in [*rows, *quadratic] if row["eta"] in (0.0, 1.0, SIGMA_HAT)]
    plot(both, ["grid", "eta", "steps"], data.parent / "ddim-grids.png")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    rows, quadratic = _read_rows(data, LINEAR), _read_rows(data, QUADRATIC)
    whole = [*_read_full(data, "fixedlarge"), *_read_full(data, "fixedsmall")]
    trained = read_file(data / f"{MODEL}-summary.json")
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged; one model of
{trained["parameters"]:,} parameters, trained for {trained["steps"]:,} steps of 64 images.

{NOTE.format(**rows[0])}
{format_floor(data / "ddim-floor.json")}
The prediction of x is clipped in every cell; the released code clips for sigma-hat alone.
What the model does wrong at any number of steps is part of all distances, and so is the floor:
ratios are smaller here than those of the paper. Deterministic steps are of first order, so their
squared error can fall as steps to the power -2. Claims about eta have six sampling seeds of
{NUM_PAIRED} images. At {CLOSE[1]} steps of {CLOSE[0]} spacing six decided nothing (x 1.18 [0.959,
1.45]), so that cell was measured again with {CLOSE_SEEDS}.

## Linear spacing

Sigma-hat is DDPM's fixedlarge, eta 1 its fixedsmall.

{format_table(rows, ["eta", "steps"])}
![ddim](ddim.png)

## Noise that a classifier looks past

Linear spacing, {NUM_PAIRED} images a cell and six sampling seeds. The texture distance compares
the energies of fixed 3x3 filters, in squared 8-bit levels; the background noise is the root mean
square, in levels, of the pixels on which nine tenths of the real images agree.
{format_floor(data / "ddim-paired-floor.json")}

{_format_noise(data)}

## Quadratic spacing

{format_table(quadratic, ["eta", "steps"])}
![spacings](ddim-grids.png)

## All 1000 steps of DDPM

Fewer images, so more of these distances is the floor.

{format_table(whole, ["variance", "steps"])}
## The paper's figures

{PAPER}"""
