"""Many runs of one config: expand its sweep, run what is not finished, show one table.

    python -m experiments.sweep --config=configs/ddpm.py:digits --workdir=runs/lr --parallel=2
    python -m experiments.report --workdir=runs/lr

A config file has `sweep()`, which yields overrides, or `space()`, from which --trials=N are drawn
at random or proposed by Optuna (configs/sweeps.py has the forms). sweep.json in the workdir lists
the runs. Started again, the sweep skips what is finished and resumes the rest. Overrides after the
command (--config.train.steps=100) hold for every run.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from absl import flags, logging

from configs import sweeps
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError, name_keys
from diffjax.cli.tables import LiveTable
from diffjax.config import load_config
from diffjax.config.variants import load_module
from diffjax.launch import jobs, kubernetes, local, optuna_search, overrides, slurm
from diffjax.launch.manifest import Manifest, SweepRun
from diffjax.launch.overrides import Overrides
from diffjax.launch.run_queue import RunQueue, interrupt_on_signals
from diffjax.runs.comparison import list_progress, read_measure
from diffjax.train.sealed_files import sole_writer
from diffjax.writing import write_atomically

EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm", "kubernetes-manifest"], "Where the runs happen."
)
PARALLEL = flags.DEFINE_integer("parallel", 1, "Most runs at a time.", lower_bound=1)
TRIALS = flags.DEFINE_integer("trials", 0, "Number of runs to draw from space(); 0 for sweep().")
SEARCH = flags.DEFINE_enum("search", "random", ["random", "optuna"], "How --trials are chosen.")
METRIC = flags.DEFINE_string("metric", "loss", "The measure that Optuna improves.")
MODE = flags.DEFINE_enum(
    "mode", "min", ["min", "max"], "Whether the lowest or the highest --metric is best."
)
RETRIES = flags.DEFINE_integer("retries", 3, "How often a run that was killed is started again.")
SLURM = flags.DEFINE_list(
    "slurm", [], "Options of submitit, such as slurm_partition=gpu,nodes=2,timeout_min=600."
)
IMAGE = flags.DEFINE_string("image", "diffjax:latest", "Container image of the Kubernetes jobs.")
RESOURCES = flags.DEFINE_list(
    "resources", ["nvidia.com/gpu=1"], "Resources of each Kubernetes job, as in google.com/tpu=4."
)
CLAIM = flags.DEFINE_string("claim", "runs", "Volume claim that is mounted at --workdir.")

# Flags of other modules that this command uses.
USES = ("config", "workdir")
FLAG_GROUPS = {
    "Sweep": ("config", "workdir", "parallel", "executor", "retries"),
    "Search": ("trials", "search", "metric", "mode"),
    "Executors": ("slurm", "image", "resources", "claim"),
}
# The flags of arguments that messages of the library name.
FLAGS_BY_ARGUMENT = {name: f"--{name}" for name in ("claim", "image", "resources", "workdir")}


def make_train_command(config: str, folder: Path, changes: Overrides) -> tuple[str, ...]:
    """Make the command that trains a config in a folder with overrides.

    Args:
        config: FILE:VARIANT.
        folder: workdir of the run.
        changes: values by key of the config.

    Returns:
        The program and its arguments.
    """
    files = (f"--config={config}", f"--workdir={folder}")
    return (sys.executable, "-m", "experiments.train", *files, *overrides.format_overrides(changes))


def propose_overrides(module: ModuleType, manifest: Manifest, config: str) -> Iterator[Overrides]:
    """Propose overrides, one after the other: the sweep's own, random draws, or Optuna's.

    Args:
        module: the config file.
        manifest: of the sweep, which Optuna learns from.
        config: FILE:VARIANT, for messages.

    Raises:
        UsageError: the config file has no ``sweep()``, or no ``space()`` for --trials.
    """
    wanted = "space" if TRIALS.value else "sweep"
    if not hasattr(module, wanted):
        raise UsageError(f"{config} has no {wanted}(); configs/sweeps.py shows its form")
    if not TRIALS.value:
        return iter(module.sweep())
    if SEARCH.value == "random":
        return (sweeps.draw(module.space(), trial) for trial in range(TRIALS.value))
    axes = {key: sweeps.parse(key, axis) for key, axis in module.space().items()}

    def measure(run: SweepRun) -> float | None:
        """Read the value that Optuna improves; None for a run that does not have it."""
        return read_measure(manifest.folder / run.name, METRIC.value)

    options = {"maximize": MODE.value == "max"}
    return optuna_search.propose_overrides(axes, manifest, TRIALS.value, measure, **options)


def main() -> None:
    """Run what is not finished of a sweep, or write it for Kubernetes.

    Raises:
        ConfigError: the workdir holds another sweep, or the config does not take an override.
        RuntimeError: runs failed.
    """
    # The config is checked once here, so that a wrong one is not found by every run.
    run_flags.read_config()
    config, folder = run_flags.read_config_name(), run_flags.read_workdir()
    module = load_module(config.partition(":")[0])
    folder.mkdir(parents=True, exist_ok=True)
    # A second sweep of the same folder would start every run twice.
    with sole_writer(folder), name_keys(FLAGS_BY_ARGUMENT):
        manifest = Manifest(folder, config, overrides.parse_overrides(sys.argv))
        proposals = propose_overrides(module, manifest, config)
        todo = manifest.select_unfinished(
            proposals, lambda new: overrides.check_overrides(load_config(config), new)
        )

        def make_job(run: SweepRun) -> jobs.Job:
            """Make the job that trains a run in its own folder."""
            changes = {**manifest.overrides, **run.overrides}
            place = folder / run.name
            return jobs.Job(run.name, make_train_command(config, place, changes), place)

        # Kubernetes runs the jobs itself; there is nothing to watch over.
        if EXECUTOR.value == "kubernetes-manifest":
            _write_kubernetes([make_job(run) for run in todo], folder)
            return
        _run_all(manifest, todo, make_job)
    manifest.check_success()
    report = f"python -m experiments.report --workdir={shlex.quote(str(folder))}"
    logging.info("%d runs done; next: %s", len(manifest.runs), report)


def _run_all(
    manifest: Manifest, todo: Iterator[SweepRun], make_job: Callable[[SweepRun], jobs.Job]
) -> None:
    """Run until nothing is left; signals stop the sweep so that it can go on later.

    Args:
        todo: runs that are not finished.
        make_job: makes the job of a run.
    """
    executor: jobs.Executor = local.LocalExecutor(PARALLEL.value)
    if EXECUTOR.value == "slurm":
        executor = slurm.SlurmExecutor(manifest.folder / "slurm", slurm.parse_options(SLURM.value))
    table = LiveTable(lambda: list_progress(manifest.folder, manifest.runs))
    interrupt_on_signals()
    queue = RunQueue(manifest, executor, make_job, parallel=PARALLEL.value, retries=RETRIES.value)
    try:
        queue.run_all(todo, table.show)
    except KeyboardInterrupt as stopped:
        logging.warning("stopping; run the same command again to resume")
        # Local runs save and end; those of a cluster go on, and the next invocation finds them.
        executor.stop()
        manifest.save()
        sys.exit(128 + (stopped.args[0] if stopped.args else signal.SIGINT))
    table.show(last=True)


def _write_kubernetes(found: list[jobs.Job], folder: Path) -> None:
    """Write jobs as a manifest of Kubernetes into the workdir, and log how they are started.

    Args:
        found: jobs of the runs that are not finished.
        folder: workdir, which is the path of the volume in the pods too.

    Raises:
        ConfigError: Kubernetes would refuse a name or an amount.
    """
    resources = dict(item.partition("=")[::2] for item in RESOURCES.value)
    options = {"image": IMAGE.value, "claim": CLAIM.value, "workdir": folder}
    path = folder / "kubernetes.json"
    write_atomically(path, kubernetes.format_manifest(found, **options, resources=resources) + "\n")
    command = f"kubectl apply -f {shlex.quote(str(path))}"
    logging.info("%d jobs in %s; next: %s", len(found), path, command)


if __name__ == "__main__":
    run_flags.run(main, USES)
