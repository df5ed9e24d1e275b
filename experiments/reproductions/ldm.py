"""Latent diffusion on Fashion-MNIST and on captioned shapes (Rombach et al. 2022).

KL autoencoders of factor 1 (pixels), 2 and 4 are compared after the same time. Models are guided by
class and by text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    compare_shares,
    format_spread,
    read_file,
    select_values,
)
from experiments.reproductions.ldm_pieces import (
    ENCODED,
    FACTORS,
    PIECES,
    PROMPTS,
    SEEDS,
    STAGE_SEEDS,
    TEXT,
    name_run,
)
from experiments.reproductions.plotting import DISTANCE, label_rows, plot_lines

__all__ = ["PIECES", "draw_plots", "format_page", "judge_claims"]

# What the paper reports, for the end of the page.
PAPER = """Inpainting on one V100 (table 6; samples a second in training, then in sampling):

| | train | sample at 256 | sample at 512 | hours an epoch |
|---|---|---|---|---|
| LDM-1 (pixels) | .11 | .26 | .07 | 20.66 |
| LDM-4, KL | .32 | .97 | .34 | 7.66 |
| LDM-4, VQ | .33 | .97 | .34 | 7.04 |

Autoencoders on ImageNet, rFID and PSNR: KL-f4 .27 and 27.53, KL-f8 .90 and 24.19, KL-f16 .87 and
24.08, KL-f32 2.04 and 22.27, VQ-f4 .58 and 27.43. ImageNet with classes (LDM-4): FID 10.56, guided
by 1.25 3.95, by 1.5 3.60. Text to image on COCO: FID 23.31, guided by 1.5 12.63.
"""
# For contradictions, if there will be any.
_WHY = (
    "Networks are trained for minutes and images are small. What a smaller latent saves at 256 "
    "pixels may not show."
)


def _read_logs(data: Path, factor: str) -> list[list[JsonObject]]:
    """Read the logs of the trainings at a resolution, one for each seed."""
    return [read_file(data / f"{name_run(f'ldm-{factor}', seed)}-log.jsonl") for seed in SEEDS]


def _compute_speeds(log: list[JsonObject], batch: int = 32) -> np.ndarray:
    """Compute the images a second in every line of a log but the first, which compiles.

    Args:
        log: lines of metrics.jsonl.
        batch: images of a step.
    """
    return batch * np.asarray([row["steps_per_second"] for row in log[1:]])


def _compute_curve(log: list[JsonObject]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the curve of a training: seconds and distances, where they were measured.

    Seconds are those of the training steps alone, at the median speed of the run, so that other
    work on the machine and the measuring itself do not count.
    """
    measured = [row for row in log if "distance" in row]
    images = 32 * np.asarray([row["step"] for row in measured])
    return images / np.median(_compute_speeds(log)), np.asarray(
        [row["distance"] for row in measured]
    )


def _measure_training(data: Path, factor: str) -> np.ndarray:
    """Measure the images a second in training, for each run."""
    return np.asarray([np.median(_compute_speeds(log)) for log in _read_logs(data, factor)])


def _measure_sampling(data: Path, factor: str) -> np.ndarray:
    """Measure the images a second in sampling, for all seeds but the one that compiles."""
    rows = read_file(data / f"ldm-{factor}-sampling.jsonl")
    return np.asarray([row["num"] / row["seconds"] for row in rows if row["seed"]])


def _interpolate_distance(data: Path, factor: str, seconds: float) -> np.ndarray:
    """Interpolate the distance of each run after some seconds of training.

    Args:
        factor: a key of `FACTORS`.
        seconds: of training, between the first and the last measurement.

    Returns:
        (runs,).
    """
    return np.asarray(
        [np.interp(seconds, *_compute_curve(log)) for log in _read_logs(data, factor)]
    )


def _find_times(data: Path) -> tuple[float, float]:
    """Find two times at which all runs can be compared.

    Returns:
        (early, late) in seconds of training: when all runs had been measured once, and when the
        first of them ended.
    """
    curves = {f: [_compute_curve(log)[0] for log in _read_logs(data, f)] for f in FACTORS}
    late = min(times[-1] for runs in curves.values() for times in runs)
    return max(float(times[0]) for runs in curves.values() for times in runs), float(late)


def _read_reconstructions(data: Path, name: str, key: str) -> np.ndarray:
    """Read a measure of an autoencoder's reconstructions.

    Args:
        name: of the autoencoder.
        key: of the measure.

    Returns:
        (trainings,).
    """
    files = [data / f"{name_run(f'reconstruction-{name}', seed)}.json" for seed in STAGE_SEEDS]
    return np.asarray([read_file(file)[key] for file in files])


def judge_claims(data: Path) -> list[Claim]:
    """Judge what smaller latents give and cost, and what guidance does.

    Smaller latents train and sample faster and are nearer to the data after the same time, while
    their autoencoders reconstruct worse (Rombach et al. 2022, section 4.1).

    Args:
        data: folder of the files that the pieces left.
    """
    out = []
    # Speed grows with the factor of the autoencoder.
    for kind, measure in (("training", _measure_training), ("sampling", _measure_sampling)):
        for slow, fast in (("f1", "f2"), ("f2", "f4")):
            text = f"{kind}: more images a second with {fast} than with {slow}"
            out.append(compare(text, measure(data, fast), measure(data, slow), why=_WHY))
    # So does quality after the same time.
    early, _ = _find_times(data)
    for factor in ENCODED:
        a, b = _interpolate_distance(data, factor, early), _interpolate_distance(data, "f1", early)
        text = f"after the same {early:.0f} seconds pixels are farther from the data than {factor}"
        out.append(compare(text, b, a, why=_WHY))
    # What is lost is what the autoencoder does not reconstruct.
    f2, f4 = (_read_reconstructions(data, name, "distance") for name in ENCODED)
    text = "the distance of reconstructions is larger with f4 than with f2"
    out.append(compare(text, f4, f2, why=_WHY))
    return [*out, *_judge_guidance(data)]


def _judge_guidance(data: Path) -> list[Claim]:
    """Judge whether guidance makes images show their class, and obey their caption, more often.

    Scale 3 is compared with 1, which is no guidance.
    """
    classes, texts = read_file(data / "ldm-guidance.jsonl"), read_file(data / "ldm-captions.jsonl")
    high, low = (select_values(classes, "class_accuracy", guidance=scale) for scale in (3.0, 1.0))
    text = "class accuracy is higher at guidance 3 than unguided"
    out = [compare_shares(text, high, low, why=_WHY)]
    high, low = (select_values(texts, "all", guidance=scale) for scale in (3.0, 1.0))
    text = "more captions are obeyed at guidance 3 than unguided"
    return [*out, compare_shares(text, high, low, why=_WHY)]


def _format_speeds(data: Path) -> str:
    """Format speeds, and distances after two times, for each resolution."""
    early, late = _find_times(data)
    heads = ("training, images/s", "sampling, images/s", *(
        f"distance after {seconds:.0f} s" for seconds in (early, late)
    ))  # fmt: skip
    rows = [f"| | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for factor in FACTORS:
        cells = (
            _measure_training(data, factor),
            _measure_sampling(data, factor),
            _interpolate_distance(data, factor, early),
            _interpolate_distance(data, factor, late),
        )
        rows.append(f"| {factor} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(rows)


def _format_sizes(data: Path) -> str:
    """Format the numbers of parameters of the networks at the three resolutions."""
    sizes = {f: read_file(data / f"ldm-{f}-summary.json")["parameters"] for f in FACTORS}
    return ", ".join(f"{factor} {size:,}" for factor, size in sizes.items())


def _format_stages(data: Path) -> str:
    """Format how well the autoencoders reconstruct test images."""
    rows = ["| autoencoder | distance | PSNR | l1 | codes in use |", "|---" * 5 + "|"]
    for name in ("f2", "f4", "vq", "shapes"):
        found = read_file(data / f"reconstruction-{name}.json")
        distance = f"{found['distance']:.4g}" if "distance" in found else "-"
        codes = f"{100 * found['codes_used']:.0f} %" if "codes_used" in found else "-"
        rows.append(f"| {name} | {distance} | {found['psnr']:.2f} | {found['l1']:.3f} | {codes} |")
    return "\n".join(rows)


def _format_guidance(rows: list[JsonObject], metrics: tuple[str, ...]) -> str:
    """Format the metrics of a sweep over guidance scales.

    Args:
        rows: of the sweep.
        metrics: names of the columns.
    """
    out = [f"| guidance | {' | '.join(m.replace('_', ' ') for m in metrics)} |"]
    out.append("|---" * (len(metrics) + 1) + "|")
    for scale in sorted({row["guidance"] for row in rows}):
        cells = [format_spread(select_values(rows, metric, guidance=scale)) for metric in metrics]
        out.append(f"| {scale:g} | {' | '.join(cells)} |")
    return "\n".join(out)


def draw_plots(data: Path) -> None:
    """Plot distances over time, and the share of captions that is obeyed against guidance.

    Args:
        data: folder of the files that the pieces left; the plots are written beside it.
    """
    folder = data.parent
    curves = {
        f"{factor}, seed {seed}": _compute_curve(log)
        for factor in FACTORS
        for seed, log in enumerate(_read_logs(data, factor))
    }
    axes = ("seconds of training", DISTANCE)
    plot_lines({k: (list(x), list(y)) for k, (x, y) in curves.items()}, axes, folder / "ldm.png",
          log=True)  # fmt: skip
    rows = read_file(data / "ldm-captions.jsonl")
    kinds = ("all", "colour", "shape", "size", "place")
    shares = {
        kind: (list(TEXT), [select_values(rows, kind, guidance=scale) for scale in TEXT])
        for kind in kinds
    }
    plot_lines(shares, ("guidance", "share that is right"), folder / "ldm-captions.png")
    for name in ("f2", "f4", "vq", "shapes"):
        file = f"reconstruction-{name}.png"
        label_rows(
            data / "sheets" / file, folder / file, ("image", "reconstruction") * 2, "test images"
        )
    label_rows(
        data / "sheets/ldm-shapes.png",
        folder / "ldm-shapes.png",
        [f"guidance {scale:g}" for scale in TEXT],
        "columns: four captions in turn, a seed each",
    )


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    guided, told = read_file(data / "ldm-guidance.jsonl"), read_file(data / "ldm-captions.jsonl")
    prompts = "; ".join(PROMPTS)
    return f"""## Autoencoders

500 steps each on 28x28 Fashion-MNIST (KL with f = 2 and 4, 256 codes with f = 4), 1,200 on shapes;
measured on test images. The claim about f2 and f4 has {len(STAGE_SEEDS)} trainings of each, the
last added when two had left it undecided; the table shows the first.

{_format_stages(data)}

f = 2, f = 4, 256 codes with f = 4, and shapes:

![f2](reconstruction-f2.png)
![f4](reconstruction-f4.png)
![codes](reconstruction-vq.png)
![shapes](reconstruction-shapes.png)

## A network of one kind at three resolutions

f1 are pixels. The networks have the same channels, but not the same number of parameters
({_format_sizes(data)}). After the first measurement f1
and f2 are still farther from the data than a Gaussian matched to its pixels would be, so this
compares beginnings of trainings. Two trainings each on one core; time is that of the training
steps alone, at the median speed of each run, without measurements, compilation and the
autoencoder's own training.
Sampling takes 16 DDIM steps, decoding included. Distances over time are of 256 images.

{NOTE.format(**guided[0])}
{_format_speeds(data)}

![distance over time](ldm.png)

## Guided by classes (f4)

{_format_guidance(guided, ("distance", "class_accuracy", "precision", "recall"))}

## Guided by text

Captions of test images, {told[0]["num"]} pictures a cell and three sampling seeds; the program that
draws the shapes also judges the share of shapes with the right colour, shape, size and place, and
of pictures in which everything is right. The model draws the shape that it is told in a third of
the cases, where chance is a quarter, so guidance has little to show here.

{_format_guidance(told, ("all", "colour", "shape", "size", "place"))}

![captions](ldm-captions.png)

The captions in turn: {prompts}.

![shapes](ldm-shapes.png)

## The paper's figures

{PAPER}"""
