"""Latents on disk: sharded array_record with checksums, so that training need not encode again.

A folder holds shards ``latents-00000-of-00004.array_record`` and manifest.json: how a record is
laid out, what encoded it, and the SHA-256 of every shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from diffjax.types import JsonObject
from diffjax.untrusted import Spec, check, integer, listed, read_json
from diffjax.writing import write_atomically

MANIFEST = "manifest.json"
SHARD = 256 * 2**20  # approximate bytes of a shard
Rows: TypeAlias = dict[str, np.ndarray]
Field: TypeAlias = list[str | list[int]]  # name, NumPy type and shape of an entry of a record
_SIDE = integer(1, 2**20)
_SPECS = {
    "count": integer(1, 2**40),
    "image_shape": listed(_SIDE, 3, least=3),
    "num_classes": integer(0, 2**24),
    "levels": integer(2, 2**16),
    "fields": Spec(
        "a list of names, types and shapes",
        lambda v: isinstance(v, list) and 0 < len(v) < 64 and all(map(_is_field, v)),
    ),
    "shards": Spec(
        "checksums by name",
        lambda v: isinstance(v, dict) and bool(v) and all(isinstance(d, str) for d in v.values()),
    ),
}


def _is_field(value: object) -> bool:
    """Return whether a value of the manifest is (name, type of numbers, shape)."""
    if not isinstance(value, list) or [type(v) for v in value] != [str, str, list]:
        return False
    known = re.fullmatch(r"[<>|=][fiub][1248]", value[1]) is not None
    return known and len(value[2]) < 8 and all(map(_SIDE.holds, value[2]))


class StoredLatents:
    """Latents in a folder; `read` returns arrays by name.

    Attributes:
        manifest: the content of manifest.json.
        image_shape: (H, W, C) of the images that were encoded.
        num_classes, levels: of their data set.
    """

    def __init__(self, folder: Path, manifest: JsonObject):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.manifest, self._folder = manifest, folder
        self.image_shape = tuple(manifest["image_shape"])
        self.num_classes, self.levels = manifest["num_classes"], manifest["levels"]
        self._fields = [
            (name, np.dtype(kind), tuple(shape)) for name, kind, shape in manifest["fields"]
        ]
        self._source = ArrayRecordDataSource([str(folder / name) for name in manifest["shards"]])
        self._lock = threading.Lock()
        if len(self._source) != manifest["count"]:
            raise ValueError(
                f"{folder / MANIFEST} is damaged: it says {manifest['count']} records, but there "
                f"are {len(self._source)}"
            )

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def digest(self) -> str:
        """Return the SHA-256 of the checksums of all shards."""
        shards = json.dumps(self.manifest["shards"], sort_keys=True)
        return hashlib.sha256(shards.encode()).hexdigest()

    def read(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """Read rows by index, as arrays (B, ...) by name.

        Raises:
            ValueError: the records do not have the size that the manifest says.
        """
        with self._lock:
            records = self._source.__getitems__([int(i) for i in indices])
        size = sum(kind.itemsize * math.prod(shape) for _, kind, shape in self._fields)
        if wrong := [len(record) for record in records if len(record) != size]:
            raise ValueError(
                f"{self._folder / MANIFEST} is damaged: it describes records of {size} bytes, but "
                f"they have {wrong[0]}"
            )
        out: Rows = {}
        start = 0
        for name, kind, shape in self._fields:
            end = start + kind.itemsize * math.prod(shape)
            part = b"".join(record[start:end] for record in records)
            out[name] = np.frombuffer(part, kind).reshape(len(records), *shape).copy()
            start = end
        return out


def open_folder(folder: Path) -> StoredLatents:
    """Open the latents that `write` wrote, after comparing every shard with its checksum.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
        ValueError: a shard or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"there are no latents in {folder}; experiments.encode writes them")
    manifest = read_json(path)
    if missing := _SPECS.keys() - manifest.keys():
        raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    check(manifest, _SPECS, f"{path} is damaged")
    for name, digest in manifest["shards"].items():
        shard = folder / Path(name).name
        if not shard.is_file():
            raise FileNotFoundError(f"the shard {shard} is missing")
        if _digest(shard) != digest:
            raise ValueError(f"the shard {shard} is damaged: its checksum differs; encode again")
    return StoredLatents(folder, manifest)


def write(
    folder: Path,
    parts: Iterable[Rows],
    *,
    count: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    levels: int,
    encoder: str,
    images: dict[str, str] | None = None,
) -> None:
    """Write latents; the manifest comes last, so that an interrupted folder cannot be opened.

    Args:
        folder: where; it is made if it does not exist.
        parts: arrays by name, "label" among them, in batches that add up to ``count`` rows.
        count: number of rows.
        image_shape: (H, W, C) of the images that were encoded.
        num_classes, levels: of their data set.
        encoder: identifies the autoencoder, see `StoredLatents.manifest`.
        images: name and dir of the data set that was encoded, see `read_origin`.

    Raises:
        ValueError: there are other than ``count`` rows.
        FileExistsError: the folder has a manifest.json that is not of latents.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    _remove_manifest(folder / MANIFEST)
    fields: list[Field] = []
    writers: list[tuple[Path, Any]] = []
    per_shard = done = 0
    for rows in parts:
        if not fields:
            fields = [[k, v.dtype.str, list(v.shape[1:])] for k, v in rows.items()]
            size = sum(v[0].nbytes for v in rows.values())
            shards = -(-count * size // SHARD)
            per_shard = -(-count // shards)
        for i in range(len(rows["label"])):
            if done % per_shard == 0:
                if writers:
                    writers[-1][1].close()
                path = folder / f"latents-{len(writers):05d}-of-{shards:05d}.array_record"
                writers.append((path, ArrayRecordWriter(str(path), "group_size:1")))
            writers[-1][1].write(
                b"".join(np.ascontiguousarray(v[i]).tobytes() for v in rows.values())
            )
            done += 1
    if writers:
        writers[-1][1].close()
    if done != count:
        raise ValueError(f"got {done} rows of latents, expected {count}")
    manifest = dict(
        count=count,
        fields=fields,
        image_shape=list(image_shape),
        num_classes=num_classes,
        levels=levels,
        encoder=encoder,
        images=images or {},
        shards={path.name: _digest(path) for path, _ in writers},
    )
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))


def _remove_manifest(path: Path) -> None:
    """Remove the manifest of latents that are going to be replaced.

    Raises:
        FileExistsError: it is not of latents.
    """
    if not path.exists():
        return
    try:
        ours = {"shards", "encoder"} <= json.loads(path.read_text()).keys()
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{path} was not written with latents; choose another folder")
    path.unlink()


def read_origin(folder: Path) -> dict[str, str]:
    """Read name and dir of the data set that was encoded into a folder; {} if not recorded.

    Raises:
        ValueError: the record is damaged.
    """
    manifests = (read_json(path) for path in sorted(folder.glob(f"*/{MANIFEST}")))
    found: object = next((m["images"] for m in manifests if m.get("images")), {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(
            f"a {MANIFEST} below {folder} is damaged: its images must be texts by name"
        )
    return found


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
