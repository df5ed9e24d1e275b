"""Train any config; run the same command again to resume.

    python -m experiments.train --config=configs/ddpm.py:digits --workdir=runs/digits

Writes to the workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/ with a grid
of images at intervals, summary.json with sizes and times, classes.json with the names of classes
that the model is told, and with --config.train.evaluate_every the measures in the log and the best
state in best/. Exit codes: 0 done, 1 error, 2 wrong flags; stopped with the state saved: 130 by
Ctrl-C, 140 by SIGUSR2, 143 by SIGTERM.

Under Slurm and on TPU pods the processes of a run find each other. Elsewhere, start each with
--coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from diffjax import metrics, runs
from diffjax.config import resolve
from diffjax.evaluation import measure_distance
from diffjax.evaluation.hint_fidelity import measure_control
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.train import Preempted, Reporter, State, hosts, train
from diffjax.train.loop import check_workdir
from experiments import (
    common,
    controlled,
    finetuning,
    first_stage,
    frozen,
    generation,
    real_images,
)

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the resolved config and stop.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, if several train together."
)
PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes that train together.")
PROCESS = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
WAIT = flags.DEFINE_float("wait", 300.0, "Seconds to wait for the other processes at the start.")
HEARTBEAT = flags.DEFINE_float("heartbeat", 100.0, "Seconds after which a silent process is dead.")
PREVIEW_STEPS = 50


def _quick(cfg: Any) -> Any:
    """The config with few steps of DDIM, for looks at a model in training."""
    steps = min(PREVIEW_STEPS, cfg.sample.steps)
    return generation.with_sample(cfg, sampler="ddim", eta=0.0, steps=steps)


def _preview(cfg: Any, task: Any, folder: Any) -> Any:
    """Callback that writes a grid of DDIM samples from the averaged parameters.

    Those of a ControlNet stand below the hints of test images that control them.
    """
    if cfg.task == "autoencoder":
        return first_stage.make_preview(cfg, folder)
    if cfg.task == "classifier":
        return None
    preview, compiled = _quick(cfg), {}
    num, columns, above = min(cfg.sample.num, 64), None, []
    if cfg.task == "controlnet":
        num = columns = min(cfg.sample.num, 16)
        hints = controlled.examples(cfg, num)["hint"]
        above = [controlled.as_pictures(hints, cfg.data.channels)]

    def write(state: State, given: Any, step: int, reporter: Reporter) -> None:
        model = common.assemble(cfg, state, given)
        images = generation.Drawer(preview, model, compiled=compiled).draw(
            num=num, batch_size=num, progress=f"preview at step {step}"
        )
        if not hosts.is_writer():
            return
        picture = tile(np.concatenate([*above, images]), columns=columns)
        save_png(picture, folder / "samples" / f"{step:08d}.png")
        reporter.image("samples", step, picture)

    return write


def _evaluator(cfg: Any, task: Any) -> Any:
    """Callback that measures DDIM samples of the averaged parameters; None if not asked for.

    Distances are those of our own small classifier, with every image seed the same, so that the
    values of a run compare with each other.

    Raises:
        UsageError: there is no classifier for this data set.
    """
    if not cfg.train.evaluate_every:
        return None
    if cfg.task == "autoencoder":
        return lambda state, given, step: first_stage.measure(cfg, state, cfg.eval.loop_num)
    if cfg.task == "controlnet":
        return _control_evaluator(cfg)
    if not cfg.eval.features:
        raise common.UsageError("train.evaluate_every needs a classifier: config.eval.features")
    network = metrics.feature_network(cfg.eval.features)
    num = cfg.eval.loop_num
    (real, _), quick = real_images.take(cfg, num), _quick(cfg)
    compiled: dict[Any, Any] = {}

    def measure(state: State, given: Any, step: int) -> dict[str, float]:
        model = common.assemble(cfg, state, given)
        drawer = generation.Drawer(quick, model, compiled=compiled)
        images = drawer.draw(num=num, progress=f"evaluation at step {step}")
        found = measure_distance(network, images, real, model.num_classes)
        return {k: v for k, v in found.items() if isinstance(v, float)}

    return measure


def _control_evaluator(cfg: Any) -> Any:
    """Callback that measures how hints of test images are kept to, with and without the prompt."""
    batch, compiled = controlled.examples(cfg, cfg.eval.loop_num), {}
    hints, features = batch["hint"], cfg.eval.features
    network = metrics.feature_network(features) if features else None

    def measure(state: State, given: Any, step: int) -> dict[str, float]:
        model = common.assemble(cfg, state, given)
        drawer = generation.Drawer(_quick(cfg), model, compiled=compiled)

        def draw(prompt: bool) -> np.ndarray:
            inputs = controlled.inputs_of(model, batch, [hints], prompt=prompt)
            return drawer.draw(num=len(hints), inputs=inputs)

        return measure_control(
            draw,
            lambda images: controlled.fidelity(cfg, hints, images),
            network=network,
            real=batch["image"],
        )

    return measure


FLAG_GROUPS = {
    "Run": ("config", "workdir", "dry_run", "weights"),
    "Several processes": ("coordinator", "num_processes", "process_id", "wait", "heartbeat"),
}
USES = ("config", "workdir", "weights")  # flags of other modules


def main() -> None:
    cfg = common.config()
    if DRY_RUN.value:
        print(common.describe(cfg))
        return
    folder = common.workdir()
    hosts.start(
        COORDINATOR.value,
        PROCESSES.value,
        PROCESS.value,
        seconds=WAIT.value,
        heartbeat=HEARTBEAT.value,
    )
    if common.WEIGHTS.value:
        raise common.UsageError(
            "training does not begin with --weights: an interrupted run goes on with its workdir, "
            "published models are fine-tuned by config.model.path (docs/stable_diffusion.md)"
        )
    check_workdir(folder)
    # The first process writes what the others read: a data set to prepare, tokenizers.
    source = hosts.in_turn("data", lambda: common.source_of(cfg), seconds=24 * 3600)
    hosts.in_turn("tokenizers", lambda: runs.keep_tokenizers(cfg, folder))
    given = frozen.load(cfg, folder, fresh=True)
    task = common.task_of(cfg)  # not before: a model may have settled the scale of its latents
    shapes = common.abstract_state(cfg, task)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params))
    logging.info(
        "training %s parameters on %d images of %s, %d device(s)",
        f"{count:,}", len(source), cfg.data.name, jax.device_count(),
    )  # fmt: skip
    runs.keep_classes(cfg, folder, source)
    record = runs.Record(folder, cfg, count)
    try:
        state = train(
            task,
            cfg,
            folder,
            common.batches_of(cfg, source),
            frozen=given,
            initial=finetuning.initial(cfg, shapes.params),
            data=source.fingerprint() if source.fingerprint else None,
            on_sample=_preview(cfg, task, folder),
            on_evaluate=_evaluator(cfg, task),
            resolve=resolve,
        )
        record.write_session(int(state.step), finished=True)
    except Preempted as stopped:
        record.write_session()
        logging.warning("%s", stopped)
        sys.exit(stopped.exit_code)
    after = "control" if cfg.task == "controlnet" else "sample"
    logging.info(
        "trained to step %d in %.1f minutes; next: python -m experiments.%s --workdir=%s",
        int(state.step), record.count_minutes(), after, shlex.quote(str(folder)),
    )  # fmt: skip


if __name__ == "__main__":
    common.run(main, USES)
