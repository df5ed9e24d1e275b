"""ControlNet by edges of Fashion-MNIST and by masks of shapes (Zhang et al. 2023, figure 8).

Frozen bases; zero convolutions, Gaussian ones, ControlNet-lite, and hardly any dropping of prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.reproductions.claims import Claim, above, compare, lines, pair, read, spread
from experiments.reproductions.ldm import SHAPES
from experiments.reproductions.pieces import Piece, of, training

PAPER = """Ranking by users (1 to 5): quality 3.93 for ControlNet-lite, 4.22 for ControlNet;
fidelity to the hint 4.09 and 4.28. Segmentation masks, IoU: real images .58, lite .32, ControlNet
.35. FID: Stable Diffusion 6.09, lite 17.92, ControlNet 15.27. One of its runs learns to follow the
hint suddenly, at step 6133; without zero convolutions quality falls to that of lite.
"""
SEEDS = (0, 1)
STEPS, EVERY = 400, 50
NETS = {
    "zero": (),
    "gaussian": ("--config.control.net.connections=gaussian",),
    "lite": ("--config.control.net.lite=True",),
    "undropped": ("--config.cond.drop=0.001",),
}
TEXTS = {
    "zero": "zero convolutions",
    "gaussian": "Gaussian convolutions",
    "lite": "lite",
    "undropped": "zero convolutions, prompts dropped once in 1000",
}
MASKS = ("zero", "lite")
PICTURES = (100, 200, 400)
SCALES = ("0.25", "0.5", "1", "1.5")
BALANCES = ("balanced", "prompt", "control", "guess", "resolution")
_BASE = "--config.control.base={results}/models/control-base.safetensors"
_MEASURED = (
    f"--config.train.steps={STEPS}",
    "--config.train.minutes=0.0",
    f"--config.train.log_every={EVERY}",
    f"--config.train.evaluate_every={EVERY}",
    "--config.train.sample_every=100",
    "--config.eval.best=",
    "--config.eval.loop_num=128",
    "--config.sample.sampler=ddim",
    "--config.sample.steps=16",
    "--config.sample.num=12",
    "--config.sample.batch_size=64",
)
_OF_SHAPES = (
    SHAPES,
    "--config.control.base={results}/models/ldm-shapes.safetensors",
    "--config.autoencoder.weights={results}/models/autoencoder-shapes.safetensors",
)


def _named(hint: str, net: str, seed: int) -> str:
    return f"control-{hint}-{net}" + (f"-seed{seed}" if seed else "")


def _edges(net: str, seed: int) -> Piece:
    kept = net == "zero" and not seed
    overrides = (_BASE, *NETS[net], f"--config.seed={seed}", *_MEASURED)
    name, config = _named("edges", net, seed), "controlnet.py:fashion_mnist_edges"
    piece = training(config, name, 5, *overrides, model=kept, log=True)
    if not kept:
        return piece
    pictures = {f"{name}/samples/{step:08d}.png": f"control-step-{step}.png" for step in PICTURES}
    return piece._replace(keep=piece.keep | pictures)


def _shapes(variant: str, name: str, minutes: float, *overrides: str, kept: bool) -> Piece:
    given = (*_OF_SHAPES, *overrides, *_MEASURED)
    return training(f"controlnet.py:{variant}", name, minutes, *given, model=kept, log=True)


def _masks(net: str, seed: int) -> Piece:
    overrides, kept = (*NETS[net], f"--config.seed={seed}"), net == "zero" and not seed
    return _shapes("shapes_mask", _named("masks", net, seed), 3, *overrides, kept=kept)


def _looking(name: str, model: str, minutes: float, *options: str) -> Piece:
    """``experiments.control`` of a kept model."""
    command = ("control", *of(model), f"--name={name}", *options)
    found = f"{model}/control/{name}"
    keep = {f"{found}.json": f"data/{name}.json", f"{found}.png": f"{name}.png"}
    return Piece(name, (command,), keep, minutes)


_EDGES, _MASKED = _named("edges", "zero", 0), _named("masks", "zero", 0)
_COST = Piece(
    "control-cost",
    (
        (
            "benchmarks.control_cost",
            "--config=configs/controlnet.py:fashion_mnist_edges",
            "--batch=32",
            "--json={runs}/control-cost.json",
        ),
    ),
    {"control-cost.json": "data/control-cost.json"},
    3,
)
_INITIAL = Piece(
    "control-initial",
    (
        (
            "train",
            "--config=configs/controlnet.py:fashion_mnist_edges",
            "--workdir={runs}/control-initial",
            _BASE,
            "--config.train.steps=0",
            "--config.optim.decay=constant",
        ),
        (
            "control",
            "--workdir={runs}/control-initial",
            "--num=128",
            "--sampler=ddim",
            "--steps=16",
            "--config.sample.batch_size=64",
            "--name=control-initial",
        ),
    ),
    {"control-initial/control/control-initial.json": "data/control-initial.json"},
    2,
)

PIECES = (
    _COST,
    training(
        "controlnet.py:fashion_mnist_base",
        "control-base",
        8,
        "--config.train.sample_every=0",
        "--config.train.minutes=0.0",
    ),
    _INITIAL,
    *(_edges(net, 0) for net in NETS),
    _looking("control-scales", _EDGES, 2, "--num=256", f"--scales={','.join(SCALES)}"),
    _looking(
        "control-balances",
        _EDGES,
        4,
        "--num=256",
        "--guidance=3",
        f"--balance={','.join(BALANCES)}",
    ),
    *(_masks(net, 0) for net in MASKS),
    _shapes("shapes_edges", "control-shapes-edges", 3, kept=True),
    _shapes("shapes_adapter", "control-shapes-adapter", 3, kept=False),
    _looking(
        "control-composed",
        _MASKED,
        2,
        "--num=128",
        "--also={results}/models/control-shapes-edges.safetensors",
        f"--scales={','.join(SCALES)}",
    ),
    *(_edges(net, 1) for net in NETS),
    *(_masks(net, 1) for net in MASKS),
)


def _logs(data: Path, hint: str, net: str) -> list[list[dict[str, Any]]]:
    """The measured lines of the logs, a run each."""
    found = [read(data / f"{_named(hint, net, seed)}-log.jsonl") for seed in SEEDS]
    kind = "edge_f1" if hint == "edges" else "mask_iou"
    return [[row for row in log if kind in row] for log in found]


def _curve(data: Path, net: str, key: str, hint: str = "edges") -> list[np.ndarray]:
    """Over the runs, at every measured step."""
    runs = [[row[key] for row in log] for log in _logs(data, hint, net)]
    return list(np.asarray(runs, np.float64).T)


def _steps(data: Path, hint: str = "edges") -> list[int]:
    return [row["step"] for row in _logs(data, hint, "zero")[0]]


def _unchanged(data: Path) -> Claim:
    change = read(data / "control-initial.json")["settings"][1]["change"]
    text = "before the first step the pictures are those of the base, bit by bit"
    return Claim(text, change == 0, f"largest change of a pixel: {change:g}")


def _sudden(data: Path) -> Claim:
    """The largest share of the rise of the F1 between two measurements."""
    curves = np.asarray(_curve(data, "zero", "edge_f1")).T
    start = read(data / "control-initial.json")["settings"][1]["edge_f1"]
    shares = [
        np.diff([start, *run]).max() / (run.max() - start) if run.max() > start else 0.0
        for run in curves
    ]
    found = np.asarray(shares)
    text = f"over half of the rise of the F1 falls in one eighth of the steps ({EVERY})"
    held = bool(found.mean() - 3 * found.std(ddof=1) > 0.5)
    return Claim(text, held, f"{spread(found)} of the rise")


def _worst(data: Path, net: str) -> np.ndarray:
    """The largest distance while training, of each run."""
    return np.asarray(_curve(data, net, "distance")).max(0)


def _kept(data: Path) -> Claim:
    """That zero convolutions do no harm to the base on the way."""
    base = read(data / "control-initial.json")["settings"][0]["distance"]
    worst = _worst(data, "zero")
    held = bool(worst.mean() + 3 * worst.std(ddof=1) <= 1.1 * base)
    text = "with zero convolutions the distance stays within 10 % of the base's or below"
    return Claim(text, held, f"at most {spread(worst)} against {base:.4g}")


def claims(data: Path) -> list[Claim]:
    """What the zero convolutions, the copy and dropped prompts are for, and the cost."""
    last = {net: _curve(data, net, "edge_f1")[-1] for net in NETS}
    blind = {net: _curve(data, net, "edge_f1_without_prompt")[-1] for net in NETS}
    masks = {net: _curve(data, net, "mask_iou", "masks")[-1] for net in MASKS}
    worse = above(last["gaussian"], last["lite"])
    texts = (
        "edges: the F1 is larger with the full copy than with lite",
        "edges: the F1 of lite is no smaller than that of Gaussian convolutions",
        "masks: the IoU is larger with the full copy than with lite",
        "with Gaussian convolutions the distance rises more on the way than with zero ones",
        "without prompts the F1 is larger if half of them were dropped in training",
    )
    return [
        _unchanged(data),
        _larger(texts[0], last["zero"], last["lite"]),
        Claim(texts[1], None if worse is None else not worse, pair(last["lite"], last["gaussian"])),
        _larger(texts[2], masks["zero"], masks["lite"]),
        _kept(data),
        _larger(texts[3], _worst(data, "gaussian"), _worst(data, "zero")),
        _larger(texts[4], blind["zero"], blind["undropped"]),
        _sudden(data),
        *_costs(data),
    ]


def _larger(text: str, high: np.ndarray, low: np.ndarray) -> Claim:
    return Claim(text, above(high, low), pair(high, low))


def _costs(data: Path) -> list[Claim]:
    cost = read(data / "control-cost.json")
    time, memory = cost["time_ratio"], cost["memory_ratio"]
    return [
        Claim("a step takes at most 1.05 times that of fine-tuning", time <= 1.05, f"{time:.3f}"),
        Claim("and at most 0.90 times its memory", memory <= 0.9, f"{memory:.3f}"),
    ]


def _edge_table(data: Path) -> str:
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
            _curve(data, net, "edge_f1")[-1],
            _curve(data, net, "edge_f1_without_prompt")[-1],
            _curve(data, net, "distance")[0],
            _worst(data, net),
            _curve(data, net, "distance")[-1],
        )
        rows.append(f"| {text} | {' | '.join(map(spread, cells))} |")
    return "\n".join(rows)


def _mask_table(data: Path) -> str:
    rows = ["| masks of shapes | IoU | IoU without prompt |", "|---|---|---|"]
    for net in MASKS:
        cells = (_curve(data, net, key, "masks")[-1] for key in ("mask_iou",
                 "mask_iou_without_prompt"))  # fmt: skip
        rows.append(f"| {TEXTS[net]} | {' | '.join(map(spread, cells))} |")
    return "\n".join(rows)


def _adapter_table(data: Path) -> str:
    rows = ["| edges of shapes | parameters | F1 | F1 without prompt |", "|---|---|---|---|"]
    for name, text in (("edges", "ControlNet"), ("adapter", "T2I-Adapter")):
        *_, last = (r for r in read(data / f"control-shapes-{name}-log.jsonl") if "edge_f1" in r)
        found = (f"{last[key]:.4g}" for key in ("edge_f1", "edge_f1_without_prompt"))
        size = read(data / f"control-shapes-{name}-summary.json")["parameters"]
        rows.append(f"| {text} | {size:,} | {' | '.join(found)} |")
    return "\n".join(rows)


def _settings(data: Path, name: str, keys: tuple[str, ...]) -> str:
    heads = ("scale", "balance", *keys)
    rows = [f"| {' | '.join(h.replace('_', ' ') for h in heads)} |", "|---" * len(heads) + "|"]
    for setting in read(data / f"{name}.json")["settings"]:
        cells = [setting["scale"], setting["balance"], *(setting[key] for key in keys)]
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells)
        rows.append(f"| {' | '.join(shown)} |")
    return "\n".join(rows)


def _cost_table(data: Path) -> str:
    cost = read(data / "control-cost.json")
    ours = {"time": f"{cost['time_ratio']:.3f}", "memory": f"{cost['memory_ratio']:.3f}"}
    return compare({"ControlNet / fine-tuning, here": ours,
                    "the paper, A100": {"time": "1.34", "memory": "1.23"}})  # fmt: skip


def _plots(data: Path) -> None:
    folder, steps = data.parent, _steps(data)
    for key, name, file in (
        ("edge_f1", "edge F1", "control-f1.png"),
        ("distance", "Frechet distance", "control-distance.png"),
    ):
        curves = {TEXTS[net]: (steps, _curve(data, net, key)) for net in NETS}
        lines(curves, ("step", name), folder / file)
    steps = _steps(data, "masks")
    curves = {TEXTS[net]: (steps, _curve(data, net, "mask_iou", "masks")) for net in MASKS}
    lines(curves, ("step", "mask IoU"), folder / "control-iou.png")


def page(data: Path) -> str:
    """Markdown without the claims."""
    _plots(data)
    steps = ", ".join(map(str, PICTURES))
    pictures = "\n".join(f"![step {step}](control-step-{step}.png)" for step in PICTURES)
    features = _logs(data, "edges", "zero")[0][0]
    return f"""## Edges of Fashion-MNIST

The base knows classes and stays frozen; the hint is Canny's edges. {STEPS} steps of 32 images, two
trainings each. Measured on the hints and classes of {int(features.get("num", 128))} test images
with 16 DDIM steps, the same noise every time: the F1 of the edges that Canny finds in the pictures
(one pixel of tolerance), with and without telling the class, and the Frechet distance between the
pictures and the test images in the features of a small classifier of ours, which is **not FID**.

{_edge_table(data)}

![F1](control-f1.png)
![distance](control-distance.png)

Hints above pictures with zero convolutions, after {steps} steps:

{pictures}

### Scales

Hints, the base alone, then a row a setting, and the test images:

{_settings(data, "control-scales", ("edge_f1", "distance"))}

![scales](control-scales.png)

### Balances at guidance 3

The first row is the base alone; `guess` is guess mode, `resolution` the paper's weights by
resolution:

{_settings(data, "control-balances", ("edge_f1", "distance"))}

![balances](control-balances.png)

## Masks of shapes

The base is the text-to-image model of [ldm.md](ldm.md). IoU of what has a colour in the picture
and what has in the mask.

{_mask_table(data)}

![IoU](control-iou.png)

### A T2I-Adapter beside a ControlNet

One training of {STEPS} steps each, of the same base with the same hints:

{_adapter_table(data)}

### Two at once

Two ControlNets, of masks and of edges; rows are hints, the base alone, both at the scales
below, and the test images:

{_settings(data, "control-composed", ("mask_iou", "edge_f1"))}

![composed](control-composed.png)

## Cost of a training step

{_cost_table(data)}

The copy is trained in full, but the base's encoder runs forwards only and its decoder saves the
gradients of its weights.

## The paper's figures

{PAPER}"""
