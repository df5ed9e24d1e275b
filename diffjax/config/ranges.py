"""The types and ranges of the values of a config: of flags, config files, and stored configs.

A stored config may come from a stranger, so its values are checked here before anything is built of
them: types that configs have, finite numbers, and sizes that a network can have. Names and the
options of constructors are checked where the sections are built (`config.choices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from diffjax.config.assemble import ImageSize, find_type
from diffjax.config.defaults import DEFAULTS
from diffjax.config.open_options import OpenOption
from diffjax.untrusted import (
    FLAG,
    NOTHING,
    Spec,
    either,
    exactly,
    integer,
    is_finite,
    listed,
    name_some,
    number,
    show,
    text,
)

if TYPE_CHECKING:
    from diffjax.types import Config  # not before: it takes a second

MOST = 2**40
_POSITIVE = number(0, MOST, above=True)
_NOT_NEGATIVE = number(0, MOST)
_SHARE = number(0, 1)
_LESS_THAN_ONE = Spec(
    "a number of at least 0 and less than 1", lambda v: is_finite(v) and 0 <= v < 1
)
_COUNT = integer(1, 64)
_WIDTH = integer(1, 2**17)
_IMAGES = integer(1, 2**24)
_NUMBER_OF = integer(1, MOST)
_STEPS = integer(0, 10**9)
_NAME = text(128)
_DTYPE = exactly("float32", "bfloat16", "float16")
_MULTIPLIERS = listed(number(0, 1024, above=True), 8)


def _make_number_or_list(low: int, high: int) -> Spec:
    """Make the specification of a whole number in a range, or of a list of such numbers."""
    one = integer(low, high)
    return Spec(
        f"a whole number in {low} .. {high}, or a list of them",
        lambda v: all(map(one.holds, v if isinstance(v, list | tuple) else [v])),
    )


# By dotted key. What a config leaves to its data is 0, and -1 of classes; an option that is open
# may be None.
SPECS: Mapping[str, Spec] = {
    "task": _NAME,
    "seed": integer(0, MOST),
    "data.name": _NAME,
    "data.image_size": either(integer(0, 2**16), listed(integer(1, 2**16), 2)),
    "data.channels": integer(0, 64),
    "data.levels": either(exactly(0), integer(2, 2**16)),
    "data.num_classes": integer(-1, 2**24),
    "data.batch_size": _IMAGES,
    "data.augment": _SHARE,
    "data.threads": integer(0, 4096),
    "data.prefetch": integer(0, 4096),
    "data.bucket_step": integer(0, 2**16),
    "data.bucket_ratio": number(1, 1024),
    "data.longest_side": integer(1, 2**16),
    "data.window": listed(integer(0, 2**16), 4, least=0),
    "data.captions": listed(text(4096), 4096, least=0),
    "network.name": _NAME,
    "network.dtype": _DTYPE,
    "network.remat": either(FLAG, _NAME),  # older configs say whether, newer ones what
    "network.channels": _WIDTH,
    "network.multipliers": _MULTIPLIERS,
    "network.blocks": _COUNT,
    "network.depth": _make_number_or_list(0, 128),
    "network.heads": _make_number_or_list(1, 1024),
    "network.dropout": _LESS_THAN_ONE,
    "network.norm_groups": _WIDTH,
    "network.norm_eps": number(0, 1, above=True),
    "network.downsample_padding": integer(0, 1),
    "network.patch": _COUNT,
    "autoencoder.channels": _WIDTH,
    "autoencoder.multipliers": _MULTIPLIERS,
    "autoencoder.blocks": _COUNT,
    "autoencoder.dtype": _DTYPE,
    "autoencoder.scale": number(0, 1e6),
    "schedule.name": _NAME,
    "schedule.steps": integer(1, 100_000),
    "parameterization.name": _NAME,
    "parameterization.sigma_data": _POSITIVE,
    "parameterization.score_scale": _POSITIVE,
    "loss.gamma": _NOT_NEGATIVE,
    "loss.vlb_weight": _NOT_NEGATIVE,
    "loss.noise_offset": _NOT_NEGATIVE,
    "loss.input_perturbation": _NOT_NEGATIVE,
    "cond.drop": _LESS_THAN_ONE,
    "prior.weight": _NOT_NEGATIVE,
    "ip_adapter.tokens": integer(1, 1024),
    "ip_adapter.features": _WIDTH,
    "ip_adapter.heads": integer(1, 1024),
    "ip_adapter.layers": _COUNT,
    "ip_adapter.vision.size": integer(1, 2**13),
    "ip_adapter.vision.patch": integer(1, 2**13),
    "ip_adapter.vision.features": _WIDTH,
    "ip_adapter.vision.width": integer(1, 2**20),
    "ip_adapter.vision.layers": integer(1, 1024),
    "ip_adapter.vision.heads": integer(1, 1024),
    "ip_adapter.vision.projection": _WIDTH,
    "align.weight": _NOT_NEGATIVE,
    "align.block": integer(1, 128),
    "align.width": _WIDTH,
    "align.vision.size": integer(1, 2**13),
    "align.vision.patch": integer(1, 2**13),
    "align.vision.features": _WIDTH,
    "align.vision.layers": integer(1, 1024),
    "align.vision.heads": integer(1, 1024),
    "align.vision.ratio": integer(1, 64),
    "align.vision.registers": integer(0, 1024),
    "optim.lr": _POSITIVE,
    "optim.warmup": _STEPS,
    "optim.clip": _NOT_NEGATIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.b1": _LESS_THAN_ONE,
    "optim.b2": _LESS_THAN_ONE,
    "optim.eps": _NOT_NEGATIVE,
    "optim.momentum": _LESS_THAN_ONE,
    "ema.decay": _LESS_THAN_ONE,
    "ema.half_life": _NOT_NEGATIVE,
    "ema.every": _NUMBER_OF,
    "ema.kind": exactly("exponential", "power"),
    "ema.lengths": listed(number(0.001, 0.288), 8),
    "ema.snapshot_every": _STEPS,
    "train.steps": _STEPS,
    "train.minutes": _NOT_NEGATIVE,
    "train.accumulate": _NUMBER_OF,
    "train.log_every": _NUMBER_OF,
    "train.checkpoint_every": _STEPS,
    "train.sample_every": _STEPS,
    "train.evaluate_every": _STEPS,
    "train.keep": _NUMBER_OF,
    "train.trackers": listed(_NAME, 8, least=0),
    "sample.steps": either(NOTHING, integer(1, 100_000)),
    "sample.num": _NUMBER_OF,
    "sample.batch_size": _IMAGES,
    "sample.eta": _NOT_NEGATIVE,
    "sample.gamma": _SHARE,
    "sample.s_churn": _NOT_NEGATIVE,
    "sample.s_noise": _NOT_NEGATIVE,
    "sample.s_tmin": _NOT_NEGATIVE,
    "sample.snr": _NOT_NEGATIVE,
    "sample.rho": _POSITIVE,
    "sample.guidance_low": _NOT_NEGATIVE,
    "sample.guidance_rescale": _SHARE,
    "sample.apg_norm": _NOT_NEGATIVE,
    "sample.fdg_low": _NOT_NEGATIVE,
    "sample.guidance_channels": either(NOTHING, _NUMBER_OF),
    "sample.zero_steps": _STEPS,
    "sample.skip_blocks": listed(integer(0, 4096), 4096, least=0),
    "sample.skip_scale": _NOT_NEGATIVE,
    "sample.guide_ema_length": _NOT_NEGATIVE,
    "sample.strength": _NOT_NEGATIVE,
    "loss.ratio": _SHARE,
    "loss.power": _NOT_NEGATIVE,
    "loss.floor": _POSITIVE,
    "loss.huber": _NOT_NEGATIVE,
    "loss.base": _POSITIVE,
    "loss.stages": _NUMBER_OF,
    "loss.first": _NUMBER_OF,
    "loss.last": _NUMBER_OF,
    "loss.initial_decay": _LESS_THAN_ONE,
    "loss.target_decay": _LESS_THAN_ONE,
    "loss.student_steps": _NUMBER_OF,
    "loss.teacher_steps": _NUMBER_OF,
    "loss.share": _SHARE,
    "times.rho": _POSITIVE,
    "eval.num": _NUMBER_OF,
    "eval.loop_num": _NUMBER_OF,
}


def check_values(config: Config, where: object = None) -> None:
    """Check the values of a config against `SPECS` and the types of the defaults.

    Args:
        config: nested dicts.
        where: the file that the config was read from, for messages; None for flags.

    Raises:
        ConfigError: a value is wrong; the message names its key and what it must be.
        ValueError: the same, of a config that was read from a file.
    """
    from diffjax.types import ConfigError  # not before: it takes a second

    flat = dict(flatten(config))
    for problem in _list_problems(flat):
        raise ValueError(f"{where}: {problem}") if where else ConfigError(problem)


def _list_problems(flat: Mapping[str, object]) -> Iterator[str]:
    """Yield a sentence for each value, by dotted key, that is no value of a config."""
    kinds = {key: (default, find_type(default)) for key, default in flatten(DEFAULTS)}
    for section in sorted({key.rpartition(".")[0] for key in kinds} - {""}):
        if section in flat:
            yield f"config.{section} must be a section, got {show(flat[section])}"
    for key in kinds:
        if inner := [name for name in flat if name.startswith(f"{key}.")]:
            yield f"config.{key} must be a value, but is a section with {name_some(inner)}"
    for key, value in flat.items():
        if problem := _explain_strange(value):
            yield f"config.{name_some([key])} {problem}"
        default, kind = kinds.get(key, (None, None))
        if value is None and isinstance(default, OpenOption):
            continue
        if key in SPECS and not SPECS[key].holds(value):
            yield f"config.{key} must be {SPECS[key].says}, got {show(value)}"
        if kind and key not in SPECS and not _is_alike(value, kind):
            yield f"config.{key} must be of type {kind.__name__}, got {show(value)}"


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of every value in nested dicts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_alike(value: object, kind: type) -> bool:
    """Whether a value is of a type, as far as JSON tells types apart. Null is of every type."""
    if value is None:
        return True
    if kind in (bool, str):
        return type(value) is kind
    if kind in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, ImageSize if kind is ImageSize else list | tuple)


def _explain_strange(value: object) -> str:
    """Explain why no config can hold a value; empty if one can."""
    if isinstance(value, list | tuple):
        return next(filter(None, map(_explain_strange, value)), "")
    if isinstance(value, bool | str | None):
        return ""
    if not isinstance(value, int | float):
        return f"must be a number, text, true, false, null or a list of these, got {show(value)}"
    if not is_finite(value):
        return f"is not a number that can be stored: {show(value)}"
    return "" if abs(value) <= MOST else f"must be at most {MOST} in size, got {show(value)}"


def check_list(path: str, before: tuple[object, ...], value: tuple[object, ...]) -> None:
    """Check that a list of numbers is replaced by numbers; a config alone would take any list.

    Args:
        path: dotted key.
        before: the value that is replaced.
        value: the new value.

    Raises:
        ConfigError: numbers are replaced by something else.
    """
    if not before or not all(isinstance(item, int | float) for item in before):
        return
    whole = all(isinstance(item, int) for item in before)
    wanted = int if whole else int | float
    if not all(isinstance(v, wanted) and not isinstance(v, bool) for v in value):
        from diffjax.types import ConfigError  # not before: it takes a second

        raise ConfigError(
            f"config.{path} takes {'whole numbers' if whole else 'numbers'} such as "
            f"{','.join(map(str, before))}, got {','.join(map(str, value))!r}"
        )
