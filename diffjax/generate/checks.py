"""Checks of single values: each returns a plain value, or refuses it by the argument's name."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import PIL.Image

LARGEST = float(np.finfo(np.float32).max)  # all numbers become float32
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class RequestError(ValueError):
    """A request that cannot be met.

    Attributes:
        argument: dotted name of what is wrong, such as ``size.width`` or ``control[0].image``.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


def refuse(argument: str, rest: str) -> RequestError:
    """The error whose message is the argument's name and the rest of a sentence."""
    return RequestError(argument, f"{argument} {rest}")


def show(value: Any) -> str:
    """A value in a few words for a message."""
    if isinstance(value, np.ndarray | jax.Array) and (
        value.ndim or not hasattr(value.dtype, "kind")
    ):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, PIL.Image.Image):
        return f"a picture of {value.width} x {value.height} pixels"
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a very large number"
    plain = value is None or isinstance(value, str | bool) or text.startswith("a ")
    return text if plain else f"{text} ({type(value).__name__})"


def read_number(
    name: str, value: Any, low: float = -LARGEST, high: float = LARGEST, *, kind: str = "a number"
) -> float:
    """A finite number in [low, high].

    Raises:
        RequestError: it is no number, is not finite, or lies outside.
    """
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(name, f"must be {kind}, got {show(value)}")
    if not low <= value <= high:
        raise refuse(name, f"must {_describe_range(low, high)}, got {_show_plain(value)}")
    return float(value)


def read_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer in [low, high].

    Raises:
        RequestError: it is no integer, has a fraction, or lies outside.
    """
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(name, f"must be a whole number, got {show(value)}")
    if value < low or (high is not None and value > high):
        raise refuse(name, f"must {_describe_range(low, high)}, got {_show_plain(value)}")
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, also one of NumPy or JAX."""
    value = _unwrap(value)
    return isinstance(value, int) and not isinstance(value, bool)


def read_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise refuse(name, f"must be True or False, got {show(value)}")
    return bool(value)


def read_text(name: str, value: Any) -> str:
    """A text that can be written as UTF-8.

    Raises:
        RequestError: it is something else.
    """
    if isinstance(value, bytes):
        raise refuse(name, "must be a text, got bytes: decode them first")
    if not isinstance(value, str):
        raise refuse(name, f"must be a text, got {show(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise refuse(name, f"holds what is no Unicode text, at character {error.start}") from error
    return value


def read_pair(name: str, value: Any, low: int, high: int | None = None) -> tuple[int, int]:
    """Two integers in [low, high], from a list, a tuple or an array.

    Raises:
        RequestError: there is another number of them, or one is wrong.
    """
    value = value.tolist() if isinstance(value, np.ndarray | jax.Array) else value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refuse(name, f"must be two whole numbers, got {show(value)}")
    return read_whole(name, value[0], low, high), read_whole(name, value[1], low, high)


def read_floats(name: str, value: Any, shape: str) -> Any:
    """An array of finite floats whose number of axes is that of ``shape``, such as ``(B, M, D)``.

    Raises:
        RequestError: it is something else, or empty.
    """
    axes = shape.count(",") + 1
    if not isinstance(value, np.ndarray | jax.Array):
        if not hasattr(value, "__array__") or isinstance(value, PIL.Image.Image):
            raise refuse(name, f"must be an array {shape} of floats, got {show(value)}")
        value = np.asarray(value)
    floating = getattr(value.dtype, "kind", "key") == "f" or value.dtype.name == "bfloat16"
    if value.ndim != axes or not floating or not value.size:
        raise refuse(name, f"must be {shape} floats, got {show(value)}")
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(np.asarray(value, np.float32))
    if bad.any():
        raise refuse(name, f"must be finite: {bad.sum()} of {bad.size} values are NaN or infinite")
    return value


def read_several(name: str, value: Any, kind: type, example: str) -> tuple[Any, ...]:
    """Objects of a class as a tuple; one alone counts as a list of one.

    Raises:
        RequestError: there is something else.
    """
    if value is None or (isinstance(value, list | tuple) and not value):
        return ()
    if isinstance(value, kind):
        return (value,)
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        raise refuse(name, f"must be a list such as [{example}], got {show(value)}")
    for k, one in enumerate(value):
        if not isinstance(one, kind):
            raise refuse(f"{name}[{k}]", f"must be {example}, got {show(one)}")
    return tuple(value)


def _unwrap(value: Any) -> Any:
    """A Python number in place of a scalar of NumPy or JAX."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | jax.Array) and not value.ndim:
        return value.item() if getattr(value.dtype, "kind", "key") in "biuf" else value
    return value


def _show_plain(value: Any) -> str:
    return show(value).partition(" (")[0]


def _describe_range(low: float, high: float | None) -> str:
    if high is None:
        return f"be at least {low}"
    if high == LARGEST:
        return "be finite" if low == -LARGEST else f"be finite and at least {low:g}"
    return f"lie in [{low}, {high}]"


def is_mapping_of_text(value: Any) -> bool:
    """Whether a value is a mapping whose keys are texts."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def check_name(name: str, value: Any, find: Callable[[str], Any]) -> None:
    """See that a name is known.

    Raises:
        RequestError: it is no text, or not known.
    """
    read_text(name, value)
    try:
        find(value)
    except ValueError as error:
        raise RequestError(name, str(error)) from error
