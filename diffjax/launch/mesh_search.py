"""The largest batch that fits each mesh of a topology, and the fastest mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from absl import logging
from ml_collections import ConfigDict

from diffjax.launch import step_plan, topologies
from diffjax.launch.step_plan import Figures, StepCase
from diffjax.types import ConfigError


def replace_mesh(cfg: ConfigDict, batch: int, data: int, fsdp: int) -> ConfigDict:
    """Copy a config with another global batch size and mesh.

    Args:
        batch: global batch size.
        data, fsdp: sizes of the axes that split the batch, and the batch and the parameters.
    """
    copy = ConfigDict(cfg.to_dict())
    copy.data.batch_size = batch
    copy.mesh.update(data=data, fsdp=fsdp, tensor=1)
    return copy


def list_meshes(chips: int) -> Iterator[tuple[int, int]]:
    """Yield meshes (data, fsdp), from all parameters sharded to none by factors of four.

    Args:
        chips: their number, the product of both sizes.
    """
    fsdp = chips
    while fsdp >= 1:
        yield chips // fsdp, fsdp
        fsdp = 1 if 1 < fsdp <= 4 else fsdp // 4 if fsdp % 4 == 0 else 0


def find_largest_batch(
    peak: Callable[[int], float | None], limit: float, *, most: int = 4096
) -> int:
    """Find the largest batch per chip whose peak memory is within a limit; 0 if none is.

    Peaks grow about linearly with the batch, so the next guess follows the line through the last
    two.

    Args:
        peak: from a batch to the bytes that it needs; None if it does not fit and nobody knows how
            much it needs.
        limit: bytes of a chip.
        most: the largest batch that is tried.
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
    """Guess the next batch: where the line through the last two known peaks meets the limit.

    Without two known peaks the batch is doubled, or halved between what fits and what does not.

    Args:
        seen: bytes by batch, None where they are not known.
        fits, fails: the largest batch that fits, and the smallest that does not.
    """
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
    """Rank the meshes of a topology, each at its largest batch, by images a second.

    Args:
        name: of the topology, such as ``v5e:2x4``.
        make_case: makes what is compiled of a config with another mesh and batch size.

    Returns:
        Figures of `step_plan.compile_plan`, the best mesh first. Meshes on which one image per chip
        does not fit are left out.

    Raises:
        ConfigError: the topology has no known limit of memory.
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
    """Count images a second of all chips, in XLA's estimate of the time of a step.

    Where XLA gives no estimate the batch decides, below all meshes that have one.
    """
    seconds = figures["xla_seconds"]
    batch = float(figures["batch"])
    return batch / seconds if seconds and seconds > 0 else batch * 1e-9


def format_rows(rows: Sequence[Figures]) -> list[dict[str, str]]:
    """Format figures as a row of texts by title for each mesh."""
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
