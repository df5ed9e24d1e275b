"""The table of tasks by ``config.task``. A new task is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax.model import Model, make_model
from diffjax.tasks.autoencoder_task import make_autoencoder_task
from diffjax.tasks.classifier_task import make_noisy_classifier_task
from diffjax.tasks.concept_task import assemble_with_word, make_concept_task
from diffjax.tasks.consistency_task import make_consistency_task
from diffjax.tasks.controlnet_task import assemble_controlled, make_controlnet_task
from diffjax.tasks.diffusion_task import make_task
from diffjax.tasks.distillation_task import make_distillation_task
from diffjax.tasks.ip_adapter_task import assemble_prompted, make_ip_adapter_task
from diffjax.tasks.lora_task import assemble_adapted, make_lora_task
from diffjax.tasks.objectives import OF_TARGETS
from diffjax.types import Array, Params, Task, choose

Shape = tuple[int, int, int]
Frozen = Mapping[str, Params]
# What a base is to the task that trains beside it; a model has them elsewhere.
_OF_BASES = ("base", "statistics")


class TaskKind(NamedTuple):
    """What the library needs to know of a kind of task; one entry of `TASKS`.

    Attributes:
        make: ``(config, image_shape, levels, num_classes) -> Task``.
        assemble: ``(config, model, params, frozen) -> Model`` puts what was trained into the model
            that the config describes; None if the task trains no diffusion model.
        trains_beside: whether a base is read and something beside it is trained. The base is
            ``frozen["base"]``, and its statistics are ``frozen["statistics"]``.
        takes_hints: whether batches have hints.
        reads_labels: whether the task needs labelled data.
        reconstructs: whether the task trains an autoencoder, which is measured by what it
            reconstructs.
        trains_copy: whether what is trained beside the base begins as a copy of it, and is a whole
            model in the end.
        learns_word: whether a new word is what is trained (``config.concept``).
        reads_pictures: whether an IP-Adapter is what is trained (``config.ip_adapter``).
    """

    make: Callable[[ConfigDict, Shape, int, int], Task]
    assemble: Callable[[ConfigDict, Model, Params, Frozen], Model] | None
    trains_beside: bool = False
    takes_hints: bool = False
    reads_labels: bool = False
    reconstructs: bool = False
    learns_word: bool = False
    trains_copy: bool = False
    reads_pictures: bool = False


def _assemble_plain(config: ConfigDict, model: Model, params: Params, frozen: Frozen) -> Model:
    """Give a model the parameters that were trained."""
    return model._replace(params=params)


TASKS: dict[str, TaskKind] = {
    "diffusion": TaskKind(make_task, _assemble_plain),
    "controlnet": TaskKind(
        make_controlnet_task, assemble_controlled, trains_beside=True, takes_hints=True
    ),
    "lora": TaskKind(make_lora_task, assemble_adapted, trains_beside=True),
    "consistency": TaskKind(make_consistency_task, assemble_adapted, trains_beside=True),
    "distillation": TaskKind(
        make_distillation_task, _assemble_plain, trains_beside=True, trains_copy=True
    ),
    "concept": TaskKind(
        make_concept_task, assemble_with_word, trains_beside=True, learns_word=True
    ),
    "ip_adapter": TaskKind(
        make_ip_adapter_task, assemble_prompted, trains_beside=True, reads_pictures=True
    ),
    "autoencoder": TaskKind(make_autoencoder_task, None, reconstructs=True),
    "classifier": TaskKind(make_noisy_classifier_task, None, reads_labels=True),
}


def find_task_kind(config: ConfigDict) -> TaskKind:
    """Find the entry of ``config.task`` in `TASKS`.

    Raises:
        ValueError: there is none; the message lists the choices.
    """
    kind: TaskKind = choose("task", config.task, TASKS)
    return kind


def assemble_model(
    config: ConfigDict,
    image_shape: Shape,
    params: Params,
    frozen: Frozen | None,
    statistics: Mapping[str, Array],
) -> Model:
    """Assemble the model of a config with what its task trained.

    Args:
        image_shape: (H, W, C) of the data.
        params, frozen: what the task trained, and what it read.
        statistics: the statistics (``extra``) of the task.

    Raises:
        ValueError: the task trains no diffusion model, or the config is wrong.
    """
    kind = find_task_kind(config)
    if kind.assemble is None:
        raise ValueError(f"this needs a diffusion model, but the task is {config.task!r}")
    described = make_model(config, image_shape, config.data.levels, config.data.num_classes)
    model = kind.assemble(config, described, params, frozen or {})
    read = {k: v for k, v in (frozen or {}).items() if k not in _OF_BASES}
    kept = {k: v for k, v in statistics.items() if k not in OF_TARGETS}
    return model._replace(frozen=read, statistics=kept)
