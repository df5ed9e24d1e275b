"""Draw images from a checkpoint with any sampler.

    python -m experiments.sample --workdir=runs/digits --sampler=ddim --steps=20 --num=100
    python -m experiments.sample --workdir=runs/digits --rows=steps=2,5,10,50 --num=12
    python -m experiments.sample --workdir=runs/shapes --prompt="a large red circle at the left"
    python -m experiments.sample --workdir=runs/pets --label=cat --num=16

Writes to the workdir samples/NAME.npz (uint8 ``images``), samples/NAME.png (a grid) and
samples/NAME-film.png (the way of the first images from noise to picture). With --rows, every row of
the grid is one value, every column one seed (and class), and there is no film.
"""

from __future__ import annotations

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.evaluation.image_grids import FILM, arrange_film, save_png, tile, to_uint8
from diffjax.evaluation.sweeps import check_axes, parse_axes
from diffjax.model import make_sampler
from diffjax.runs import Drawer, replace_sample
from diffjax.runs.classes import NAMED
from diffjax.runs.real_images import MOST_SHOWN

run_flags.define_sampling_flags()
OUT = flags.DEFINE_string(
    "out", None, "Path of the files without suffix; in samples/ of --workdir if not set."
)

ROWS = flags.DEFINE_string(
    "rows", None, "KEY=VALUE,VALUE,... of config.sample: one row of images per value."
)

PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Captions to draw; those of the data if not set. Repeat the flag for several."
)
LABEL = flags.DEFINE_multi_string(
    "label",
    [],
    "Classes to draw in turn, by name or number; all if not set. Repeat the flag for several.",
)


def draw_rows(cfg: ConfigDict, drawer: Drawer, num: int, seed: int) -> np.ndarray:
    """Draw ``num`` images for every value of --rows, with the same noise in every row.

    Args:
        drawer: of the model.
        seed: of the noise.

    Returns:
        (rows * num, H, W, C) in [-1, 1], row after row.

    Raises:
        ConfigError: --rows is wrong, or has no effect on the sampler.
    """
    # There is one key: a second would need another dimension of the picture.
    ((key, values),) = parse_axes([ROWS.value], cfg.sample).items()
    check_axes(cfg, [key])
    done = []
    for value in values:
        chosen = replace_sample(cfg, **{key: value})
        sampler, plan = make_sampler(chosen, drawer.model)
        scale = chosen.sample.guidance
        done.append(
            drawer.draw(
                num=num, seed=seed, sampler=sampler, rows=plan, scale=scale,
                text=_read_text(cfg), labels=_read_labels(cfg, drawer.model.num_classes),
            )
        )  # fmt: skip
    return np.concatenate(done)


def _read_text(cfg: ConfigDict) -> np.ndarray | None:
    """Tokenize the prompts of the flags; None for the captions of the data.

    Raises:
        UsageError: the model was not trained on captions.
    """
    if not PROMPT.value:
        return None
    tokenizers = runs.make_tokenizers(cfg, run_flags.read_run_folder())
    if not tokenizers:
        raise UsageError("--prompt has no effect: this model was not trained on captions")
    return runs.tokenize(cfg, tokenizers, PROMPT.value)


def _read_labels(cfg: ConfigDict, count: int) -> np.ndarray | None:
    """Read the classes of --label as labels; None for all classes in turn.

    Args:
        count: number of classes of the model.

    Raises:
        UsageError: the model has no classes.
        ConfigError: there is no such class.
    """
    names = runs.read_known_classes(cfg, run_flags.read_run_folder()) if count else ()
    if count:
        chosen = LABEL.value or names or ["all"]
        logging.info("classes in turn: %s", ", ".join(chosen[:NAMED]))
    elif LABEL.value:
        raise UsageError("--label is for class-conditional models; this one is not")
    if not LABEL.value:
        return None
    return np.array([runs.find_class(label, names, count) for label in LABEL.value])


FLAG_GROUPS = {
    "Samples": (
        "workdir",
        "out",
        "num",
        "seed",
        "label",
        "prompt",
        "rows",
        "best",
        "raw",
        "ema_length",
        "weights",
    ),
    "Sampling": ("sampler", "steps", "guidance", "grid", "eta", "variance"),
    "Config": ("config",),
}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights", "best", "raw", "ema_length", "sampling")


def main() -> None:
    """Draw images of a run, and write them as an npz and a picture.

    The npz holds all images as uint8, the picture at most `MOST_SHOWN` of them or all rows of
    --rows, and the film the way of the first ones from noise to picture.

    Raises:
        ConfigError: there is no checkpoint, or a flag does not fit the model.
    """
    cfg, folder = run_flags.read_config(), run_flags.read_workdir()
    text = _read_text(cfg)
    run = run_flags.open_run(cfg)
    drawer = runs.make_drawer(run)
    num, seed = flags.FLAGS.num or cfg.sample.num, flags.FLAGS.seed
    films: list[np.ndarray] = []
    if ROWS.value:
        images = draw_rows(cfg, drawer, num, seed)
    else:
        labels = _read_labels(cfg, drawer.model.num_classes)
        images = drawer.draw(num=num, seed=seed, text=text, labels=labels, on_film=films.append)
    # The name says how the images were drawn, so that other settings do not overwrite them.
    name = f"{cfg.sample.sampler}-{cfg.sample.steps}-step{int(run.state.step)}-seed{seed}"
    out = run_flags.Path(OUT.value) if OUT.value else folder / "samples" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out.with_name(out.name + ".npz"), images=to_uint8(images))
    picture = out.with_name(out.name + ".png")
    grid = tile(images, columns=num) if ROWS.value else tile(images[:MOST_SHOWN])
    save_png(grid, picture)
    for frames in films:
        save_png(arrange_film(frames), out.with_name(out.name + FILM))
    logging.info("%d images in %s.npz, shown in %s", len(images), out, picture)


if __name__ == "__main__":
    run_flags.run(main, USES)
