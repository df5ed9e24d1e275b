"""Tasks: the only place where maths and networks meet."""

from diffjax.tasks.controlnet import make_controlnet_task
from diffjax.tasks.diffusion import Diffusion, make_diffusion, make_task

__all__ = ["Diffusion", "make_controlnet_task", "make_diffusion", "make_task"]
