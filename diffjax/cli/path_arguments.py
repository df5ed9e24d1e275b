"""Values of flags that join paths and numbers with colons, such as NET:IMAGE:SCALE.

Paths may hold colons themselves, so files that exist decide where a value is split.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from diffjax.pretrained.hub import parse_name
from diffjax.types import ConfigError


class ControlArgument(NamedTuple):
    """The parts of a --control.

    Attributes:
        net: file or folder of the network.
        image: file of its image.
        scale: factor of what the network adds.
        start, end: the shares of the steps between which the network acts, in [0, 1].
        kind: number of the kind of hint, of networks that read several.
    """

    net: str
    image: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    kind: int | None = None


def split_path(text: str) -> tuple[str, str | None]:
    """Split PATH:REST at its last colon.

    Returns:
        The path and the rest; the rest is None without a colon, or if the whole text is an existing
        path.
    """
    head, colon, tail = text.rpartition(":")
    return (head, tail) if colon and not Path(text).exists() else (text, None)


def parse_lora(text: str) -> tuple[str, float]:
    """Parse --lora=FILE or FILE:SCALE; the scale is 1 if there is none.

    Raises:
        ConfigError: the scale is no finite number.
    """
    file, scale = split_path(text)
    if not file or (scale is not None and not _is_number(scale)):
        raise ConfigError(f"--lora={text}: must be FILE or FILE:SCALE, with a number")
    return file, 1.0 if scale is None else float(scale)


def parse_concept(text: str) -> tuple[str, str | None]:
    """Parse --concept=FILE or FILE:WORD; the word is None if the file says it.

    Raises:
        ConfigError: the file or the word is empty.
    """
    file, word = split_path(text)
    if not file or word == "":
        raise ConfigError(f"--concept={text}: must be FILE or FILE:WORD")
    return file, word


def split_kind(text: str) -> tuple[str, int | None]:
    """Split NET#KIND; the kind is None without one, or if the whole text is an existing path."""
    found = None if Path(text).exists() else re.fullmatch(r"(.+)#(\d{1,4})", text)
    return (found[1], int(found[2])) if found else (text, None)


def parse_control(text: str) -> ControlArgument:
    """Parse --control=NET[#KIND]:IMAGE[:SCALE[:START:END]]. NET may be a name on the Hub.

    Raises:
        ConfigError: the value does not name a network and an image that exist.
    """
    parts = text.split(":")
    # A value ends with scale, start and end, with a scale alone, or with no number.
    for count in (3, 1, 0):
        paths, numbers = parts[: len(parts) - count], parts[len(parts) - count :]
        for k in range(1, len(paths)):
            net, image = ":".join(paths[:k]), ":".join(paths[k:])
            net, kind = split_kind(net)
            if (
                net
                and (Path(net).exists() or parse_name(net))
                and Path(image).is_file()
                and all(map(_is_number, numbers))
            ):
                given = dict(zip(("scale", "start", "end"), map(float, numbers), strict=False))
                return ControlArgument(net, image, **given, kind=kind)
    raise ConfigError(
        f"--control={text}: must be NET[#KIND]:IMAGE[:SCALE[:START:END]], with a ControlNet and "
        "an image that exist; the ControlNet may be a name on the Hub"
    )


class PromptArgument(NamedTuple):
    """The parts of an --image_prompt.

    Attributes:
        adapter: file or folder of an IP-Adapter, or its name on the Hub.
        image: file of the picture.
        scale: factor of what the attentions read of it.
    """

    adapter: str
    image: str
    scale: float = 1.0


def parse_image_prompt(text: str) -> PromptArgument:
    """Parse --image_prompt=ADAPTER:IMAGE[:SCALE]. ADAPTER may be a name on the Hub.

    Raises:
        ConfigError: the value does not name an adapter and a picture that exist.
    """
    for head, tail in (split_path(text), (text, None)):
        if tail is not None and not _is_number(tail):
            continue
        parts = head.split(":")
        for k in range(1, len(parts)):
            adapter, image = ":".join(parts[:k]), ":".join(parts[k:])
            known = Path(adapter).exists() or parse_name(adapter)
            if adapter and known and Path(image).is_file():
                return PromptArgument(adapter, image, 1.0 if tail is None else float(tail))
    raise ConfigError(
        f"--image_prompt={text}: must be ADAPTER:IMAGE[:SCALE], with an IP-Adapter and an image "
        "that exist; the IP-Adapter may be a name on the Hub"
    )


def _is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
