"""Train any config; run the same command again to resume.

    python -m experiments.train --config=configs/ddpm.py:digits --workdir=runs/digits

Writes to the workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/, and samples/ with a
grid of images at intervals. Exit codes: 0 done, 1 error, 143 stopped by SIGTERM with the state saved.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from diffjax.train import Preempted, Reporter, State, train
from diffjax.train.loop import check_workdir
from experiments import common

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the resolved config and stop.")
PREVIEW_STEPS = 50


def _preview(cfg: Any, task: Any, folder: Any) -> Any:
    """Callback that writes a grid of DDIM samples from the averaged parameters."""
    steps = min(PREVIEW_STEPS, cfg.sample.steps)
    preview = common.with_sample(cfg, sampler="ddim", eta=0.0, steps=steps)

    def write(state: State, step: int, reporter: Reporter) -> None:
        num = min(cfg.sample.num, 64)
        images = common.image_maker(preview, task, state).make(
            num=num, batch_size=num, progress=f"preview at step {step}"
        )
        picture = common.tile(images)
        common.save_png(picture, folder / "samples" / f"{step:08d}.png")
        reporter.image("samples", step, picture)

    return write


def main() -> None:
    cfg = common.config()
    if DRY_RUN.value:
        print(common.describe(cfg))
        return
    folder = common.workdir()
    task = common.task_of(cfg)
    source = common.source_of(cfg)
    check_workdir(folder)
    common.save_json(cfg.to_dict(), folder / "config.json")
    shapes = common.abstract_state(cfg, task)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params))
    logging.info(
        "training %s parameters on %d images of %s, %d device(s)",
        f"{count:,}", len(source), cfg.data.name, jax.device_count(),
    )  # fmt: skip
    started = time.monotonic()
    try:
        state = train(
            task,
            cfg,
            folder,
            common.batches_of(cfg, source),
            on_sample=_preview(cfg, task, folder),
        )
    except Preempted as stopped:
        logging.warning("%s", stopped)
        sys.exit(common.SIGTERM_EXIT)
    logging.info(
        "trained to step %d in %.1f minutes; next: python -m experiments.sample --workdir=%s",
        int(state.step), (time.monotonic() - started) / 60, folder,
    )  # fmt: skip


if __name__ == "__main__":
    common.run(main)
