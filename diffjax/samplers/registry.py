"""Samplers by name, as configs and command lines give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.types import Sampler, build

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddim_inverse": ddim_inverse,
    "ddpm": ancestral,
}


def make(name: str, options: Any = None) -> Sampler:
    """The named sampler.

    Raises:
        ValueError: unknown name or option.
    """
    return build("sampler", name, SAMPLERS, options)
