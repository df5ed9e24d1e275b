"""What programs do: their multiplications and additions, and their collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from diffjax.types import PyTree

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}


def count_flops(f: Callable[..., object], *arguments: PyTree) -> float:
    """Multiplications and additions of all products of a function, loops as often as they run.

    XLA counts the body of a loop once, and kernels not at all. ``while`` loops of unknown length
    count once here too.
    """
    return _count_jaxpr(jax.make_jaxpr(f)(*arguments).jaxpr)


def _count_jaxpr(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
            total += 2.0 * inner * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            holes = math.prod(params["lhs_dilation"])  # of strided convolutions' gradients
            total += 2.0 * kernel.size / outputs * equation.outvars[0].aval.size / holes
        elif name == "cond":
            total += max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
        else:
            inside = sum(_count_jaxpr(_unwrap_jaxpr(value)) for value in _list_inner(params))
            total += inside * (params["length"] if name == "scan" else 1)
    return total


def _list_inner(params: Mapping[str, Any]) -> list[Jaxpr | ClosedJaxpr]:
    """The functions among an equation's parameters; of a custom derivative, the function itself."""
    names = ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr")
    return [params[name] for name in names if name in params]


def _unwrap_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def count_collectives(text: str) -> dict[str, dict[str, float]]:
    """Collectives by kind in a compiled program: how often they run in a step, and their bytes.

    Bytes are those of the results on one chip. What is in a loop counts as often as it runs.
    """
    parts = _split_computations(text)
    found: dict[str, dict[str, float]] = {}
    for name, times in _count_runs(parts).items():
        for line in parts[name]:
            kind, size = _read_collective(line)
            if kind:
                entry = found.setdefault(kind, {"count": 0, "bytes": 0})
                entry["count"] += times
                entry["bytes"] += times * size
    return found


def _read_collective(line: str) -> tuple[str, int]:
    """Kind and bytes of an instruction; "" of one that is no collective."""
    for kind in COLLECTIVES:
        for ending in ("(", "-start("):
            result, found, _ = line.partition(f" {kind}{ending}")
            if found:
                sizes = [_count_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
                # Started ones hold their operands as well.
                return kind, max(sizes) if ending == "-start(" else sum(sizes)
    return "", 0


def _count_bytes(kind: str, shape: str) -> int:
    return WIDTHS.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)


def _split_computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation of an HLO module; "" is the entry's name."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").partition(" ")[0].lstrip("%")
            lines = parts.setdefault("" if line.startswith("ENTRY") else name, [])
        else:
            lines.append(line)
    return parts


def _count_runs(parts: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs in a step; fusions, without collectives, are left out."""
    times: dict[str, float] = {}

    def visit(name: str, factor: float) -> None:
        times[name] = times.get(name, 0) + factor
        for line in parts[name]:
            if " while(" in line or " call(" in line:
                called = dict(re.findall(r"(condition|body|to_apply)=%?([\w.\-]+)", line))
                length = _read_trip_count(parts.get(called.pop("condition", ""), []))
                for callee in called.values():
                    visit(callee, factor * length)

    visit("", 1)
    return times


def _read_trip_count(condition: list[str]) -> float:
    """The bound that a loop's counter is compared with."""
    bounds = [int(n) for line in condition for n in re.findall(r"constant\((\d+)\)", line)]
    return max(bounds, default=1)
