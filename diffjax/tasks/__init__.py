"""Tasks: the only place where maths and networks meet."""

from diffjax.tasks.autoencoder import make_autoencoder, make_autoencoder_task
from diffjax.tasks.controlnet import make_controlnet_task
from diffjax.tasks.diffusion import Diffusion, make_diffusion, make_task
from diffjax.tasks.lora import make_lora_task
from diffjax.tasks.noisy_classifier import make_noisy_classifier_task

__all__ = [
    "Diffusion",
    "make_autoencoder",
    "make_autoencoder_task",
    "make_controlnet_task",
    "make_diffusion",
    "make_lora_task",
    "make_noisy_classifier_task",
    "make_task",
]
