"""Draw images under the control of hints, and measure how well they keep to them.

    python -m experiments.control --workdir=runs/fashion-edges --num=64
    python -m experiments.control --workdir=runs/fashion-edges --scales=0,0.5,1,1.5 --num=8
    python -m experiments.control --workdir=runs/fashion-edges --guidance=3 \\
        --balance=balanced,guess,resolution
    python -m experiments.control --workdir=runs/shapes-mask --also=runs/shapes-edges
    python -m experiments.control --workdir=runs/fashion-edges --prompts=own,none,other --seeds=5

Hints are those of the first test images, and every setting draws with the same noise. Writes to the
workdir: control/NAME.png, whose rows are the hints, for each prompt the base alone and a row per
setting, and the test images, all of the first seed; and control/NAME.json with the edge F1 or mask
IoU between hints and images, the largest change of a pixel that control makes and, where there is a
classifier and --num is large, the distance to real images. --also adds the ControlNet of another
run of the same base, with the hints that it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from diffjax import metrics, runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.evaluation import measure_distance
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.runs.control_examples import (
    PROMPTS,
    draw_hints,
    make_input_reader,
    measure_hints,
    take_examples,
)
from diffjax.runs.hints import make_hints
from diffjax.tasks import find_task_kind
from diffjax.types import JsonObject
from diffjax.writing import write_json

run_flags.define_sampling_flags()
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
TOLD = flags.DEFINE_list(
    "prompts",
    ["own"],
    f"What the base is told, of {', '.join(PROMPTS)}: the class or caption of the image, nothing, "
    "or that of another image; each has rows of the picture.",
)
SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Number of sampling seeds that are measured, counted from --seed.", 1
)
NAME = flags.DEFINE_string("name", "control", "Name of the files that are written.")
# Columns of the picture.
SHOWN = 12
# The fewest images that distances are measured of.
ENOUGH = 100


FLAG_GROUPS = {
    "Control": (
        *("workdir", "num", "seed", "seeds", "scales", "balance", "start", "end", "also"),
        "prompts",
    ),
    "Files": ("name", "best", "raw", "ema_length", "weights", "config"),
    "Sampling": ("sampler", "steps", "guidance", "grid", "eta", "variance"),
}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights", "best", "raw", "ema_length", "sampling")


def main() -> None:
    """Draw images by hints with every setting of the flags, and write pictures and measures.

    Raises:
        UsageError: the run trained no ControlNet, or an unknown prompt.
    """
    if unknown := [name for name in TOLD.value if name not in PROMPTS]:
        raise UsageError(
            f"--prompts={','.join(TOLD.value)}: unknown {unknown}; choose from {', '.join(PROMPTS)}"
        )
    cfg, folder = run_flags.read_config(), run_flags.read_workdir()
    if not find_task_kind(cfg).takes_hints:
        raise UsageError(f"{folder} holds a run of task {cfg.task!r}, not of a ControlNet")
    run = run_flags.open_run(cfg)
    # ControlNets of other runs join that of this one, on the same base.
    others = [runs.open_control(other) for other in ALSO.value]
    configs = [cfg, *(config for config, _ in others)]
    nets = [*run.model.controls, *(network for _, network in others)]
    drawer = runs.Drawer(cfg, run.model._replace(controls=tuple(nets)), folder)
    num = flags.FLAGS.num or cfg.sample.num
    # Every network reads the hints that it was trained on, of the same images.
    batch = take_examples(cfg, num, folder)
    hints = [make_hints(config)(batch) for config in configs]
    first, settings = flags.FLAGS.seed, list_settings(cfg)
    rows, report = [draw_hints(hints[0], cfg.data.channels)], []
    for prompt, seed in itertools.product(TOLD.value, range(first, first + SEEDS.value)):
        inputs, base = make_input_reader(drawer.model, batch, hints, prompt=prompt), None
        for scale, balance in settings:
            strengths = [runs.Strength(scale, START.value, END.value)] * len(hints)
            images = drawer.draw(
                num=num, seed=seed, inputs=inputs, strengths=strengths, balance=balance
            )
            # The first setting is the base alone, with the same noise.
            base = images if base is None else base
            found = {"prompt": prompt, "seed": seed, "scale": scale, "balance": balance, "num": num}
            for config, hint in zip(configs, hints, strict=True):
                found |= measure_hints(config, hint, images)
            found["change"] = float(np.abs(images - base).max())
            report.append(found | measure_images(cfg, images, batch["image"]))
            logging.info("%s", report[-1])
            rows += [images] * (seed == first)
    # The images that the hints come from end the picture.
    rows.append(batch["image"])
    columns = min(num, SHOWN)
    out = folder / "control" / NAME.value
    picture = tile(np.concatenate([row[:columns] for row in rows]), columns=columns)
    save_png(picture, out.with_suffix(".png"))
    write_json(out.with_suffix(".json"), {"step": int(run.state.step), "settings": report})
    logging.info("written to %s.png and .json", out)


def list_settings(cfg: ConfigDict) -> Sequence[tuple[float, str]]:
    """List (scale, balance) of each row: no control first, then every setting of the flags."""
    balances = BALANCE.value or [cfg.control.balance]
    return [(0.0, "balanced"), *itertools.product(map(float, SCALES.value), balances)]


def measure_images(cfg: ConfigDict, images: np.ndarray, real: np.ndarray) -> JsonObject:
    """Measure the distance of images to real ones, and scores, if there are enough for them.

    Args:
        images, real: (N, H, W, C) in [-1, 1].

    Returns:
        Numbers by name; empty for fewer than `ENOUGH` images, or without a feature network.
    """
    if not cfg.eval.features or len(images) < ENOUGH:
        return {}
    return measure_distance(metrics.feature_network(cfg.eval.features), images, real)


if __name__ == "__main__":
    run_flags.run(main, USES)
