"""Tasks: what is trained, as a pure loss of parameters and a batch.

A task has `init`, which makes parameters and statistics, and `loss`, which the trainer
differentiates (`types.Task`). `TASKS` maps ``config.task`` to them; nothing else in the library
asks which task a run has.
"""

from diffjax.tasks.autoencoder_task import make_autoencoder_task
from diffjax.tasks.classifier_task import make_noisy_classifier_task
from diffjax.tasks.controlnet_task import make_controlnet_task
from diffjax.tasks.diffusion_task import make_diffusion_task, make_task
from diffjax.tasks.lora_task import make_lora_task
from diffjax.tasks.task_table import TASKS, TaskKind, assemble_model, find_task_kind

__all__ = [
    "TASKS",
    "TaskKind",
    "assemble_model",
    "find_task_kind",
    "make_autoencoder_task",
    "make_controlnet_task",
    "make_diffusion_task",
    "make_lora_task",
    "make_noisy_classifier_task",
    "make_task",
]
