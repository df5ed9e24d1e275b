"""DDIM's steps, eta and spacings, and DDPM's variances (Song et al. 2020, table 1).

On the model of the DDPM page.
"""

from __future__ import annotations

from pathlib import Path

from experiments.reproductions.claims import NOTE, Claim, above, falls, floor, pair, read, values
from experiments.reproductions.ddpm import MODEL
from experiments.reproductions.pieces import measuring, sweeping
from experiments.sampler_sweep import plot, table

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

VARIANCE_STEPS = "10,20,50"

PIECES = (
    sweeping(
        "variances",
        MODEL,
        15,
        {"sampler": "ddpm", "variance": "fixedsmall,fixedlarge", "steps": VARIANCE_STEPS},
        num=500,
    ),
    sweeping(
        "ddim",
        MODEL,
        35,
        {"sampler": "ddim", "grid": "leading", "eta": "0,0.2,0.5,1", "steps": "5,10,20,50"},
        num=500,
    ),
    measuring("reconstruction", MODEL, 3, "--metrics=reconstruction"),
    sweeping(
        "ddim-quadratic",
        MODEL,
        18,
        {"sampler": "ddim", "grid": "quadratic", "eta": "0,1", "steps": "5,10,20,50"},
        num=500,
    ),
    sweeping(
        "ddim-100",
        MODEL,
        20,
        {"sampler": "ddim", "grid": "leading", "eta": "0,1", "steps": "100"},
        num=500,
    ),
    measuring(
        "ddim-floor", MODEL, 1, "--metrics=baselines", "--num=500", "--sampler=ddim", "--steps=20"
    ),
)


def claims(data: Path) -> list[Claim]:
    """DDIM's table 1 in its shape."""
    rows, out = [*read(data / "ddim.jsonl"), *read(data / "ddim-100.jsonl")], []
    for steps in (5, 10, 20):
        most, least = values(rows, eta=1.0, steps=steps), values(rows, eta=0.0, steps=steps)
        text = f"eta 1 is worse than eta 0 at {steps} steps"
        out.append(Claim(text, above(most, least), pair(most, least)))
    curve = [values(rows, eta=0.0, steps=s) for s in sorted({r["steps"] for r in rows})]
    text = f"at eta 0 the distance falls from 5 to {max(r['steps'] for r in rows)} steps"
    out.append(Claim(text, falls(curve), pair(curve[0], curve[-1])))
    large = values(read(data / "variances.jsonl"), variance="fixedlarge", steps=10)
    zero = values(rows, eta=0.0, steps=10)
    text = "sigma-hat at 10 steps is at least 5 times worse than eta 0"
    out.append(Claim(text, above(large, zero, 5), pair(large, zero)))
    return [*out, *_variances(data), _reconstruction(data)]


def _variances(data: Path) -> list[Claim]:
    """fixedlarge against fixedsmall at few steps (Ho et al. 2020; Song et al. 2020, table 1)."""
    rows, out = read(data / "variances.jsonl"), []
    for steps in map(int, VARIANCE_STEPS.split(",")):
        large = values(rows, variance="fixedlarge", steps=steps)
        small = values(rows, variance="fixedsmall", steps=steps)
        text = f"fixedlarge is at least 2 times worse than fixedsmall at {steps} steps"
        out.append(Claim(text, above(large, small, 2), pair(large, small)))
    return [*out, Claim("fixedlarge is no worse than fixedsmall at 1000 steps", None, "-")]


def _reconstruction(data: Path) -> Claim:
    found = read(data / "reconstruction.json")
    slope = found["reconstruction_slope"]
    errors = ", ".join(f"{e:.2g} at {s}" for s, e in found["reconstruction_mse"].items())
    text = "the error of encoding and decoding falls with the steps, log-log slope -0.8 to -1.6"
    return Claim(text, bool(-1.6 <= slope <= -0.8), f"slope {slope:.2f}; squared error {errors}")


def page(data: Path) -> str:
    """Markdown without the claims."""
    rows = [*read(data / "ddim.jsonl"), *read(data / "ddim-100.jsonl")]
    quadratic = read(data / "ddim-quadratic.jsonl")
    plot(rows, ["eta", "steps"], data.parent / "ddim.png")
    plot([*rows, *quadratic], ["grid", "eta", "steps"], data.parent / "ddim-grids.png")
    variances = read(data / "variances.jsonl")
    plot(variances, ["variance", "steps"], data.parent / "variances.png")
    return f"""The model is that of [ddpm.md](ddpm.md).

{NOTE.format(**rows[0])}
{floor(data / "ddim-floor.json")}
The model was trained for 45 minutes of one core: what it does wrong at any number of steps is part
of all distances, and the floor too, so ratios are smaller here than those of the paper.

## Linear spacing

{table(rows, ["eta", "steps"])}
![ddim](ddim.png)

## Quadratic spacing

{table(quadratic, ["eta", "steps"])}
![spacings](ddim-grids.png)

## DDPM's fixedsmall and fixedlarge (sigma-hat)

{table(variances, ["variance", "steps"])}
![variances](variances.png)

## The paper's figures

{PAPER}"""
