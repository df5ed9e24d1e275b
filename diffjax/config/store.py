"""The config that a run was trained with, read from its config.json or from an exported file.

This file is a config file too: flags name a stored config as
``--config=diffjax/config/store.py:WORKDIR/config.json``. Entry points do so by themselves if
--workdir or --weights is given without --config.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ml_collections import ConfigDict

from diffjax.config.assemble import complete
from diffjax.config.ranges import check_values, flatten
from diffjax.untrusted import name_some, parse_json, read_json

if TYPE_CHECKING:
    from diffjax.types import Config, JsonObject  # not before: it takes a second

NOTE = "diffjax.config"  # the entry in the metadata of an exported file
# What the configs of all versions have.
_NEEDED = (
    *("task", "seed", "data.name", "data.split", "data.image_size", "data.channels", "data.levels"),
    *("data.num_classes", "data.batch_size", "network.name", "network.channels", "optim.name"),
    *("network.multipliers", "network.blocks", "network.attention_levels", "network.norm_groups"),
    *("optim.lr", "optim.warmup", "optim.decay", "ema.decay", "train.steps", "sample.sampler"),
    *("sample.grid", "sample.steps", "sample.guidance", "mesh.data"),
)
_NEEDED_TO_DIFFUSE = (
    *("schedule.name", "parameterization.name", "loss.name", "loss.weight", "cond.drop"),
    "cond.null",
)


def read_config(path: str | os.PathLike[str]) -> ConfigDict:
    """Read the config in a JSON file, in the config.json of a folder, or in an exported file.

    It is checked and completed, so its values can be replaced by others of their types.

    Args:
        path: a file that ends in .json or .safetensors, or a workdir.

    Raises:
        ValueError: the file is not JSON, or holds no config, or a value in it is wrong.
        FileNotFoundError: there is no such file.
    """
    where = Path(path)
    if where.is_dir():
        where = where / "config.json"
    if where.suffix == ".safetensors":
        return complete(cast("Config", _make_tuples(_read_note(where))))
    found = read_json(where)
    check_stored(found, where)
    return complete(cast("Config", _make_tuples(found)))


def get_config(path: str) -> ConfigDict:
    """Read a config by the name of the function that every config file has, see `read_config`."""
    return read_config(path)


def check_stored(config: JsonObject, where: object) -> None:
    """Check that a stored object is a config: its values are in range, and it has all sections.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: a value is wrong, or a part that every config has is missing.
    """
    check_values(config, where)
    flat = dict(flatten(config))
    needed = [*_NEEDED, *(_NEEDED_TO_DIFFUSE if flat.get("task") == "diffusion" else ())]
    if missing := [key for key in needed if key not in flat]:
        raise ValueError(f"{where} is no config of a run: it lacks {name_some(missing)}")


def _read_note(path: Path) -> JsonObject:
    """Read the config in the metadata of a file that ``diffjax export`` wrote.

    Raises:
        ValueError: the file holds no config, or a wrong one.
    """
    from diffjax.pretrained.files import open_safetensors  # not before: it takes a second

    notes = open_safetensors(path).metadata
    if NOTE not in notes:
        raise ValueError(f"{path} holds no config; experiments.export writes files that do")
    where = f"the config in {path}"
    found = parse_json(notes[NOTE], where)
    check_stored(found, where)
    return found


def _make_tuples(value: object) -> object:
    """Replace the lists in nested dicts, which JSON has, by tuples, which configs have."""
    if isinstance(value, dict):
        return {k: _make_tuples(v) for k, v in value.items()}
    return tuple(map(_make_tuples, value)) if isinstance(value, list) else value
