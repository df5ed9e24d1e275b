"""Diffusion models in JAX, as small pure functions that compose.

Five independent choices make a diffusion system: how noise grows (`diffjax.schedules`), what the
network predicts (`diffjax.parameterization`), which network (`diffjax.nets`), how it is steered,
and which noise levels it visits and how it steps between them (`diffjax.grids`,
`diffjax.samplers`). Their contracts are in `diffjax.types`. Import the module you need: this
package loads none of them until it is asked for what makes images of prompts (`diffjax.load`).
"""

from typing import Any

__version__ = "0.1.0"

_GENERATE = (
    *("load", "Control", "Guidance", "Image", "Lora", "Refiner", "Request", "Sampling", "Size"),
    *("Embedding", "Pipeline", "Prompt"),
)


def __getattr__(name: str) -> Any:
    if name in _GENERATE:
        import diffjax.generate

        return getattr(diffjax.generate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
