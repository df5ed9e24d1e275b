"""sweep.json: the runs of a sweep, what each of them overrides, and how far it is."""

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
        status: waiting, running, done or failed.
        job: what the executor calls it while it runs.
        tries: how often it was started since it was last waiting for its first start.
        code: its last exit code, if it is known.
    """

    name: str
    overrides: dict[str, Any]
    status: str = "waiting"
    job: str = ""
    tries: int = 0
    code: int | None = None


class Manifest:
    """The runs of a folder in order. A run is known by its overrides.

    Args:
        folder: of the sweep; each run has a folder in it.
        config: FILE:VARIANT.
        overrides: what the command overrides for all runs.

    Raises:
        ConfigError: the folder holds a sweep of another config, or with other overrides.
    """

    def __init__(self, folder: Path, config: str, overrides: dict[str, str]):
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
        """The run with these overrides, which is new if there is none yet."""
        plain = json.loads(json.dumps(dict(overrides)))
        for run in self.runs:
            if run.overrides == plain:
                return run
        self.runs.append(SweepRun(make_folder_name(len(self.runs), plain), plain))
        return self.runs[-1]

    def is_finished(self, run: SweepRun) -> bool:
        """Whether the run itself says that it trained to the end."""
        path = self.folder / run.name / "summary.json"
        return path.exists() and bool(json.loads(path.read_text()).get("finished", False))

    def check_success(self) -> None:
        """
        Raises:
            RuntimeError: some runs failed; the message names three of them and a log.
        """
        if failed := [run.name for run in self.runs if run.status == "failed"]:
            raise RuntimeError(
                f"{len(failed)} of {len(self.runs)} runs failed: {', '.join(failed[:3])}; see "
                f"{self.folder / failed[0] / LOG}"
            )

    def save(self) -> None:
        """Write sweep.json."""
        rows = [dataclasses.asdict(run) for run in self.runs]
        content = {"config": self._config, "overrides": self.overrides, "runs": rows}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(content, indent=2) + "\n")

    def select_unfinished(
        self, proposals: Iterable[Overrides], check: Callable[[Overrides], None]
    ) -> Iterator[SweepRun]:
        """Add runs while the proposals last, and yield those that are not finished.

        Args:
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
    """A name for any file system: the number, and as much of the overrides as fits."""
    text = "-".join(f"{key.rpartition('.')[2]}={_shorten(v)}" for key, v in overrides.items())
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=-_.") else "_" for c in text)
    return f"{index:03d}-{safe}"[:80]


def _shorten(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
