"""Services that show the metrics of runs: Weights & Biases and trackio, chosen by name.

They come beside metrics.jsonl and TensorBoard, which `Reporter` writes. A tracker that fails is a
warning, because a training must not end with the service that watches it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from diffjax.train.resume import to_json_tree
from diffjax.types import ConfigError, choose
from diffjax.writing import write_atomically

ID_FILE = "tracking_id"  # in the workdir
LOGIN_SECONDS = 30  # time to answer a service that asks for a login
FINISH_SECONDS = 60  # time to upload the rest when the training ends
_PROJECT_CHARACTERS = 128  # longest name of a project for Weights & Biases


class Tracker(Protocol):
    """A service that shows the metrics and pictures of one run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Add an (H, W, C) uint8 picture."""

    def close(self) -> None:
        """Send what is left."""


class TrackedRun(NamedTuple):
    """What a service needs to know of a run.

    Attributes:
        project: name of the folder that holds the workdir.
        name: name of the workdir.
        id: stays with the workdir, so that a resumed run continues where it was.
        folder: the workdir.
        config: the config as nested dicts.
    """

    project: str
    name: str
    id: str
    folder: Path
    config: dict[str, object]


class WandB(Tracker):
    """Weights & Biases; its files are in the folder wandb of the workdir.

    Its x-axis is the metric ``step``, so that steps that come again after a crash or a rollback are
    accepted. The environment variables of wandb count, such as WANDB_MODE=offline.
    """

    def __init__(self, run: TrackedRun):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=run.config,
            allow_val_change=True,  # a resumed run may change what is free to change
            settings=wandb.Settings(login_timeout=LOGIN_SECONDS, finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        self._run.log({name: self._image(_to_pillow(picture)), "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """trackio, which keeps runs on this machine, or where TRACKIO_SPACE_ID or _SERVER_URL say.

    It knows runs by their names, so the name ends with the id.
    """

    def __init__(self, run: TrackedRun):
        import trackio

        self._image, self._finish = trackio.Image, trackio.finish
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config=run.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        self._run.log({name: self._image(_to_pillow(picture))}, step=step)

    def close(self) -> None:
        self._finish()


# The keys are names of packages, and of extras of this package.
TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"trackio": Trackio, "wandb": WandB}


def check_trackers(names: Sequence[str]) -> None:
    """Check that ``train.trackers`` are known and their packages installed.

    Raises:
        ConfigError: one is not; the message says what to install.
    """
    for name in names:
        try:
            choose("tracker in train.trackers", name, TRACKERS)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        found = importlib.util.find_spec(name)
        # A folder of that name, which wandb makes where it runs, can be imported too.
        if found is None or found.origin is None:
            raise ConfigError(
                f"train.trackers has {name!r}, but the package {name} is not installed: "
                f"pip install 'diffjax[{name}]'"
            )


@contextlib.contextmanager
def start_trackers(
    names: Sequence[str], workdir: Path, config: ConfigDict
) -> Iterator[list[Tracker]]:
    """Start the trackers of a workdir's run, and close them at the end of the block.

    None of their errors stops the training, see `_Guarded`.

    Args:
        names: keys of `TRACKERS`.
        workdir: of the run.
        config: shown by the services.
    """
    if not names:
        yield []
        return
    where = workdir.resolve()
    project = re.sub(r"[/\\#?%:]", "-", where.parent.name) or "diffjax"
    run = TrackedRun(
        project[:_PROJECT_CHARACTERS],
        where.name,
        _read_id(workdir),
        where,
        to_json_tree(config) or {},
    )
    trackers: list[Tracker] = [_Guarded(name, run) for name in dict.fromkeys(names)]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def _read_id(workdir: Path) -> str:
    """Return the id of a workdir's run, which is drawn at its first start."""
    path = workdir / ID_FILE
    with contextlib.suppress(FileNotFoundError):
        if known := re.fullmatch(r"[0-9a-f]{8}", path.read_text().strip()):
            return known[0]
        logging.warning("%s holds no id of a run: trackers show the run as a new one", path)
    fresh = uuid.uuid4().hex[:8]
    write_atomically(path, f"{fresh}\n")
    return fresh


class _Guarded:
    """A tracker whose first error becomes a warning, after which it is not called again."""

    def __init__(self, name: str, run: TrackedRun):
        self._name = name
        self._tracker: Tracker | None = None
        with self._warn_once():
            self._tracker = TRACKERS[name](run)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker is not None:
            with self._warn_once():
                self._tracker.log(step, metrics)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        if self._tracker is not None:
            with self._warn_once():
                self._tracker.image(name, step, picture)

    def close(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with self._warn_once():
                tracker.close()

    @contextlib.contextmanager
    def _warn_once(self) -> Iterator[None]:
        """Turn an error of the block into a warning, and close the tracker."""
        try:
            yield
        except Exception as error:
            broken, self._tracker = self._tracker, None
            reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
            logging.warning(
                "%s does not track this run any further: %s. The training continues, and its "
                "metrics are in metrics.jsonl; the next start of the run tries again",
                *(self._name, reason),
            )
            with contextlib.suppress(Exception):
                if broken is not None:
                    broken.close()


def _to_pillow(picture: np.ndarray) -> Image.Image:
    """Convert an (H, W, C) uint8 picture of 1, 3 or 4 channels to a Pillow image."""
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
