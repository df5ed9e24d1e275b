"""What the options of a config's sections mean: which choice takes them, and their defaults.

A section names a choice and holds options of several, so that overriding the name alone works. An
option that is None takes the default of the constructor that is chosen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffjax import grids, losses, parameterization, samplers, schedules
from diffjax.config.ranges import check_values
from diffjax.data import HINTS
from diffjax.model.space import AUTOENCODERS
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.controlnet import ControlNet
from diffjax.tasks import TASKS
from diffjax.train.optimizer import DECAYS, OPTIMIZERS
from diffjax.types import choose, option_names, refuse_config


class Choice(NamedTuple):
    """One name in a config, and the constructors that it chooses from.

    Attributes:
        kind: what is chosen, for messages.
        section: dotted path of the section that holds the name and the options.
        key: of the name in that section.
        table: constructors by name.
        left_out: arguments of the constructors that are no options of the config.
        shared: arguments whose options are in other sections, with their dotted paths.
    """

    kind: str
    section: str
    key: str
    table: Mapping[str, Callable[..., Any]]
    left_out: tuple[str, ...] = ()
    shared: Mapping[str, str] = {}

    def takes(self, name: str) -> dict[str, str]:
        """Dotted path of the option, and the argument that it is, of what a constructor takes."""
        names = [n for n in option_names(self.table[name]) if n not in self.left_out]
        return {self.shared.get(n, f"{self.section}.{n}"): n for n in names}

    def owns(self) -> set[str]:
        """Dotted paths of the options of all constructors."""
        return {path for name in self.table for path in self.takes(name)}


_PARAMETERIZATIONS = {**parameterization.PARAMETERIZATIONS, "mean": parameterization.mean}
CHOICES = (
    Choice("schedule", "schedule", "name", schedules.SCHEDULES),
    Choice("parameterization", "parameterization", "name", _PARAMETERIZATIONS, ("grid",)),
    Choice(
        *("loss weight", "loss", "weight", losses.WEIGHTS, ("schedule",)),
        shared={"sigma_data": "parameterization.sigma_data"},
    ),
    Choice("time sampler", "times", "name", losses.TIME_SAMPLERS, ("schedule",)),
    Choice("sampler", "sample", "sampler", samplers.SAMPLERS),
    Choice("grid", "sample", "grid", grids.GRIDS, ("schedule", "steps")),
    Choice("optimizer", "optim", "name", OPTIMIZERS, ("lr",)),
    Choice("learning-rate decay", "optim", "decay", DECAYS, ("lr", "steps")),
    Choice("autoencoder", "autoencoder", "name", AUTOENCODERS),
    Choice("hint", "control.hint", "name", HINTS),
    Choice(
        *("control network", "control.net", "name"),
        {"controlnet": ControlNet, "t2i_adapter": T2IAdapter},
    ),
)


def _list_chosen(config: Mapping[str, Any]) -> list[tuple[Choice, str]]:
    """The choices that a config makes, with the names that it chooses.

    Raises:
        ValueError: a name is unknown.
    """
    found = []
    for choice in CHOICES:
        section = find(config, choice.section)
        if isinstance(section, Mapping) and section.get(choice.key):
            name = str(section[choice.key])
            choose(choice.kind, name, choice.table)
            found.append((choice, name))
    return found


def find(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested dicts; None if there is none."""
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return None
        config = config[key]
    return config


def resolve(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """A config as nested dicts, with options as the chosen constructors see them.

    An option that is None becomes the constructor's default; one that no chosen constructor takes
    becomes None. So two configs that compute the same compare equal.

    Raises:
        ValueError: a name is unknown.
    """
    out = _copy(config)
    chosen = _list_chosen(out)
    taken: dict[str, Any] = {}
    for choice, name in chosen:
        parameters = inspect.signature(choice.table[name]).parameters
        for path, argument in choice.takes(name).items():
            default = parameters[argument].default
            taken.setdefault(path, None if default is inspect.Parameter.empty else default)
    for path in {path for choice, _ in chosen for path in choice.owns()}:
        parent, _, key = path.rpartition(".")
        section = find(out, parent)
        if not isinstance(section, dict) or key not in section:
            continue
        if path not in taken:
            section[key] = None
        elif section[key] is None or section[key] == "":
            section[key] = taken[path]
    return out


def _copy(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """A config, or nested dicts, as nested dicts of their own."""
    plain: dict[str, Any] = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    nested = (Mapping, ConfigDict)
    return {k: _copy(v) if isinstance(v, nested) else v for k, v in plain.items()}


def explain_unused(config: Mapping[str, Any] | ConfigDict, paths: Iterable[str]) -> dict[str, str]:
    """Why no choice of the config takes an option, for those of the dotted paths that none takes.

    Args:
        paths: of options that a user has set.

    Raises:
        ConfigError: a name in the config is unknown.
    """
    with refuse_config():
        chosen = _list_chosen(_copy(config))
    out = {}
    for path in paths:
        owners = [(choice, name) for choice, name in chosen if path in choice.owns()]
        if not owners or any(path in choice.takes(name) for choice, name in owners):
            continue
        choice, name = owners[0]
        others = ", ".join(sorted(n for n in choice.table if path in choice.takes(n)))
        out[path] = f"{choice.section}.{choice.key} is {name!r}, and the option belongs to {others}"
    return out


def check(config: Mapping[str, Any] | ConfigDict) -> None:
    """Compare the values and names of a config with what they may be.

    Raises:
        ConfigError: a value is NaN, infinite, of another type or out of range, or a name is
            unknown.
    """
    plain = _copy(config)
    check_values(plain)
    with refuse_config():
        _list_chosen(plain)
        if "task" in plain:
            choose("task", plain["task"], TASKS)
