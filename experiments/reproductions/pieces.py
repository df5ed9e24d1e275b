"""Pieces of a reproduction: commands that leave files, which are run once, resumed, and kept.

What a piece leaves is copied under docs/results. A piece whose files are there is done. So a clone
of the repository goes on where its results end, and a trained model needs no training to be
measured again: delete a file to measure it anew.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from absl import logging

from diffjax.writing import read_json_lines

# The Python that has torch and diffusers; make parity installs it.
PARITY = Path(".venv-parity/bin/python")
HOW = {  # to get what a piece may need
    "diffusers": "torch and diffusers: make parity installs them",
    "libtpu": "libtpu: pip install --no-deps, in the version that docs/scaling.md says",
}


class Piece(NamedTuple):
    """Commands, and what to keep of what they leave.

    Attributes:
        name: how to ask for it, unique in its paper.
        commands: each a module of ``experiments`` and its arguments, in which ``{runs}`` stands
            for the folder of the runs and ``{results}`` for docs/results.
        keep: file or folder below the runs -> the same below docs/results; empty if a command
            writes there.
        minutes: about what it takes on one core of a 2-core machine.
        rows: lines that its .jsonl file has when it is complete, 0 for pieces without one.
        needs: a package that is not among ours, of `HOW`.
        one_core: run on one core, as in comparisons at equal time.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    keep: dict[str, str]
    minutes: float
    rows: int = 0
    needs: str = ""
    one_core: bool = False


def make_training(
    config: str, name: str, minutes: float, *overrides: str, model: bool = True, log: bool = False
) -> Piece:
    """Make the piece that trains a config, and keeps its summary.

    Args:
        config: FILE:VARIANT below configs/.
        name: of the run, and of what is kept of it.
        minutes: about what it takes on one core.
        overrides: flags of `experiments.train`.
        model: whether the weights are kept too.
        log: whether the log is kept too.
    """
    where = f"--workdir={{runs}}/{name}"
    train = ("train", f"--config=configs/{config}", where, *overrides)
    export = ("export", where, f"--out={{runs}}/{name}/weights.safetensors")
    keep = {f"{name}/summary.json": f"data/{name}-summary.json"}
    if model:
        keep |= {f"{name}/weights.safetensors": f"models/{name}.safetensors"}
    if log:
        keep |= {f"{name}/metrics.jsonl": f"data/{name}-log.jsonl"}
    commands = (train, export) if model else (train,)
    return Piece(f"train-{name}", commands, keep, minutes, one_core=True)


def make_trial(
    config: str, name: str, minutes: float, overrides: tuple[str, ...], *options: str
) -> Piece:
    """Make the piece that trains a config and measures it, to data/NAME.json; no weights are kept.

    Args:
        config, name, minutes, overrides: see `make_training`.
        options: flags of `experiments.evaluate`.
    """
    where = f"--workdir={{runs}}/{name}"
    train = ("train", f"--config=configs/{config}", where, *overrides)
    evaluate = ("evaluate", where, f"--out={{runs}}/{name}/{name}.json", *options)
    keep = {f"{name}/{name}.json": f"data/{name}.json"}
    return Piece(f"try-{name}", (train, evaluate), keep, minutes, one_core=True)


def make_measurement(
    name: str, model: str, minutes: float, *options: str, picture: bool = False
) -> Piece:
    """Make the piece that measures a kept model, to data/NAME.json.

    Args:
        name: of the measurement.
        model: name of the kept model.
        options: flags of `experiments.evaluate`.
        picture: whether the picture beside the figures is kept too.
    """
    command = ("evaluate", *name_model(model), f"--out={{runs}}/{model}/{name}.json", *options)
    keep = {f"{model}/{name}.json": f"data/{name}.json"}
    if picture:
        keep |= {f"{model}/{name}.png": f"data/sheets/{name}.png"}
    return Piece(name, (command,), keep, minutes)


def make_sweep(
    name: str,
    model: str,
    minutes: float,
    axes: dict[str, str],
    *options: str,
    num: int,
    seeds: int = 3,
) -> Piece:
    """Make the piece that sweeps ``config.sample`` of a kept model, to data/NAME.jsonl.

    Args:
        name: of the sweep.
        model: name of the kept model.
        axes: values by key, joined by commas.
        options: more flags of `experiments.evaluate`.
        num: images of a cell.
        seeds: sampling seeds of a cell.
    """
    command = (
        "evaluate",
        *name_model(model),
        f"--name={name}",
        *(f"--sweep={key}={values}" for key, values in axes.items()),
        f"--seeds={seeds}",
        f"--num={num}",
        *options,
    )
    rows = seeds * math.prod(len(values.split(",")) for values in axes.values())
    keep = {f"{model}/sweeps/{name}.jsonl": f"data/{name}.jsonl"}
    return Piece(name, (command,), keep, minutes, rows)


def name_model(model: str) -> tuple[str, str]:
    """Make the flags that name a kept model, and a folder for what is made with it."""
    return f"--weights={{results}}/models/{model}.safetensors", f"--workdir={{runs}}/{model}"


def fill_commands(piece: Piece, runs: Path, results: Path) -> list[list[str]]:
    """Fill the names of the folders into the commands of a piece.

    Args:
        runs: folder of the runs, for ``{runs}``.
        results: docs/results, for ``{results}``.
    """
    places = {"runs": runs, "results": results}
    return [[part.format(**places) for part in command] for command in piece.commands]


def format_commands(piece: Piece, runs: Path, results: Path) -> list[str]:
    """Format the commands of a piece as they are typed."""
    lines = fill_commands(piece, runs, results)
    return [f"python -m experiments.{shlex.join(line)}" for line in lines]


def is_done(piece: Piece, results: Path) -> bool:
    """Whether docs/results holds all that a piece leaves, with all rows of its sweep."""
    files = [results / saved for saved in piece.keep.values()]
    if not all(file.exists() for file in files):
        return False
    return len(read_json_lines(files[0])) >= piece.rows if piece.rows else True


def list_pieces(chosen: Mapping[str, Sequence[Piece]], runs: Path, folder: Path) -> str:
    """Format a list of the pieces: minutes, whether they are done, and their commands.

    Args:
        chosen: pieces by the name of their paper.
        runs: folder of the runs.
        folder: of the results.
    """
    lines = []
    for name, own in chosen.items():
        for piece in own:
            state = "done" if is_done(piece, folder) else f"about {piece.minutes:g} minutes"
            lines.append(f"{name}: {piece.name} ({state})")
            lines += [f"    {line}" for line in format_commands(piece, runs, folder)]
    return "\n".join(lines)


def run_piece(piece: Piece, runs: Path, results: Path) -> bool:
    """Run a piece, and keep what it leaves.

    Sweeps are kept as far as they came, also when a command fails, and go on from there.

    Args:
        runs: folder of the runs.
        results: docs/results.

    Returns:
        Whether it was run; False if this machine lacks what it needs.

    Raises:
        RuntimeError: a command failed.
    """
    python = _find_python(piece)
    if python is None:
        logging.warning("%s needs %s", piece.name, HOW[piece.needs])
        return False
    # An unfinished sweep is put back, so that it goes on.
    if piece.rows:
        _copy_files(piece, results, runs, back=True)
    try:
        texts = format_commands(piece, runs, results)
        for command, text in zip(fill_commands(piece, runs, results), texts, strict=True):
            logging.info("%s (about %g minutes): %s", piece.name, piece.minutes, text)
            # Each command has a process of its own, because flags are read once in a process.
            line = [*_pin_to_core(piece), python, "-m", f"experiments.{command[0]}", *command[1:]]
            if code := subprocess.run(line, check=False, env=_make_environment(runs)).returncode:
                raise RuntimeError(f"{piece.name}: {text} ended with exit code {code}")
    finally:
        if piece.rows:
            _copy_files(piece, runs, results)
    _copy_files(piece, runs, results)
    return True


def _make_environment(runs: Path) -> dict[str, str]:
    """Make the environment of a command: this one, and a folder for what JAX compiles."""
    return {"JAX_COMPILATION_CACHE_DIR": str(runs.absolute() / "compiled"), **os.environ}


def _find_python(piece: Piece) -> str | None:
    """Find a Python that has what a piece needs; None if there is none.

    That is this one, or that of `PARITY` for diffusers.
    """
    if not piece.needs or find_spec(piece.needs):
        return sys.executable
    return str(PARITY) if piece.needs == "diffusers" and PARITY.exists() else None


def _pin_to_core(piece: Piece) -> list[str]:
    """Make the prefix of a command that runs on one core; empty if the piece may have all."""
    if not piece.one_core or not shutil.which("taskset"):
        return []
    return ["taskset", "-c", str(min(os.sched_getaffinity(0)))]


def _copy_files(piece: Piece, source: Path, target: Path, *, back: bool = False) -> None:
    """Copy the files that a piece keeps.

    Args:
        source, target: the folders; those of the runs and of the results.
        back: whether to copy from the results to the runs, so that a sweep goes on.
    """
    for worked, saved in piece.keep.items():
        a, b = (saved, worked) if back else (worked, saved)
        (target / b).parent.mkdir(parents=True, exist_ok=True)
        if (source / a).is_dir():
            shutil.copytree(source / a, target / b, dirs_exist_ok=True)
        elif (source / a).exists():
            shutil.copyfile(source / a, target / b)
