"""The contracts that every part of the library shares.

A diffusion system is five independent choices: how noise grows (`Schedule`), what the network
predicts (`Parameterization`), which network (`Network`), how it is steered (`Denoiser -> Denoiser`)
and which noise levels are visited how (`Grid` and `Sampler`). They meet only in the types below.

Throughout, a noisy sample is ``z = alpha x + sigma eps`` with data ``x`` and ``eps ~ N(0, I)``,
and the log-SNR of a noise level is ``lam = log(alpha^2 / sigma^2)``. Images are
``[batch, height, width, channels]``; B, H, W and C stand for these four sizes. An array that has
one value per image has shape ``(B,)``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import jax
import numpy as np
from jax.typing import DTypeLike

# An array on the host (NumPy) or on a device (JAX, which includes the tracers of jit and grad).
Array: TypeAlias = jax.Array | np.ndarray

# An array, or a number that broadcasts like one.
ArrayLike: TypeAlias = Array | float

# A pytree of arrays: an array, or a mapping or sequence (also a NamedTuple) of pytrees. None is the
# pytree without leaves. Use it for what is passed through, and a type variable where a function
# returns the structure that it was passed.
Tree: TypeAlias = "Array | float | Mapping[str, Tree] | Sequence[Tree] | None"

# Any nesting of containers with arrays as leaves, not checked by mypy. Prefer `Tree` or `Params`.
PyTree = Any

# Parameters of a network: submodule names to more of the same, or parameter names to arrays, as
# Linen's ``init(...)["params"]`` nests them.
Params: TypeAlias = Mapping[str, Any]

# Parameters that a task reads but does not train, by the part they belong to, such as
# ``text_encoder`` or ``first_stage``.
Frozen: TypeAlias = Mapping[str, Params]

# What a task measures of its data and keeps beside the parameters: names to arrays, or to mappings
# of arrays.
Statistics: TypeAlias = Mapping[str, Any]

# One batch of data: names such as ``image``, ``label`` or ``hint`` to arrays of shape (B, ...).
Batch: TypeAlias = Mapping[str, Array]

# What a network reads beside z and t: names such as ``label``, ``context`` or ``control`` to arrays
# of shape (B, ...), or to mappings or lists of them.
CondEntries: TypeAlias = Mapping[str, Any]

# The entries of a condition, or None for no condition.
Cond: TypeAlias = CondEntries | None

# The entry of a condition with pictures beside the text; see `diffjax.nets.image_prompts`.
IMAGE_PROMPTS = "image_prompts"

# Arguments of a constructor by their names, as a section of a config holds them.
Options: TypeAlias = Mapping[str, Any]

# A whole config, or a section of one: keys to values or to further sections.
Config: TypeAlias = Mapping[str, Any]

# A JSON object as Python reads it: keys to None, bool, int, float, str, lists and objects.
JsonObject: TypeAlias = dict[str, Any]

# A floating-point type to compute in (``jnp.bfloat16`` or ``"bfloat16"``). None is that of the
# parameters and inputs, usually float32.
DType: TypeAlias = DTypeLike | None

T = TypeVar("T")
ArrayLikeT = TypeVar("ArrayLikeT", bound=ArrayLike)
_SHOWN = 100  # longest name in a message, in characters


class Module(Protocol):
    """A network as Linen has them; its parameters are ``init(...)["params"]``."""

    def init(self, key: jax.Array, /, *inputs: Any, **options: Any) -> Any:
        """Return newly drawn variables for inputs of these shapes.

        Args:
            key: a key of `jax.random`.
            inputs: arrays of the shapes and types that `apply` will be called with.

        Returns:
            A mapping whose entry ``params`` holds the parameters.
        """

    def apply(self, variables: Any, /, *inputs: Any, **options: Any) -> Any:
        """Return the output of the network for ``variables``, a mapping with ``params``."""


class Level(NamedTuple):
    """One noise level, or several. Leaves have shape () or (B,), or (N,) in the levels of a grid.

    `expand` appends axes to them, so that they multiply an image from the left.

    Attributes:
        t: the time that the network reads: a timestep, ``log sigma / 4``, a log-SNR and so on.
        alpha: signal scale, 1 for clean data.
        sigma: noise scale, 0 for clean data.
        i: index of the network evaluation; values that change with the step, such as guidance
            scales, are arrays indexed by it.
    """

    t: Array
    alpha: Array
    sigma: Array
    i: Array | int = 0


class Prediction(NamedTuple):
    """What a denoiser believes about ``z``: the canonical pair every parameterization decodes to.

    Attributes:
        x: estimate of the data, of the shape of ``z``.
        eps: estimate of the noise, of the shape of ``z``.
        var: learned log-variance fraction in [0, 1], of the shape of ``z`` (0: posterior variance,
            1: forward variance), or None if the network predicts no variance. The sampler forms
            the variance, because only it knows both levels (Nichol & Dhariwal 2021, eq. 15).
    """

    x: Array
    eps: Array
    var: Array | None = None


class Schedule(NamedTuple):
    """How noise grows with time.

    Attributes:
        at: ``t -> (alpha, sigma)``, each of the shape of t. NumPy input is computed in float64 on
            the host; JAX input may be traced.
        t_of: ``log-SNR -> t`` on the host in float64, the inverse of `at`; fractional for tabulated
            schedules.
        span: times ``(cleanest, noisiest)``.
        steps: number of tabulated times (``t = 0 .. steps - 1``), or None for continuous time.
    """

    at: Callable[[ArrayLike], tuple[Array, Array]]
    t_of: Callable[[ArrayLike], Array]
    span: tuple[float, float]
    steps: int | None = None


class Parameterization(NamedTuple):
    """What the raw network output means. Every target is affine in ``(x, eps)``.

    Attributes:
        target: ``(x, eps, level) -> raw``, the array that the loss compares the output with.
        decode: ``(raw, z, level) -> Prediction``, the inverse for the z that was noised.
        scale_in: ``level -> factor`` on ``z`` before the network (1 for all but EDM).
        gain: ``level -> d x / d raw`` at fixed ``z``. A weight w on ``|x - x_hat|^2`` is the weight
            ``w gain^2`` on ``|raw - raw_hat|^2``.
        channels: raw channels per data channel (2 with a learned variance).
        time: ``level -> t`` as the network reads it; None for the level's own.
    """

    target: Callable[[Array, Array, Level], Array]
    decode: Callable[[Array, Array, Level], Prediction]
    scale_in: Callable[[Level], ArrayLike]
    gain: Callable[[Level], ArrayLike]
    channels: int = 1
    time: Callable[[Level], ArrayLike] | None = None


class ConfigError(ValueError):
    """A value that a user chose, in a config or as an argument, is wrong.

    Commands print the message without a traceback and exit with status 2.
    """


@contextlib.contextmanager
def refuse_config() -> Iterator[None]:
    """Turn errors about a config's values into `ConfigError`, for code that builds from a config.

    Raises:
        ConfigError: the block raised a ValueError or TypeError; the message is kept.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


# ``(z, t, cond) -> raw``: z is (B, H, W, C), t is () or (B,), raw is (B, H, W, channels C).
Network: TypeAlias = Callable[[Array, Array, Cond], Array]

# ``(z, level) -> Prediction``. The condition is closed over, or it is passed as a third argument.
Denoiser: TypeAlias = Callable[[Array, Level], Prediction]

# ``(i, k=0) -> N(0, I)`` of the shape of z: draw k of network evaluation i.
Noise: TypeAlias = Callable[..., Array]

# The coefficients of a solver's rows, one array or several by name, with the rows on the leading
# axis. Only the solver that planned them knows what they mean.
Coefficients: TypeAlias = Array | Mapping[str, Array]

# What a solver remembers between rows: an array or a tuple of arrays, () for a one-step method.
# Only the solver that made it knows what it means.
Memory: TypeAlias = Array | tuple[Array, ...]


class Grid(NamedTuple):
    """The noise levels a sampler visits, in float64 on the host, never traced.

    Attributes:
        levels: N + 1 levels from noisiest to cleanest, leaves (N + 1,); sampling ends at the last.
        at: ``log-SNR -> Level`` for evaluations between the levels of the grid.
        at_time: ``t -> Level`` for evaluations between the levels of the grid.
        init_std: standard deviation of the initial noise.
        steps: the N of the whole grid, if this one is a part of it.
        first: index in the whole grid of the first level of this part. Solvers that lower their
            order at the end, or that act at certain steps, count in the whole grid.
    """

    levels: Level
    at: Callable[[ArrayLike], Level]
    at_time: Callable[[ArrayLike], Level]
    init_std: float
    steps: int
    first: int = 0

    def remaining(self, i: int) -> int:
        """Count the steps of the whole grid from level i of this part on, that of i included."""
        return self.steps - self.first - i


class Rows(NamedTuple):
    """A sampler's plan in float32, with one row per network evaluation on the leading axis.

    Attributes:
        level: where the network is evaluated, leaves (rows,).
        next: the level of the state after the row, leaves (rows,).
        coef: the solver's own pytree of coefficients, leaves (rows, ...).
    """

    level: Level
    next: Level
    coef: Coefficients


class Sampler(NamedTuple):
    """A solver: a plan that is made on the host, and one network evaluation per row.

    Attributes:
        plan: ``Grid -> Rows``, formed on the host in float64.
        init: ``(z, rows) -> memory``, what the solver remembers before the first row.
        step: ``(noise, denoise, z, memory, row) -> (z, memory)``, traceable.
        start: ``standard normal noise -> z``, in place of noise of the first level; None for that.
    """

    plan: Callable[[Grid], Rows]
    init: Callable[[Array, Rows], Memory]
    step: Callable[[Noise, Denoiser, Array, Memory, Rows], tuple[Array, Memory]]
    start: Callable[[Array], Array] | None = None


# What `Task.loss` returns.
LossAndState: TypeAlias = tuple[Array, tuple[Statistics, dict[str, Array]]]


class Task(NamedTuple):
    """All that the trainer knows of an experiment.

    Attributes:
        init: ``(key, frozen, batch) -> (params, extra)``, traceable. ``frozen`` is `Frozen`,
            ``extra`` is state that is kept beside the parameters and not differentiated.
        loss: ``(params, frozen, extra, key, step, batch) -> (loss, (extra, metrics))`` with a
            scalar loss, the new ``extra``, and scalar metrics by name. Traceable.
    """

    init: Callable[..., tuple[Params, Statistics]]
    loss: Callable[..., LossAndState]


def expand(value: ArrayLikeT, like: Array) -> ArrayLikeT:
    """Append axes to a value of shape () or (B,) until it broadcasts against ``like`` (B, ...)."""
    ndim = getattr(value, "ndim", 0)
    if not ndim:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - ndim))  # type: ignore[union-attr,return-value]


def mix(x: Array, eps: Array, level: Level) -> Array:
    """Return ``z = alpha x + sigma eps`` of the shape of x (B, ...), with leaves () or (B,)."""
    return expand(level.alpha, x) * x + expand(level.sigma, x) * eps


def summarize(value: object) -> str:
    """Return a repr of a named tuple or dataclass in one line, with arrays as type and shape."""
    names = getattr(value, "_fields", None) or [
        field.name
        for field in dataclasses.fields(value)  # type: ignore[arg-type]
        if field.repr
    ]
    shown = ", ".join(f"{name}={_summarize_field(getattr(value, name))}" for name in names)
    return f"{type(value).__name__}({shown})"


def _summarize_field(value: object) -> str:
    """Return one field of `summarize`: arrays, trees and long lists by their size alone."""
    if isinstance(value, Array) and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping) and not all(_is_plain(one) for one in value.values()):
        leaves = jax.tree.leaves(value)
        return (
            f"{{{len(value)} keys, {sum(getattr(leaf, 'size', 1) for leaf in leaves):,} numbers}}"
        )
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        shown = [_summarize_field(one) for one in value[:4]]
        return f"[{', '.join(shown + ['...'] * (len(value) > 4))}]"
    text = repr(value)
    if len(text) <= 400 and "\n" not in text:
        return text
    return f"{text[:60]!r}..." if isinstance(value, str) else f"{type(value).__name__}(...)"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def suggest(name: object, names: Iterable[str]) -> str:
    """Return ``". Did you mean 'NAME'?"`` with the closest of the names, or "" if none is close."""
    found = difflib.get_close_matches(str(name)[:_SHOWN], list(names), 1)
    return f". Did you mean {found[0]!r}?" if found else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry of a table under a name that a user wrote.

    Args:
        kind: what the table holds, for the message, such as "sampler".
        name: the key to look up.
        table: the choices by name.

    Raises:
        ValueError: the name is unknown; the message lists the choices and suggests the closest.
    """
    if not isinstance(name, str) or name not in table:
        known = ", ".join(sorted(table))
        shown = repr(name)
        if len(shown) > _SHOWN:  # names may come from foreign files
            shown = f"{shown[:_SHOWN]}..."
        raise ValueError(f"unknown {kind} {shown}; choose one of {known}{suggest(name, table)}")
    return table[name]


def option_names(constructor: Callable[..., object]) -> list[str]:
    """List the names of the arguments that a constructor takes."""
    return list(inspect.signature(constructor).parameters)


def select_options(
    kind: str, name: str, table: Mapping[str, Callable[..., object]], section: Options
) -> dict[str, Any]:
    """Return those options of a config section that the named constructor takes.

    A section may hold options of several constructors, so that overriding the name alone works.
    None and the empty string stand for the constructor's own default.

    Raises:
        ValueError: the name is unknown.
    """
    takes = option_names(choose(kind, name, table))
    return {k: v for k, v in dict(section).items() if k in takes and v is not None and v != ""}


def build_section(
    kind: str, name: str, table: Mapping[str, Callable[..., T]], section: Options
) -> T:
    """Call the named constructor with those options of a config section that it takes.

    Options of the section's other constructors are left out; see `select_options`.

    Raises:
        ValueError: the name is unknown, or no constructor of the table takes an option.
    """
    _refuse_unknown(kind, name, table, section)
    return build(kind, name, table, select_options(kind, name, table, section))


def build(
    kind: str,
    name: str,
    table: Mapping[str, Callable[..., T]],
    options: Options | None = None,
) -> T:
    """Call the named constructor with options, all of which it has to take.

    Args:
        kind: what the table holds, for messages, such as "sampler".
        name: the constructor's key in the table.
        table: constructors by name.
        options: keyword arguments of the constructor.

    Raises:
        ValueError: the name is unknown, or the constructor does not take an option.
    """
    maker, options = choose(kind, name, table), dict(options or {})
    _refuse_unknown(kind, name, table, options)
    takes = option_names(maker)
    for key in options:
        if key not in takes:
            others = ", ".join(
                sorted(n for n, entry in table.items() if key in option_names(entry))
            )
            raise ValueError(
                f"{kind} {name!r} does not take the option {key!r}, which belongs to {others}; "
                f"it takes {', '.join(takes) or 'none'}"
            )
    return maker(**options)


def _refuse_unknown(
    kind: str, name: str, table: Mapping[str, Callable[..., object]], options: Options
) -> None:
    """Raise a ValueError for an option that no constructor takes, and suggest the closest one."""
    takes = option_names(choose(kind, name, table))
    known = {option for entry in table.values() for option in option_names(entry)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"unknown {kind} option {', '.join(map(repr, unknown))}; "
            f"{name!r} takes {', '.join(takes) or 'none'}{suggest(unknown[0], known)}"
        )
