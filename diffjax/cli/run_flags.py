"""The flags of entry points that work on runs: --config, --workdir, --weights and the like.

An entry point calls `run` with the flags that it uses. `read_config` then gives the config with all
overrides, completed, filled in from its data and checked: the library sees complete configs only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import diffjax.config.store
from diffjax import grids, runs, samplers
from diffjax.cli import command_line
from diffjax.cli.command_line import UsageError, find_flag
from diffjax.config.ranges import check_list
from diffjax.config.variants import load_config, load_kept_file
from diffjax.pretrained import download
from diffjax.train import CheckpointMismatch
from diffjax.types import ConfigError
from diffjax.xla import keep_programs

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file and variant, such as configs/ddpm.py:cifar10 or configs/ddpm.py:cifar10,smoke; "
    "--config.SECTION.KEY=VALUE overrides a value.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: its checkpoints, metrics and pictures."
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "File that experiments.export wrote, or its name on the Hub, to use in place of the checkpoint "
    "of --workdir.",
)

BEST = flags.DEFINE_bool("best", False, "Use the best state of the run in place of the last one.")

RAW = flags.DEFINE_bool(
    "raw", False, "Use the parameters of the last step in place of their average."
)

EMA_LENGTH = flags.DEFINE_float(
    "ema_length",
    None,
    "Relative length of the average of the parameters, such as 0.13, made of the snapshots of a "
    "run with ema.kind=power; that of the checkpoint if not set.",
    0.001,
    0.288,
)

# Short forms of ``--config.sample.KEY``, and the last two for the images.
SAMPLING_FLAGS = ("sampler", "steps", "grid", "eta", "variance", "guidance", "num", "seed")


def define_sampling_flags() -> None:
    """Define short forms of the flags ``--config.sample.*``, and --num and --seed."""
    names, spacings = ", ".join(samplers.SAMPLERS), ", ".join(grids.GRIDS)
    flags.DEFINE_string(
        "sampler", None, f"Sampler, in place of config.sample.sampler. One of {names}."
    )
    flags.DEFINE_integer(
        "steps", None, "Number of sampling steps, in place of config.sample.steps.", 1
    )
    flags.DEFINE_string(
        "grid",
        None,
        f"Spacing of the noise levels, in place of config.sample.grid. One of {spacings}.",
    )
    flags.DEFINE_float("eta", None, "Stochasticity of DDIM, in place of config.sample.eta.")
    flags.DEFINE_string(
        "variance",
        None,
        "Variance, in place of config.sample.variance: fixedsmall, fixedlarge or learned.",
    )
    flags.DEFINE_float(
        "guidance",
        None,
        "Guidance scale s = 1 + w, in place of config.sample.guidance; 1 means none.",
    )
    flags.DEFINE_integer("num", None, "Number of images to make.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)


def run(main: Callable[[], None], takes: Sequence[str] = ()) -> None:
    """Run an entry point of a run, see `command_line.run`.

    Args:
        main: the entry point.
        takes: flags of this module, or of others, that the command uses; ``sampling`` stands for
            those of `define_sampling_flags`.

    Raises:
        SystemExit: with the exit code of `command_line`.
    """
    names = [n for take in takes for n in (SAMPLING_FLAGS if take == "sampling" else (take,))]
    prepare = _insert_config if "config" in names else list

    @functools.wraps(main)
    def start() -> None:
        keep_programs()
        with _name_flags():
            main()

    command_line.run(start, names, prepare=prepare, explain=_explain)


@contextlib.contextmanager
def _name_flags() -> Iterator[None]:
    """Put ``--`` before keys of the config in messages, which are flags to the user of a command.

    Raises:
        ConfigError, CheckpointMismatch: that of the context, with the names replaced.
    """
    try:
        yield
    except (ConfigError, CheckpointMismatch) as error:
        text = re.sub(r"(?<![\w./-])config\.(?!json\b|py\b)(?=\w)", "--config.", str(error))
        raise type(error)(text) from error


def _insert_config(argv: list[str]) -> list[str]:
    """Insert --config of the config that is stored with the weights, if none is given.

    Weights that are named by their name on the Hub are downloaded, and the flag then names the
    local file. The config is loaded once, so that an error in it is reported as a plain message.
    """
    chosen, stored = find_flag(argv, "config"), find_flag(argv, "weights")
    if stored and (local := str(download(stored))) != stored and Path(local).exists():
        argv, stored = [*argv, f"--weights={local}"], local
    if stored is None and (folder := find_flag(argv, "workdir")):
        stored = str(Path(folder) / "config.json")
    if chosen is None and stored and Path(stored).exists():
        load_kept_file(Path(stored).parent)
        chosen = f"{diffjax.config.store.__file__}:{stored}"
        argv = [argv[0], f"--config={chosen}", *argv[1:]]
    if chosen:
        load_config(chosen)
    return argv


def _explain(error: Exception) -> str:
    """Explain an error in the arguments; an override of an unknown key with the closest key."""
    text = str(error.args[0] if error.args else error).strip()
    name = find_flag(sys.argv, "config")
    for argument in sys.argv[1:]:
        if not argument.startswith("--config.") or not name:
            continue
        path = argument[len("--config.") :].partition("=")[0]
        if problem := diffjax.config.explain_unknown(load_config(name), path):
            return problem
    return text


def read_workdir() -> Path:
    """Read --workdir.

    Raises:
        UsageError: it was not given.
    """
    if not WORKDIR.value:
        raise UsageError("--workdir=FOLDER is needed: where the run's files are or go")
    return Path(WORKDIR.value)


def read_run_folder() -> Path | None:
    """Read --workdir as functions of `diffjax.runs` take it: None if it was not given."""
    return Path(WORKDIR.value) if WORKDIR.value else None


def read_config() -> ConfigDict:
    """Read the config of --config or of the workdir, with all overrides of the command line.

    Short flags such as --steps are applied. Then the config is completed, the values that it leaves
    to its data are filled in, and it is checked.

    Raises:
        UsageError: there is none, or an option was set that no choice of the config takes.
        ConfigError: a value is out of range or of another type.
    """
    chosen = CONFIG.value
    if chosen is None and WORKDIR.value:
        raise UsageError(
            f"{WORKDIR.value} holds no run: it has no config.json. Give the folder that "
            "experiments.train wrote, or --config=FILE:VARIANT"
        )
    if chosen is None:
        raise UsageError(
            "--config=FILE:VARIANT is needed, or --weights, or a --workdir with a run's config.json"
        )
    given = {f"--config.{path}": path for path in _read_overrides()}
    for key in SAMPLING_FLAGS[:-2]:
        if key in flags.FLAGS and flags.FLAGS[key].value is not None:
            chosen.sample[key] = flags.FLAGS[key].value
            given[f"--{key}"] = f"sample.{key}"
    # A stored config may be older than today's keys.
    diffjax.config.complete(chosen)
    runs.fill_from_data(chosen, read_run_folder())
    diffjax.config.check(chosen)
    # An option that no choice takes is a misunderstanding, and is refused.
    for flag, path in given.items():
        for reason in diffjax.config.explain_unused(chosen, [path]).values():
            raise UsageError(f"{flag} is not used: {reason}")
    return chosen


def _read_overrides() -> dict[str, Any]:
    """Read the values of --config.KEY=VALUE by key.

    Raises:
        ConfigError: a list of numbers is replaced by something else.
    """
    found = dict(config_flags.get_override_values(flags.FLAGS["config"]))
    before = load_config(find_flag(sys.argv, "config") or "").to_dict() if found else {}
    for path, value in found.items():
        old = diffjax.config.find(before, path)
        if isinstance(value, tuple) and isinstance(old, tuple):
            check_list(path, old, value)
    return found


def read_config_name() -> str:
    """Read the name of the config as --config was given: FILE:VARIANT.

    Raises:
        UsageError: it was not given.
    """
    name = find_flag(sys.argv, "config")
    if not name:
        raise UsageError("--config=FILE:VARIANT is needed")
    return name


def format_config(cfg: ConfigDict) -> str:
    """Format a config as indented JSON."""
    return json.dumps(cfg.to_dict(), indent=2)


def open_run(cfg: ConfigDict) -> runs.TrainedRun:
    """Open what --weights or --workdir holds, with a config; --best and --raw choose the state.

    Raises:
        ConfigError: there is none, or it does not fit the config.
    """
    folder = read_workdir()
    with command_line.name_keys({"raw=True": "--raw", "ema_length": "--ema_length"}):
        return runs.open_run(
            WEIGHTS.value or folder,
            config=cfg,
            folder=folder,
            best=BEST.value,
            raw=RAW.value,
            ema_length=EMA_LENGTH.value,
        )
