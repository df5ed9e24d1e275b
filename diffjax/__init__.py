"""Diffusion models in JAX, as small pure functions that compose.

Five independent choices make a diffusion system: how noise grows (`diffjax.schedules`), what the
network predicts (`diffjax.parameterization`), which network (`diffjax.nets`), how it is steered,
and which noise levels it visits and how it steps between them (`diffjax.grids`,
`diffjax.samplers`). Their contracts are in `diffjax.types`. Import the module you need: this
package loads none of them until it is asked for what makes images of prompts (`diffjax.load`).
Importing it sets one flag of XLA where some values would be wrong without (`diffjax.xla`).
"""

from typing import Any

from diffjax.xla import set_cpu_flags

__version__ = "0.1.0"

_GENERATE = (
    *("load", "Control", "Guidance", "Image", "Lora", "Refiner", "Request", "Sampling", "Size"),
    *("Embedding", "Pipeline", "Prompt", "RequestError"),
)

set_cpu_flags()


def __getattr__(name: str) -> Any:
    if name in _GENERATE:
        import diffjax.generate

        return getattr(diffjax.generate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
