"""Draw images under the control of hints, and measure how well they keep to them.

    python -m experiments.control --workdir=runs/fashion-edges --num=64
    python -m experiments.control --workdir=runs/fashion-edges --scales=0,0.5,1,1.5 --num=8
    python -m experiments.control --workdir=runs/fashion-edges --balance=balanced,guess,resolution \
        --guidance=3
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
from diffjax.evaluation import measure_distance
from diffjax.evaluation.image_grids import save_png, tile
from experiments import common, controlled, frozen, stored_config, weights

common.define_sampling_flags()
SCALES = flags.DEFINE_list("scales", ["1"], "Factors of the residuals, a setting each.")
BALANCE = flags.DEFINE_list("balance", None, "Names of diffjax.control.BALANCES, a setting each.")
START = flags.DEFINE_float("start", 0.0, "Where control begins, as a share of the evaluations.")
END = flags.DEFINE_float("end", 1.0, "Where it ends.")
ALSO = flags.DEFINE_multi_string("also", [], "Workdir or exported file of another one; repeatable.")
PROMPT = flags.DEFINE_bool("prompt", True, "Tell the base the class or caption of the image.")
NAME = flags.DEFINE_string("name", "control", "Name of the files.")
SHOWN = 12  # columns of the picture
ENOUGH = 100  # images, for distances


def load(where: Path) -> tuple[controlled.Net, Any]:
    """The ControlNet of a run or an exported file, and its statistics."""
    exported = where.suffix == ".safetensors"
    cfg = stored_config.get_config(str(where if exported else where / "config.json"))
    task = common.task_of(cfg)
    if exported:
        state = weights.read(where, common.abstract_state(cfg, task))
    else:
        state = common.restore_from(cfg, task, where / "checkpoints")
    return controlled.Net(cfg, state.ema), state.extra


USES = ("config", "workdir", "weights", "best", "sampling")  # flags of other modules


def main() -> None:
    cfg, folder = common.config(), common.workdir()
    if cfg.task != "controlnet":
        raise common.UsageError(f"{folder} holds a run of task {cfg.task!r}, not of a ControlNet")
    state = common.restore(cfg, common.task_of(cfg), folder)
    nets = [controlled.Net(cfg, state.ema), *(load(Path(other))[0] for other in ALSO.value)]
    batch = controlled.examples(cfg, flags.FLAGS.num or cfg.sample.num)
    hints = [controlled.hints_of(net.cfg)(batch) for net in nets]
    paint = controlled.Painter(cfg, frozen.load(cfg, folder), state.extra)
    rows, report = [controlled.as_pictures(hints[0], cfg.data.channels)], []
    for request in requests(cfg, batch, hints):
        rows.append(paint(nets, request))
        found = {"scale": request.scales[0], "balance": request.balance, "num": len(hints[0])}
        for net, hint in zip(nets, hints, strict=True):
            found |= controlled.fidelity(net.cfg, hint, rows[-1])
        found["change"] = float(np.abs(rows[-1] - rows[1]).max())
        report.append(found | distance(cfg, rows[-1], batch["image"]))
        logging.info("%s", report[-1])
    rows.append(batch["image"])
    columns = min(len(hints[0]), SHOWN)
    out = folder / "control" / NAME.value
    picture = tile(np.concatenate([row[:columns] for row in rows]), columns=columns)
    save_png(picture, out.with_suffix(".png"))
    common.save_json({"step": int(state.step), "settings": report}, out.with_suffix(".json"))
    logging.info("written to %s.png and .json", out)


def requests(
    cfg: Any, batch: dict[str, np.ndarray], hints: list[np.ndarray]
) -> Iterator[controlled.Request]:
    """No control, then every setting of the flags."""
    given = itertools.product(map(float, SCALES.value), BALANCE.value or [cfg.control.balance])
    for scale, balance in ((0.0, "balanced"), *given):
        yield controlled.Request(
            batch,
            hints,
            seed=flags.FLAGS.seed,
            scales=[scale] * len(hints),
            starts=[START.value] * len(hints),
            ends=[END.value] * len(hints),
            balance=balance,
            guidance=cfg.sample.get("guidance", 1.0),
            prompt=PROMPT.value,
        )


def distance(cfg: Any, images: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Distance to real images, and scores, if there are enough for them."""
    if not cfg.eval.features or len(images) < ENOUGH:
        return {}
    return measure_distance(metrics.feature_network(cfg.eval.features), images, real)


if __name__ == "__main__":
    common.run(main, USES)
