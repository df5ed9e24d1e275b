"""The page on what was published and what the configs have, from `configs.published`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.published import DECIDED, RELEASES, TABLE, Published
from diffjax.config import load_config
from diffjax.data import FOLDERS

HEAD = """# As published

`python -m experiments.report --published` writes this page from `configs/published`. A test
compares it with that table, and the table with the configs. For every variant with the settings of
a paper the page says what the paper or its released code decided and where, the figures of the
paper, the commands that would make them, and what still differs. Nothing here says that we reached
a figure.

In commands, DATA is a folder of pictures, with classes, captions or hints
([own_pictures.md](own_pictures.md)); AUTOENCODER is the workdir of a trained first stage, or its
file; MODEL is a folder of diffusers; LPIPS is the file of weights of the perceptual distance; BASE
is the workdir of the model that is distilled or tuned.

Files are those of the releases at these commits:

"""
CONFIGS = Path(__file__).parents[1] / "configs"
PARITY = CONFIGS.parent / "docs/results/data/releases.json"
EVALUATE = "--inception=pt_inception-2015-12-05-6726825d.pth --allow_legacy_pickle"


def write_page() -> str:
    """The page as Markdown."""
    releases = "\n".join(f"- `{name}`: {where}" for name, where in RELEASES.items())
    parts = [HEAD + releases]
    parts.append(_write_parity())
    last = ""
    for name, one in TABLE.items():
        stem = name.partition(":")[0]
        if stem != last:
            parts.append(f"## configs/{stem}.py")
        last = stem
        parts.append(_write_variant(name, one))
    return "\n\n".join(parts) + "\n"


def _write_parity() -> str:
    """Write the table of training steps beside the releases, from `PARITY` if it is there."""
    if not PARITY.is_file():
        return "Training steps beside the releases have not been compared."
    lines = []
    for name, rows in json.loads(PARITY.read_text()).items():
        losses = max(abs(row["ours"] / row["release"] - 1) for row in rows)
        gradients = max(row["gradient"] for row in rows)
        lines.append(f"| {name} | {losses:.1e} | {gradients:.1e} |")
    table = "\n".join(lines)
    return (
        "Two steps of training from equal weights, data, times and noise, beside released code "
        "on a CPU (`python -m tests.parity.release_record FOLDER_OF_CHECKOUTS` writes these "
        "figures; `tests/parity/test_releases.py` holds both to 1e-4). Losses are compared as a "
        "share, gradients by their largest error over their largest value:\n\n"
        f"| release | loss | gradient |\n|---|---|---|\n{table}"
    )


def _write_variant(name: str, one: Published) -> str:
    stem, _, variant = name.partition(":")
    rows = "\n".join(
        f"| `{key}` | {_show(value)} | {where} |" for key, (value, where) in one.values.items()
    )
    folder = f"runs/{stem}-{variant}"
    config = load_config(f"{CONFIGS}/{stem}.py:{variant}")
    needs = "".join(f" --config.{key}={word}" for key, word in list_needs(config).items())
    train = f"python -m experiments.train --config=configs/{stem}.py:{variant} --workdir={folder}"
    commands = [f"{train}{needs}"]
    for measure in one.measure.splitlines():
        inception = f" {EVALUATE}" if "fid" in measure else ""
        commands.append(f"python -m experiments.evaluate --workdir={folder} {measure}{inception}")
    lines = "\n".join(commands)
    against = f" Measured on {one.against}." if one.against else ""
    differs = "".join(f"\n- {reason}" for reason in one.differs) or " nothing that we know of."
    return (
        f"### {variant}\n\nPublished: {one.number}.{against}\n\n```\n{lines}\n```\n\n"
        f"| option | value | where |\n|---|---|---|\n{rows}\n\nDiffers:{differs}"
    )


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def list_needs(config: ConfigDict) -> dict[str, str]:
    """What a training needs to be given, as options of the config and words for them."""
    needs = {
        "data.dir": "DATA" if config.data.name in (*FOLDERS, "latents") else "",
        "autoencoder.weights": "AUTOENCODER",
        "model.path": "MODEL",
        "loss.perceptual_weights": "LPIPS" if _compares_pictures(config) else "",
        "distil.base": "BASE",
    }
    return {key: word for key, word in needs.items() if word and _is_empty(config, key)}


def _compares_pictures(config: ConfigDict) -> bool:
    """Return whether a loss needs the weights of LPIPS."""
    return "lpips" in (config.loss.get("perceptual"), config.loss.get("metric"))


def _is_empty(config: ConfigDict, key: str) -> bool:
    section, _, name = key.partition(".")
    return _has(config, key) and not config[section][name]


def list_undecided(config: ConfigDict, one: Published) -> list[str]:
    """Options of `DECIDED` that a config has and its entry does not list."""
    return [key for key in DECIDED if _has(config, key) and key not in one.values]


def _has(config: ConfigDict, key: str) -> bool:
    section, _, name = key.partition(".")
    return section in config and name in config[section]
