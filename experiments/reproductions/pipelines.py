"""Every pipeline of Stable Diffusion on a small model of the same parts, trained on shapes.

The model is saved as a folder of diffusers and loaded as a published one would be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.data import shapes
from experiments import generation
from experiments.reproductions.claims import Claim, read, training
from experiments.reproductions.ldm import PROMPTS
from experiments.reproductions.pieces import Piece

CONFIG = "stable_diffusion"
NAME = "small-model"
FOLDER = f"{{runs}}/{NAME}/folder"
MASK = "data/pipelines-mask.png"  # white on the right half
COLUMNS = 4
SCALE = 3  # of the pictures in the sheets
CHANGED = "a large cyan square at the right"
SINGLE = "a large red circle at the center"
_FIRST = f"{{runs}}/{NAME}/text/00000.png"
_COMMON = ("--steps=25", f"--num={COLUMNS}", f"--batch_size={COLUMNS}", "--guidance=3")


def _generate(name: str, *options: str) -> tuple[str, ...]:
    out = f"--out={{runs}}/{NAME}/{name}"
    return ("generate", f"--model={FOLDER}", *_COMMON, *options, out)


# What is made, and how: the name of a row, or of several, and its options.
RUNS: dict[str, tuple[str, ...]] = {
    "text": ("--sampler=dpmpp_2m", *(f"--prompt={prompt}" for prompt in PROMPTS)),
    "samplers": ("--sampler=euler_ancestral", f"--prompt={PROMPTS[0]}"),
    "image": (f"--init_image={_FIRST}", "--strength=0.6", f"--prompt={CHANGED}"),
    "inpainting": (f"--init_image={_FIRST}", f"--mask={{results}}/{MASK}", f"--prompt={CHANGED}"),
    "negative": ("--sampler=unipc", f"--prompt={SINGLE}", "--negative=a small red circle"),
}


def _kept() -> dict[str, str]:
    rows = {name: len(PROMPTS) if name == "text" else 1 for name in RUNS}
    files = [f"{name}/{k:05d}.png" for name, n in rows.items() for k in range(n * COLUMNS)]
    return {f"{NAME}/{file}": f"data/pipelines/{file}" for file in files}


PIECES = (
    Piece(
        "pipelines",
        (
            (
                "train",
                "--config=configs/stable_diffusion.py:shapes",
                f"--workdir={{runs}}/{NAME}",
                "--config.model.path=random",
                "--config.autoencoder.weights={results}/models/autoencoder-shapes.safetensors",
                "--config.train.steps=3000",
                "--config.train.minutes=0.0",
            ),
            ("export", f"--workdir={{runs}}/{NAME}", f"--out={FOLDER}"),
            *(_generate(name, *options) for name, options in RUNS.items()),
        ),
        {f"{NAME}/summary.json": f"data/{NAME}-summary.json", **_kept()},
        15,
    ),
)


def _pictures(data: Path, name: str) -> list[np.ndarray]:
    files = sorted((data / "pipelines" / name).glob("*.png"))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def claims(data: Path) -> list[Claim]:
    """That the pictures show what is asked for, as the program of the shapes sees it."""
    found = [
        shapes.judge(picture, shapes.parse(PROMPTS[k // COLUMNS]))
        for k, picture in enumerate(_pictures(data, "text"))
    ]
    text = "most pictures show size, colour, shape and place of all that their prompt names"
    right = sum(int(verdict.all) for verdict in found)
    shares = ", ".join(
        f"{name} {np.mean([getattr(verdict, name) for verdict in found]):.2f}"
        for name in ("size", "colour", "shape", "place")
    )
    return [Claim(text, 2 * right > len(found), f"{right} of {len(found)}; shares: {shares}")]


def _sheet(data: Path, name: str) -> None:
    """One row a prompt, one column a seed."""
    pictures = np.stack(_pictures(data, name)) / 127.5 - 1
    sheet = generation.tile(pictures, columns=COLUMNS, scale=SCALE)
    generation.save_png(sheet, data.parent / f"pipelines-{name}.png")


def page(data: Path) -> str:
    """Markdown without the claims."""
    for name in RUNS:
        _sheet(data, name)
    summary = training(read(data / f"{NAME}-summary.json"))
    trained = ", ".join(f"{value} {name}" for name, value in summary.items())
    prompts = "\n".join(f"- {prompt}" for prompt in PROMPTS)
    return f"""A UNet with cross-attention, a CLIP text encoder (random and frozen: its words are
few), and an autoencoder, trained by `configs/stable_diffusion.py:shapes` ({trained}),
written as a folder of diffusers, and used by `experiments.generate --model=FOLDER`. Pictures have
32x32 pixels; a column is a seed. A program looks for the shapes of a caption and is strict: a
bluish purple is blue to it, and a circle with corners is none.

## Text to image

DPM-Solver++ (2M), 25 steps, guidance 3. From the top:

{prompts}

![text](pipelines-text.png)

The first prompt with Euler ancestral:

![samplers](pipelines-samplers.png)

## Image to image

From the first picture above, strength 0.6, to "{CHANGED}":

![image](pipelines-image.png)

## Inpainting

The right half of the first picture filled in, with the same prompt:

![inpainting](pipelines-inpainting.png)

## Negative prompt

"{SINGLE}" and not "a small red circle", UniPC:

![negative](pipelines-negative.png)
"""
