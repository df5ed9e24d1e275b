"""Find public names of diffjax that have no docstring; a strict build of the site refuses them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable

# Methods whose class says all there is to say.
_SAID_BY_CLASS = ("setup",)


def find_undocumented(names: Iterable[str]) -> list[str]:
    """Find modules, classes, functions and methods that say nothing, by their full names.

    A method may inherit its docstring from the class that it extends.

    Args:
        names: of modules.
    """
    found = []
    for name in names:
        module = importlib.import_module(name)
        found += [] if module.__doc__ else [name]
        for child, value in vars(module).items():
            ours = getattr(value, "__module__", "") == name
            if ours and not child.startswith("_") and _is_code(value):
                found += _check(f"{name}.{child}", value)
    return found


def _is_code(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))  # type: ignore[arg-type]


def _check(name: str, value: object) -> list[str]:
    """Check a function, or a class with its public methods."""
    if not inspect.isclass(value):
        return [] if inspect.getdoc(value) else [name]
    made = f"{value.__name__}("  # what Python writes for named tuples and dataclasses
    said = vars(value).get("__doc__") or ""
    found = [name] if not said or said.startswith(made) else []
    fields = inspect.get_annotations(value)  # a function may be the default of a field
    for child, method in vars(value).items():
        hidden = child.startswith("_") or child in _SAID_BY_CLASS
        if hidden or child in fields or not _is_method(method):
            continue
        if not inspect.getdoc(getattr(value, child)):
            found.append(f"{name}.{child}")
    return found


def _is_method(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
