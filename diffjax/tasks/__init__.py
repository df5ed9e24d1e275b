"""Tasks: the only place where maths and networks meet."""

from diffjax.tasks.diffusion import Diffusion, make_diffusion, make_task

__all__ = ["Diffusion", "make_diffusion", "make_task"]
