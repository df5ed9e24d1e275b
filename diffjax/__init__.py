"""Diffusion models in JAX, as small pure functions that compose.

Five independent choices make a diffusion system: how noise grows (`diffjax.schedules`), what the
network predicts (`diffjax.parameterization`), which network (`diffjax.nets`), how it is steered
(`diffjax.guidance`, `diffjax.control`), and which noise levels it visits and how it steps between
them (`diffjax.grids`, `diffjax.samplers`). Their contracts are in `diffjax.types`; together they
are a `Model`.

::

    model = diffjax.open("runs/digits")              # a run, an exported file, a published model
    images = diffjax.draw(model, num=16, steps=50)   # (16, H, W, C) in [-1, 1]

    pipe = diffjax.load("stable-diffusion-v1-5")     # prompts to pictures
    pipe("a red cat", key=0)[0].save("cat.png")

Importing the package is fast: everything is loaded when it is asked for. It sets one flag of XLA
where some values would be wrong without (`diffjax.xla`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffjax.xla import set_cpu_flags

__version__ = "0.1.0"

# The module of each public name, and the name that it has in that module.
_NAMES = {
    # Models: what they are, and what can be done with them.
    "open": ("runs", "open_model"),
    "save": ("runs", "save_model"),
    "Model": ("model", "Model"),
    "denoiser": ("model", "denoiser"),
    "sample": ("model", "sample"),
    "draw": ("model", "draw"),
    "evaluate": ("evaluation", "evaluate"),
    # Training.
    "Task": ("types", "Task"),
    "diffusion_task": ("tasks", "make_diffusion_task"),
    "fit": ("train", "fit"),
    # Files of models on the Hub.
    "download": ("pretrained", "download"),
    # Prompts to pictures.
    **{
        name: ("generate", name)
        for name in (
            *("load", "Control", "Guidance", "Image", "Lora", "Refiner", "Request", "Sampling"),
            *("FreeU", "ImagePrompt", "PerturbedAttention"),
            *("Size", "Embedding", "Pipeline", "Prompt", "RequestError"),
        )
    },
}
_MODULES = (
    *("schedules", "parameterization", "losses", "guidance", "control", "grids", "samplers"),
    *("likelihood", "lora", "nets", "model", "tasks", "train", "data", "metrics", "evaluation"),
    *("config", "runs", "pretrained", "generate", "types"),
)

__all__ = ["__version__", *_NAMES, *_MODULES]

set_cpu_flags()

if TYPE_CHECKING:
    from diffjax.evaluation import evaluate
    from diffjax.generate import (
        Control,
        Embedding,
        FreeU,
        Guidance,
        Image,
        ImagePrompt,
        Lora,
        PerturbedAttention,
        Pipeline,
        Prompt,
        Refiner,
        Request,
        RequestError,
        Sampling,
        Size,
        load,
    )
    from diffjax.model import Model, denoiser, draw, sample
    from diffjax.pretrained import download
    from diffjax.runs import open_model as open
    from diffjax.runs import save_model as save
    from diffjax.tasks import make_diffusion_task as diffusion_task
    from diffjax.train import fit
    from diffjax.types import Task


def __getattr__(name: str) -> Any:
    """Import a public name, or a module, when it is first used.

    Raises:
        AttributeError: there is no such name; the message has the closest one.
    """
    if name in _NAMES:
        module, there = _NAMES[name]
        return getattr(importlib.import_module(f"diffjax.{module}"), there)
    if name in _MODULES:
        return importlib.import_module(f"diffjax.{name}")
    from diffjax.generate.diffusers_names import CLASSES
    from diffjax.types import suggest

    if name in CLASSES:
        raise AttributeError(f"{name} of diffusers is here: {CLASSES[name]}")
    near = suggest(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    """List the public names, for completion in a shell."""
    return sorted(__all__)
