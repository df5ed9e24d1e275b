"""The hints of a config with a section ``control``: pictures that control networks follow."""

from __future__ import annotations

from ml_collections import ConfigDict

from diffjax import data
from diffjax.types import select_options


def read_hint_shape(cfg: ConfigDict, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Read the shape (H, W, C) of a hint, which is as large as the images.

    Args:
        image_shape: (H, W, C) of the images.
    """
    height, width = image_shape[:2]
    return height, width, cfg.control.net.hint_channels


def make_hints(cfg: ConfigDict) -> data.Hints:
    """Make the function that computes the hints of a batch, by ``config.control.hint``.

    Returns:
        ``batch -> hints`` (B, H, W, C) in [0, 1], see `diffjax.data.make_hints`.

    Raises:
        ValueError: the name of the hint, or an option of it, is unknown.
    """
    name, channels = cfg.control.hint.name, cfg.control.net.hint_channels
    options = select_options("hint", name, data.HINTS, cfg.control.hint)
    return data.make_hints(name, options, channels=channels)
