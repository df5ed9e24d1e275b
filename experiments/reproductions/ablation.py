"""What the network predicts and what it is trained for, on Fashion-MNIST at 14x14 (DDPM, table 2).

Four predictions, each trained with the unweighted error (Ho et al. 2020, eq. 14) and with the
variational bound (eq. 5).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    format_spread,
    read_file,
    read_scale,
)
from experiments.reproductions.pieces import Piece, make_trial
from experiments.reproductions.plotting import DISTANCE, plot_bars

# What the paper reports, for the end of the page.
PAPER = """CIFAR-10, IS / FID:

| | L, learned diagonal variance | L, fixed variance | simple |
|---|---|---|---|
| mean | 7.28 / 23.69 | 8.06 / 13.22 | unstable |
| eps | unstable | 7.67 / 13.51 | 9.46 / 3.17 |

Bits/dim of eps: at most 3.70 with L, 3.75 with the simple loss.
"""
# The config file with the paper's own settings.
CONFIG = "ddpm"  # the config file with the paper's own settings
# What the networks predict, by their names in ``config.parameterization``.
PREDICTIONS = ("eps", "x0", "v", "mean")
# The losses by their names in ``config.loss``, and what the page calls them.
LOSSES = {"simple": "unweighted error", "vlb": "bound L"}
# For contradictions, if there will be any.
_WHY = (
    "The networks are small and trained for 1,000 steps, 1/800 of the paper's. What separates the "
    "losses late in a training cannot show."
)
# Seeds of the trainings, which are the units of all effects.
SEEDS = (0, 1)
# What both claims about noise prediction compare has one more training, which was added when two
# had left them undecided.
MORE_SEEDS = {"eps": (2,)}


def _name_run(prediction: str, loss: str, seed: int) -> str:
    """Name a run by prediction, loss and seed.

    Args:
        prediction: a name in `PREDICTIONS`.
        loss: a name in `LOSSES`.
        seed: of the training; the first has no suffix.
    """
    return f"ablation-{prediction}-{loss}" + (f"-seed{seed}" if seed else "")


def _make_trial(prediction: str, loss: str, seed: int) -> Piece:
    """Make the piece that trains one of the combinations and measures distance and bits/dim.

    The config is small enough that all of them take an hour on one core. Distances are measured
    with three sampling seeds.
    """
    overrides = (
        f"--config.parameterization.name={prediction}",
        f"--config.loss.name={loss}",
        f"--config.seed={seed}",
    )
    options = ("--metrics=distance,bits", "--seeds=3")
    name = _name_run(prediction, loss, seed)
    return make_trial("ddpm.py:fashion_mnist14_small", name, 3, overrides, *options)


def _list_seeds(prediction: str) -> tuple[int, ...]:
    """List the seeds of the trainings with a prediction."""
    return SEEDS + MORE_SEEDS.get(prediction, ())


# One piece for each combination; all combinations of the first seed come first.
PIECES = (
    *(_make_trial(p, loss, seed) for seed in SEEDS for p in PREDICTIONS for loss in LOSSES),
    *(_make_trial(p, loss, seed) for p in MORE_SEEDS for seed in MORE_SEEDS[p] for loss in LOSSES),
)


def _read_runs(data: Path, prediction: str, loss: str) -> list[JsonObject]:
    """Read the evaluations of a combination, one for each seed.

    Args:
        data: folder of the files that the pieces left.
        prediction, loss: the combination.
    """
    seeds = _list_seeds(prediction)
    return [read_file(data / f"{_name_run(prediction, loss, seed)}.json") for seed in seeds]


def _read_distances(data: Path, prediction: str, loss: str) -> np.ndarray:
    """Read the distances of a combination.

    Returns:
        (trainings,) float64, each the mean over the sampling seeds.
    """
    return np.asarray([np.mean(e["distance_by_seed"]) for e in _read_runs(data, prediction, loss)])


def _read_bits(data: Path, prediction: str, loss: str) -> np.ndarray:
    """Read the bits/dim of a combination.

    Returns:
        (trainings,): the bound does not depend on a sampling seed.
    """
    return np.asarray([e["bits_per_dim"] for e in _read_runs(data, prediction, loss)])


def judge_claims(data: Path) -> list[Claim]:
    """Judge what DDPM's table 2 says of the two losses.

    The unweighted error gives better images and the bound a better likelihood; the mean can be
    trained by the bound alone.

    Args:
        data: folder of the files that the pieces left.
    """
    eps, bound = _read_distances(data, "eps", "simple"), _read_distances(data, "eps", "vlb")
    mean, weighted = _read_distances(data, "mean", "simple"), _read_distances(data, "mean", "vlb")
    bits = _read_bits(data, "eps", "vlb"), _read_bits(data, "eps", "simple")
    # EDM's page measures the floor and an untrained network with as many images.
    scale = read_scale(data / "edm-floor.json")
    # Each claim compares two cells of the table.
    texts = (
        "eps: the distance is larger with the bound than with the unweighted error",
        "the mean with the unweighted error is at least 3 times worse than eps",
        "the mean is worse with the unweighted error than with the bound",
        "eps: the unweighted error gives more bits/dim than the bound",
    )
    return [
        compare(texts[0], bound, eps, scale=scale, why=_WHY),
        compare(texts[1], mean, eps, factor=3, scale=scale, why=_WHY),
        compare(texts[2], mean, weighted, scale=scale, why=_WHY),
        compare(texts[3], bits[1], bits[0], why=_WHY),
    ]


def _format_table(data: Path) -> str:
    """Format distances and bits/dim, with a row for each prediction and a column for each loss.

    Args:
        data: folder of the files that the pieces left.
    """
    lines = [f"| distance; bits/dim | {' | '.join(LOSSES.values())} |", "|---|---|---|"]
    for prediction in PREDICTIONS:
        cells = [
            "; ".join(
                format_spread(read(data, prediction, loss))
                for read in (_read_distances, _read_bits)
            )
            for loss in LOSSES
        ]
        lines.append(f"| {prediction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_plots(data: Path) -> None:
    """Draw the distances, with a group of bars for each loss.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    distances = {
        text: [_read_distances(data, p, loss) for p in PREDICTIONS] for loss, text in LOSSES.items()
    }
    plot_bars(distances, PREDICTIONS, DISTANCE, data.parent / "ablation.png")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    one = _read_runs(data, "eps", "simple")[0]
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged. Every cell is two trainings of
{one["step"]:,} steps, of eps three, since two left its claims undecided. Distances are of
{one["num"]} images of {one["sampler"]["steps"]} DDIM steps, means of three sampling seeds, and
bits/dim are the bound of all 1000 steps, fixedsmall, on {one["bits_images"]} test images. The
paper's FIDs are of 1000 ancestral steps.

{NOTE.format(**one)}
{_format_table(data)}

![distances](ablation.png)

## The paper's figures

{PAPER}"""
