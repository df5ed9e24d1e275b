"""The largest batch that fits each mesh of a topology, and the mesh with the best time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from absl import logging
from ml_collections import ConfigDict

from diffjax.launch import step_plan, topologies
from diffjax.launch.step_plan import Figures, StepCase
from diffjax.types import ConfigError


def replace_mesh(cfg: ConfigDict, batch: int, data: int, fsdp: int) -> ConfigDict:
    """A copy of a config with another global batch and mesh."""
    copy = ConfigDict(cfg.to_dict())
    copy.data.batch_size = batch
    copy.mesh.update(data=data, fsdp=fsdp, tensor=1)
    return copy


def list_meshes(chips: int) -> Iterator[tuple[int, int]]:
    """(data, fsdp): all sharded, none, and what lies between by factors of four."""
    fsdp = chips
    while fsdp >= 1:
        yield chips // fsdp, fsdp
        fsdp = 1 if 1 < fsdp <= 4 else fsdp // 4 if fsdp % 4 == 0 else 0


def find_largest_batch(
    peak: Callable[[int], float | None], limit: float, *, most: int = 4096
) -> int:
    """The largest batch per chip whose peak memory is within the limit; 0 if none is.

    Args:
        peak: bytes that a batch needs; None if it does not fit and nobody knows how much it needs.
    """
    fits, fails = 0, most + 1
    seen: dict[int, float | None] = {}
    guess = 1
    while fits + 1 < fails:
        seen[guess] = peak(guess)
        needed = seen[guess]
        if needed is not None and needed <= limit:
            fits = guess
        else:
            fails = guess
        guess = _guess_next(seen, limit, fits, fails)
    return fits


def _guess_next(seen: dict[int, float | None], limit: float, fits: int, fails: int) -> int:
    """Where the line through the last two known peaks meets the limit; double or halve without."""
    known = sorted((batch, needed) for batch, needed in seen.items() if needed)[-2:]
    guess = 2 * fits if fails > 2 * fits else (fits + fails) // 2
    if len(known) == 2 and known[1][1] > known[0][1]:
        slope = (known[1][1] - known[0][1]) / (known[1][0] - known[0][0])
        guess = int(known[1][0] + (limit - known[1][1]) / slope)
        guess = guess + 1 if guess == fits else guess
    return min(max(guess, fits + 1), fails - 1)


def rank_meshes(
    cfg: ConfigDict, name: str, make_case: Callable[[ConfigDict], StepCase]
) -> list[Figures]:
    """Figures of each mesh at its largest batch, those with the most images a second first.

    Args:
        name: of the topology.
        make_case: what is compiled of a config with another mesh and batch size.

    Raises:
        ConfigError: the topology has no known limit.
    """
    devices, chip = topologies.find_devices(name)
    if chip is None:
        raise ConfigError(f"a search needs a topology with a limit of memory, not {name}")
    chips, rows = len(devices), []
    for data, fsdp in list_meshes(chips):
        figures: dict[int, Figures] = {}

        def measure_peak(
            batch: int, data: int = data, fsdp: int = fsdp, figures: dict[int, Figures] = figures
        ) -> float | None:
            logging.info("data=%d fsdp=%d: %d images per chip", data, fsdp, batch)
            changed = replace_mesh(cfg, batch * chips, data, fsdp)
            try:
                figures[batch] = step_plan.compile_plan(changed, name, make_case(changed))
            except step_plan.DoesNotFit as failure:
                return failure.needed or None
            return float(figures[batch]["peak_bytes"])

        if best := find_largest_batch(measure_peak, chip.bytes):
            rows.append(figures[best])
        else:
            logging.info("data=%d fsdp=%d: one image per chip does not fit", data, fsdp)
    return sorted(rows, key=lambda row: -count_images_per_second(row))


def count_images_per_second(figures: Figures) -> float:
    """Of all chips, in XLA's estimate; without one, by the batch."""
    seconds = figures["xla_seconds"]
    batch = float(figures["batch"])
    return batch / seconds if seconds and seconds > 0 else batch * 1e-9


def format_rows(rows: Sequence[Figures]) -> list[dict[str, str]]:
    """A row of texts by title for each mesh."""
    return [
        {
            "data": str(row["mesh"]["data"]),
            "fsdp": str(row["mesh"]["fsdp"]),
            "batch per chip": f"{row['batch_per_chip']:g}",
            "peak GiB": f"{row['peak_bytes'] / topologies.GIB:.2f}",
            "XLA ms": f"{1e3 * (row['xla_seconds'] or 0):.4g}",
            "images/s": f"{count_images_per_second(row):.4g}",
        }
        for row in rows
    ]
