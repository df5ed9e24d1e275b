"""The choices that the names in a config make, and the options that each choice takes.

A section names a choice and may hold options of several, so that overriding the name alone works.
An option that is None takes the default of the constructor that is chosen. `CHOICES` is the table
that flags, checks, messages and the comparison of resumed runs use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax import grids, guidance, losses, parameterization, samplers, schedules
from diffjax.config.open_options import Sections
from diffjax.config.ranges import check_values
from diffjax.data import HINTS
from diffjax.model.build import RULE_OPTIONS
from diffjax.model.space import AUTOENCODERS
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.controlnet import ControlNet
from diffjax.tasks import TASKS
from diffjax.tasks.objective_table import OBJECTIVES, PARTS
from diffjax.train.optimizer import DECAYS, OPTIMIZERS
from diffjax.types import Config, choose, option_names, refuse_config


class Choice(NamedTuple):
    """One name in a config, and the constructors that it chooses from.

    Attributes:
        kind: what is chosen, for messages.
        section: dotted path of the section that holds the name and the options.
        key: of the name in that section.
        table: constructors by name. The arguments of a constructor are its options.
        left_out: arguments of the constructors that are no options of the config.
        shared: arguments whose options are in other sections, with the dotted paths of these.
    """

    kind: str
    section: str
    key: str
    table: Mapping[str, Callable[..., object]]
    left_out: tuple[str, ...] = ()
    shared: Mapping[str, str] = {}

    def list_options(self, name: str) -> dict[str, str]:
        """List the options of one constructor: dotted path to the argument that it sets.

        Raises:
            KeyError: no constructor has this name.
        """
        names = [n for n in option_names(self.table[name]) if n not in self.left_out]
        return {self.shared.get(n, f"{self.section}.{n}"): n for n in names}

    def list_all_options(self) -> set[str]:
        """List the dotted paths of the options of all constructors."""
        return {path for name in self.table for path in self.list_options(name)}


_PARAMETERIZATIONS = {**parameterization.PARAMETERIZATIONS, "mean": parameterization.mean}
CHOICES = (
    Choice("schedule", "schedule", "name", schedules.SCHEDULES),
    Choice("parameterization", "parameterization", "name", _PARAMETERIZATIONS, ("grid",)),
    Choice("loss", "loss", "name", OBJECTIVES, (*PARTS, "variance", "vlb_weight")),
    Choice(
        *("loss weight", "loss", "weight", losses.WEIGHTS, ("schedule",)),
        shared={"sigma_data": "parameterization.sigma_data"},
    ),
    Choice("time sampler", "times", "name", losses.TIME_SAMPLERS, ("schedule",)),
    Choice("sampler", "sample", "sampler", samplers.SAMPLERS),
    Choice("grid", "sample", "grid", grids.GRIDS, ("schedule", "steps")),
    Choice(
        *("guidance rule", "sample", "guidance_rule", guidance.RULES, ("parameterization",)),
        shared={k: f"sample.{v}" for k, v in RULE_OPTIONS.items()},
    ),
    Choice("optimizer", "optim", "name", OPTIMIZERS, ("lr",)),
    Choice("learning-rate decay", "optim", "decay", DECAYS, ("lr", "steps", "warmup")),
    Choice("autoencoder", "autoencoder", "name", AUTOENCODERS),
    Choice("hint", "control.hint", "name", HINTS),
    Choice(
        *("control network", "control.net", "name"),
        {"controlnet": ControlNet, "t2i_adapter": T2IAdapter},
    ),
)


def _list_chosen(config: Config) -> list[tuple[Choice, str]]:
    """List the choices that a config makes, with the names that it chooses.

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


def find(config: Config, path: str) -> object:
    """Find the value at a dotted path of nested dicts; None if there is none."""
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return None
        config = config[key]
    return config


def resolve(config: Config | ConfigDict) -> Sections:
    """Resolve a config: what every option is, as the chosen constructors see it.

    An option that is None becomes the constructor's default, and one that no chosen constructor
    takes becomes None. So two configs that compute the same compare equal.

    Returns:
        Nested dicts of their own; the config is not changed.

    Raises:
        ValueError: a name is unknown.
    """
    out = _copy(config)
    chosen = _list_chosen(out)
    taken: dict[str, object] = {}
    for choice, name in chosen:
        parameters = inspect.signature(choice.table[name]).parameters
        for path, argument in choice.list_options(name).items():
            default = parameters[argument].default
            taken.setdefault(path, None if default is inspect.Parameter.empty else default)
    for path in {path for choice, _ in chosen for path in choice.list_all_options()}:
        parent, _, key = path.rpartition(".")
        section = find(out, parent)
        if not isinstance(section, dict) or key not in section:
            continue
        if path not in taken:
            section[key] = None
        elif section[key] is None or section[key] == "":
            section[key] = taken[path]
    return out


def _copy(config: Config | ConfigDict) -> Sections:
    """Copy a config, or nested dicts, as nested dicts."""
    plain: Sections = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    nested = (Mapping, ConfigDict)
    return {k: _copy(v) if isinstance(v, nested) else v for k, v in plain.items()}


def explain_unused(config: Config | ConfigDict, paths: Iterable[str]) -> dict[str, str]:
    """Explain which options have no effect, because no choice of the config takes them.

    Args:
        paths: dotted paths of options that a user has set.

    Returns:
        The reason by path, for the paths that have no effect.

    Raises:
        ConfigError: a name in the config is unknown.
    """
    with refuse_config():
        chosen = _list_chosen(_copy(config))
    out = {}
    for path in paths:
        owners = [(choice, name) for choice, name in chosen if path in choice.list_all_options()]
        if not owners or any(path in choice.list_options(name) for choice, name in owners):
            continue
        choice, name = owners[0]
        others = ", ".join(sorted(n for n in choice.table if path in choice.list_options(n)))
        out[path] = f"{choice.section}.{choice.key} is {name!r}, and the option belongs to {others}"
    return out


def check(config: Config | ConfigDict) -> None:
    """Check the values of a config against their ranges, and its names against the choices.

    Raises:
        ConfigError: a value is NaN, infinite, of another type or out of range, or a name is
            unknown. The message names the key and what it may be.
    """
    plain = _copy(config)
    check_values(plain)
    with refuse_config():
        _list_chosen(plain)
        if "task" in plain:
            choose("task", plain["task"], TASKS)
