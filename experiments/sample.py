"""Draw images from a checkpoint with any sampler.

    python -m experiments.sample --workdir=runs/digits --sampler=ddim --steps=20 --num=100
    python -m experiments.sample --workdir=runs/digits --rows=steps=2,5,10,50 --num=12
    python -m experiments.sample --workdir=runs/shapes --prompt="a large red circle at the left"

Writes samples/NAME.npz (uint8 ``images``) and samples/NAME.png (a grid) into the workdir. With
--rows, every row of the grid is one value, and every column one seed (and class).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags, logging

from diffjax.data import shapes
from experiments import common, finetuning, frozen, generation, sampler_sweep

common.define_sampling_flags()
OUT = flags.DEFINE_string("out", None, "Path without suffix; default: samples/ in the workdir.")

ROWS = flags.DEFINE_string("rows", None, "KEY=VALUE,... of config.sample: a row of images each.")

PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Captions, of most models in the words of data set shapes; default: the data's."
)


def rows(cfg: Any, maker: generation.ImageMaker, num: int, seed: int) -> np.ndarray:
    """``num`` images for every value of --rows, one value after the other."""
    ((key, values),) = sampler_sweep.parse([ROWS.value], cfg).items()
    sampler_sweep.check_axes(cfg, [key])
    done = []
    for value in values:
        chosen = generation.with_sample(cfg, **{key: value})
        sampler, plan = generation.sampler_of(chosen, maker.model)
        scale = chosen.sample.get("guidance", 1.0)
        done.append(
            maker.make(num=num, seed=seed, sampler=sampler, rows=plan, scale=scale, text=_text(cfg))
        )
    return np.concatenate(done)


def _text(cfg: Any) -> Any:
    """Tokens of the prompts, or None for the captions of the data."""
    if not PROMPT.value:
        return None
    if cfg.get("cond", {}).get("context", "") not in ("text", "clip", "clip_xl"):
        raise common.UsageError("--prompt has no effect: this model was not trained on captions")
    return finetuning.tokens(cfg, PROMPT.value) if "model" in cfg else shapes.tokenize(PROMPT.value)


USES = ("config", "workdir", "weights", "best", "sampling")  # flags of other modules


def main() -> None:
    cfg, folder = common.config(), common.workdir()
    text = _text(cfg)
    task = common.task_of(cfg)
    state = common.restore(cfg, task, folder)
    num, seed = flags.FLAGS.num or cfg.sample.num, flags.FLAGS.seed
    maker = generation.image_maker(cfg, task, state, frozen.load(cfg, folder))
    if ROWS.value:
        images = rows(cfg, maker, num, seed)
    else:
        images = maker.make(num=num, seed=seed, text=text)
    name = f"{cfg.sample.sampler}-{cfg.sample.steps}-step{int(state.step)}-seed{seed}"
    out = common.Path(OUT.value) if OUT.value else folder / "samples" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out.with_name(out.name + ".npz"), images=generation.to_uint8(images))
    picture = out.with_name(out.name + ".png")
    grid = generation.tile(images, columns=num) if ROWS.value else generation.tile(images[:100])
    generation.save_png(grid, picture)
    logging.info("%d images in %s.npz, shown in %s", len(images), out, picture)


if __name__ == "__main__":
    common.run(main, USES)
