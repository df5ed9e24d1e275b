"""What the options of a config's sections mean: which choice takes them, and their defaults.

A section names a choice and holds options of several, so that overriding the name alone works. An
option that is None takes the default of the constructor that is chosen.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffjax import grids, losses, parameterization, samplers, schedules
from diffjax.data import HINTS
from diffjax.model.space import AUTOENCODERS
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.controlnet import ControlNet
from diffjax.train.optimizer import DECAYS, OPTIMIZERS
from diffjax.types import choose, option_names


class Choice(NamedTuple):
    """One name in a config, and the constructors that it chooses from.

    Attributes:
        kind: what is chosen, for messages.
        section: dotted path of the section that holds the name and the options.
        key: of the name in that section.
        table: constructors by name.
        given: arguments of the constructors that are no options of the config.
        shared: arguments whose options are in other sections, with their dotted paths.
    """

    kind: str
    section: str
    key: str
    table: Mapping[str, Callable[..., Any]]
    given: tuple[str, ...] = ()
    shared: Mapping[str, str] = {}

    def takes(self, name: str) -> dict[str, str]:
        """Dotted path of the option, and the argument that it is, of what a constructor takes."""
        names = [n for n in option_names(self.table[name]) if n not in self.given]
        return {self.shared.get(n, f"{self.section}.{n}"): n for n in names}

    def owns(self) -> set[str]:
        """Dotted paths of the options of all constructors."""
        return {path for name in self.table for path in self.takes(name)}


_PARAMETERIZATIONS = {**parameterization.PARAMETERIZATIONS, "mean": parameterization.mean}
CHOICES = (
    Choice("schedule", "schedule", "name", schedules.SCHEDULES),
    Choice("parameterization", "parameterization", "name", _PARAMETERIZATIONS, ("grid",)),
    Choice(
        *("loss weight", "loss", "weight", losses.WEIGHTS),
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


def _chosen(config: Mapping[str, Any]) -> list[tuple[Choice, str]]:
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


def resolve(config: Any) -> dict[str, Any]:
    """A config as nested dicts, with options as the chosen constructors see them.

    An option that is None becomes the constructor's default; one that no chosen constructor takes
    becomes None. So two configs that compute the same compare equal.

    Raises:
        ValueError: a name is unknown.
    """
    out = _copy(config)
    chosen = _chosen(out)
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


def _copy(config: Any) -> dict[str, Any]:
    """A config, or nested dicts, as nested dicts of their own."""
    plain: dict[str, Any] = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    nested = (Mapping, ConfigDict)
    return {k: _copy(v) if isinstance(v, nested) else v for k, v in plain.items()}


def explain_unused(config: Any, paths: Iterable[str]) -> dict[str, str]:
    """Why no choice of the config takes an option, for those of the dotted paths that none takes.

    Args:
        paths: of options that a user has set.

    Raises:
        ValueError: a name in the config is unknown.
    """
    chosen, out = _chosen(_copy(config)), {}
    for path in paths:
        owners = [(choice, name) for choice, name in chosen if path in choice.owns()]
        if not owners or any(path in choice.takes(name) for choice, name in owners):
            continue
        choice, name = owners[0]
        others = ", ".join(sorted(n for n in choice.table if path in choice.takes(n)))
        out[path] = f"{choice.section}.{choice.key} is {name!r}, and the option belongs to {others}"
    return out


def _is_positive(value: Any) -> bool:
    return value > 0


# Dotted path -> (what the value has to be, test). None always stands for a default.
RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *("data.batch_size", "data.channels", "network.channels", "network.blocks"),
            *("schedule.steps", "train.accumulate", "train.log_every", "train.keep"),
            *("sample.steps", "sample.num", "sample.batch_size", "sample.rho"),
            *("eval.num", "eval.loop_num", "optim.lr", "parameterization.sigma_data"),
        ),
        ("greater than 0", _is_positive),
    ),
    **dict.fromkeys(
        (
            *("seed", "data.num_classes", "data.threads", "data.prefetch"),
            *("train.steps", "train.minutes", "train.checkpoint_every", "train.sample_every"),
            *("train.evaluate_every", "optim.warmup", "optim.clip", "optim.weight_decay"),
            *("loss.gamma", "loss.vlb_weight", "ema.half_life", "sample.guidance_low"),
            *("sample.eta", "sample.s_churn", "sample.s_noise", "sample.s_tmin", "sample.snr"),
        ),
        ("0 or more", lambda value: value >= 0),
    ),
    **dict.fromkeys(
        ("network.dropout", "cond.drop", "ema.decay", "optim.b1", "optim.b2"),
        ("at least 0 and less than 1", lambda value: 0 <= value < 1),
    ),
    **dict.fromkeys(
        ("data.augment", "sample.guidance_rescale", "sample.gamma"),
        ("between 0 and 1", lambda value: 0 <= value <= 1),
    ),
    "data.levels": ("2 or more", lambda value: value >= 2),
}


def check(config: Any) -> None:
    """Compare the values of a config with the ranges that they have to lie in.

    Raises:
        ValueError: a value is NaN, infinite or out of range, or a name is unknown.
    """
    plain = _copy(config)
    _chosen(plain)
    for path, value in _walk(plain):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{path} is not a number that can be stored: {value}")
        wanted, test = RANGES.get(path, ("", None))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if test is not None and value is not None and not (number and test(value)):
            raise ValueError(f"config.{path} must be {wanted}, got {value!r}")


def _walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every value in nested dicts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
