"""Likelihood on Fashion-MNIST at 14x14 (Nichol & Dhariwal 2021, tables 1 and 2).

The cosine schedule with the simple loss, L_hybrid and L_vlb, the latter two with learned variance.
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
from experiments.reproductions.plotting import plot_lines
from experiments.reproductions.verdicts import estimate_mean, judge_range

# What the paper reports, for the end of the page.
PAPER = """| | schedule, loss | bits/dim | FID |
|---|---|---|---|
| ImageNet 64x64, 200k steps | linear, simple | 3.99 | 32.5 |
| | cosine, hybrid | 3.62 | 28.0 |
| ImageNet 64x64, 1.5M steps | cosine, hybrid | 3.57 | 19.2 |
| | cosine, vlb | 3.53 | 40.1 |
| CIFAR-10 | cosine, hybrid | 3.17 | 3.19 |
| | cosine, vlb | 2.94 | 11.47 |

DDPM on CIFAR-10: more than half of the rate (1.78 of 3.75 bits/dim) in the last tenth of the steps.
"""
# The losses, and the ends of their variants' names in configs/improved_ddpm.py.
VARIANTS = {"simple": "_simple", "hybrid": "", "vlb": "_vlb"}
# Seeds of the trainings, which are the units of all effects.
SEEDS = (0, 1, 2)
# For contradictions, if there will be any.
_WHY = (
    "The networks are small and trained for 1,500 steps, 1/1000 of the paper's. What separates the "
    "losses late in a training cannot show."
)
# Numbers of steps with which the bound is measured; the last one is all of them.
STEPS = ("50", "100", "250", "1000")


def _name_run(loss: str, seed: int) -> str:
    """Name a run by its loss and seed."""
    return f"improved-{loss}" + (f"-seed{seed}" if seed else "")


def _make_trial(loss: str, seed: int) -> Piece:
    """Make the piece that trains with a loss, and measures distance and bits/dim.

    The bound is measured with fewer steps too, and the likelihood by the probability flow ODE.
    """
    options = (
        "--metrics=distance,bits,ode_bits",
        f"--bits_steps={','.join(STEPS[:-1])}",
        "--seeds=3",
    )
    config = f"improved_ddpm.py:fashion_mnist14{VARIANTS[loss]}"
    return make_trial(config, _name_run(loss, seed), 5, (f"--config.seed={seed}",), *options)


# One piece for each loss and seed.
PIECES = tuple(_make_trial(loss, seed) for seed in SEEDS for loss in VARIANTS)


def _read_runs(data: Path, loss: str) -> list[JsonObject]:
    """Read the evaluations of a loss, one for each seed."""
    return [read_file(data / f"{_name_run(loss, seed)}.json") for seed in SEEDS]


def _read_bits(data: Path, loss: str, steps: str = STEPS[-1]) -> np.ndarray:
    """Read the bits/dim of a loss over trainings, as bounded with some number of steps.

    Args:
        loss: a key of `VARIANTS`.
        steps: an entry of `STEPS`.

    Returns:
        (trainings,).
    """
    found = _read_runs(data, loss)
    if steps == STEPS[-1]:
        return np.asarray([e["bits_per_dim"] for e in found])
    return np.asarray([e["bits_by_steps"][steps]["bits_per_dim"] for e in found])


def _read_values(data: Path, loss: str, key: str) -> np.ndarray:
    """Read the values of a metric of a loss.

    Args:
        loss: a key of `VARIANTS`.
        key: of the metric in evaluation.json, which has one value or one for each sampling seed.

    Returns:
        (trainings,), each the mean over its sampling seeds.
    """
    return np.asarray([np.mean(e[key]) for e in _read_runs(data, loss)])


def judge_claims(data: Path) -> list[Claim]:
    """Judge which loss is worth how many bits, and in which steps they are spent.

    The hybrid loss and the bound give fewer bits/dim than the simple loss, and the bound worse
    images than the hybrid loss (Nichol & Dhariwal 2021, tables 1 and 2).

    Args:
        data: folder of the files that the pieces left.
    """
    simple, out = _read_bits(data, "simple"), []
    # The learned variance is worth bits.
    for loss in ("hybrid", "vlb"):
        text = f"the simple loss gives more bits/dim than {loss}"
        out.append(compare(text, simple, _read_bits(data, loss), why=_WHY))
    for loss in VARIANTS:
        few, many = _read_bits(data, loss, STEPS[0]), _read_bits(data, loss)
        text = f"{loss}: bits/dim fall from {STEPS[0]} to {STEPS[-1]} steps"
        out.append(compare(text, few, many, why=_WHY))
    # The bound alone costs quality.
    hybrid, bound = (_read_values(data, loss, "distance_by_seed") for loss in ("hybrid", "vlb"))
    text, scale = (
        "the distance is larger with vlb than with hybrid",
        read_scale(data / "edm-floor.json"),
    )
    out.append(compare(text, bound, hybrid, scale=scale, why=_WHY))
    # Most bits describe details that nobody sees.
    shares = np.mean([_read_values(data, loss, "rate_in_last_tenth") for loss in VARIANTS], 0)
    text = "over half of the rate falls in the last tenth of the steps (mean of the losses)"
    effect = estimate_mean(shares)
    verdict = judge_range(effect, 0.5)
    return [*out, Claim(text, verdict, effect, f"{format_spread(shares)} of the rate", _WHY)]


def _format_table(data: Path) -> str:
    """Format bits/dim by number of steps, the bits of the ODE, and distances, for each loss."""
    heads = (*(f"{steps} steps" for steps in STEPS), "ODE", "last tenth", "distance")
    rows = [f"| bits/dim | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for loss in VARIANTS:
        keys = ("ode_bits_per_dim", "rate_in_last_tenth", "distance_by_seed")
        cells = [_read_bits(data, loss, s) for s in STEPS] + [
            _read_values(data, loss, key) for key in keys
        ]
        rows.append(f"| {loss} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(rows)


def draw_plots(data: Path) -> None:
    """Draw bits/dim against steps, and distortion against rate.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    folder, steps = data.parent, [int(s) for s in STEPS]
    curves = {loss: (steps, [_read_bits(data, loss, s) for s in STEPS]) for loss in VARIANTS}
    plot_lines(curves, ("steps", "bits/dim"), folder / "improved_ddpm.png", log=True)
    coding = {loss: _read_runs(data, loss)[0]["rate_distortion"] for loss in VARIANTS}
    drawn = {loss: (c["rate"], c["distortion"]) for loss, c in coding.items()}
    axes = ("rate received, bits/dim", "root mean squared error, of 255")
    plot_lines(drawn, axes, folder / "rate-distortion.png")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    one = _read_runs(data, "hybrid")[0]
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged. {len(SEEDS)} trainings of
{one["step"]:,} steps each; bits/dim on {one["bits_images"]} test images: the bound with so many
evenly spaced steps, of the model that is sampled, which clips x; and the probability flow (ODE),
which does not. Distances are of {one["num"]} images of
{one["sampler"]["steps"]} DDIM steps, three sampling seeds for each training. Simple is measured
with the posterior's variance, the others with what they learned.

{NOTE.format(**one)}
{_format_table(data)}

![bits/dim](improved_ddpm.png)
![rate and distortion](rate-distortion.png)

## The paper's figures

{PAPER}"""
