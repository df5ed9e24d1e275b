"""Train any config; run the same command again to resume.

    python -m experiments.train --config=configs/ddpm.py:digits --workdir=runs/digits

Writes to the workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/ with a grid
of images at intervals, real.png with training images, summary.json with sizes and times,
classes.json with the names of classes that the model is told, and with
--config.train.evaluate_every the measures in the log and the best state in best/. Exit codes: 0
done, 1 error, 2 wrong flags; stopped with the state saved: 130 by Ctrl-C, 140 by SIGUSR2, 143 by
SIGTERM.

Under Slurm and on TPU pods the processes of a run find each other. Elsewhere, start each with
--coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

from __future__ import annotations

import shlex
import sys

import jax
import numpy as np
from absl import flags, logging

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.config import resolve
from diffjax.config.variants import keep_file
from diffjax.runs.callbacks import choose_evaluation, choose_preview
from diffjax.runs.finetuning import choose_initial
from diffjax.runs.real_images import keep_real_pictures
from diffjax.tasks import find_task_kind
from diffjax.train import Preempted, hosts, train
from diffjax.train.trackers import check_trackers
from diffjax.train.training_loop import check_workdir
from diffjax.xla import set_gpu_level

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the resolved config and stop.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, if several train together."
)
PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes that train together.")
PROCESS = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
WAIT = flags.DEFINE_float("wait", 300.0, "Seconds to wait for the other processes at the start.")
HEARTBEAT = flags.DEFINE_float("heartbeat", 100.0, "Seconds after which a silent process is dead.")

FLAG_GROUPS = {
    "Run": ("config", "workdir", "dry_run", "weights"),
    "Several processes": ("coordinator", "num_processes", "process_id", "wait", "heartbeat"),
}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights")


def _start_process() -> None:
    """Join the other processes that the flags name, and settle how programs are compiled."""
    hosts.start(
        COORDINATOR.value,
        PROCESSES.value,
        PROCESS.value,
        seconds=WAIT.value,
        heartbeat=HEARTBEAT.value,
    )
    set_gpu_level()


def main() -> None:
    """Train the config of the flags in the workdir, or resume the run that is there.

    All that can be refused is refused before the data are read: trackers, the workdir, the flags. A
    run that is told to stop saves its state and exits with the code of the signal.

    Raises:
        UsageError: --weights is given, or a flag is missing.
        ConfigError: the config is wrong, or does not fit its data or the run in the workdir.
    """
    cfg = run_flags.read_config()
    if DRY_RUN.value:
        print(run_flags.format_config(cfg))
        return
    folder = run_flags.read_workdir()
    _start_process()
    if run_flags.WEIGHTS.value:
        raise UsageError(
            "training does not begin with --weights: an interrupted run resumes from its workdir, "
            "published models are fine-tuned by config.model.path (docs/stable_diffusion.md)"
        )
    check_trackers(cfg.train.trackers)  # before the data, which may take hours
    check_workdir(folder)
    # The first process writes what the others read: a data set to prepare, tokenizers.
    source = hosts.run_in_turn("data", lambda: runs.load_source(cfg, folder=folder), seconds=86400)
    hosts.run_in_turn("tokenizers", lambda: runs.keep_tokenizers(cfg, folder))
    # This reads what the config names, not what the workdir holds: the trainer compares both.
    frozen = runs.load_fixed_parts(cfg, folder, fresh=True)
    task = runs.build_task(cfg)  # not before: a model may have settled the scale of its latents
    shapes = runs.make_abstract_state(cfg, task)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params))
    logging.info(
        "training %s parameters on %d images of %s, %d device(s)",
        f"{count:,}", len(source), cfg.data.name, jax.device_count(),
    )  # fmt: skip
    runs.keep_classes(cfg, folder, source)
    if hosts.is_writer():
        keep_file(run_flags.read_config_name(), folder)
        keep_real_pictures(cfg, folder, source)
    record = runs.Record(folder, cfg, count)
    try:
        state = train(
            task,
            cfg,
            folder,
            runs.start_batches(cfg, source),
            frozen=frozen,
            initial=choose_initial(cfg, shapes.params, frozen, folder),
            data=source.fingerprint() if source.fingerprint else None,
            on_sample=choose_preview(cfg, folder),
            on_evaluate=choose_evaluation(cfg, folder),
            resolve=resolve,
        )
        record.write_session(int(state.step), finished=True)
    except Preempted as stopped:
        record.write_session()
        logging.warning("%s", stopped)
        sys.exit(stopped.exit_code)
    after = "control" if find_task_kind(cfg).takes_hints else "sample"
    logging.info(
        "trained to step %d in %.1f minutes; next: python -m experiments.%s --workdir=%s",
        int(state.step), record.count_minutes(), after, shlex.quote(str(folder)),
    )  # fmt: skip


if __name__ == "__main__":
    run_flags.run(main, USES)
