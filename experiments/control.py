"""Draw images under the control of hints, and measure how well they keep to them.

    python -m experiments.control --workdir=runs/fashion-edges --num=64
    python -m experiments.control --workdir=runs/fashion-edges --scales=0,0.5,1,1.5 --num=8
    python -m experiments.control --workdir=runs/fashion-edges --guidance=3 \\
        --balance=balanced,guess,resolution
    python -m experiments.control --workdir=runs/shapes-mask --also=runs/shapes-edges

Hints are those of the first test images, and every setting draws with the same noise. Writes to the
workdir: control/NAME.png, whose rows are the hints, the base alone, a row per setting and the test
images; and control/NAME.json with the edge F1 or mask IoU between hints and images, the largest
change of a pixel that control makes and, where there is a classifier and --num is large, the
distance to real images. --also adds the ControlNet of another run of the same base, with the hints
that it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from diffjax import metrics
from diffjax.config import read_config
from diffjax.evaluation import measure_distance
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.model import Model
from diffjax.tasks import task_kind
from diffjax.writing import write_json
from experiments import common, controlled, frozen, generation, weights

common.define_sampling_flags()
SCALES = flags.DEFINE_list(
    "scales", ["1"], "Factors of the residuals; each is a row of the picture."
)
BALANCE = flags.DEFINE_list(
    "balance", None, "Names of diffjax.control.BALANCES; each is a row of the picture."
)
START = flags.DEFINE_float("start", 0.0, "Share of the evaluations after which control begins.")
END = flags.DEFINE_float("end", 1.0, "Share of the evaluations after which control ends.")
ALSO = flags.DEFINE_multi_string(
    "also", [], "Workdir or exported file of another control; repeat the flag for several."
)
PROMPT = flags.DEFINE_bool("prompt", True, "Give the base the class or caption of the image.")
NAME = flags.DEFINE_string("name", "control", "Name of the files that are written.")
SHOWN = 12  # columns of the picture
ENOUGH = 100  # images, for distances


def load(where: Path) -> tuple[Any, Model]:
    """The config of a run or an exported file of a ControlNet, and its model without the base."""
    exported = where.suffix == ".safetensors"
    cfg = read_config(where)
    task = common.task_of(cfg)
    if exported:
        state = weights.read(where, common.abstract_state(cfg, task))
    else:
        state = common.restore_from(cfg, task, where / "checkpoints")
    return cfg, common.assemble(cfg, state, {"base": {}})


FLAG_GROUPS = {
    "Control": ("workdir", "num", "seed", "scales", "balance", "start", "end", "also", "prompt"),
    "Files": ("name", "best", "weights", "config"),
    "Sampling": ("sampler", "steps", "guidance", "grid", "eta", "variance"),
}
USES = ("config", "workdir", "weights", "best", "sampling")  # flags of other modules


def main() -> None:
    cfg, folder = common.config(), common.workdir()
    if not task_kind(cfg).takes_hints:
        raise common.UsageError(f"{folder} holds a run of task {cfg.task!r}, not of a ControlNet")
    state = common.restore(cfg, common.task_of(cfg), folder)
    model = common.assemble(cfg, state, frozen.load(cfg, folder))
    others = [load(Path(other)) for other in ALSO.value]
    configs = [cfg, *(config for config, _ in others)]
    nets = [model.controls, *(other.controls for _, other in others)]
    drawer = generation.Drawer(cfg, model._replace(controls=tuple(itertools.chain(*nets))))
    num = flags.FLAGS.num or cfg.sample.num
    batch = controlled.examples(cfg, num)
    hints = [controlled.hints_of(config)(batch) for config in configs]
    inputs = controlled.inputs_of(drawer.model, batch, hints, prompt=PROMPT.value)
    rows, report = [controlled.as_pictures(hints[0], cfg.data.channels)], []
    for scale, balance in settings(cfg):
        strengths = [generation.Strength(scale, START.value, END.value)] * len(hints)
        rows.append(
            drawer.draw(
                num=num, seed=flags.FLAGS.seed, inputs=inputs, strengths=strengths, balance=balance
            )
        )
        found = {"scale": scale, "balance": balance, "num": num}
        for config, hint in zip(configs, hints, strict=True):
            found |= controlled.fidelity(config, hint, rows[-1])
        found["change"] = float(np.abs(rows[-1] - rows[1]).max())
        report.append(found | distance(cfg, rows[-1], batch["image"]))
        logging.info("%s", report[-1])
    rows.append(batch["image"])
    columns = min(num, SHOWN)
    out = folder / "control" / NAME.value
    picture = tile(np.concatenate([row[:columns] for row in rows]), columns=columns)
    save_png(picture, out.with_suffix(".png"))
    write_json(out.with_suffix(".json"), {"step": int(state.step), "settings": report})
    logging.info("written to %s.png and .json", out)


def settings(cfg: Any) -> Iterator[tuple[float, str]]:
    """(scale, balance): no control, then every setting of the flags."""
    yield 0.0, "balanced"
    yield from itertools.product(map(float, SCALES.value), BALANCE.value or [cfg.control.balance])


def distance(cfg: Any, images: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Distance to real images, and scores, if there are enough for them."""
    if not cfg.eval.features or len(images) < ENOUGH:
        return {}
    return measure_distance(metrics.feature_network(cfg.eval.features), images, real)


if __name__ == "__main__":
    common.run(main, USES)
