"""A training step compiled for a topology: memory, FLOPs, traffic and time per chip.

The step is that of the trainer, and nothing is run. Figures are cached by config, source and
versions, in the folder that ``DIFFJAX_CACHE`` names, or that of the user's caches.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from diffjax.launch.program_costs import count_collectives, count_flops
from diffjax.launch.topologies import GIB, Chip, find_devices
from diffjax.remat import POLICIES
from diffjax.train import State, init_state, make_optimizer
from diffjax.train.averages import track_further
from diffjax.train.memory import (
    DoesNotFit,
    compile_within_memory,
    count_local_bytes,
    read_peak,
    take_first_that_fits,
)
from diffjax.train.prepare import compile_step
from diffjax.train.sharding import (
    make_batch_sharding,
    make_mesh,
    make_tree_sharding,
    measure_sharded_fraction,
    with_sharding,
)
from diffjax.types import PyTree, Task
from diffjax.writing import write_atomically

CACHE = Path(os.environ.get("DIFFJAX_CACHE", "~/.cache/diffjax")).expanduser() / "plan"
Figures = dict[str, Any]  # numbers by name, and a few tables


class StepCase(NamedTuple):
    """What is compiled: the step of a task on batches of some shapes.

    Attributes:
        task: whose step it is.
        frozen: shapes of the parameters that it reads but does not train, or None.
        batch: from a global batch size to the shapes of a batch.
    """

    task: Task
    frozen: PyTree
    batch: Callable[[int], PyTree]


def compile_plan(cfg: ConfigDict, name: str, case: StepCase) -> Figures:
    """Compile the training step of a config for a topology, and read its figures.

    Args:
        cfg: gives the optimiser, the mesh and the batch size. Figures are cached by its content,
            which must tell cases apart.
        name: of the topology, such as ``v5e:2x4``.
        case: the task whose step is compiled.

    Returns:
        Figures per chip by name: bytes, FLOPs, XLA's estimate of the time in seconds, collectives.

    Raises:
        DoesNotFit: the step needs more memory than a chip has; the error says how much.
        ConfigError: unknown topology, or libtpu is missing.
        ValueError: the mesh of the config does not match the number of chips.
    """
    devices, chip = find_devices(name)
    path = CACHE / f"{_make_key(cfg, name)}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if "needed" in stored:
            raise DoesNotFit(stored["needed"], stored["sizes"])
        return dict(stored)
    try:
        figures = _compile_what_fits(cfg, devices, chip, case)
    except DoesNotFit as failure:
        _save_json({"needed": failure.needed, "sizes": failure.sizes}, path)
        raise
    figures = {"topology": name, **figures}
    _save_json(figures, path)
    return figures


def _compile_what_fits(
    cfg: ConfigDict, devices: list[jax.Device], chip: Chip | None, case: StepCase
) -> Figures:
    """Compile the step with the policy of ``network.remat``; ``auto`` is the first that fits.

    Without a known limit, ``auto`` is ``none``.

    Raises:
        DoesNotFit: the step needs more memory than a chip has, whatever is computed again.
    """
    policy = cfg.network.remat
    if policy != "auto" or chip is None:
        resolved = POLICIES[0] if policy == "auto" else policy
        return {"remat": resolved, **_compile(cfg, devices, chip, case, POLICIES[0])}

    def attempt(policy: str) -> tuple[Figures, float]:
        logging.info("network.remat=auto: trying %s", policy)
        figures = _compile(cfg, devices, chip, case, policy)
        return figures, figures["peak_bytes"]

    policy, figures, _ = take_first_that_fits(attempt, chip.bytes)
    return {"remat": policy, **figures}


def _compile(
    cfg: ConfigDict, devices: list[jax.Device], chip: Chip | None, case: StepCase, remat: str
) -> Figures:
    """Compile the step for some devices, and read its figures.

    Args:
        chip: what each device has; None if it has no known limits.
        remat: what ``network.remat=auto`` stands for.

    Raises:
        DoesNotFit: the step needs more memory than a chip has.
    """
    mesh = make_mesh(cfg.mesh, devices)
    step, arguments, placed = _make_abstract_step(cfg, case, mesh, remat)
    state, frozen, _ = arguments
    begun = time.monotonic()
    sizes = {
        "parameter_bytes": count_local_bytes(state.params),
        "ema_bytes": count_local_bytes(state.ema),
        "optimizer_bytes": count_local_bytes(state.opt),
        "frozen_bytes": count_local_bytes(frozen),
    }
    sizes["state_bytes"] = sum(sizes.values())
    compiled = compile_within_memory(lambda: step.lower(*arguments).compile(), sizes)
    seconds = time.monotonic() - begun
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    cost = compiled.cost_analysis() or {}
    flops = count_flops(step, *arguments) / len(devices)
    return {
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch": cfg.data.batch_size,
        "batch_per_chip": cfg.data.batch_size / len(devices),
        "sharded": measure_sharded_fraction(state.params, placed.params),
        **sizes,
        "activation_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": read_peak(compiled),
        "limit_bytes": chip.bytes if chip else None,
        "flops": flops,
        "xla_flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "xla_seconds": cost.get("optimal_seconds"),
        "loops": len(re.findall(r" while\(", text)),
        "utilisation": _estimate_utilisation(flops, cost, chip, text),
        "collectives": count_collectives(text),
        "compile_seconds": seconds,
    }


def _estimate_utilisation(
    flops: float, cost: Mapping[str, float], chip: Chip | None, text: str
) -> float | None:
    """Estimate the share of the peak FLOP/s that is used, in [0, 1], from XLA's time of a step.

    None without an estimate, and where XLA counts the body of a loop only once.
    """
    seconds = cost.get("optimal_seconds")
    if chip is None or not seconds or seconds < 0 or " while(" in text:
        return None
    return float(flops / seconds / chip.flops)


def _make_abstract_step(
    cfg: ConfigDict, case: StepCase, mesh: jax.sharding.Mesh, remat: str
) -> tuple[Any, tuple[PyTree, ...], State]:
    """Make the jitted step with its arguments as shapes and placements.

    Returns:
        The step, its arguments (state, frozen, batch), and the placements of the state.
    """
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    optimizer = track_further(optimizer, cfg.ema, cfg.data.batch_size)
    init = functools.partial(init_state, case.task, optimizer)
    state = jax.eval_shape(init, jax.random.key(0), case.frozen, case.batch(1))
    batch = case.batch(cfg.data.batch_size)
    placed, cold = make_tree_sharding(state, mesh), make_tree_sharding(case.frozen, mesh)
    step = compile_step(case.task, optimizer, cfg, (placed, cold), mesh, remat=remat)
    spread = jax.tree.map(lambda _: make_batch_sharding(mesh), batch)
    trees = zip((state, case.frozen, batch), (placed, cold, spread), strict=True)
    return step, tuple(with_sharding(*pair) for pair in trees), placed


def _make_key(cfg: ConfigDict, name: str) -> str:
    """Make a digest of all that figures depend on: config, topology, versions and our source."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    versions: dict[str, str | None] = {}
    for package in ("jax", "jaxlib", "flax", "optax", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    unused = ("sample", "eval")
    config = {k: v for k, v in cfg.to_dict().items() if k not in unused}
    content = [config, name, versions, source.hexdigest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :32
    ]


def format_figures(figures: Figures) -> dict[str, str]:
    """Format figures per chip as a person reads them: texts by title."""
    limit = figures["limit_bytes"]
    of = f" of {limit / GIB:.2f}" if limit else ""
    out = {
        "topology": f"{figures['topology']}: {figures['chips']} chips",
        "mesh": " x ".join(f"{k} {v}" for k, v in figures["mesh"].items()),
        "recomputed": figures["remat"],
        "batch": f"{figures['batch']}: {figures['batch_per_chip']:g} per chip",
        "parameters sharded": f"{100 * figures['sharded']:.2f}%",
    }
    for part in ("parameter", "ema", "optimizer", "frozen", "activation"):
        out[f"{part} memory"] = f"{figures[f'{part}_bytes'] / GIB:.3f} GiB"
    out["peak memory"] = f"{figures['peak_bytes'] / GIB:.3f}{of} GiB"
    out["FLOPs"] = f"{figures['flops'] / 1e12:.4g} T"
    if figures["bytes_accessed"]:
        out["memory traffic"] = f"{figures['bytes_accessed'] / GIB:.3f} GiB"
    for kind, entry in sorted(figures["collectives"].items()):
        out[kind] = f"{entry['bytes'] / GIB:.3f} GiB in {entry['count']:g}"
    if figures["xla_seconds"] and figures["xla_seconds"] > 0:
        note = f" ({figures['loops']} loops counted once)" if figures["loops"] else ""
        out["XLA's estimate"] = f"{1e3 * figures['xla_seconds']:.4g} ms a step{note}"
    if figures["utilisation"]:
        out["implied utilisation"] = f"{100 * figures['utilisation']:.1f}% of bfloat16 peak"
    out["compilation"] = f"{figures['compile_seconds']:.0f} s"
    return out


def _save_json(value: Figures, path: Path) -> None:
    """Write figures to the cache, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=2) + "\n")
