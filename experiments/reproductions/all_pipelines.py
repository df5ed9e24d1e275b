"""Every pipeline of Stable Diffusion on small models of the same parts, trained on shapes.

The models are saved as folders of diffusers and loaded as published ones would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from configs import controlnet
from diffjax.data import pictures, shapes
from diffjax.evaluation.image_grids import tile
from diffjax.runs.control_examples import measure_hints
from experiments.reproductions.claims import (
    Claim,
    compare_shares,
    format_training,
    read_file,
)
from experiments.reproductions.ldm_pieces import PROMPTS
from experiments.reproductions.pieces import Piece
from experiments.reproductions.plotting import label_rows
from experiments.reproductions.verdicts import estimate_share, judge_range

# The config file with the paper's own settings.
CONFIG = "stable_diffusion"
# Name of the small Stable Diffusion that is trained, and where its folder is kept.
NAME = "small-model"
KEPT = f"{{results}}/models/{NAME}"
# Mask of inpainting, white on the right half.
MASK = "data/pipelines-mask.png"
# Control image: the edges of a picture of the data set.
EDGES = "data/pipelines-edges.png"
# For contradictions, if there will be any.
_WHY = (
    "The model is small and was trained for 3,000 steps. It draws colours and places better than "
    "shapes."
)
# Pictures of a prompt.
COLUMNS = 4
# Pixels of a sheet for each pixel of a picture.
SCALE = 3
# Prompt that the first picture is changed to.
CHANGED = "a large cyan square at the right"
# The whole picture after filling, as the inpainting model is told.
WHOLE = f"{PROMPTS[0]} and {CHANGED}"
# Prompt with one shape, for the negative prompt.
SINGLE = "a large red circle at the center"
# Prompt that says what the control image shows.
DRAWN = "a large red triangle at the top and a small cyan triangle at the bottom right"
# The first picture of the row ``text``.
_FIRST = "{results}/data/pipelines/text/00000.png"


class Picture(NamedTuple):
    """The pictures of one request, which are a row of the page.

    Attributes:
        prompts: each of them gives ``columns`` pictures.
        options: flags of `experiments.generate`.
        model: folder of the model.
        columns: pictures of a prompt, more where a claim is judged by them; the first `COLUMNS` are
            shown.
    """

    prompts: tuple[str, ...]
    options: tuple[str, ...]
    model: str = KEPT
    columns: int = COLUMNS

    @property
    def count(self) -> int:
        """Number of pictures."""
        return self.columns * len(self.prompts)


def _name_folder(name: str) -> str:
    """Name the folder that a run is exported to."""
    return f"{{runs}}/{name}/folder"


_IMAGE, _MASK = f"--init_image={_FIRST}", f"--mask={{results}}/{MASK}"
_CONTROL = f"--control={_name_folder('small-edges')}:{{results}}/{EDGES}"
_XL = "--sampler=dpmpp_2m"
# The rows of the page: one for each pipeline.
ROWS = {
    "text": Picture(PROMPTS, ("--sampler=dpmpp_2m",), columns=16),
    "samplers": Picture(PROMPTS[:1], ("--sampler=euler_ancestral",)),
    "image": Picture((CHANGED,), (_IMAGE, "--strength=0.6")),
    "inpainting": Picture((CHANGED,), (_IMAGE, _MASK)),
    "negative": Picture((SINGLE,), ("--sampler=unipc", "--negative=a small red circle")),
    "filling": Picture((WHOLE,), (_IMAGE, _MASK), _name_folder("small-inpainting")),
    "uncontrolled": Picture(("",), (), columns=12),
    "controlled": Picture(("",), (_CONTROL,), columns=12),
    "controlled-text": Picture((DRAWN,), (_CONTROL,)),
    "xl": Picture(PROMPTS, (_XL,), _name_folder("small-xl")),
    "refined": Picture(
        PROMPTS, (_XL, f"--refiner={_name_folder('small-refiner')}"), _name_folder("small-xl")
    ),
}


def _make_training(variant: str, name: str, *options: str) -> tuple[tuple[str, ...], ...]:
    """Make the commands that train a config and export it as a folder of diffusers.

    Args:
        variant: FILE:VARIANT below configs/.
        name: of the run.
        options: flags of `experiments.train`.
    """
    where = f"--workdir={{runs}}/{name}"
    train = ("train", f"--config=configs/{variant}", where, *options, "--config.train.minutes=0.0")
    return train, ("export", where, f"--out={_name_folder(name)}")


def _make_generation(name: str) -> tuple[str, ...]:
    """Make the command that generates the pictures of a row."""
    row = ROWS[name]
    prompts = (f"--prompt={prompt}" for prompt in row.prompts)
    common = ("--steps=25", f"--num={row.columns}", f"--batch_size={row.columns}", "--guidance=3")
    out = f"--out={{runs}}/{NAME}/{name}"
    return ("generate", f"--model={row.model}", *common, *row.options, *prompts, out)


def _make_drawing(
    name: str,
    minutes: float,
    trained: tuple[tuple[str, ...], ...],
    models: tuple[str, ...],
    *rows: str,
) -> Piece:
    """Make the piece that trains models, draws rows, and keeps pictures and summaries.

    Args:
        name: of the piece.
        minutes: about what it takes on one core.
        trained: commands that train.
        models: names of the runs whose summaries are kept.
        rows: keys of `ROWS`.
    """
    files = [f"{row}/{k:05d}.png" for row in rows for k in range(ROWS[row].count)]
    keep = {f"{one}/summary.json": f"data/{one}-summary.json" for one in models}
    keep |= {f"{NAME}/{file}": f"data/pipelines/{file}" for file in files}
    return Piece(name, (*trained, *map(_make_generation, rows)), keep, minutes)


# The autoencoder that all models share.
_WEIGHTS = "--config.autoencoder.weights={results}/models/autoencoder-shapes.safetensors"
# Flags of models that begin with random parameters.
_BEGUN = ("--config.model.path=random", _WEIGHTS)
PIECES = (
    Piece(
        "train-small-model",
        _make_training("stable_diffusion.py:shapes", NAME, *_BEGUN, "--config.train.steps=3000"),
        {
            f"{NAME}/summary.json": f"data/{NAME}-summary.json",
            f"{NAME}/folder": f"models/{NAME}",
        },
        15,
    ),
    _make_drawing("pipelines-text", 1, (), (), "text"),
    _make_drawing("pipelines", 2, (), (), "samplers", "image", "inpainting", "negative"),
    _make_drawing(
        "pipelines-filling",
        7,
        _make_training(
            "stable_diffusion.py:shapes_inpainting",
            "small-inpainting",
            f"--config.model.path={KEPT}",
        ),
        ("small-inpainting",),
        "filling",
    ),
    _make_drawing(
        "pipelines-control",
        7,
        _make_training(
            "controlnet.py:small_edges",
            "small-edges",
            f"--config.model.path={KEPT}",
            "--config.train.steps=600",
        ),
        ("small-edges",),
        *("uncontrolled", "controlled", "controlled-text"),
    ),
    _make_drawing(
        "pipelines-xl",
        17,
        (
            *_make_training(
                "stable_diffusion.py:shapes_xl", "small-xl", *_BEGUN, "--config.train.steps=2000"
            ),
            *_make_training(
                "stable_diffusion.py:shapes_refiner",
                "small-refiner",
                f"--config.model.path={_name_folder('small-xl')}",
                "--config.train.steps=600",
            ),
        ),
        ("small-xl", "small-refiner"),
        *("xl", "refined"),
    ),
)


def _read_pictures(data: Path, name: str) -> np.ndarray:
    """Read the pictures of a row, (N, H, W, 3) uint8."""
    files = sorted((data / "pipelines" / name).glob("*.png"))
    return np.stack([pictures.read_image(file) for file in files])


def _check_pictures(data: Path, name: str) -> list[shapes.Verdict]:
    """Check for each picture of a row whether it shows what its prompt says.

    The program that draws the data set looks for the shapes, see `data.shapes.check_picture`.
    """
    row = ROWS[name]
    images = enumerate(_read_pictures(data, name))
    return [
        shapes.check_picture(one, shapes.parse(row.prompts[k // row.columns])) for k, one in images
    ]


def _measure_edges(data: Path, name: str) -> list[float]:
    """Measure the edge F1 between each picture of a row and the control image.

    It lies in [0, 1]; edges match within one pixel.
    """
    edges = pictures.read_image(data / Path(EDGES).name, 1).astype(np.float32) / 255
    images = _read_pictures(data, name).astype(np.float32) / 127.5 - 1
    cfg = controlnet.small_edges()
    return [measure_hints(cfg, edges[None], one[None])["edge_f1"] for one in images]


def judge_claims(data: Path) -> list[Claim]:
    """Judge whether pictures show what was asked for, as programs see it.

    The prompts of the first row are judged in all respects, and the control without a prompt by its
    edges.

    Args:
        data: folder of the files that the pieces left.
    """
    found = _check_pictures(data, "text")
    text = "most pictures show size, colour, shape and place of all that their prompt names"
    right = np.asarray([bool(v.all) for v in found]).reshape(len(PROMPTS), -1).sum(1)
    share = estimate_share(int(right.sum()), len(found))
    figures = f"{right.sum()} of {len(found)}; by prompt {', '.join(map(str, right))}"
    out = [Claim(text, judge_range(share, 0.5), share, figures, _WHY)]
    with_net, without = _measure_edges(data, "controlled"), _measure_edges(data, "uncontrolled")
    text = "without a prompt, the F1 of the edges is at least twice as large with the ControlNet"
    return [*out, compare_shares(text, with_net, without, factor=2, why=_WHY)]


def _format_table(data: Path) -> str:
    """Format the share of pictures with the right size, colour, shape and place, for each row."""
    keys = ("size", "colour", "shape", "place", "all")
    lines = [f"| | {' | '.join(keys)} | pictures |", "|---" * (len(keys) + 2) + "|"]
    # Rows without a prompt say nothing that could be checked.
    for name in (name for name, row in ROWS.items() if all(row.prompts)):
        found = _check_pictures(data, name)
        shares = [f"{np.mean([getattr(verdict, key) for verdict in found]):.2f}" for key in keys]
        lines.append(f"| {name} | {' | '.join(shares)} | {len(found)} |")
    return "\n".join(lines)


def _save_sheet(data: Path, name: str) -> None:
    """Save the pictures of a request as one: a row for each prompt, a column for each seed."""
    images = _read_pictures(data, name)
    shown = images.reshape(-1, ROWS[name].columns, *images.shape[1:])[:, :COLUMNS]
    sheet = tile(np.concatenate(shown) / 127.5 - 1, columns=COLUMNS, scale=SCALE)
    rows = [prompt or "no prompt" for prompt in ROWS[name].prompts]
    label_rows(sheet, data.parent / f"pipelines-{name}.png", rows, "columns: seeds")


def _format_training(data: Path, name: str) -> str:
    """Format how a model was trained, as a part of a sentence."""
    summary = format_training(read_file(data / f"{name}-summary.json"))
    return ", ".join(f"{value} {key}" for key, value in summary.items())


def draw_plots(data: Path) -> None:
    """Draw the sheets of pictures.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    for name in ROWS:
        _save_sheet(data, name)
    # The control image is shown as large as the sheets.
    edges = pictures.open_image(data / Path(EDGES).name)
    side = SCALE * edges.width
    edges.resize((side, side), Image.Resampling.NEAREST).save(data.parent / "pipelines-edges.png")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    prompts = "\n".join(f"- {prompt}" for prompt in PROMPTS)
    whole, edged = _format_training(data, NAME), _format_training(data, "small-edges")
    return f"""A UNet with cross-attention, a CLIP text encoder (random and frozen: its words are
few), and an autoencoder, trained by `configs/stable_diffusion.py:shapes` ({whole}).
It is a folder of diffusers, `docs/results/models/{NAME}`, and anybody can use it:

    python -m experiments.generate --model=docs/results/models/{NAME} --prompt="{SINGLE}"

Pictures have 32x32 pixels; a column is a seed. Guidance is 3, steps are 25. A program looks for the
shapes of a caption; the table has the share of pictures in which it finds them as they should be.
It is strict: a bluish purple is blue to it, and a circle with corners is none. Four pictures of
each prompt left the claim about them undecided (4 of 16), so `text` was drawn again with
{ROWS["text"].columns} of each; its sheet shows the first four. Pictures of one prompt are all right
or all wrong, so the interval holds for these four prompts alone.

{_format_table(data)}

## Text to image

DPM-Solver++ (2M). From the top:

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

By a model of 9 channels, which `shapes_inpainting` made of the first one
({_format_training(data, "small-inpainting")}).
It is told the whole picture, as in its training, "{WHOLE}":

![filling](pipelines-filling.png)

## Negative prompt

"{SINGLE}" and not "a small red circle", UniPC:

![negative](pipelines-negative.png)

## ControlNet

One was trained by `configs/controlnet.py:small_edges`
({edged}). In turn: the edges that it is given; pictures without a prompt,
first without the ControlNet, then with it; pictures with it and with the prompt
"{DRAWN}".
Four pictures left the claim about edges undecided, so the ControlNet was trained again and the rows
without a prompt have {ROWS["controlled"].columns} pictures; their sheets show the first four.

![edges](pipelines-edges.png)

![uncontrolled](pipelines-uncontrolled.png)

![controlled](pipelines-controlled.png)

![with a prompt](pipelines-controlled-text.png)

## XL, with its refiner

The same prompts by a model with two text encoders that is told sizes (`shapes_xl`:
{_format_training(data, "small-xl")}):

![xl](pipelines-xl.png)

The last fifth of the denoising done by a model that went on from that one and was trained further
on these noise levels alone (`shapes_refiner`:
{_format_training(data, "small-refiner")}):

![refined](pipelines-refined.png)
"""
