"""What may change between two parts of a run: the rest is refused with a diff, or overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import logging

from diffjax.train.checkpoint import CheckpointMismatch

# What does not change the values that a step computes.
FREE = (
    *("train", "sample", "eval", "mesh", "network.remat", "network.attention"),
    *("data.dir", "data.threads", "data.prefetch"),
    # Where frozen weights are; their hash is compared.
    *("autoencoder.weights", "control.base", "model.path", "model.tokenizer"),
)
BOUND = ("train.accumulate",)  # of those, what does
SHOWN = 8


def as_json(config: Any) -> Any:
    """A config as checkpoints hold it; None of objects that are not configs."""
    text = getattr(config, "to_json_best_effort", lambda: "null")()
    return json.loads(text)


def check_is_config(path: Path) -> None:
    """See that what is going to be replaced, if it is there, is the config of a run.

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


def check(stored: dict[str, Any], config: Any, frozen: str, *, override: bool = False) -> None:
    """Compare what a checkpoint was made with and what it is to go on with.

    Args:
        stored: the checkpoint's metadata.
        frozen: hash of the frozen weights.
        override: warn instead.

    Raises:
        CheckpointMismatch: with the values that differ.
    """
    before, now = stored.get("config"), as_json(config)
    found = differences(before, now)
    _warn_of_the_decay(before, now)
    if stored.get("frozen", "") != frozen:
        old, new = (value[:12] or "none" for value in (stored.get("frozen", ""), frozen))
        found.append(f"frozen weights: {old} -> {new}")
    if not found:
        return
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    text = f"the run was started with another config: {'; '.join(found[:SHOWN])}{more}"
    if not override:
        raise CheckpointMismatch(
            f"{text}. Use that config, or another workdir, or --config.train.override=true"
        )
    logging.warning("overridden: %s", text)


def _warn_of_the_decay(before: Any, now: Any) -> None:
    """More or fewer steps are free to be taken, but a decay ends with them."""
    if not before or not now or now["optim"]["decay"] == "constant":
        return
    old, new = (config["train"]["steps"] for config in (before, now))
    if old != new:
        logging.warning(
            "train.steps: %d -> %d: the learning rate, with optim.decay=%s, jumps to that of a run "
            "of so many steps",
            *(old, new, now["optim"]["decay"]),
        )


def differences(old: Any, new: Any) -> list[str]:
    """``key: old -> new`` for every value of two configs that differs and is not free to.

    Keys that only one of them has are left out: they come with newer versions of diffjax.
    """
    if old is None or new is None:
        return []
    have, want = _flat(old), _flat(new)
    return [
        f"{key}: {have[key]!r} -> {want[key]!r}"
        for key in sorted(have.keys() & want.keys())
        if have[key] != want[key] and not _is_free(key)
    ]


def _is_free(key: str) -> bool:
    return key not in BOUND and any(key == name or key.startswith(f"{name}.") for name in FREE)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = [_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in tree.items()]
    return {key: value for part in flat for key, value in part.items()}
