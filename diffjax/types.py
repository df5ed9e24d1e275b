"""The contracts that every part of the library shares.

A diffusion system is five independent choices: how noise grows (`Schedule`), what the network
predicts (`Parameterization`), which network (`Network`), how it is steered (`Denoiser -> Denoiser`)
and which noise levels are visited how (`Grid` and `Sampler`). They meet only in the types below.

Throughout, a noisy sample is ``z = alpha x + sigma eps`` with data ``x`` and ``eps ~ N(0, I)``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
ArrayLike = Array | float
Cond = Any  # any pytree of conditions, or None
PyTree = Any  # any nesting of containers with arrays as leaves
Params = Mapping[str, Any]  # parameters by name, nested as Linen nests them
Frozen = Mapping[str, Params]  # parameters that a task reads but does not train, by part
Statistics = Mapping[str, Any]  # what a task measures of its data and keeps beside the parameters
_SHOWN = 100  # characters of a name in a message


class Module(Protocol):
    """A network as Linen has them; its parameters are ``init(...)["params"]``."""

    def init(self, key: jax.Array, /, *inputs: Any, **options: Any) -> Any:
        """Fresh variables for inputs of such shapes."""

    def apply(self, variables: Any, /, *inputs: Any, **options: Any) -> Any:
        """The output."""


class Level(NamedTuple):
    """One noise level. Leaves have shape () or (B,) and broadcast over the right axes.

    Attributes:
        t: what the network is told (a timestep, ``log sigma / 4``, a log-SNR, ...).
        alpha: signal scale.
        sigma: noise scale.
        i: index of the network evaluation; per-step values are arrays indexed by it.
    """

    t: Any
    alpha: Any
    sigma: Any
    i: Any = 0


class Prediction(NamedTuple):
    """What a denoiser believes about ``z``: the canonical pair every parameterization decodes to.

    Attributes:
        x: estimate of the data, shape of ``z``.
        eps: estimate of the noise, shape of ``z``.
        var: learned log-variance fraction in [0, 1] (0: posterior variance, 1: forward variance),
            or None. The sampler forms the variance because only it knows both levels.
    """

    x: Array
    eps: Array
    var: Array | None = None


class Schedule(NamedTuple):
    """How noise grows with time.

    Attributes:
        at: ``t -> (alpha, sigma)``, for NumPy float64 or traced arrays.
        t_of: ``log-SNR -> t`` on the host, fractional for tabulated schedules.
        span: times ``(cleanest, noisiest)``.
        steps: number of tabulated times (``t = 0..steps-1``), or None for continuous time.
    """

    at: Callable[[Any], tuple[Any, Any]]
    t_of: Callable[[Any], Any]
    span: tuple[float, float]
    steps: int | None = None


class Parameterization(NamedTuple):
    """What the raw network output means. Every target is affine in ``(x, eps)``.

    Attributes:
        target: ``(x, eps, level) -> raw`` the loss compares with.
        decode: ``(raw, z, level) -> Prediction``.
        scale_in: ``level -> `` factor on ``z`` before the network (1 except EDM).
        gain: ``level -> d x / d raw`` at fixed ``z``; turns weights on x into weights on raw.
        channels: raw channels per data channel (2 with a learned variance).
    """

    target: Callable[[Array, Array, Level], Array]
    decode: Callable[[Array, Array, Level], Prediction]
    scale_in: Callable[[Level], Any]
    gain: Callable[[Level], Any]
    channels: int = 1


class ConfigError(ValueError):
    """A value that a user chose, in a config or as an argument, is wrong. Commands exit with 2."""


@contextlib.contextmanager
def refuse_config() -> Iterator[None]:
    """What is refused of a config is a wrong choice of the user's.

    Raises:
        ConfigError: in place of a ValueError or TypeError in the context.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


Network = Callable[[Array, Array, Cond], Array]  # (z, t, cond) -> raw output
Denoiser = Callable[[Array, Level], Prediction]  # a condition is closed over, or passed as third
Noise = Callable[..., Array]  # (i, k=0) -> noise of the shape of z


class Grid(NamedTuple):
    """The noise levels a sampler visits, host float64, never traced.

    Attributes:
        levels: N+1 levels from noisiest to cleanest; the last one is where sampling ends.
        at: ``log-SNR -> Level`` for evaluations off the grid.
        at_time: ``t -> Level``, likewise.
        init_std: standard deviation of the initial noise.
        steps: nominal N before truncation.
        first: index of the first level before truncation; solvers that lower their order at the
            end, or act at given steps, count in the whole grid.
    """

    levels: Level
    at: Callable[[Any], Level]
    at_time: Callable[[Any], Level]
    init_std: float
    steps: int
    first: int = 0

    def remaining(self, i: int) -> int:
        """Steps of the whole grid that are left at level i, this one included."""
        return self.steps - self.first - i


class Rows(NamedTuple):
    """A sampler's plan in float32: one row per network evaluation on the leading axis.

    Attributes:
        level: where the network is evaluated.
        next: the level of the state after the row.
        coef: the solver's own pytree of coefficients.
    """

    level: Level
    next: Level
    coef: Any


class Sampler(NamedTuple):
    """A solver: a host-side plan and one network evaluation per row.

    Attributes:
        plan: ``Grid -> Rows``, on the host in float64.
        init: ``(z, rows) -> state``.
        step: ``(noise, denoise, z, state, row) -> (z, state)``.
        start: ``standard normal noise -> z``, in place of noise of the first level; None for that.
    """

    plan: Callable[[Grid], Rows]
    init: Callable[[Array, Rows], Any]
    step: Callable[[Noise, Denoiser, Array, Any, Rows], tuple[Array, Any]]
    start: Callable[[Array], Array] | None = None


class Task(NamedTuple):
    """All that the trainer knows of an experiment.

    Attributes:
        init: ``(key, frozen, batch) -> (params, extra)``, traceable.
        loss: ``(params, frozen, extra, key, step, batch) -> (loss, (extra, metrics))``.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]


def expand(value: Any, like: Any) -> Any:
    """Append axes to a () or (B,) value until it broadcasts against ``like``."""
    ndim = getattr(value, "ndim", 0)
    return value.reshape(value.shape + (1,) * (like.ndim - ndim)) if ndim else value


def summarize(value: Any) -> str:
    """The repr of a named tuple or dataclass in one line: of arrays only type and shape."""
    names = getattr(value, "_fields", None) or [
        field.name for field in dataclasses.fields(value) if field.repr
    ]
    shown = ", ".join(f"{name}={_summarize_field(getattr(value, name))}" for name in names)
    return f"{type(value).__name__}({shown})"


def _summarize_field(value: Any) -> str:
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


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def suggest(name: Any, names: Iterable[str]) -> str:
    """``". Did you mean 'NAME'?"`` with the closest of the names, or nothing if none is close."""
    found = difflib.get_close_matches(str(name)[:_SHOWN], list(names), 1)
    return f". Did you mean {found[0]!r}?" if found else ""


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Look a name up.

    Raises:
        ValueError: the name is unknown; the message lists the choices and suggests the closest.
    """
    if not isinstance(name, str) or name not in table:
        known = ", ".join(sorted(table))
        shown = repr(name)
        if len(shown) > _SHOWN:  # names come from files of others, too
            shown = f"{shown[:_SHOWN]}..."
        raise ValueError(f"unknown {kind} {shown}; choose one of {known}{suggest(name, table)}")
    return table[name]


def option_names(constructor: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a constructor takes."""
    return list(inspect.signature(constructor).parameters)


def select_options(
    kind: str, name: str, table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any]
) -> dict[str, Any]:
    """Those options of a config section that the named constructor takes.

    A section may hold options of several constructors, so that overriding the name alone works.
    None and the empty string stand for the constructor's own default.

    Raises:
        ValueError: the name is unknown.
    """
    takes = option_names(choose(kind, name, table))
    return {k: v for k, v in dict(section).items() if k in takes and v is not None and v != ""}


def build_section(
    kind: str, name: str, table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any]
) -> Any:
    """Call the named constructor with those options of a config section that it takes.

    Raises:
        ValueError: the name is unknown, or no constructor of the table takes an option.
    """
    _refuse_unknown(kind, name, table, section)
    return build(kind, name, table, select_options(kind, name, table, section))


def build(
    kind: str,
    name: str,
    table: Mapping[str, Callable[..., Any]],
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Call the named constructor with options, all of which it has to take.

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
    kind: str, name: str, table: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]
) -> None:
    takes = option_names(choose(kind, name, table))
    known = {option for entry in table.values() for option in option_names(entry)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"unknown {kind} option {', '.join(map(repr, unknown))}; "
            f"{name!r} takes {', '.join(takes) or 'none'}{suggest(unknown[0], known)}"
        )
