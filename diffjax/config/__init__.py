"""Configs: their defaults, what their names choose from, what their values may be, stored ones.

    from diffjax import config

    cfg = config.make({"network.channels": 64, "schedule.name": "cosine"})
    config.check(cfg)

Making a config is fast; what needs all that a config can choose from is loaded when it is asked
for.
"""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name == "read_config":
        from diffjax.config import store

        return store.read_config
    if name in __all__:
        from diffjax.config import choices

        return getattr(choices, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
