"""What a program costs: its multiplications and additions, and its collectives.

XLA's own count of operations leaves out kernels and takes loops as one pass, which says little of a
network whose layers are a scan.
"""

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
    """Count the multiplications and additions of all products and convolutions of a function.

    Loops count as often as they run; ``while`` loops, whose length is not known, count once. Of the
    branches of a condition, the most expensive one counts. Elementwise operations are left out.

    Args:
        f: the function, which is traced and not run.
        arguments: arrays, or shapes and types.
    """
    return _count_jaxpr(jax.make_jaxpr(f)(*arguments).jaxpr)


def _count_jaxpr(jaxpr: Any) -> float:
    """Count the operations of a traced function, and of those inside of it."""
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
            total += inside * _count_passes(name, params)
    return total


def _count_passes(name: str, params: Mapping[str, Any]) -> int:
    """Count how often the function inside of an equation runs, of all devices together.

    Args:
        name: of the primitive: ``scan``, ``pallas_call`` (once for each point of its grid),
            ``shard_map`` (once on each device that has a part of its own), or another one.
        params: of the equation.
    """
    if name == "scan":
        return int(params["length"])
    if name == "pallas_call":
        return math.prod(int(n) for n in params["grid_mapping"].grid)
    if name == "shard_map":
        sizes = dict(params["mesh"].shape)
        split = {a for spec in params["out_specs"] for part in spec for a in _list_axes(part)}
        return math.prod(sizes[axis] for axis in split)
    return 1


def _list_axes(part: Any) -> tuple[str, ...]:
    """List the axes of a mesh that cut one dimension."""
    return () if part is None else part if isinstance(part, tuple) else (part,)


def _list_inner(params: Mapping[str, Any]) -> list[Jaxpr | ClosedJaxpr]:
    """List the functions among the parameters of an equation."""
    names = ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr")
    return [params[name] for name in names if name in params]


def _unwrap_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """Return the function of a closed one."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def count_collectives(text: str) -> dict[str, dict[str, float]]:
    """Count the collectives of a compiled program: how often they run in a step, and their bytes.

    Bytes are those of the results on one chip. What is inside of a loop counts as often as it runs.

    Args:
        text: the optimised HLO of the program.

    Returns:
        ``count`` and ``bytes`` by kind, of the kinds in `COLLECTIVES` that occur.
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
    """Read the kind and the bytes of an instruction; "" and 0 for one that is no collective."""
    for kind in COLLECTIVES:
        for ending in ("(", "-start("):
            result, found, _ = line.partition(f" {kind}{ending}")
            if found:
                sizes = [_count_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
                # Started ones hold their operands as well.
                return kind, max(sizes) if ending == "-start(" else sum(sizes)
    return _read_fused_scatter(line)


def _read_fused_scatter(line: str) -> tuple[str, int]:
    """Read a reduce-scatter that the compiler for TPUs writes as a fusion; see `_read_collective`.

    The fusion has an all-reduce and a slice inside, and runs as one.
    """
    result, found, called = line.partition(" fusion(")
    if not found or "calls=%all-reduce-scatter" not in called:
        return "", 0
    sizes = [_count_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return "reduce-scatter", sum(sizes)


def _count_bytes(kind: str, shape: str) -> int:
    """Count the bytes of an array from HLO's name of its type and its sizes, such as ``8,128``."""
    return WIDTHS.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)


def _split_computations(text: str) -> dict[str, list[str]]:
    """Split an HLO module into the lines of its computations; the name of the entry is ""."""
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
    """Count how often each computation runs in a step; fusions are left out."""
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
    """Read the bound that a loop's counter is compared with: the number of its passes."""
    bounds = [int(n) for line in condition for n in re.findall(r"constant\((\d+)\)", line)]
    return max(bounds, default=1)
