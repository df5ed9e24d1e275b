"""Features of many images, chunk by chunk, in memory or in a folder from which a run can resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffjax.metrics.features import FeatureNetwork, Features, extract
from diffjax.types import Array
from diffjax.writing import write_atomically

Read = Callable[[int, int], np.ndarray]  # (start, stop) -> images (stop - start, H, W, C)
_PROGRESS = "progress.json"


def collect(
    network: FeatureNetwork,
    read: Read,
    num: int,
    *,
    folder: Path | None = None,
    source: str = "",
    chunk: int = 1000,
    spatial: bool = True,
) -> Features:
    """Collect a network's features of ``num`` images that are made or read a chunk at a time.

    With a folder, arrays are stored in files there and a finished chunk is not computed again:
    memory is that of one chunk, and a run that was interrupted resumes where it stopped, with the
    same result to the bit.

    Args:
        network: the feature network.
        read: ``(start, stop) -> images``; must depend on its arguments only.
        num: number of images.
        folder: where the arrays are kept; None keeps them in memory.
        source: what the images are, compared with what the folder holds.
        chunk: images at a time.
        spatial: whether to keep the spatial features too.

    Raises:
        ValueError: the folder holds the features of other images, or as `extract`.
    """
    what = {"network": network.id, "num": num, "source": source, "spatial": spatial}
    done = _read_progress(folder, what) if folder else 0
    kept = _open_arrays(folder) if folder and done else None
    with tqdm(total=num, initial=done, desc=network.id, unit="image", leave=False) as bar:
        for start in range(done, num, chunk):
            stop = min(start + chunk, num)
            found = extract(network, read(start, stop), progress=bar.update)
            if not spatial:
                found = found._replace(spatial=None)
            if kept is None:
                kept = _create_arrays(folder, found, num)
            _write(kept, found, start, stop)
            if folder:
                _commit(folder, kept, {**what, "done": stop})
    if kept is None:
        raise ValueError(f"features of {num} images were asked for; at least 1 is needed")
    return kept


def _read_progress(folder: Path, what: dict[str, object]) -> int:
    """Return the number of images whose features the folder has.

    Raises:
        ValueError: they are features of other images.
    """
    path = folder / _PROGRESS
    if not path.exists():
        return 0
    found = json.loads(path.read_text())
    done = found.pop("done")
    if found != what:
        raise ValueError(
            f"{folder} holds the features of {found}, not of {what}: remove it or choose another"
        )
    return int(done)


def _create_arrays(folder: Path | None, found: Features, num: int) -> Features:
    """Make empty arrays for the features of ``num`` images, in memory or as files in a folder."""

    def make(name: str, part: Array) -> np.ndarray:
        shape = (num, *part.shape[1:])
        if folder is None:
            return np.empty(shape, part.dtype)
        folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=part.dtype, shape=shape
        )

    spatial = None if found.spatial is None else make("spatial", found.spatial)
    return Features(make("features", found.features), make("probs", found.probs), spatial)


def _open_arrays(folder: Path) -> Features:
    """Map the arrays of an interrupted run, so that it can continue to write them."""

    def load(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r+")

    spatial = load("spatial") if (folder / "spatial.npy").exists() else None
    return Features(load("features"), load("probs"), spatial)


def _write(kept: Features, found: Features, start: int, stop: int) -> None:
    """Copy the features of one chunk to their place in the arrays."""
    for array, part in zip(kept, found, strict=True):
        if isinstance(array, np.ndarray):
            array[start:stop] = part


def _commit(folder: Path, kept: Features, progress: dict[str, object]) -> None:
    """Write the arrays to the disk, and then the count that makes them valid."""
    for array in kept:
        if isinstance(array, np.memmap):
            array.flush()
    write_atomically(folder / _PROGRESS, json.dumps(progress))
