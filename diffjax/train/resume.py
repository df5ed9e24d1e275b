"""What may change when a run is resumed; other changes are refused with a diff."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from absl import logging
from ml_collections import ConfigDict

from diffjax.train.checkpoint import CheckpointMismatch, Metadata
from diffjax.types import JsonObject

# Keys that do not change the values that a step computes.
FREE = (
    *("train", "sample", "eval", "mesh", "network.remat", "network.attention"),
    "ema.snapshot_every",
    # Paths of the data, whose fingerprint is compared, and how they are read.
    *("data.dir", "data.damaged", "data.threads", "data.prefetch"),
    # Paths of frozen weights, whose hash is compared.
    *("autoencoder.weights", "control.base", "distil.base", "model.path", "model.tokenizer"),
)
BOUND = ("train.accumulate",)  # exceptions from FREE, which do change the values
SHOWN = 8
ConfigTree: TypeAlias = JsonObject  # a config as nested dictionaries
# What tells one set of data from another: count, files and digests, as JSON holds them.
Fingerprint: TypeAlias = Mapping[str, Any]
FileRow = tuple[str, int]  # name and size; JSON makes it a list
FILES = 3  # files that a message names, of those that differ between two sets of data


def to_json_tree(config: ConfigDict) -> ConfigTree | None:
    """Return a config as checkpoints hold it; None for objects that are not configs."""
    text = getattr(config, "to_json_best_effort", lambda: "null")()
    return json.loads(text)


def check_is_config(path: Path) -> None:
    """Check that the file that will be replaced, if it is there, is the config of a run.

    Raises:
        FileExistsError: it is something else.
    """
    if not path.exists():
        return
    try:
        ours = {"train", "optim", "seed"} <= json.loads(path.read_bytes()).keys()
    except (ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{path} is not the config of a run and would be replaced; choose another workdir"
        )


Resolve = Callable[[ConfigTree], ConfigTree]


def check_resume(
    stored: Metadata,
    config: ConfigDict,
    frozen: str,
    data: Fingerprint | None = None,
    *,
    override: bool = False,
    resolve: Resolve = dict,
) -> None:
    """Compare the config, weights and data of a checkpoint with those of the run that resumes.

    Args:
        stored: the checkpoint's metadata.
        config: of the run that resumes.
        frozen: hash of its frozen weights.
        data: fingerprint of its data; None if it is not known.
        override: log differences as warnings instead.
        resolve: fills in what a config leaves open, so that equal runs compare equal.

    Raises:
        CheckpointMismatch: something differs; the message has the values.
    """
    before, now = (c and resolve(c) for c in (stored.get("config"), to_json_tree(config)))
    found = find_differences(before, now)
    _warn_of_the_decay(before, now)
    if stored.get("frozen", "") != frozen:
        old, new = (value[:12] or "none" for value in (stored.get("frozen", ""), frozen))
        found.append(f"frozen weights: {old} -> {new}")
    _check_data(stored.get("data"), data, override)
    if not found:
        return
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    text = f"the run was started with another config: {'; '.join(found[:SHOWN])}{more}"
    if not override:
        raise CheckpointMismatch(
            f"{text}. Use that config, or another workdir, or config.train.override=true"
        )
    logging.warning("overridden: %s", text)


def _check_data(before: Fingerprint | None, now: Fingerprint | None, override: bool) -> None:
    """Raise a CheckpointMismatch for other data, or warn if that is overridden."""
    found = find_data_differences(before, now)
    if not found:
        return
    text = f"the run was started with other data, which differ in {'; '.join(found)}"
    if not override:
        raise CheckpointMismatch(
            f"{text}. The order of all batches would change: use those data (config.data.dir), or "
            "another workdir, or config.train.override=true"
        )
    logging.warning("overridden: %s", text)


def find_data_differences(old: Fingerprint | None, new: Fingerprint | None) -> list[str]:
    """Describe how the fingerprints of two data sets differ; nothing if one is not known.

    A fingerprint may hold ``count``, ``files`` (some rows of name and size), and digests, of which
    those that both have are compared.

    Args:
        old, new: fingerprints.

    Returns:
        One text per difference.
    """
    if not old or not new:
        return []
    count, before = new.get("count"), old.get("count")
    found = [] if before == count else [f"{before} -> {count} images"]
    found += _find_file_changes(old.get("files", []), new.get("files", []))
    digests = sorted((old.keys() & new.keys()) - {"count", "files", "bytes"})
    changed = [key for key in digests if old[key] != new[key]]
    if "digest" in changed and not found:
        found.append("the images, or files beyond those that a checkpoint lists")
    return [*found, *(f"the {key}" for key in changed if key != "digest")]


def _find_file_changes(old: list[FileRow], new: list[FileRow]) -> list[str]:
    """Describe files that were added, removed or resized, with the first names of each."""
    before, after = (dict(rows) for rows in (old, new))
    changed = [name for name in before if name in after and before[name] != after[name]]
    found = []
    for what, names in (
        ("new files", [name for name in after if name not in before]),
        ("missing files", [name for name in before if name not in after]),
        ("files of another size", changed),
    ):
        if names:
            more = f" and {len(names) - FILES} more" if len(names) > FILES else ""
            found.append(f"{len(names)} {what}, {', '.join(names[:FILES])}{more}")
    return found


def _warn_of_the_decay(before: ConfigTree | None, now: ConfigTree | None) -> None:
    """Warn if the number of steps changes under a decay, which makes the learning rate jump.

    More or fewer steps are allowed, but a decay ends with the last of them.
    """
    if not before or not now or now["optim"]["decay"] == "constant":
        return
    if now["optim"].get("decay_steps"):
        return  # the decay does not depend on the steps of the run
    old, new = (config["train"]["steps"] for config in (before, now))
    if old != new:
        logging.warning(
            "train.steps: %d -> %d: the learning rate, with optim.decay=%s, jumps to that of a run "
            "of so many steps",
            *(old, new, now["optim"]["decay"]),
        )


def find_differences(old: ConfigTree | None, new: ConfigTree | None) -> list[str]:
    """List ``key: old -> new`` for all values of two configs that differ and must not.

    Keys that only one of them has are left out: they come with newer versions of diffjax.
    """
    if old is None or new is None:
        return []
    have, want = _flatten(old), _flatten(new)
    return [
        f"{key}: {have[key]!r} -> {want[key]!r}"
        for key in sorted(have.keys() & want.keys())
        if have[key] != want[key] and not _is_free(key)
    ]


def _is_free(key: str) -> bool:
    """Return whether a key may change when a run resumes."""
    return key not in BOUND and any(key == name or key.startswith(f"{name}.") for name in FREE)


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Return the values of nested dictionaries by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = [_flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in tree.items()]
    return {key: value for part in flat for key, value in part.items()}
