"""The hints of a config with a section ``control``."""

from __future__ import annotations

from ml_collections import ConfigDict

from diffjax import data
from diffjax.types import select_options


def read_hint_shape(cfg: ConfigDict, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of a hint, which has the size of the images (H, W, C)."""
    height, width = image_shape[:2]
    return height, width, cfg.control.net.hint_channels


def make_hints(cfg: ConfigDict) -> data.Hints:
    """``batch -> hints`` (B, H, W, C) as ``config.control.hint`` describes them.

    Raises:
        ValueError: an unknown name.
    """
    name, channels = cfg.control.hint.name, cfg.control.net.hint_channels
    options = select_options("hint", name, data.HINTS, cfg.control.hint)
    return data.make_hints(name, options, channels=channels)
