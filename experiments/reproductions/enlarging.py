"""The same experiments at ten times the size, for a machine with an accelerator.

Trainings take ten times the steps, and so do the intervals that flags set; measurements have ten
times the images. Sampling seeds, pictures, networks and benchmarks of costs stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from diffjax.config import load_config
from experiments.reproductions.pieces import Piece

# How many times as large everything is.
FACTOR = 10
# The most images of a measurement: it needs as many real ones, and the floor twice as many.
MOST = 25_000
# Options of a training that count steps, besides the number of steps itself.
COUNTS = ("train.log_every", "train.evaluate_every", "train.sample_every", "loss.disc_start")
# What is said above pages of such results.
NOTE = f"""Everything here ran at {FACTOR} times the size, on an accelerator: where the text below
names steps of a training or numbers of images, they were {FACTOR} times as many."""
# Why nothing is run without an accelerator.
PLAN = f"""JAX finds no accelerator here, so nothing is run. With one, this command runs what
follows, and writes its pages: every experiment of the pages at {FACTOR} times the size."""


def enlarge_piece(piece: Piece) -> Piece:
    """Enlarge a piece: ten times the steps of its trainings, and the images of its measurements."""
    commands = tuple(_enlarge_command(command) for command in piece.commands)
    # Previews are named by their step.
    keep = {re.sub(r"(?<=samples/)\d{8}", _multiply_step, k): v for k, v in piece.keep.items()}
    return piece._replace(
        commands=commands, keep=keep, minutes=FACTOR * piece.minutes, one_core=False
    )


def _multiply_step(found: re.Match[str]) -> str:
    """Multiply the step in the name of a preview."""
    return f"{FACTOR * int(found[0]):08d}"


def _enlarge_command(command: tuple[str, ...]) -> tuple[str, ...]:
    """Enlarge a command of a piece; other commands than these three stay as they are."""
    if command[0] in ("evaluate", "control"):
        return tuple(_multiply(flag, "--num") for flag in command)
    return _enlarge_training(command) if command[0] == "train" else command


def _multiply(flag: str, name: str) -> str:
    """Multiply the value of a flag if it is the named one, ``--NAME=N``."""
    key, _, value = flag.partition("=")
    if key != name:
        return flag
    return f"{name}={min(FACTOR * int(value), MOST) if name == '--num' else FACTOR * int(value)}"


def _enlarge_training(command: tuple[str, ...]) -> tuple[str, ...]:
    """Enlarge a training, whose steps are those of its config where no flag sets them.

    A limit of minutes is taken away, and the config's number of measured images grows too.
    """
    cfg = load_config(command[1].partition("=")[2])
    given = dict(flag.partition("=")[::2] for flag in command[1:])
    steps = int(given.pop("--config.train.steps", cfg.train.steps))
    given |= {
        k: str(FACTOR * int(given[k])) for k in (f"--config.{c}" for c in COUNTS) if k in given
    }
    given |= {"--config.train.steps": str(FACTOR * steps), "--config.train.minutes": "0.0"}
    given["--config.eval.num"] = str(min(FACTOR * cfg.eval.num, MOST))
    return (command[0], *(f"{key}={value}" for key, value in given.items()))


def copy_inputs(pieces: Iterable[Piece], source: Path, target: Path) -> None:
    """Copy the pictures that commands read and no piece makes, such as masks.

    Args:
        pieces: whose commands name them as ``{results}/data/NAME.png``.
        source, target: folders of results.
    """
    for name in set(re.findall(r"{results}/(data/[\w-]+\.png)", str(list(pieces)))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def find_accelerator() -> str | None:
    """Find the kind of accelerator that JAX computes on, "gpu" or "tpu"; None on a CPU.

    Another process asks JAX, since this one must not take the memory of the device.
    """
    code = "import jax; print(jax.default_backend())"
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    ).stdout.split()
    return found[-1] if found and found[-1] != "cpu" else None
