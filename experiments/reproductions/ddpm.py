"""DDPM on Fashion-MNIST beside diffusers.

Both networks train for the same time on one core.
"""

from __future__ import annotations

from pathlib import Path

from diffjax.types import JsonObject
from experiments.reproductions.claims import (
    NOTE,
    Claim,
    compare,
    format_comparison,
    format_metrics,
    format_training,
    read_file,
    read_scale,
)
from experiments.reproductions.pieces import Piece, make_measurement
from experiments.reproductions.pieces import make_training as train

# What the paper reports, for the end of the page.
PAPER = """FID of the paper on CIFAR-10 with 1000 steps: 3.17 (IS 9.46, at most 3.75 bits/dim: rate
1.78 + distortion 1.97, more than half of the rate in the last tenth of the steps).
"""
# Name of our model.
MODEL = "fashion_mnist-ddpm"
# DDIM steps with which both models are measured.
STEPS = 20

# Flags of the training and sampling by diffusers.
_BASELINE = ("--workdir={runs}/fashion_mnist-diffusers", f"--sample_steps={STEPS}")

# What is run: both trainings, their evaluations, the bound and a picture.
PIECES = (
    train("ddpm.py:fashion_mnist", MODEL, 45),
    Piece(
        "train-diffusers",
        (("benchmarks.baseline_diffusers", *_BASELINE, "--minutes=45", "--num=5000"),),
        {
            "fashion_mnist-diffusers/summary.json": "data/diffusers-summary.json",
            f"fashion_mnist-diffusers/samples-{STEPS}.png": "fashion_mnist-diffusers.png",
        },
        60,
        needs="diffusers",
        one_core=True,
    ),
    make_measurement(
        "ddpm-evaluation",
        MODEL,
        8,
        "--metrics=distance,baselines",
        "--sampler=ddim",
        f"--steps={STEPS}",
    ),
    make_measurement(
        "diffusers-evaluation",
        MODEL,
        1,
        f"--images={{runs}}/fashion_mnist-diffusers/samples-{STEPS}.npz",
    ),
    make_measurement("ddpm-bits", MODEL, 15, "--metrics=bits", "--config.eval.bits_images=100"),
    Piece(
        "ddpm-picture",
        (
            (
                "sample",
                f"--weights={{results}}/models/{MODEL}.safetensors",
                f"--workdir={{runs}}/{MODEL}",
                "--steps=250",
                "--num=100",
                f"--out={{runs}}/{MODEL}/picture",
            ),
        ),
        {f"{MODEL}/picture.png": "fashion_mnist-ddpm.png"},
        3,
    ),
)


def judge_claims(data: Path) -> list[Claim]:
    """Judge whether the distance is below that of diffusers' recipe after the same time.

    There is one training of each, so the claim is compared without a spread.

    Args:
        data: folder of the files that the pieces left.
    """
    ours, base = (
        read_file(data / "ddpm-evaluation.json"),
        read_file(data / "diffusers-evaluation.json"),
    )
    text = "the distance of diffusers' recipe is larger after the same time (one training each)"
    scale = read_scale(data / "ddpm-evaluation.json")
    return [compare(text, [base["distance"]], [ours["distance"]], scale=scale)]


def _format_likelihood(bits: JsonObject) -> str:
    """Format the variational bound with its rate and distortion, as a sentence."""
    return (
        f"Variational bound on {bits['bits_images']} test images, all 1000 steps, "
        f"{bits['bits_variance']}: **{bits['bits_per_dim']:.3f} ± {bits['bits_per_dim_se']:.3f} "
        f"bits/dim** (rate {bits['rate']:.3f} + distortion {bits['distortion_bits']:.3f}; the last "
        f"tenth of the reverse steps takes {100 * bits['rate_in_last_tenth']:.0f} % of the rate)."
    )


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    ours, base = (
        read_file(data / "ddpm-evaluation.json"),
        read_file(data / "diffusers-evaluation.json"),
    )
    summary, theirs = (
        read_file(data / f"{MODEL}-summary.json"),
        read_file(data / "diffusers-summary.json"),
    )
    scale, sampler = ours["baselines"], ours["sampler"]
    columns = {
        "diffjax": format_training(summary) | format_metrics(ours),
        "diffusers": format_training(theirs) | format_metrics(base),
    }
    levels = "\n".join(
        f"| {name} | {scale[key]:.4g} |"
        for name, key in (
            (f"other real images, {scale['real_floor_num']} of each (floor)", "real_floor"),
            ("Gaussian of the same pixel mean and covariance", "matched_gaussian"),
            ("untrained network", "untrained_network"),
        )
    )
    return f"""{NOTE.format(**ours)}
## Beside diffusers

Each network was trained on one core of one machine ({summary["machine"]}, no accelerator, Python
{summary["python"]}, JAX {summary["jax"]}, torch {theirs["torch"]}, diffusers
{theirs["diffusers"]}), seed {summary["seed"]} each, one training run; other work shared the
machine, and CPU minutes are what each process really got. diffusers' side is its UNet2DModel and
DDPMScheduler with the network and the recipe of the Hugging Face course for 28x28 grey images
(Adam 1e-3, batch {theirs["batch"]}, cosine betas), and an exponential moving average that the
course does without. Both are sampled with {sampler["steps"]} DDIM steps (eta {sampler["eta"]:g}).

{format_comparison(columns)}

The same distance for other sets of images:

| images | distance |
|---|---|
{levels}

{_format_likelihood(read_file(data / "ddpm-bits.json"))}

250 DDPM steps, fixedsmall, of diffjax, and {STEPS} DDIM steps of diffusers:

![samples of diffjax](fashion_mnist-ddpm.png)
![samples of diffusers](fashion_mnist-diffusers.png)

## The papers' figures

{PAPER}"""
