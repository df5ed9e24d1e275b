"""Opening of trained and published models, by the path where they are.

`open_model` is ``diffjax.open``. `open_run` returns more of a run than its model, for the commands
that draw and measure.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax.config import read_config
from diffjax.model import ControlNetwork, Model
from diffjax.model.published import make_published_model
from diffjax.pretrained import download
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.pipelines import load_components
from diffjax.runs.drawing import Drawer
from diffjax.runs.fixed_parts import Parts, load_fixed_parts
from diffjax.runs.locate import COMPONENT, EXPORT, RUN, find_kind
from diffjax.runs.saving import WEIGHTS_FILE, PublishedSource, Source
from diffjax.runs.states import assemble_trained, read_state
from diffjax.tasks import find_task_kind
from diffjax.train import State
from diffjax.types import ConfigError


class TrainedRun(NamedTuple):
    """What a run trained, as it was read from a workdir or an exported file.

    Attributes:
        config: its config, or another one that its parameters fit.
        state: parameters, their average, and statistics; without the state of the optimiser.
        frozen: parameters that the task reads but does not train, by part.
        model: the diffusion model; None if the task trains none.
        folder: the workdir; None for an exported file alone.
    """

    config: ConfigDict
    state: State
    frozen: Parts | None
    model: Model | None
    folder: Path | None


def open_run(
    where: StrPath,
    *,
    config: ConfigDict | None = None,
    folder: Path | None = None,
    best: bool = False,
    raw: bool = False,
    ema_length: float | None = None,
) -> TrainedRun:
    """Read what a run trained, from its workdir or from a file that it was exported to.

    Args:
        where: the workdir or the file.
        config: in place of the stored config.
        folder: the workdir that belongs to an exported file, if there is one.
        best: whether to read the best state of the run in place of the last one.
        raw: whether the model gets the parameters of the last step in place of their average.
        ema_length: relative length of the average, in place of that of the checkpoint; of runs
            with ``ema.kind=power``, see `diffjax.train.snapshots`.

    Raises:
        ConfigError: nothing is there, or it does not fit the config.
        ValueError: a file is damaged.
    """
    path = download(where)
    exported = path if path.suffix == ".safetensors" else None
    if raw and exported:
        raise ConfigError(f"raw=True: {where} holds averages alone; give the workdir of the run")
    if raw and ema_length is not None:
        raise ConfigError(f"raw=True and ema_length={ema_length:g} exclude each other")
    cfg = config or read_config(path)
    folder = folder if exported else path
    state = read_state(cfg, path, best=best, ema_length=ema_length)
    frozen = load_fixed_parts(cfg, folder or path.parent, exported=exported)
    model = None
    if find_task_kind(cfg).assemble is not None:
        model = assemble_trained(cfg, state, frozen, raw=raw)
    return TrainedRun(cfg, state, frozen, model, folder)


def open_control(where: StrPath) -> tuple[ConfigDict, ControlNetwork]:
    """Open the ControlNet that a run trained, without its base.

    Args:
        where: a workdir or an exported file.

    Returns:
        The config of the run, which describes the hints, and the network with its parameters.

    Raises:
        ConfigError: the run trained no ControlNet.
    """
    path = download(where)
    cfg = read_config(path)
    if not find_task_kind(cfg).takes_hints:
        raise ConfigError(f"{where} holds a run of task {cfg.task!r}, not of a ControlNet")
    frozen: Parts = {"base": {}}  # adapters are merged into what the base has
    if "lora" in cfg:
        frozen = load_fixed_parts(cfg, path.parent if path.suffix else path) or {}
    (network,) = assemble_trained(cfg, read_state(cfg, path), frozen).controls
    return cfg, network


def make_drawer(run: TrainedRun) -> Drawer:
    """Make the `Drawer` of a run's model.

    Raises:
        ConfigError: the task of the run trains no diffusion model.
    """
    if run.model is None:
        raise ConfigError(f"this needs a diffusion model, but the task is {run.config.task!r}")
    return Drawer(run.config, run.model, run.folder)


def open_model(
    where: StrPath,
    *,
    best: bool = False,
    raw: bool = False,
    ema_length: float | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Model:
    """Open the diffusion model at a path, of whatever kind it is.

    Args:
        where: the workdir of a run, a file that it was exported to, a folder of ``diffjax.save``,
            or a published text-to-image model as a folder of diffusers. Each may be a name on the
            Hub.
        best, raw, ema_length: of runs, see `open_run`.
        revision, token, local_files_only: of names on the Hub, see `diffjax.download`.

    Returns:
        The model with its parameters.

    Raises:
        ConfigError: there is none; the message says what is there.
        ValueError: a file is damaged or not supported.
    """
    path = download(where, revision=revision, token=token, local_files_only=local_files_only)
    saved = path / WEIGHTS_FILE  # beside a config.json it is that of transformers
    if saved.is_file() and not (path / "config.json").is_file():
        path = saved
    kind = find_kind(path)
    if kind in (RUN, EXPORT):
        run = open_run(path, best=best, raw=raw, ema_length=ema_length)
        if run.model is None:
            raise ConfigError(
                f"{where} holds a run of task {run.config.task!r}, no diffusion model"
            )
        return run.model._replace(source=Source(run.config, int(run.state.step)))
    if kind == COMPONENT:
        raise ConfigError(
            f"{where} holds one network of a published model; open the folder of the whole model, "
            "which has model_index.json"
        )
    parts = load_components(path)
    return make_published_model(parts)._replace(source=PublishedSource(parts))
