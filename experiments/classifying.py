"""The classifier of classifier guidance, from the file that config.sample.classifier names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.config import store as stored_config
from diffjax.tasks.noisy_classifier import log_prob, make_noisy_classifier
from experiments import common, weights


def _config(cfg: ConfigDict) -> ConfigDict:
    """The classifier's own config.

    Raises:
        UsageError: it is no classifier, or of other data or another schedule.
    """
    path = cfg.sample.classifier
    found = stored_config.get_config(path)
    if found.get("task") != "classifier":
        raise common.UsageError(f"{path} holds a run of task {found.get('task')!r}, no classifier")
    if found.schedule.to_dict() != cfg.schedule.to_dict():
        raise common.UsageError(f"the classifier {path} was trained with another noise schedule")
    theirs, ours = (
        (common.image_shape(c), c.data.num_classes, c.network.time_scale) for c in (found, cfg)
    )
    if theirs != ours:
        raise common.UsageError(
            f"the classifier {path} is of (image shape, classes, time scale) {theirs}, and the "
            f"model of {ours}"
        )
    return found


def log_prob_of(cfg: ConfigDict) -> Any:
    """See `diffjax.tasks.make_task`; None if the config names no classifier."""
    if not cfg.sample.get("classifier", ""):
        return None
    found = _config(cfg)
    return log_prob(make_noisy_classifier(found, found.data.num_classes))


def params_of(cfg: ConfigDict) -> Any:
    """The parameters of the classifier that the config names."""
    found = _config(cfg)
    shapes = common.abstract_state(found, common.task_of(found))
    return weights.read(Path(cfg.sample.classifier), shapes).ema
