"""Checks of single values in a request.

Each function returns a plain Python or NumPy value, or raises `RequestError` with the name of the
argument that the user wrote. `request` reads all arguments through them, so that the messages of
numbers, texts and arrays have one form.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import TypeGuard

import jax
import numpy as np
import PIL.Image

from diffjax.types import Array, T

LARGEST = float(np.finfo(np.float32).max)  # all numbers become float32
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class RequestError(ValueError):
    """A request that the loaded model cannot run, or that has a wrong argument.

    Attributes:
        argument: dotted name of the argument that is wrong, such as ``size.width`` or
            ``control[0].image``. The web page uses it to mark a field.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


def refuse(argument: str, rest: str) -> RequestError:
    """Return the error whose message is the argument's name followed by the rest of a sentence."""
    return RequestError(argument, f"{argument} {rest}")


def show(value: object) -> str:
    """Describe a value in a few words for a message.

    Arrays are shown by their type and shape, pictures by their size, and long texts are cut to
    about 80 characters. The Python type follows the value, unless it is None, a text or a bool.
    """
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
    name: str,
    value: object,
    low: float = -LARGEST,
    high: float = LARGEST,
    *,
    kind: str = "a number",
) -> float:
    """Return a finite number in [low, high] as a float.

    Args:
        name: the argument, for messages.
        value: a number of Python, NumPy or JAX; arrays of shape () count as numbers.
        low: the smallest value that is allowed.
        high: the largest value that is allowed. The default is the largest float32, because every
            number of a request becomes float32.
        kind: what the message asks for.

    Raises:
        RequestError: the value is not a number, is not finite, or lies outside the range.
    """
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(name, f"must be {kind}, got {show(value)}")
    if not low <= value <= high:
        raise refuse(name, f"must {_describe_range(low, high)}, got {_show_plain(value)}")
    return float(value)


def read_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return an integer in [low, high], or of at least ``low`` if ``high`` is None.

    Raises:
        RequestError: the value is not an integer (2.0 is not one either), or lies outside the
            range.
    """
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(name, f"must be a whole number, got {show(value)}")
    if value < low or (high is not None and value > high):
        raise refuse(name, f"must {_describe_range(low, high)}, got {_show_plain(value)}")
    return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer of Python, NumPy or JAX. A bool is not one."""
    value = _unwrap(value)
    return isinstance(value, int) and not isinstance(value, bool)


def read_flag(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        RequestError: the value is neither. 0 and 1 are refused too.
    """
    if not isinstance(value, bool | np.bool_):
        raise refuse(name, f"must be True or False, got {show(value)}")
    return bool(value)


def read_text(name: str, value: object) -> str:
    """Return a text that can be encoded as UTF-8.

    Raises:
        RequestError: the value is not a str, or has a surrogate that UTF-8 cannot encode.
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


def read_pair(name: str, value: object, low: int, high: int | None = None) -> tuple[int, int]:
    """Return two integers in [low, high], from a list, a tuple or an array.

    Raises:
        RequestError: there are not exactly two of them, or one is not an integer in the range.
    """
    value = value.tolist() if isinstance(value, np.ndarray | jax.Array) else value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refuse(name, f"must be two whole numbers, got {show(value)}")
    return read_whole(name, value[0], low, high), read_whole(name, value[1], low, high)


def read_floats(name: str, value: object, shape: str) -> Array:
    """Return an array of finite floats with as many axes as ``shape`` names.

    Args:
        name: the argument, for messages.
        value: an array of NumPy or JAX, or an object with ``__array__`` such as a torch tensor.
        shape: the names of the axes, such as ``(B, M, D)``. Only their number is compared.

    Raises:
        RequestError: the value is not such an array, is empty, or has values that are NaN,
            infinite, or too large for float32.
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


def read_several(name: str, value: object, kind: type[T], example: str) -> tuple[T, ...]:
    """Return objects of one class as a tuple.

    A single object counts as a list of one, None as an empty list.

    Args:
        name: the argument, for messages.
        value: the objects.
        kind: their class.
        example: how to write one of them, for messages.

    Raises:
        RequestError: the value is not a list, or an entry is of another class.
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


def _unwrap(value: object) -> object:
    """Return a Python number in place of a scalar of NumPy or JAX, and other values as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | jax.Array) and not value.ndim:
        return value.item() if getattr(value.dtype, "kind", "key") in "biuf" else value
    return value


def _show_plain(value: object) -> str:
    return show(value).partition(" (")[0]


def _describe_range(low: float, high: float | None) -> str:
    if high is None:
        return f"be at least {low}"
    if high == LARGEST:
        return "be finite" if low == -LARGEST else f"be finite and at least {low:g}"
    return f"lie in [{low}, {high}]"


def is_mapping_of_text(value: object) -> bool:
    """Return whether a value is a mapping whose keys are all texts."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def check_name(name: str, value: object, find: Callable[[str], object]) -> None:
    """Check that ``find`` knows a name.

    Raises:
        RequestError: the value is not a text, or ``find`` raised a ValueError.
    """
    text = read_text(name, value)
    try:
        find(text)
    except ValueError as error:
        raise RequestError(name, str(error)) from error
