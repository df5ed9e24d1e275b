"""How `Guidance` is read, with what else steers the network."""

from __future__ import annotations

import numpy as np

from diffjax.generate.checks import read_number, read_text, refuse, show
from diffjax.generate.options import FreeU, Guidance, PerturbedAttention
from diffjax.generate.texts import read_prompts

LARGEST_FACTOR = 10.0  # of FreeU; published ones lie between 0.2 and 1.6


def read_guidance(value: object) -> Guidance:
    """Read guidance from a `Guidance`, or from its scale.

    Raises:
        RequestError: the value is something else, a number is out of range, or low is above high.
    """
    if value is None:
        return Guidance()
    name = "guidance.scale"
    if not isinstance(value, Guidance):
        name, value = "guidance", Guidance(value)  # type: ignore[arg-type]  # checked below
    if value.scale is not None:
        kind = "one number" if name == "guidance.scale" else "one number or a Guidance(scale)"
        read_number(name, value.scale, 0, kind=kind)
    low = read_number("guidance.low", value.low, 0)
    high = read_number("guidance.high", value.high, 0, np.inf)
    if low > high:
        raise refuse("guidance.low", f"must be at most guidance.high, got {low:g} and {high:g}")
    negative = value.negative
    if negative is not None:
        negative = read_prompts("guidance.negative", negative)
    return Guidance(
        None if value.scale is None else read_number(name, value.scale),
        negative,
        read_number("guidance.rescale", value.rescale, 0, 1),
        low,
        high,
        _read_perturbed(value.perturbed),
        None if value.image is None else read_number("guidance.image", value.image, 1),
    )


def _read_perturbed(value: object) -> PerturbedAttention | None:
    """A `PerturbedAttention`, also from its scale; a scale of 0 is none.

    Raises:
        RequestError: it is something else, or a part of it is wrong.
    """
    if value is None:
        return None
    name = "guidance.perturbed"
    given = value if isinstance(value, PerturbedAttention) else PerturbedAttention(value)  # type: ignore[arg-type]  # checked below
    kind = "a number" if given is value else "a number or a PerturbedAttention(scale)"
    part = f"{name}.scale" if given is value else name
    scale = read_number(part, given.scale, 0, kind=kind)
    layers = (given.layers,) if isinstance(given.layers, str) else given.layers
    if not isinstance(layers, list | tuple) or not layers or "" in layers:
        example = "('mid_block', 'up_blocks.0.attentions.1')"
        raise refuse(f"{name}.layers", f"must be names such as {example}, got {show(layers)}")
    layers = tuple(read_text(f"{name}.layers[{k}]", one) for k, one in enumerate(layers))
    adaptive = read_number(f"{name}.adaptive", given.adaptive, 0)
    return PerturbedAttention(scale, layers, adaptive) if scale else None


def read_freeu(value: object) -> FreeU | None:
    """A `FreeU` with its factors checked.

    Raises:
        RequestError: it is something else, or a factor lies outside of its range.
    """
    if value is None:
        return None
    if not isinstance(value, FreeU):
        example = "FreeU(b1=1.5, b2=1.6, s1=0.9, s2=0.2)"
        raise refuse("freeu", f"must be {example}, got {show(value)}")
    factors = value._asdict().items()
    return FreeU(*(read_number(f"freeu.{name}", one, 0, LARGEST_FACTOR) for name, one in factors))
