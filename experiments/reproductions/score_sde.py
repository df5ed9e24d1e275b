"""Score-based SDEs on Fashion-MNIST at 14x14: VE, VP and sub-VP (Song et al. 2021, tables 1 to 3).

One network is trained with each; reverse diffusion, its corrector and the probability flow draw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.data.pictures import read_image
from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    format_spread,
    read_file,
    read_scale,
    select_values,
)
from experiments.reproductions.pieces import Piece, make_drawn_trial, make_sweep
from experiments.reproductions.plotting import label_rows

# What the paper reports, for the end of the page.
PAPER = """CIFAR-10, FID of reverse diffusion by steps of the predictor P and corrector C (table 1):

| | P 1000 | P 2000 | P 1000 with C | probability flow 1000 |
|---|---|---|---|---|
| VE | 4.79 | 4.74 | 3.60 | 15.41 |
| VP | 3.21 | 3.19 | 3.18 | 3.59 |

| | bits/dim by the ODE (table 2) | FID, best sampler (table 3) |
|---|---|---|
| VE (NCSN++) | - | 2.38 |
| VP (DDPM++) | 3.16 | 2.55 |
| sub-VP (DDPM++) | 3.02 | 2.61 |
"""
# The SDEs by their names in files, and what the page calls them.
SDES = {"ve": "VE", "vp": "VP", "subvp": "sub-VP"}
# What is drawn of the first training of each, and the names of these rows.
DRAWN = {"ve": "sampler=ddpm,pc", "vp": "sampler=pc", "subvp": "sampler=pc"}
ROWS = ("VE, reverse diffusion", *(f"{name}, with a corrector" for name in SDES.values()))
# Seeds of the trainings, which are the units where SDEs are compared.
SEEDS = (0, 1, 2)
# Steps of the predictor, and twice as many: as many evaluations as with the corrector.
STEPS = 50
# Images of a cell.
NUM = 500
# The model whose samplers are compared, and their sampling seeds.
MODEL, SAMPLING_SEEDS = "score-ve", 5
# For contradictions.
_WHY_SAMPLERS = (
    "The paper takes 1,000 steps where these are 50, and images of 32 pixels. With large steps the "
    "corrector adds noise that so few steps do not take away, and the flow's smaller error counts "
    "for more."
)
_WHY = (
    "The networks are small and trained for 1,000 steps, 1/1300 of the paper's, and all SDEs share "
    "one network here, while the paper trains VE with another one than VP and sub-VP."
)


def _name_run(sde: str, seed: int) -> str:
    """Name a run by its SDE and its seed; the first seed has no suffix."""
    return f"score-{sde}" + (f"-seed{seed}" if seed else "")


def _make_trial(sde: str, seed: int) -> Piece:
    """Make the piece that trains an SDE, and measures distance and bits/dim."""
    name, seeded = _name_run(sde, seed), (f"--config.seed={seed}",)
    return make_drawn_trial(
        f"score_sde.py:fashion_mnist14_{sde}",
        name,
        3,
        seeded,
        "--metrics=distance,ode_bits",
        rows="" if seed else DRAWN[sde],
        model=name == MODEL,
    )


def _make_sweep(name: str, sampler: str, steps: str, minutes: float) -> Piece:
    """Make the piece that measures `MODEL` with a sampler at some numbers of steps."""
    axes = {"sampler": sampler, "steps": steps}
    return make_sweep(f"score-{name}", MODEL, minutes, axes, num=NUM, seeds=SAMPLING_SEEDS)


# The trainings, all SDEs of a seed first, and what is drawn with the first of them.
PIECES = (
    *(_make_trial(sde, seed) for seed in SEEDS for sde in SDES),
    _make_sweep("corrected", "pc", f"{STEPS}", 3),
    _make_sweep("predicted", "ddpm", f"{STEPS},{2 * STEPS}", 4),
    _make_sweep("flow", "ddim", f"{STEPS}", 2),
)


def _read_runs(data: Path, sde: str) -> list[JsonObject]:
    """Read the evaluations of an SDE, one for each training."""
    return [read_file(data / f"{_name_run(sde, seed)}.json") for seed in SEEDS]


def _read_values(data: Path, sde: str, key: str) -> np.ndarray:
    """Read a measure of an SDE, (trainings,)."""
    return np.asarray([run[key] for run in _read_runs(data, sde)])


def _read_samplers(data: Path) -> dict[str, np.ndarray]:
    """Read the distances of the samplers of the VE model, each over sampling seeds."""
    rows = read_file(data / "score-predicted.jsonl")
    return {
        f"reverse diffusion, {STEPS}": select_values(rows, steps=STEPS),
        f"reverse diffusion, {2 * STEPS}": select_values(rows, steps=2 * STEPS),
        f"with the corrector, {STEPS}": select_values(read_file(data / "score-corrected.jsonl")),
        f"probability flow, {STEPS}": select_values(read_file(data / "score-flow.jsonl")),
    }


def judge_claims(data: Path) -> list[Claim]:
    """Judge what the corrector gives, and which SDE is better at likelihood and at pictures.

    Args:
        data: folder of the files that the pieces left.
    """
    once, twice, corrected, flow = _read_samplers(data).values()
    # EDM's page measures the floor and an untrained network with as many images.
    scale = read_scale(data / "edm-floor.json")
    # Table 1, the columns of VE.
    samplers = (
        (f"VE: {STEPS} steps are worse without the corrector than with it", once, corrected),
        (f"VE: twice as many steps are worse than {STEPS} with the corrector", twice, corrected),
        (f"VE: {STEPS} steps of the probability flow are worse than of reverse diffusion",
         flow, once),
    )  # fmt: skip
    out = [compare(*claim, scale=scale, why=_WHY_SAMPLERS) for claim in samplers]
    # Tables 2 and 3, over trainings.
    bits = [_read_values(data, sde, "ode_bits_per_dim") for sde in ("vp", "subvp")]
    out.append(compare("the ODE of VP gives more bits/dim than that of sub-VP", *bits, why=_WHY))
    ve, vp, subvp = (_read_values(data, sde, "distance") for sde in SDES)
    for name, other in (("VP", vp), ("sub-VP", subvp)):
        text = f"the distance with {name} is larger than with VE (trainings)"
        out.append(compare(text, other, ve, scale=scale, why=_WHY))
    return out


def _format_sdes(data: Path) -> str:
    """Format distances and bits/dim over trainings, with a row for each SDE."""
    scale = read_scale(data / "edm-floor.json")
    lines = ["| | distance | bits/dim by the ODE |", "|---|---|---|"]
    for sde, name in SDES.items():
        distance = format_spread(_read_values(data, sde, "distance"), scale)
        bits = format_spread(_read_values(data, sde, "ode_bits_per_dim"))
        lines.append(f"| {name} | {distance} | {bits} |")
    return "\n".join(lines)


def _format_samplers(data: Path) -> str:
    """Format the distances of the samplers of the VE model."""
    scale = read_scale(data / "edm-floor.json")
    lines = ["| VE, predictor's steps | distance |", "|---|---|"]
    for name, values in _read_samplers(data).items():
        lines.append(f"| {name} | {format_spread(values, scale)} |")
    return "\n".join(lines)


def draw_plots(data: Path) -> None:
    """Draw pictures of the first training of each SDE.

    Args:
        data: folder of the files that the pieces left; the picture is written beside it.
    """
    sheets = [read_image(data / f"sheets/{_name_run(sde, 0)}.png") for sde in SDES]
    target = data.parent / "score_sde.png"
    label_rows(np.concatenate(sheets), target, ROWS, "columns: seeds")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    one = _read_runs(data, "ve")[0]
    return f"""Images are Fashion-MNIST with 2x2 pixels averaged. {len(SEEDS)} trainings of
{one["step"]:,} steps with each SDE, by the same network and the plain loss on eps. VE has sigma
from 0.02 to 30; its network's output is scaled as in EDM, that of the others is v.

{NOTE.format(**one)}
## The three SDEs

{NUM} images of {STEPS} steps of reverse diffusion with a correction each (snr 0.16), one sampling
seed for each training. Bits/dim are those of the probability flow, 100 Heun steps, on
{one["ode_bits_images"]} test images that are dequantized uniformly. VE's noise ends at 0.02, which
is wider than a grey level, so that its bits compare with nothing.

{_format_sdes(data)}

![pictures of the three SDEs](score_sde.png)

## Samplers of the first VE model

{SAMPLING_SEEDS} sampling seeds, {NUM} images each; the corrector doubles the network evaluations of
a step. The probability flow takes Euler's steps in sigma, which are DDIM's; the paper discretises
it as reverse diffusion, which is less exact.

{_format_samplers(data)}

## The paper's figures

{PAPER}"""
