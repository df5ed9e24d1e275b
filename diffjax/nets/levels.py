"""Options of a UNet that are one value, or one for each level."""

from __future__ import annotations

from collections.abc import Sequence

from diffjax.types import ConfigError

# Transformer blocks of the attentions of each level: one number for a level, or one for each.
Depths = int | tuple[int | tuple[int, ...], ...]


def take_level(name: str, value: int | tuple[int, ...], level: int) -> int:
    """Return the value of a level; one number applies to all of them.

    Raises:
        ConfigError: there are fewer values than levels.
    """
    if isinstance(value, int):
        return value
    if level >= len(value):
        raise ConfigError(
            f"{name}={tuple(value)} has {len(value)} entries, but the network has a level "
            f"{level + 1}: give one number, or one for each of the multipliers"
        )
    return value[level]


def take_depth(name: str, value: Depths, level: int, place: int) -> int:
    """Return the depth of the attention at a place of a level.

    Raises:
        ConfigError: there is none for it.
    """
    if isinstance(value, int) or level >= len(value):
        return take_level(name, value, level)  # type: ignore[arg-type]  # which refuses the level
    found = value[level]
    if isinstance(found, int):
        return found
    if place >= len(found):
        raise ConfigError(
            f"{name}={value} has {len(found)} numbers for level {level + 1}, which has more "
            "attentions"
        )
    return found[place]


def find_first_width(channels: int, multipliers: Sequence[float]) -> int:
    """Return the channels after the first convolution of a UNet: ``channels``, or fewer.

    If the finest level is narrower, as in ADM's network of 512 pixels, they are as many as its.
    """
    return int(channels * min(1, multipliers[0]))
