"""Values that take the place of those of a config, and the arguments that set them.

A run of a sweep is a command: its overrides become ``--config.KEY=VALUE``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from diffjax.types import ConfigError

Overrides = Mapping[str, object]  # values by key of the config, such as "optim.lr"


def check_overrides(cfg: ConfigDict, overrides: Overrides) -> None:
    """Check that a config has these keys, with values of their types. The config is changed.

    Raises:
        ConfigError: the config does not take an override; the message names it.
    """
    cfg.lock()
    for key, value in overrides.items():
        try:
            cfg.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            text = str(error.args[0] if error.args else error).splitlines()[0]
            raise ConfigError(f"the sweep overrides {key}={value!r}: {text}") from error


def format_overrides(overrides: Overrides) -> list[str]:
    """Format overrides as arguments of a command: --config.KEY=VALUE."""
    return [
        f"--config.{key}={tuple(value) if isinstance(value, list) else value}"
        for key, value in overrides.items()
    ]


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parse the --config.KEY=VALUE among arguments, as text by key."""
    names = [one.lstrip("-") for one in arguments]
    pairs = [one.partition("=")[::2] for one in names if one.startswith("config.")]
    return {key.removeprefix("config."): value for key, value in pairs}
