"""ControlNet by edges of Fashion-MNIST and by masks of shapes (Zhang et al. 2023, figure 8).

Beside frozen bases are trained: zero convolutions, Gaussian ones, ControlNet-lite, and a ControlNet
with hardly any dropping of prompts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    Claim,
    compare,
    compare_shares,
    format_comparison,
    format_spread,
    read_file,
    read_turns,
)
from experiments.reproductions.controlnet_pieces import (
    BALANCES,
    EVERY,
    MASKS,
    NETS,
    PICTURES,
    PIECES,
    SCALES,
    SEEDS,
    STEPS,
    TEXTS,
    TOLD,
    name_run,
)
from experiments.reproductions.controlnet_prompts import format_prompts, judge_prompts
from experiments.reproductions.plotting import DISTANCE, label_rows, plot_lines
from experiments.reproductions.verdicts import (
    estimate_mean,
    estimate_ratio,
    judge_range,
    state_exactly,
)

__all__ = ["PIECES", "format_page", "judge_claims"]

# What the paper reports, for the end of the page.
PAPER = """Ranking by users (1 to 5): quality 3.93 for ControlNet-lite, 4.22 for ControlNet;
fidelity to the hint 4.09 and 4.28. Segmentation masks, IoU: real images .58, lite .32, ControlNet
.35. FID: Stable Diffusion 6.09, lite 17.92, ControlNet 15.27. One of its runs learns to follow the
hint suddenly, at step 6133; without zero convolutions quality falls to that of lite.
"""


# For contradictions.
_WHY = (
    "The networks are small, and so are the images and the base. What the paper saw after "
    "thousands of steps on Stable Diffusion may not show in 400."
)
_WHY_TOLD = (
    "The prompt says what the mask shows, and the base alone draws it with an IoU of .82. Both "
    "networks can add only a hundredth to that."
)


def _read_logs(data: Path, hint: str, net: str) -> list[list[JsonObject]]:
    """Read the lines of the logs with measures.

    Args:
        hint: edges or masks.
        net: a key of `NETS`.

    Returns:
        For each seed, the lines that have the measure of the hint.
    """
    found = [read_file(data / f"{name_run(hint, net, seed)}-log.jsonl") for seed in SEEDS[hint]]
    kind = "edge_f1" if hint == "edges" else "mask_iou"
    return [[row for row in log if kind in row] for log in found]


def _read_curve(data: Path, net: str, key: str, hint: str = "edges") -> list[np.ndarray]:
    """Read a measure at every step where it was measured, over the runs.

    Args:
        net: a key of `NETS`.
        key: of the measure in the log.
        hint: edges or masks.

    Returns:
        For each step, an array (runs,).
    """
    runs = [[row[key] for row in log] for log in _read_logs(data, hint, net)]
    return list(np.asarray(runs, np.float64).T)


def _list_steps(data: Path, hint: str = "edges") -> list[int]:
    """List the steps at which runs were measured."""
    return [row["step"] for row in _read_logs(data, hint, "zero")[0]]


def _judge_initial(data: Path) -> Claim:
    """Judge whether pictures before the first step are those of the base, bit by bit.

    Zero convolutions add nothing at first (Zhang et al. 2023, section 3.1), so no pixel may change.
    """
    change = read_file(data / "control-initial.json")["settings"][1]["change"]
    text = "before the first step the pictures are those of the base, bit by bit"
    effect = state_exactly(change)
    return Claim(text, judge_range(effect, 0, 0), effect, "largest change of a pixel", _WHY)


def _judge_suddenness(data: Path) -> Claim:
    """Judge whether most of the rise of the F1 falls between two measurements.

    The paper calls this sudden convergence (section 3.3). The share of the largest rise between two
    measurements must exceed one half.
    """
    curves = np.asarray(_read_curve(data, "zero", "edge_f1")).T
    start = read_file(data / "control-initial.json")["settings"][1]["edge_f1"]
    shares = [
        np.diff([start, *run]).max() / (run.max() - start) if run.max() > start else 0.0
        for run in curves
    ]
    found = np.asarray(shares)
    text = f"over half of the rise of the F1 falls in one eighth of the steps ({EVERY})"
    effect = estimate_mean(found)
    return Claim(
        text, judge_range(effect, 0.5), effect, f"{format_spread(found)} of the rise", _WHY
    )


def _find_worst(data: Path, net: str) -> np.ndarray:
    """Find the largest distance of each run while it trains.

    Returns:
        (runs,).
    """
    return np.asarray(_read_curve(data, net, "distance")).max(0)


def _judge_harm(data: Path) -> Claim:
    """Judge whether zero convolutions do no harm to the base on the way.

    The largest distance while training must stay below 1.1 times that of the base alone.
    """
    base = read_file(data / "control-initial.json")["settings"][0]["distance"]
    worst = _find_worst(data, "zero")
    text = "with zero convolutions the distance stays below 1.1 times that of the base"
    effect = estimate_ratio(worst, np.full(len(worst), base))
    figures = f"at most {format_spread(worst)} against {base:.4g}"
    return Claim(text, judge_range(effect, high=1.1), effect, figures, _WHY)


def judge_claims(data: Path) -> list[Claim]:
    """Judge what zero convolutions, the copy and dropped prompts are for, and what they cost.

    Args:
        data: folder of the files that the pieces left.
    """
    last = {net: _read_curve(data, net, "edge_f1")[-1] for net in NETS}
    blind = {net: _read_curve(data, net, "edge_f1_without_prompt")[-1] for net in NETS}
    masks = {
        key: [_read_curve(data, net, key, "masks")[-1] for net in MASKS]
        for key in ("mask_iou", "mask_iou_without_prompt")
    }
    texts = (
        "edges: the F1 is larger with the full copy than with lite",
        "edges: the F1 of lite is at most .05 below that of Gaussian convolutions",
        "masks: the IoU is larger with the full copy than with lite",
        "masks: without prompts the IoU is larger with the full copy than with lite",
        "with Gaussian convolutions the distance rises more on the way than with zero ones",
        "without prompts the F1 is larger if half of them were dropped in training",
    )
    return [
        _judge_initial(data),
        compare_shares(texts[0], last["zero"], last["lite"], why=_WHY),
        compare_shares(texts[1], last["lite"], last["gaussian"], above=-0.05, why=_WHY),
        compare_shares(texts[2], *masks["mask_iou"], why=_WHY_TOLD),
        compare_shares(texts[3], *masks["mask_iou_without_prompt"], why=_WHY),
        _judge_harm(data),
        compare(texts[4], _find_worst(data, "gaussian"), _find_worst(data, "zero"), why=_WHY),
        compare_shares(texts[5], blind["zero"], blind["undropped"], why=_WHY),
        _judge_suddenness(data),
        *judge_prompts(data),
        *_judge_costs(data),
    ]


def _judge_costs(data: Path) -> list[Claim]:
    """Judge time and memory of a step against those of fine-tuning the base.

    The paper has 34 % more time and 23 % more memory, on one GPU and against training without
    control. Times of the same turn are pairs; the memory is that of the compiled step.
    """
    cost = read_file(data / "control-cost.json")
    turns, memory = read_turns(cost), cost["memory_ratio"]
    texts = (
        "a step takes at most 1.05 times that of fine-tuning",
        "and at most 0.90 times its memory",
    )
    time = estimate_ratio(turns["controlnet"], turns["fine_tuning"])
    exact = state_exactly(memory, ratio=True)
    return [
        Claim(texts[0], judge_range(time, high=1.05), time, f"{cost['time_ratio']:.3f}", _WHY),
        Claim(texts[1], judge_range(exact, high=0.9), exact, f"{memory:.3f}", _WHY),
    ]


def _format_edges(data: Path) -> str:
    """Format F1 and distances of all networks on edges."""
    heads = (
        "F1",
        "F1 without prompt",
        f"distance after {EVERY} steps",
        "largest distance",
        f"after {STEPS} steps",
    )
    rows = [f"| | {' | '.join(heads)} |", "|---" * 6 + "|"]
    for net, text in TEXTS.items():
        cells = (
            _read_curve(data, net, "edge_f1")[-1],
            _read_curve(data, net, "edge_f1_without_prompt")[-1],
            _read_curve(data, net, "distance")[0],
            _find_worst(data, net),
            _read_curve(data, net, "distance")[-1],
        )
        rows.append(f"| {text} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(rows)


def _format_masks(data: Path) -> str:
    """Format the IoU of the networks on masks."""
    rows = ["| masks of shapes | IoU | IoU without prompt |", "|---|---|---|"]
    for net in MASKS:
        cells = (_read_curve(data, net, key, "masks")[-1] for key in ("mask_iou",
                 "mask_iou_without_prompt"))  # fmt: skip
        rows.append(f"| {TEXTS[net]} | {' | '.join(map(format_spread, cells))} |")
    return "\n".join(rows)


def _format_adapter(data: Path) -> str:
    """Format size and F1 of a ControlNet and a T2I-Adapter on the same hints."""
    rows = ["| edges of shapes | parameters | F1 | F1 without prompt |", "|---|---|---|---|"]
    for name, text in (("edges", "ControlNet"), ("adapter", "T2I-Adapter")):
        *_, last = (
            r for r in read_file(data / f"control-shapes-{name}-log.jsonl") if "edge_f1" in r
        )
        found = (f"{last[key]:.4g}" for key in ("edge_f1", "edge_f1_without_prompt"))
        size = read_file(data / f"control-shapes-{name}-summary.json")["parameters"]
        rows.append(f"| {text} | {size:,} | {' | '.join(found)} |")
    return "\n".join(rows)


def _format_settings(data: Path, name: str, keys: tuple[str, ...]) -> str:
    """Format the settings of a drawing with their measures.

    Args:
        name: of the drawing.
        keys: names of the measures.
    """
    heads = ("scale", "balance", *keys)
    rows = [f"| {' | '.join(h.replace('_', ' ') for h in heads)} |", "|---" * len(heads) + "|"]
    for setting in read_file(data / f"{name}.json")["settings"]:
        cells = [setting["scale"], setting["balance"], *(setting[key] for key in keys)]
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells)
        rows.append(f"| {' | '.join(shown)} |")
    return "\n".join(rows)


def _format_costs(data: Path) -> str:
    """Format the ratios of time and memory, beside those of the paper."""
    cost = read_file(data / "control-cost.json")
    ours = {"time": f"{cost['time_ratio']:.3f}", "memory": f"{cost['memory_ratio']:.3f}"}
    return format_comparison({"ControlNet / fine-tuning, here": ours,
                    "the paper, A100": {"time": "1.34", "memory": "1.23"}})  # fmt: skip


def draw_plots(data: Path) -> None:
    """Plot F1, distance and IoU against the step.

    Args:
        data: folder of the files that the pieces left; the plots are written beside it.
    """
    folder, steps = data.parent, _list_steps(data)
    for key, name, file in (
        ("edge_f1", "edge F1", "control-f1.png"),
        ("distance", DISTANCE, "control-distance.png"),
    ):
        curves = {TEXTS[net]: (steps, _read_curve(data, net, key)) for net in NETS}
        plot_lines(curves, ("step", name), folder / file)
    steps = _list_steps(data, "masks")
    curves = {TEXTS[net]: (steps, _read_curve(data, net, "mask_iou", "masks")) for net in MASKS}
    plot_lines(curves, ("step", "mask IoU"), folder / "control-iou.png")
    _label_sheets(data)


def _label_sheets(data: Path) -> None:
    """Label the rows of drawn pictures with their settings."""
    scales = [f"scale {scale}" for scale in SCALES]
    told = [f"{net}, prompt: {words}" for words in TOLD.values() for net in ("base", "control")]
    rows = {
        "control-prompts-edges": ("hint", *told, "test image"),
        "control-prompts-masks": ("hint", *told, "test image"),
        "control-scales": ("hint", "base alone", *scales, "test image"),
        "control-composed": ("hint", "base alone", *scales, "test image"),
        "control-balances": ("hint", "base alone", *BALANCES, "test image"),
        **{f"control-step-{step}": ("hint", "drawn") for step in PICTURES},
    }
    for name, labels in rows.items():
        file = f"{name}.png"
        label_rows(data / "sheets" / file, data.parent / file, labels, "columns: test images")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    steps = ", ".join(map(str, PICTURES))
    pictures = "\n".join(f"![step {step}](control-step-{step}.png)" for step in PICTURES)
    features = _read_logs(data, "edges", "zero")[0][0]
    return f"""## Edges of Fashion-MNIST

The base knows classes and stays frozen; the hint is Canny's edges. {STEPS} steps of 32 images, two
trainings each. Measured on the hints and classes of {int(features.get("num", 128))} test images
with 16 DDIM steps, the same noise every time: the F1 of the edges that Canny finds in the pictures
(one pixel of tolerance), with and without telling the class, and the Frechet distance between the
pictures and the test images in the features of a small classifier of ours, which is **not FID**.

{_format_edges(data)}

![F1](control-f1.png)
![distance](control-distance.png)

Hints above pictures with zero convolutions, after {steps} steps:

{pictures}

### Scales

{_format_settings(data, "control-scales", ("edge_f1", "distance"))}

![scales](control-scales.png)

### Balances at guidance 3

`guess` is guess mode, `resolution` the paper's weights by
resolution:

{_format_settings(data, "control-balances", ("edge_f1", "distance"))}

![balances](control-balances.png)

## Masks of shapes

The base is the text-to-image model of [ldm.md](ldm.md). IoU of what has a colour in the picture
and what has in the mask; {len(SEEDS["masks"])} trainings each. With its prompt the base alone draws
nearly what the mask shows, so the claim without prompts was added after the first two trainings
were seen. Those two decided neither claim, and the third was added with the claims as they stood.

{_format_masks(data)}

![IoU](control-iou.png)

### A T2I-Adapter beside a ControlNet

One training of {STEPS} steps each, of the same base with the same hints:

{_format_adapter(data)}

### Two at once

Two ControlNets, of masks and of edges, both with the scale of the row; the hint shown is the mask:

{_format_settings(data, "control-composed", ("mask_iou", "edge_f1"))}

![composed](control-composed.png)

## Without a prompt, and with a wrong one

{format_prompts(data)}

![edges](control-prompts-edges.png)
![masks](control-prompts-masks.png)

## Cost of a training step

{_format_costs(data)}

The copy is trained in full, but the base's encoder runs forwards only and its decoder saves the
gradients of its weights. Both tasks take turns, of which the table has the median ratio, and the
interval is over turns: it holds for one process on one machine.

## The paper's figures

{PAPER}"""
