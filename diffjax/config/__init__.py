"""Configs: their defaults, the choices that their names make, the range of each value, stored ones.

    from diffjax import config

    cfg = config.make({"network.channels": 64, "schedule.name": "cosine"})
    config.check(cfg)

A config enters a run in three steps: `make` or a config file builds it from the tables of
`config.defaults`, `complete` adds the keys that an older one lacks, and `check` compares values
with their ranges and names with the tables of the library. `resolve` then says what each option
is, with the defaults of the choices filled in.

Making a config is fast. The tables of choices import most of the library, so they are loaded when
they are first used.
"""

from typing import TYPE_CHECKING

from diffjax.config.assemble import (
    ImageSize,
    complete,
    explain_unknown,
    make,
    make_section,
    make_size_field,
)
from diffjax.config.variants import load_config

if TYPE_CHECKING:
    from diffjax.config.choices import (
        CHOICES,
        Choice,
        check,
        explain_unused,
        find,
        resolve,
    )
    from diffjax.config.store import read_config

__all__ = [
    "CHOICES",
    "Choice",
    "ImageSize",
    "check",
    "complete",
    "explain_unknown",
    "explain_unused",
    "find",
    "load_config",
    "make",
    "make_section",
    "make_size_field",
    "read_config",
    "resolve",
]


def __getattr__(name: str) -> object:
    """Load the functions that import most of the library when they are first used."""
    if name == "read_config":
        from diffjax.config import store

        return store.read_config
    if name in __all__:
        from diffjax.config import choices

        return getattr(choices, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
