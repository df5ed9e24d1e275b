"""Many runs of one config: expand its sweep, run what is not finished, show one table.

    python -m experiments.sweep --config=configs/ddpm.py:digits --workdir=runs/lr --parallel=2
    python -m experiments.report --workdir=runs/lr

A config file has `sweep()`, which yields overrides, or `space()`, from which --trials=N are drawn
at random or proposed by Optuna (configs/sweeps.py has the forms). sweep.json in the workdir lists
the runs. Started again, the sweep skips what is finished and resumes the rest. Where runs happen:
--executor=local, slurm (submitit), or kubernetes-manifest, which writes Jobs for kubectl.
Overrides after the command (--config.train.steps=100) hold for every run.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

from configs import sweeps
from diffjax.train.files import sole_writer
from diffjax.types import choose
from diffjax.writing import write_atomically
from experiments import common, executors
from experiments.compare import metric_of, progress_table

EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm", "kubernetes-manifest"], "Where runs happen."
)
PARALLEL = flags.DEFINE_integer("parallel", 1, "How many runs at once.", lower_bound=1)
TRIALS = flags.DEFINE_integer("trials", 0, "Runs to draw from space(); 0: those of sweep().")
SEARCH = flags.DEFINE_enum("search", "random", ["random", "optuna"], "How --trials are chosen.")
METRIC = flags.DEFINE_string("metric", "loss", "What Optuna improves.")
MODE = flags.DEFINE_enum("mode", "min", ["min", "max"], "Whether small or large is better.")
RETRIES = flags.DEFINE_integer("retries", 3, "Times a run is started again after being killed.")
SLURM = flags.DEFINE_list(
    "slurm", [], "Options of submitit, e.g. slurm_partition=gpu,nodes=2,timeout_min=600."
)
IMAGE = flags.DEFINE_string("image", "diffjax:latest", "Image of the Kubernetes jobs.")
RESOURCES = flags.DEFINE_list(
    "resources", ["nvidia.com/gpu=1"], "What each of them is given, e.g. google.com/tpu=4,cpu=8."
)
CLAIM = flags.DEFINE_string("claim", "runs", "Their volume claim, mounted at the workdir.")

MANIFEST = "sweep.json"
POLL_SECONDS = 0.5


@dataclasses.dataclass
class Run:
    """One run of a sweep, as the manifest has it."""

    name: str
    overrides: dict[str, Any]
    status: str = "waiting"  # running, done, failed
    job: str = ""
    tries: int = 0
    code: int | None = None


def name_of(index: int, overrides: dict[str, Any]) -> str:
    """A folder's name: the number, and what is overridden as far as it fits."""
    text = "-".join(f"{key.rpartition('.')[2]}={_short(v)}" for key, v in overrides.items())
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=-_.") else "_" for c in text)
    return f"{index:03d}-{safe}"[:80]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Manifest:
    """sweep.json: the runs of a workdir in order; known by their overrides."""

    def __init__(self, folder: Path, config: str, overrides: dict[str, str]):
        self._path, self._config, self.overrides = folder / MANIFEST, config, overrides
        self.folder = folder
        stored = json.loads(self._path.read_text()) if self._path.exists() else {}
        if stored.get("config", config) != config:
            raise common.UsageError(
                f"{self._path} is a sweep of {stored['config']}, not of {config}; choose another "
                "workdir"
            )
        if stored.get("overrides", overrides) != overrides:
            raise common.UsageError(
                f"the runs of {self._path} were started with {stored['overrides'] or 'nothing'} "
                f"overridden, not {overrides or 'nothing'}; choose another workdir"
            )
        self.runs = [Run(**row) for row in stored.get("runs", [])]

    def add(self, overrides: dict[str, Any]) -> Run:
        """The run with these overrides, new if there is none yet."""
        overrides = json.loads(json.dumps(overrides))
        for run in self.runs:
            if run.overrides == overrides:
                return run
        self.runs.append(Run(name_of(len(self.runs), overrides), overrides))
        return self.runs[-1]

    def finished(self, run: Run) -> bool:
        """Whether the run itself says that it trained to the end."""
        path = self.folder / run.name / "summary.json"
        return path.exists() and json.loads(path.read_text()).get("finished", False)

    def save(self) -> None:
        rows = [dataclasses.asdict(run) for run in self.runs]
        common.save_json(
            {"config": self._config, "overrides": self.overrides, "runs": rows}, self._path
        )


def check_overrides(config: str, overrides: dict[str, Any]) -> None:
    """See that a config has these keys, with values of their types.

    Raises:
        UsageError: naming the override.
    """
    cfg = common.load_config(config).lock()
    for key, value in overrides.items():
        try:
            cfg.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            text = str(error.args[0] if error.args else error).splitlines()[0]
            raise common.UsageError(f"the sweep overrides {key}={value!r}: {text}") from error


def proposals(module: Any, manifest: Manifest, config: str) -> Iterator[dict[str, Any]]:
    """Overrides, one after the other: the sweep's own, random draws, or Optuna's.

    Raises:
        UsageError: the config has no sweep, or none for --trials.
    """
    wanted = "space" if TRIALS.value else "sweep"
    if not hasattr(module, wanted):
        raise common.UsageError(f"{config} has no {wanted}(); configs/sweeps.py shows its form")
    if not TRIALS.value:
        yield from module.sweep()
    elif SEARCH.value == "random":
        yield from (sweeps.draw(module.space(), trial) for trial in range(TRIALS.value))
    else:
        yield from _optuna(module.space(), manifest)


def _optuna(space: dict[str, Any], manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Proposals of a TPE sampler that has seen every finished run; stored ones come first."""
    try:
        import optuna
    except ImportError as error:
        raise common.UsageError(
            "--search=optuna needs Optuna: pip install 'diffjax[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {key: sweeps.parse(key, axis) for key, axis in space.items()}
    table: dict[str, Callable[..., Any]] = {
        "choice": lambda *values: optuna.distributions.CategoricalDistribution(values),
        "int": optuna.distributions.IntDistribution,
        "float": optuna.distributions.FloatDistribution,
        "log": lambda low, high: optuna.distributions.FloatDistribution(low, high, log=True),
    }
    where = {k: choose("axis", kind, table)(*values) for k, (kind, values) in axes.items()}
    yield from (dict(run.overrides) for run in list(manifest.runs)[: TRIALS.value])
    for trial in range(len(manifest.runs), TRIALS.value):
        study = optuna.create_study(
            direction="minimize" if MODE.value == "min" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=trial, n_startup_trials=4),
        )
        for run in manifest.runs:
            value = metric_of(manifest.folder / run.name, METRIC.value)
            if run.status == "done" and value is not None:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=run.overrides, distributions=where, value=value
                    )
                )
        yield study.ask(where).params


class Sweep:
    """Keeps as many runs going as are allowed, until none is left."""

    def __init__(self, manifest: Manifest, config: str, executor: Any):
        self._manifest, self._config, self._executor = manifest, config, executor
        self._running: list[Run] = []
        self._again: list[Run] = []

    def job(self, run: Run) -> executors.Job:
        folder = self._manifest.folder / run.name
        overrides = {**self._manifest.overrides, **run.overrides}
        return executors.Job(
            run.name, executors.train_command(self._config, folder, overrides), folder
        )

    def run_all(self, todo: Iterator[Run], show: Callable[[], None]) -> None:
        """Run until there is no more to do."""
        while True:
            while len(self._running) < PARALLEL.value:
                run = self._again.pop(0) if self._again else next(todo, None)
                if run is None:
                    break
                if run not in self._running:  # proposed again
                    self._start(run)
            if not self._running:
                return
            time.sleep(POLL_SECONDS)
            for name, code in self._executor.ended().items():
                self._end(next(r for r in self._running if r.name == name), code)
            show()

    def _start(self, run: Run) -> None:
        known = isinstance(self._executor, executors.Slurm) and run.job
        if not (known and self._executor.adopt(run.name, run.job)):
            run.job, run.tries = self._executor.start(self.job(run)), run.tries + 1
        run.status, run.code = "running", None
        self._running.append(run)
        self._manifest.save()

    def _end(self, run: Run, code: int | None) -> None:
        self._running.remove(run)
        run.code, run.job = code, ""
        if self._manifest.finished(run):
            run.status = "done"
        elif code in (None, *executors.STOPPED) or code < 0:  # killed or told to stop: go on
            run.status = "waiting" if run.tries <= RETRIES.value else "failed"
            if run.status == "waiting":
                self._again.append(run)
        else:
            run.status = "failed"  # by itself: the same would happen again
        self._manifest.save()


def _unfinished(manifest: Manifest, module: Any, config: str) -> Iterator[Run]:
    """Runs to be made, while the proposals last; what is finished is marked and left out."""
    for overrides in proposals(module, manifest, config):
        check_overrides(config, overrides)
        run = manifest.add(overrides)
        run.status = "done" if manifest.finished(run) else run.status
        manifest.save()
        if run.status != "done":
            run.tries = 0
            yield run


def _options(items: list[str]) -> dict[str, Any]:
    pairs = [item.partition("=")[::2] for item in items]
    return {k: int(v) if v.lstrip("-").isdigit() else v for k, v in pairs}


def _overrides(argv: list[str]) -> dict[str, str]:
    """--config.key=value of the command line."""
    pairs = [a.lstrip("-").partition("=")[::2] for a in argv if a.lstrip("-").startswith("config.")]
    return {key.removeprefix("config."): value for key, value in pairs}


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt(signum)


USES = ("config", "workdir")  # flags of other modules


def main() -> None:
    common.config()
    config, folder = common.config_name(), common.workdir()
    module = common.load_config_module(config.partition(":")[0])
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        manifest = Manifest(folder, config, _overrides(sys.argv))
        todo = _unfinished(manifest, module, config)
        if EXECUTOR.value == "kubernetes-manifest":
            _write_kubernetes(Sweep(manifest, config, None), list(todo))
            return
        slurm = EXECUTOR.value == "slurm"
        executor: Any = (
            executors.Slurm(folder / "slurm", _options(SLURM.value))
            if slurm
            else executors.Local(PARALLEL.value)
        )
        table = progress_table(folder, manifest.runs)
        for signum in (signal.SIGTERM, signal.SIGHUP):  # HUP: the terminal is gone
            signal.signal(signum, _interrupt)
        try:
            Sweep(manifest, config, executor).run_all(todo, table)
        except KeyboardInterrupt as stopped:
            logging.warning("stopping; the same command goes on from here")
            executor.stop()
            manifest.save()
            sys.exit(128 + (stopped.args[0] if stopped.args else signal.SIGINT))
        table(last=True)
    failed = [run.name for run in manifest.runs if run.status == "failed"]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(manifest.runs)} runs failed: {', '.join(failed[:3])}; see "
            f"{folder / failed[0] / executors.LOG}"
        )
    logging.info("%d runs done; next: python -m experiments.report --workdir=%s",
                 len(manifest.runs), shlex.quote(str(folder)))  # fmt: skip


def _write_kubernetes(sweep: Sweep, runs: list[Run]) -> None:
    folder = common.workdir()
    if not folder.is_absolute():
        raise common.UsageError(
            f"--workdir={folder} is where the pods have the volume: an absolute path is needed"
        )
    text = executors.kubernetes(
        [sweep.job(run) for run in runs],
        image=IMAGE.value,
        claim=CLAIM.value,
        workdir=folder,
        resources=dict(item.partition("=")[::2] for item in RESOURCES.value),
    )
    path = folder / "kubernetes.json"
    write_atomically(path, text + "\n")
    shown = shlex.quote(str(path))
    logging.info("%d jobs in %s; next: kubectl apply -f %s", len(runs), path, shown)


if __name__ == "__main__":
    common.run(main, USES)
