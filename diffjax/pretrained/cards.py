"""Model cards: the README.md of a model's folder, which the Hub shows and searches.

A card begins with front matter, YAML between lines of dashes, whose fields are those that the Hub
knows: ``license``, ``library_name``, ``pipeline_tag``, ``tags``, ``base_model``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffjax.types import ConfigError
from diffjax.writing import write_atomically

CARD = "README.md"
PICTURE = "sample.png"
UNKNOWN = "unknown"  # the Hub's word for a licence that nobody stated
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class Card(NamedTuple):
    """What a card says.

    Attributes:
        title: name of the model.
        summary: what it is, in sentences.
        usage: Python code that loads it; NAME stands for the path or the name on the Hub.
        training: how it was trained, values by what they are; empty if it is not known.
        license: the Hub's identifier, such as ``apache-2.0`` or ``openrail++``.
        library: the one that loads it, ``diffusers`` or ``diffjax``.
        task: the Hub's name of what it does.
        tags: more words to find it by.
        base: the model that it was made from, as a name on the Hub.
        picture: whether there is a picture beside the card.
    """

    title: str
    summary: str
    usage: str
    training: Mapping[str, object] = {}
    license: str = UNKNOWN
    library: str = "diffjax"
    task: str = "text-to-image"
    tags: Sequence[str] = ()
    base: str | None = None
    picture: bool = False


def check_license(text: str) -> str:
    """Return an identifier of a licence.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(text, str) or not _LICENSE.fullmatch(text):
        raise ConfigError(
            f"license={text!r} is no identifier of a licence; the Hub has names such as "
            f"apache-2.0, mit, openrail++, other; {UNKNOWN} if nobody has said"
        )
    return text


def format_card(card: Card) -> str:
    """The text of a card."""
    front: dict[str, object] = {
        "license": check_license(card.license),
        "library_name": card.library,
        "pipeline_tag": card.task,
        "tags": list(dict.fromkeys(["diffjax", "jax", *card.tags])),
    }
    if card.base:
        front["base_model"] = card.base
    # JSON is YAML, and quotes what has to be.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {card.title}", "", card.summary, ""]
    if card.picture:
        lines += [f"![Images that the model made]({PICTURE})", ""]
    lines += ["## Use", "", "```python", card.usage, "```", ""]
    if card.training:
        lines += ["## Training", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {_escape(value)} |" for key, value in card.training.items()]
        lines += [""]
    if card.license == UNKNOWN:
        lines += [
            "Nobody has stated the licence of this model yet: set the field `license` above.",
            "",
        ]
    return "\n".join(lines)


def _escape(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a folder, unless there is one already, which somebody may have edited."""
    if not (folder / CARD).exists():
        write_atomically(folder / CARD, format_card(card))
