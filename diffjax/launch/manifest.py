"""sweep.json: the runs of a sweep, what each of them overrides, and how far it is.

The file is written after every change. So a sweep that was killed goes on where it stopped, and a
second invocation with the same command adds to it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffjax.launch.jobs import LOG
from diffjax.launch.overrides import Overrides
from diffjax.types import ConfigError
from diffjax.writing import write_atomically

FILE = "sweep.json"


@dataclasses.dataclass
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: of its folder in that of the sweep.
        overrides: values by key of the config, in which it differs from the other runs.
        status: waiting, running, done or failed.
        job: what the executor calls it while it runs; empty before and after.
        tries: how often it was started in this invocation of the sweep.
        code: its last exit code, if it is known.
    """

    name: str
    overrides: dict[str, Any]
    status: str = "waiting"
    job: str = ""
    tries: int = 0
    code: int | None = None


class Manifest:
    """The runs of a sweep in order. A run is known by its overrides.

    Attributes:
        folder: of the sweep; each run has a folder in it.
        overrides: what the command overrides for all runs.
        runs: the runs, old and new.
    """

    def __init__(self, folder: Path, config: str, overrides: dict[str, str]):
        """Read the sweep.json of a folder, or begin a new one.

        Args:
            folder: of the sweep.
            config: FILE:VARIANT.
            overrides: what the command overrides for all runs.

        Raises:
            ConfigError: the folder holds a sweep of another config, or with other overrides.
        """
        self._path, self._config, self.overrides = folder / FILE, config, overrides
        self.folder = folder
        stored = json.loads(self._path.read_text()) if self._path.exists() else {}
        if stored.get("config", config) != config:
            raise ConfigError(
                f"{self._path} is a sweep of {stored['config']}, not of {config}; choose another "
                "workdir"
            )
        if stored.get("overrides", overrides) != overrides:
            raise ConfigError(
                f"the runs of {self._path} were started with {stored['overrides'] or 'nothing'} "
                f"overridden, not {overrides or 'nothing'}; choose another workdir"
            )
        self.runs = [SweepRun(**row) for row in stored.get("runs", [])]

    def add(self, overrides: Overrides) -> SweepRun:
        """Return the run with these overrides; it is added if there is none yet."""
        plain = json.loads(json.dumps(dict(overrides)))
        for run in self.runs:
            if run.overrides == plain:
                return run
        self.runs.append(SweepRun(make_folder_name(len(self.runs), plain), plain))
        return self.runs[-1]

    def is_finished(self, run: SweepRun) -> bool:
        """Whether the summary.json of a run says that it was trained to its end."""
        path = self.folder / run.name / "summary.json"
        return path.exists() and bool(json.loads(path.read_text()).get("finished", False))

    def check_success(self) -> None:
        """Check that no run has failed.

        Raises:
            RuntimeError: some have; the message names three of them and the log of one.
        """
        if failed := [run.name for run in self.runs if run.status == "failed"]:
            raise RuntimeError(
                f"{len(failed)} of {len(self.runs)} runs failed: {', '.join(failed[:3])}; see "
                f"{self.folder / failed[0] / LOG}"
            )

    def save(self) -> None:
        """Write sweep.json as a whole."""
        rows = [dataclasses.asdict(run) for run in self.runs]
        content = {"config": self._config, "overrides": self.overrides, "runs": rows}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(content, indent=2) + "\n")

    def select_unfinished(
        self, proposals: Iterable[Overrides], check: Callable[[Overrides], None]
    ) -> Iterator[SweepRun]:
        """Add runs while the proposals last, and yield those that are not finished.

        Args:
            proposals: overrides of the runs, one after the other.
            check: raises an error if the config does not take the overrides.
        """
        for overrides in proposals:
            check(overrides)
            run = self.add(overrides)
            run.status = "done" if self.is_finished(run) else run.status
            self.save()
            if run.status != "done":
                run.tries = 0
                yield run


def make_folder_name(index: int, overrides: Overrides) -> str:
    """Make a folder name for any file system: number and overrides of the run, cut to fit."""
    text = "-".join(f"{key.rpartition('.')[2]}={_shorten(v)}" for key, v in overrides.items())
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=-_.") else "_" for c in text)
    return f"{index:03d}-{safe}"[:80]


def _shorten(value: object) -> str:
    """Format a value for the name of a folder."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
