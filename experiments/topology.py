"""A training step compiled for chips that are not there: memory, FLOPs, traffic and time per chip.

TPU topologies (v5e:2x4, v5p:2x2x2, v6e:2x4, ...) are compiled by the libtpu of PyPI on any machine:

    pip install --no-deps 'libtpu==0.0.42.*'    # the version of jax's tpu extra: 0.0.42 for 0.10.2

``cpu:8`` compiles for as many CPU devices. Compilation runs at effort O0, or an SD-sized step takes
more than half an hour on two cores; peaks at O0 say whether it fits, an optimised program may take
less. Results are cached by config, source and versions.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import diffjax
from diffjax.runs import abstract_batch
from diffjax.train import State, init_state, make_optimizer
from diffjax.train.loop import compiled_step
from diffjax.train.sharding import (
    batch_sharding,
    make_mesh,
    sharded_fraction,
    tree_sharding,
    with_sharding,
)
from diffjax.types import Task
from experiments import common, frozen

GIB = 2**30
CACHE = Path(os.environ.get("DIFFJAX_CACHE", "~/.cache/diffjax")).expanduser() / "plan"


class Chip(NamedTuple):
    """What a chip has: memory that programs may use, and bfloat16 FLOP/s at most (vendor's)."""

    bytes: float
    flops: float


CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12),
    "v6e": Chip(31.25 * GIB, 918e12),
    "v5p": Chip(95.74 * GIB, 459e12),
}


class Case(NamedTuple):
    """What is compiled.

    Attributes:
        task: whose step it is.
        frozen: shapes of the weights that it reads.
        batch: global batch size to shapes of a batch.
    """

    task: Task
    frozen: Any
    batch: Callable[[int], Any]


def case_of(cfg: Any) -> Case:
    """The case of a config."""
    weights = frozen.abstract(cfg)
    return Case(common.task_of(cfg), weights, lambda size: abstract_batch(cfg, size))


# Asked by libtpu when it starts; any slice can be described afterwards.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file stops a second process
    "TPU_LOG_DIR": "disabled",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}

NEEDED = r"([Uu]sed |temporaries \()(?P<used>[\d.]+)(?P<unit>[KMGT])"  # in XLA's messages


class DoesNotFit(RuntimeError):
    """The compiled step needs more memory than a chip has.

    Attributes:
        needed: bytes, 0 if the compiler does not say.
        sizes: what is known without compiling, state_bytes among it.
    """

    def __init__(self, needed: float, sizes: Mapping[str, Any]):
        size = f"{needed / GIB:.2f} GiB" if needed else "more than there is"
        state = sizes["state_bytes"] / GIB
        super().__init__(
            f"the step does not fit: XLA needs {size}; the state takes {state:.2f} GiB"
        )
        self.needed = needed
        self.sizes = dict(sizes)


def devices_of(name: str) -> tuple[list[Any], Chip | None]:
    """The devices of a topology such as ``v5e:2x4`` or ``cpu:8``, and what each of them has.

    Raises:
        UsageError: the name is unknown, or libtpu is missing.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape.isdigit():
        return jax.devices("cpu")[: int(shape)], None
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise common.UsageError(
            f"unknown topology {name!r}; choose one of {', '.join(CHIPS)} with a shape, as in "
            "v5e:2x4 or v5p:2x2x2, or cpu:N"
        )
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise common.UsageError(
            f"{name} cannot be described: {reason}. It needs PyPI's libtpu of this jax "
            f"({jax.__version__}): see {__name__.replace('.', '/')}.py"
        ) from error
    return list(found.devices), CHIPS[kind]


def prepare(name: str) -> None:
    """Settings that JAX reads before its first device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # cannot load programs of absent chips
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdigit():
        jax.config.update("jax_num_cpu_devices", int(count))
    else:
        jax.config.update("jax_optimization_level", "O0")


def compile_plan(cfg: Any, name: str, case: Case | None = None) -> dict[str, Any]:
    """Figures per chip of a config's training step on a topology.

    Args:
        case: what to compile, if it does not follow from the config alone; the config, by which
            figures are cached, must tell cases apart.

    Raises:
        DoesNotFit: by how much.
        UsageError: unknown topology, or no libtpu.
        ValueError: the mesh of the config does not match its number of chips.
    """
    devices, chip = devices_of(name)
    path = CACHE / f"{_key(cfg, name)}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if "needed" in stored:
            raise DoesNotFit(stored["needed"], stored["sizes"])
        return dict(stored)
    try:
        figures = _compile(cfg, devices, chip, case or case_of(cfg))
    except DoesNotFit as failure:
        common.save_json({"needed": failure.needed, "sizes": failure.sizes}, path)
        raise
    figures = {"topology": name, **figures}
    common.save_json(figures, path)
    return figures


def _compile(cfg: Any, devices: list[Any], chip: Chip | None, case: Case) -> dict[str, Any]:
    mesh = make_mesh(cfg.mesh, devices)
    step, arguments, placed = _abstract_step(cfg, case, mesh)
    state, frozen, _ = arguments
    begun = time.monotonic()
    sizes = {
        "parameter_bytes": local_bytes(state.params),
        "ema_bytes": local_bytes(state.ema),
        "optimizer_bytes": local_bytes(state.opt),
        "frozen_bytes": local_bytes(frozen),
    }
    sizes["state_bytes"] = sum(sizes.values())
    compiled = fitting(lambda: step.lower(*arguments).compile(), sizes)
    seconds = time.monotonic() - begun
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    cost = compiled.cost_analysis() or {}
    flops = count_flops(step, *arguments) / len(devices)
    peak = getattr(memory, "peak_memory_in_bytes", 0) or (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    )
    return {
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch": cfg.data.batch_size,
        "batch_per_chip": cfg.data.batch_size / len(devices),
        "sharded": sharded_fraction(state.params, placed.params),
        **sizes,
        "activation_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": int(peak),
        "limit_bytes": chip.bytes if chip else None,
        "flops": flops,
        "xla_flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "xla_seconds": cost.get("optimal_seconds"),
        "loops": len(re.findall(r" while\(", text)),
        "utilisation": _utilisation(flops, cost, chip, text),
        "collectives": collectives(text),
        "compile_seconds": seconds,
    }


def _utilisation(flops: float, cost: Mapping[str, Any], chip: Chip | None, text: str) -> Any:
    """Of the peak, in XLA's estimate; None where that counts the body of a loop only once."""
    seconds = cost.get("optimal_seconds")
    if chip is None or not seconds or seconds < 0 or " while(" in text:
        return None
    return flops / seconds / chip.flops


def _abstract_step(cfg: Any, case: Case, mesh: Any) -> tuple[Any, tuple[Any, ...], State]:
    """The jitted step, its arguments as shapes with placements, and the state's placements."""
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    init = functools.partial(init_state, case.task, optimizer)
    state = jax.eval_shape(init, jax.random.key(0), case.frozen, case.batch(1))
    batch = case.batch(cfg.data.batch_size)
    placed, cold = tree_sharding(state, mesh), tree_sharding(case.frozen, mesh)
    step = compiled_step(case.task, optimizer, cfg, (placed, cold), mesh)
    spread = jax.tree.map(lambda _: batch_sharding(mesh), batch)
    trees = zip((state, case.frozen, batch), (placed, cold, spread), strict=True)
    return step, tuple(with_sharding(*pair) for pair in trees), placed


def fitting(compile: Callable[[], Any], sizes: Mapping[str, Any]) -> Any:
    """What a compilation gives.

    Raises:
        DoesNotFit: with these sizes, and by how much.
    """
    try:
        return compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(NEEDED, str(error))
        if not found and ("RESOURCE_EXHAUSTED" not in str(error) or "Vmem" in str(error)):
            raise  # not of memory, or of a kernel's
        scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        needed = float(found["used"]) * scale[found["unit"]] if found else 0.0
        raise DoesNotFit(needed, sizes) from error


def local_bytes(tree: Any) -> int:
    """Bytes of a placed tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _key(cfg: Any, name: str) -> str:
    """A digest of all that the figures depend on."""
    source = hashlib.sha256()
    for path in sorted(Path(diffjax.__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    unused = ("sample", "eval")
    config = {k: v for k, v in cfg.to_dict().items() if k not in unused}
    content = [config, name, versions, source.hexdigest(), Path(__file__).read_text()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :32
    ]


# ---- counting -----------------------------------------------------------------------------------


def count_flops(f: Callable[..., Any], *arguments: Any) -> float:
    """Multiplications and additions of all products of a function, loops as often as they run.

    XLA counts the body of a loop once, and kernels not at all. ``while`` loops of unknown length
    count once here too.
    """
    return _flops(jax.make_jaxpr(f)(*arguments).jaxpr)


def _flops(jaxpr: Any) -> float:
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
            total += max(_flops(branch.jaxpr) for branch in params["branches"])
        else:
            inside = sum(_flops(_inner(value)) for value in _jaxprs(params))
            total += inside * (params["length"] if name == "scan" else 1)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    """The functions among an equation's parameters; of a custom derivative, the function itself."""
    names = ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr")
    return [params[name] for name in names if name in params]


def _inner(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Collectives by kind in a compiled program: how often they run in a step, and their bytes.

    Bytes are those of the results on one chip. What is in a loop counts as often as it runs.
    """
    parts = _computations(text)
    found: dict[str, dict[str, float]] = {}
    for name, times in _multiplicities(parts).items():
        for line in parts[name]:
            kind, size = _collective(line)
            if kind:
                entry = found.setdefault(kind, {"count": 0, "bytes": 0})
                entry["count"] += times
                entry["bytes"] += times * size
    return found


def _collective(line: str) -> tuple[str, int]:
    """Kind and bytes of an instruction; "" of one that is no collective."""
    for kind in COLLECTIVES:
        for ending in ("(", "-start("):
            result, found, _ = line.partition(f" {kind}{ending}")
            if found:
                sizes = [_size(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
                # Started ones hold their operands as well.
                return kind, max(sizes) if ending == "-start(" else sum(sizes)
    return "", 0


def _size(kind: str, shape: str) -> int:
    return WIDTHS.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)


def _computations(text: str) -> dict[str, list[str]]:
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


def _multiplicities(parts: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs in a step; fusions, without collectives, are left out."""
    times: dict[str, float] = {}

    def visit(name: str, factor: float) -> None:
        times[name] = times.get(name, 0) + factor
        for line in parts[name]:
            if " while(" in line or " call(" in line:
                called = dict(re.findall(r"(condition|body|to_apply)=%?([\w.\-]+)", line))
                length = _trips(parts.get(called.pop("condition", ""), []))
                for callee in called.values():
                    visit(callee, factor * length)

    visit("", 1)
    return times


def _trips(condition: list[str]) -> float:
    """The bound that a loop's counter is compared with."""
    bounds = [int(n) for line in condition for n in re.findall(r"constant\((\d+)\)", line)]
    return max(bounds, default=1)
