"""Folders whose content can be verified, sealed with checksums and written by one process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from diffjax.untrusted import check, read_json, show, text
from diffjax.writing import write_atomically

MANIFEST = "manifest.json"
_DIGEST = text(64)
LOCK = ".writer"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write the manifest of a folder: a SHA-256 of every file in it, by its relative path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    write_atomically(folder / MANIFEST, json.dumps(digests, indent=1))


def verify(folder: Path) -> None:
    """Compare a folder with its manifest.

    Args:
        folder: one that `seal` was called for.

    Raises:
        CheckpointError: a file is missing or differs, or the manifest is missing, damaged, or names
            a file outside of the folder.
    """
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder / MANIFEST} is missing")
    try:
        wanted = read_json(folder / MANIFEST)
        check(wanted, dict.fromkeys(wanted, _DIGEST), folder / MANIFEST)
    except ValueError as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    for name, digest in wanted.items():
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise CheckpointError(f"{folder / MANIFEST} names {show(name)}, outside of its folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if _digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is damaged: its checksum differs")


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system drops it when the process ends, however it ends.

    On file systems without locks a warning says that nothing keeps a second run out.

    Raises:
        BlockingIOError: another process holds it; the message says which.
    """
    with (folder / LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise BlockingIOError(
                error.errno, f"{folder} is being written by {holder}; choose another workdir"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logging.warning(
                "%s cannot be locked (%s): nothing keeps a second run out", folder, error
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
