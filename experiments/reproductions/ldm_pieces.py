"""What is run for the page on latent diffusion: autoencoders, trainings, sweeps and a picture.

`ldm` judges the files that these pieces leave.
"""

from __future__ import annotations

from experiments.reproductions.pieces import (
    Piece,
    make_measurement,
    make_sweep,
    make_training,
    make_trial,
    name_model,
)

# Seeds of the trainings; effects are judged against their spread.
SEEDS = (0, 1)
# Seeds of the autoencoders with f2 and f4. The last was added when two trainings had left the claim
# about reconstructions undecided.
STAGE_SEEDS = (0, 1, 2)
# Steps that take about as long on one core, by the factor of the autoencoder.
FACTORS = {"f1": 320, "f2": 1400, "f4": 3600}
# About what a training takes, by factor.
MINUTES = {"f1": 7.0, "f2": 5.0, "f4": 5.0}
# Ends of the variants' names in configs/ldm.py, by factor.
CONFIGS = {"f1": "_f1", "f2": "", "f4": "_f4"}
# Guidance scales of the model of classes.
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
# Guidance scales of the model of texts.
TEXT = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
# Prompts of the picture; the pipelines draw them too.
PROMPTS = (
    "a large red circle at the top left",
    "a small yellow cross at the center",
    "a large blue triangle at the bottom and a small green square at the top right",
    "a small cyan circle at the left and a large purple square at the right",
)
# Factors whose latents come from an autoencoder.
ENCODED = ("f2", "f4")
# Flags of short trainings of autoencoders.
_SHORT = (
    "--config.train.steps=500",
    "--config.train.minutes=0.0",
    "--config.loss.disc_start=250",
)
# The flag that makes the UNet of shapes small.
SHAPES = "--config.network.channels=32"


def name_run(name: str, seed: int) -> str:
    """Name a run by its seed; the first one has the name alone."""
    return name + (f"-seed{seed}" if seed else "")


def _make_autoencoder(
    config: str, name: str, minutes: float, overrides: tuple[str, ...] = _SHORT
) -> tuple[Piece, Piece]:
    """Make the pieces that train an autoencoder and measure its reconstructions.

    Args:
        config: variant of configs/autoencoder.py.
        name: of the autoencoder.
        minutes: about what the training takes.
        overrides: flags of the training.
    """
    train = make_training(f"autoencoder.py:{config}", f"autoencoder-{name}", minutes, *overrides)
    return train, make_measurement(
        f"reconstruction-{name}", f"autoencoder-{name}", 1.5, picture=True
    )


def _make_repetition(config: str, name: str, minutes: float, seed: int) -> Piece:
    """Make another training of an autoencoder, for the spread of its figures."""
    name = name_run(f"reconstruction-{name}", seed)
    return make_trial(f"autoencoder.py:{config}", name, minutes, (*_SHORT, f"--config.seed={seed}"))


def _name_autoencoder(name: str) -> str:
    """Make the flag that names a kept autoencoder."""
    return f"--config.autoencoder.weights={{results}}/models/autoencoder-{name}.safetensors"


def _make_latent(factor: str, seed: int) -> Piece:
    """Make the piece that trains the same network at one of the resolutions.

    Args:
        factor: a key of `FACTORS`.
        seed: of the training; weights of the first are kept.
    """
    steps = FACTORS[factor]
    overrides = (
        f"--config.seed={seed}",
        "--config.network.channels=24",
        "--config.data.batch_size=32",
        f"--config.train.steps={steps}",
        "--config.train.minutes=0.0",
        f"--config.train.log_every={steps // 8}",
        f"--config.train.evaluate_every={steps // 4}",
        "--config.train.sample_every=0",
        "--config.eval.loop_num=256",
        "--config.sample.steps=16",
        *((_name_autoencoder(factor),) if factor in ENCODED else ()),
    )
    config = f"ldm.py:fashion_mnist{CONFIGS[factor]}"
    name = name_run(f"ldm-{factor}", seed)
    return make_training(config, name, MINUTES[factor], *overrides, model=not seed, log=True)


def _make_sampling(factor: str) -> Piece:
    """Make the piece that times sampling with four seeds, the first of which also compiles.

    Args:
        factor: a key of `FACTORS`.
    """
    name, axes = f"ldm-{factor}", {"steps": "16", "guidance": "1"}
    return make_sweep(f"{name}-sampling", name, 2 if factor == "f1" else 1, axes, num=192, seeds=4)


# A picture of the prompts, with a row for each guidance scale.
_PICTURE = Piece(
    "ldm-shapes-picture",
    (
        (
            "sample",
            *name_model("ldm-shapes"),
            *(f"--prompt={prompt}" for prompt in PROMPTS),
            "--rows=guidance=" + ",".join(f"{scale:g}" for scale in TEXT),
            "--num=12",
            "--out={runs}/ldm-shapes/picture",
        ),
    ),
    {"ldm-shapes/picture.png": "data/sheets/ldm-shapes.png"},
    1,
)

PIECES = (
    *_make_autoencoder("fashion_mnist", "f2", 4),
    *_make_autoencoder("fashion_mnist_f4", "f4", 3),
    *_make_autoencoder("fashion_mnist_vq", "vq", 3),
    *(_make_latent(factor, 0) for factor in FACTORS),
    *(_make_sampling(factor) for factor in FACTORS),
    make_sweep(
        "ldm-guidance",
        "ldm-f4",
        3,
        {"steps": "16", "guidance": ",".join(f"{scale:g}" for scale in GUIDANCE)},
        num=500,
    ),
    *_make_autoencoder("shapes", "shapes", 11, ("--config.train.minutes=0.0",)),  # edges are sharp
    make_training(
        "ldm.py:shapes",
        "ldm-shapes",
        9,
        SHAPES,
        _name_autoencoder("shapes"),
        "--config.train.steps=3000",
        "--config.train.minutes=0.0",
    ),
    make_sweep(
        "ldm-captions",
        "ldm-shapes",
        2,
        {"steps": "16", "guidance": ",".join(f"{scale:g}" for scale in TEXT)},
        "--metrics=captions",
        num=200,
    ),
    _PICTURE,
    *(_make_latent(factor, 1) for factor in FACTORS),
    *(_make_repetition("fashion_mnist", "f2", 5, seed) for seed in STAGE_SEEDS[1:]),
    *(_make_repetition("fashion_mnist_f4", "f4", 3, seed) for seed in STAGE_SEEDS[1:]),
)
