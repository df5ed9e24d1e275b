"""What is run for the page on ControlNet: the networks that are compared, and their pieces.

`controlnet_paper` judges the files that these pieces leave.
"""

from __future__ import annotations

from experiments.reproductions.ldm_pieces import SHAPES
from experiments.reproductions.pieces import Piece, make_training, name_model

# Seeds of the trainings by kind of hint, which are the units of all effects.
SEEDS = {"edges": (0, 1), "masks": (0, 1, 2)}
# Steps of a training, and steps between two measurements.
STEPS, EVERY = 400, 50
# The networks that are compared, and the flags that make them.
NETS = {
    "zero": (),
    "gaussian": ("--config.control.net.connections=gaussian",),
    "lite": ("--config.control.net.lite=True",),
    "undropped": ("--config.cond.drop=0.001",),
}
# What the page calls them.
TEXTS = {
    "zero": "zero convolutions",
    "gaussian": "Gaussian convolutions",
    "lite": "lite",
    "undropped": "zero convolutions, prompts dropped once in 1000",
}
# The networks that are trained on masks too.
MASKS = ("zero", "lite")
# Steps whose previews are kept.
PICTURES = (100, 200, 400)
# Scales of the residuals that are drawn.
SCALES = ("0.25", "0.5", "1", "1.5")
# Balances of control and prompt that are drawn, see `diffjax.control.BALANCES`.
BALANCES = ("balanced", "prompt", "control", "guess", "resolution")
# The frozen base of the networks on edges.
_BASE = "--config.control.base={results}/models/control-base.safetensors"
# Flags of all trainings: a fixed number of steps, measured as they go.
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
# Flags of the networks beside the text-to-image model of shapes.
_OF_SHAPES = (
    SHAPES,
    "--config.control.base={results}/models/ldm-shapes.safetensors",
    "--config.autoencoder.weights={results}/models/autoencoder-shapes.safetensors",
)


def name_run(hint: str, net: str, seed: int) -> str:
    """Name a run by its kind of hint, its network and its seed.

    Args:
        hint: edges or masks.
        net: a key of `NETS`.
        seed: of the training; the first has no suffix.
    """
    return f"control-{hint}-{net}" + (f"-seed{seed}" if seed else "")


def _make_edges(net: str, seed: int) -> Piece:
    """Make the piece that trains a network on edges of Fashion-MNIST.

    Of the first run with zero convolutions the weights and some pictures are kept.

    Args:
        net: a key of `NETS`.
        seed: of the training.
    """
    kept = net == "zero" and not seed
    overrides = (_BASE, *NETS[net], f"--config.seed={seed}", *_MEASURED)
    name, config = name_run("edges", net, seed), "controlnet.py:fashion_mnist_edges"
    piece = make_training(config, name, 5, *overrides, model=kept, log=True)
    if not kept:
        return piece
    pictures = {
        f"{name}/samples/{step:08d}.png": f"data/sheets/control-step-{step}.png"
        for step in PICTURES
    }
    return piece._replace(keep=piece.keep | pictures)


def _make_shapes(variant: str, name: str, minutes: float, *overrides: str, kept: bool) -> Piece:
    """Make the piece that trains a network beside the text-to-image model of shapes.

    Args:
        variant: of configs/controlnet.py.
        name: of the run.
        minutes: about what it takes on one core.
        overrides: flags of the training.
        kept: whether the weights are kept.
    """
    given = (*_OF_SHAPES, *overrides, *_MEASURED)
    return make_training(f"controlnet.py:{variant}", name, minutes, *given, model=kept, log=True)


def _make_masks(net: str, seed: int) -> Piece:
    """Make the piece that trains a network on masks of shapes."""
    overrides, kept = (*NETS[net], f"--config.seed={seed}"), net == "zero" and not seed
    return _make_shapes("shapes_mask", name_run("masks", net, seed), 3, *overrides, kept=kept)


def _make_drawing(name: str, model: str, minutes: float, *options: str) -> Piece:
    """Make the piece that draws with a kept ControlNet, by `experiments.control`.

    Args:
        name: of the picture and its measures.
        model: name of the kept ControlNet.
        minutes: about what it takes on one core.
        options: flags of `experiments.control`.
    """
    command = ("control", *name_model(model), f"--name={name}", *options)
    found = f"{model}/control/{name}"
    keep = {f"{found}.json": f"data/{name}.json", f"{found}.png": f"data/sheets/{name}.png"}
    return Piece(name, (command,), keep, minutes)


_EDGES, _MASKED = name_run("edges", "zero", 0), name_run("masks", "zero", 0)
# Images and sampling seeds of the measurements of what the base is told.
TOLD_NUM, TOLD_SEEDS = 100, 4
# What the base is told: a choice of --prompts, and what the page calls it.
TOLD = {"own": "its own", "none": "none", "other": "another image's"}


def _make_told(hint: str, model: str, minutes: float) -> Piece:
    """Make the piece that draws with every prompt of `TOLD`, with the base alone beside it."""
    options = (
        f"--prompts={','.join(TOLD)}",
        f"--num={TOLD_NUM}",
        f"--seeds={TOLD_SEEDS}",
        *("--sampler=ddim", "--steps=16"),
    )
    return _make_drawing(f"control-prompts-{hint}", model, minutes, *options)


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
    make_training(
        "controlnet.py:fashion_mnist_base",
        "control-base",
        8,
        "--config.train.sample_every=0",
        "--config.train.minutes=0.0",
    ),
    _INITIAL,
    *(_make_edges(net, 0) for net in NETS),
    _make_drawing("control-scales", _EDGES, 2, "--num=256", f"--scales={','.join(SCALES)}"),
    _make_drawing(
        "control-balances",
        _EDGES,
        4,
        "--num=256",
        "--guidance=3",
        f"--balance={','.join(BALANCES)}",
    ),
    _make_told("edges", _EDGES, 5),
    *(_make_masks(net, 0) for net in MASKS),
    _make_told("masks", _MASKED, 3),
    _make_shapes("shapes_edges", "control-shapes-edges", 3, kept=True),
    _make_shapes("shapes_adapter", "control-shapes-adapter", 3, kept=False),
    _make_drawing(
        "control-composed",
        _MASKED,
        2,
        "--num=128",
        "--also={results}/models/control-shapes-edges.safetensors",
        f"--scales={','.join(SCALES)}",
    ),
    *(_make_masks(net, seed) for seed in SEEDS["masks"][1:] for net in MASKS),
    *(_make_edges(net, seed) for seed in SEEDS["edges"][1:] for net in NETS),
)
