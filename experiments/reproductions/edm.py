"""EDM on Fashion-MNIST at 14x14: many samplers over one model (Karras et al. 2022, figure 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.evaluation.sweeps import format_table, plot
from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    compare_closeness,
    format_floor,
    read_file,
    read_scale,
    select_values,
)
from experiments.reproductions.pieces import make_measurement, make_sweep, make_training

# Name of the one model that all samplers draw with.
MODEL = "edm14"
# Network evaluations of an image at which all samplers are measured.
EVALUATIONS = (9, 19, 35, 79)
# Samplers that take one evaluation a step.
ONCE = (
    "euler",
    "euler_ancestral",
    "lms",
    "plms",
    "ipndm",
    "deis",
    "dpm_solver_2m",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "unipc",
)
# Samplers that take two.
TWICE = ("heun", "dpm2", "dpm2_ancestral")
# Those that use earlier evaluations too, which have a plot of their own.
MULTISTEP = ("lms", "plms", "ipndm", "deis", "dpm_solver_2m", "dpmpp_2m", "dpmpp_3m", "unipc")
# Images of a cell where all samplers are compared.
NUM = 500
# Images of a cell of those that claims are about.
NUM_COMPARED = 2000
# For contradictions.
_WHY = (
    "The model is small and its own error, at any number of evaluations, is part of every "
    "distance. That makes ratios smaller than those of the paper's network."
)
# Images of a cell at few evaluations, where there are more seeds.
NUM_FEW = 1000
_WHY_FEW = (
    "Nine evaluations are five steps of Heun, which seem to be enough for the second order to pay "
    "on so small images. The crossing of the two curves must lie below nine evaluations here."
)
# Network evaluations at which claims are judged.
AT = (9, 35, 79)


def _make_axes(samplers: tuple[str, ...], steps: list[int]) -> dict[str, str]:
    """Make the axes of a sweep over samplers on grids of Karras et al. (2022, eq. 5).

    Args:
        samplers: names in `diffjax.samplers.SAMPLERS`.
        steps: numbers of steps; grids end at zero noise.
    """
    return {
        "sampler": ",".join(samplers),
        "grid": "karras",
        "final": "clean",
        "steps": ",".join(map(str, steps)),
    }


def _count_steps(evaluations: tuple[int, ...]) -> list[int]:
    """Count the steps of a solver of two evaluations, whose last step takes only one.

    Args:
        evaluations: of the network for an image, ``2 steps - 1``.
    """
    return [(n + 1) // 2 for n in evaluations]


# What is run: one training, its evaluation, the floors and the sweeps.
PIECES = (
    make_training("edm.py:fashion_mnist14", MODEL, 10),
    make_measurement("edm-evaluation", MODEL, 3, "--metrics=distance,baselines"),
    make_measurement("edm-floor", MODEL, 1, "--metrics=baselines", f"--num={NUM}"),
    make_sweep("edm-once", MODEL, 30, _make_axes(ONCE, list(EVALUATIONS)), num=NUM),
    make_sweep("edm-twice", MODEL, 10, _make_axes(TWICE, _count_steps(EVALUATIONS)), num=NUM),
    make_sweep(
        "edm-euler", MODEL, 32, _make_axes(("euler", "euler_ancestral"), list(AT)), num=NUM_COMPARED
    ),
    make_sweep("edm-heun", MODEL, 16, _make_axes(("heun",), _count_steps(AT)), num=NUM_COMPARED),
    # More seeds of the two samplers at few evaluations, which differ little.
    make_sweep("edm-few-euler", MODEL, 3, _make_axes(("euler",), [9]), num=NUM_FEW, seeds=6),
    make_sweep("edm-few-heun", MODEL, 3, _make_axes(("heun",), [5]), num=NUM_FEW, seeds=6),
    make_measurement(
        "edm-compared-floor", MODEL, 1, "--metrics=baselines", f"--num={NUM_COMPARED}"
    ),
)


def _read_rows(data: Path, *names: str) -> list[JsonObject]:
    """Read the rows of the sweeps with these names."""
    return [row for name in names for row in read_file(data / f"edm-{name}.jsonl")]


def judge_claims(data: Path) -> list[Claim]:
    """Judge Heun's solver against samplers that take one evaluation a step.

    Second order pays with many evaluations and not with few; added noise costs quality at 35
    evaluations (Karras et al. 2022, figure 2).

    Args:
        data: folder of the files that the pieces left.
    """
    rows = _read_rows(data, "euler", "heun")

    def select(sampler: str, evaluations: int) -> np.ndarray:
        """Select the distances of a sampler, over seeds."""
        return select_values(rows, sampler=sampler, evaluations=evaluations)

    scale = read_scale(data / "edm-compared-floor.json")
    some, best, ancestral = select("heun", 35), select("heun", 79), select("euler_ancestral", 35)
    few, many = (select_values(_read_rows(data, f"few-{name}")) for name in ("heun", "euler"))
    texts = (
        # 35 evaluations are enough for Heun.
        "Heun at 35 evaluations is within 10 % of Heun at 79",
        # Samplers that add noise need more.
        "Euler ancestral at 35 evaluations is at least 2 times worse than Heun",
        # First order wins with few evaluations, and second order with many.
        "at 9 evaluations Heun is worse than Euler",
        "at 79 evaluations Euler is worse than Heun",
    )
    return [
        compare_closeness(texts[0], some, best, 0.1, why=_WHY),
        compare(texts[1], ancestral, some, factor=2, scale=scale, why=_WHY),
        compare(texts[2], few, many, why=_WHY_FEW),
        compare(texts[3], select("euler", 79), best, scale=scale, why=_WHY),
    ]


def draw_plots(data: Path) -> None:
    """Draw distances against evaluations, of single-step and of multistep samplers.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    rows = _read_rows(data, "once", "twice")
    for name, multistep in (("edm", False), ("edm-multistep", True)):
        some = [row for row in rows if (row["sampler"] in MULTISTEP) is multistep]
        plot(some, ["sampler", "steps"], data.parent / f"{name}.png")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    rows, best = _read_rows(data, "once", "twice"), read_file(data / "edm-evaluation.json")
    compared = _read_rows(data, "euler", "heun")
    scale = best["baselines"]
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged; one model, trained with EDM's
recipe; grids of Karras et al. with rho 7 that end at zero noise. On one grid DDIM's steps (eta 0)
are Euler's.

{NOTE.format(**compared[0])}
{format_floor(data / "edm-compared-floor.json")}
With {best["num"]} images the distance of 18 Heun steps is {best["distance"]:.4g}; of other real
images {scale["real_floor"]:.4g}; of the matched Gaussian {scale["matched_gaussian"]:.4g}; of an
untrained network {scale["untrained_network"]:.4g}.

{format_table(compared, ["sampler", "steps"])}
## All samplers, fewer images

{format_floor(data / "edm-floor.json")}

{format_table(rows, ["sampler", "steps"])}
![single-step samplers](edm.png)
![multistep samplers](edm-multistep.png)

The paper on CIFAR-10, 35 evaluations of Heun: FID 1.97 (conditional: 1.79).
"""
