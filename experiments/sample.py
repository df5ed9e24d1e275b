"""Draw images from a checkpoint with any sampler.

    python -m experiments.sample --workdir=runs/digits --sampler=ddim --steps=20 --num=100
    python -m experiments.sample --workdir=runs/shapes --prompt="a large red circle at the left"

Writes samples/NAME.npz (uint8 ``images``) and samples/NAME.png (a grid) into the workdir.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags, logging

from diffjax.data import shapes
from experiments import common, frozen

common.define_sampling_flags()
OUT = flags.DEFINE_string("out", None, "Path without suffix; default: samples/ in the workdir.")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Captions, in the words of data set shapes; default: those of the test images."
)


def _text() -> Any:
    return shapes.tokenize(PROMPT.value) if PROMPT.value else None


def main() -> None:
    cfg, folder = common.config(), common.workdir()
    task = common.task_of(cfg)
    state = common.restore(cfg, task, folder)
    num, seed = flags.FLAGS.num or cfg.sample.num, flags.FLAGS.seed
    maker = common.image_maker(cfg, task, state, frozen.load(cfg, folder))
    images = maker.make(num=num, seed=seed, text=_text())
    name = f"{cfg.sample.sampler}-{cfg.sample.steps}-step{int(state.step)}-seed{seed}"
    out = common.Path(OUT.value) if OUT.value else folder / "samples" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out.with_name(out.name + ".npz"), images=common.to_uint8(images))
    picture = out.with_name(out.name + ".png")
    common.save_png(common.tile(images[:100]), picture)
    logging.info("%d images in %s.npz, the first of them in %s", num, out, picture)


if __name__ == "__main__":
    common.run(main)
