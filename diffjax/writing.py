"""Writers of whole files: all of a file or nothing, and through links, pipes and devices."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from absl import logging

if TYPE_CHECKING:  # types imports JAX, which is slow
    from diffjax.types import JsonObject

LINKS = 40  # most links that are followed; Linux has the same limit
_DESCRIPTOR = re.compile(r"/proc/(\d+)/(?:task/\d+/)?fd/(\d+)", re.ASCII)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a crash leaves the old or the new content, never a part.

    Args:
        path: of the file.
        content: bytes, or text that is written in UTF-8.

    Raises:
        OSError: see `replace_file`.
    """
    with replace_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON, atomically; folders on the way are made.

    Raises:
        TypeError, ValueError: JSON cannot hold it.
        OSError: see `replace_file`.
    """
    text = json.dumps(value, indent=2) + "\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def read_json_lines(path: str | os.PathLike[str]) -> list[JsonObject]:
    """Read the rows of a JSON-lines file of ours; there are none if there is no file.

    A cut last line, as a killed run leaves it, is dropped with a warning.
    """
    rows, file = [], Path(path)
    for line in filter(None, file.read_bytes().split(b"\n") if file.exists() else []):
        try:
            rows.append(json.loads(line))
        except ValueError:
            logging.warning("dropping a cut line of %s", path)
    return rows


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new file to write to, which replaces ``path`` when the block ends without error.

    Where ``path`` is a link, the file that it leads to is replaced, and the link stays. A file that
    is replaced keeps its permissions and, where the system allows it, its owner. What is written to
    a pipe or a device such as /dev/stdout goes through it at the end.

    Raises:
        OSError: ``path`` cannot be written, or is a folder or a disk; what was there is untouched.
    """
    given = Path(path)
    try:
        target = _target(given)
        partial = _make_partial(target)
    except OSError as error:
        raise _explain(error, given) from error
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        if isinstance(target, int) or _is_stream(target):
            _pour(partial, target)
        else:
            _copy_mode(target, partial)
            partial.replace(target)
    except OSError as error:
        raise _explain(error, given) from error
    finally:
        partial.unlink(missing_ok=True)


def _explain(error: OSError, path: Path) -> OSError:
    """Return an error of the same kind that names the path that the user chose."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror or error}")


def _target(path: Path) -> Path | int:
    """Return where a path leads.

    That is a file, which may be missing, a pipe, a device, or an open descriptor. Links are
    followed one by one, because what /dev/stdout leads to in the end need have no name.

    Raises:
        OSError: the path is a loop of links, or no possible output.
    """
    for _ in range(LINKS):
        here = Path(os.path.realpath(path.parent)) / path.name
        found = _DESCRIPTOR.fullmatch(str(here))
        if found and int(found[1]) == os.getpid():
            return int(found[2])
        if not here.is_symlink():
            break
        path = here.parent / os.readlink(here)
    else:
        raise OSError(errno.ELOOP, "it is a link that leads back to itself")
    _refuse_what_is_no_output(here)
    return here


def _refuse_what_is_no_output(path: Path) -> None:
    """Raise an OSError for a folder, a disk, or a file that is write-protected."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder")
    if stat.S_ISBLK(mode):
        raise OSError(errno.EPERM, "it is a disk")
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, "it is write-protected")


def _is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a socket or a device."""
    return path.exists() and not path.is_file()


def _make_partial(target: Path | int) -> Path:
    """Make an empty file beside the target; for a pipe or a device, a private one in /tmp."""
    if isinstance(target, int) or _is_stream(target):
        descriptor, name = tempfile.mkstemp(suffix=".partial")
        os.close(descriptor)
        return Path(name)
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    # Exclusive, so that no file of another program is overwritten; the umask lowers the mode.
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return partial


def _pour(source: Path, target: Path | int) -> None:
    """Send a file's content through a pipe, a device or an open descriptor."""
    sys.stdout.flush()  # the target may be stdout: earlier output comes first
    sys.stderr.flush()

    def opened() -> BinaryIO:
        return os.fdopen(os.dup(target), "wb") if isinstance(target, int) else target.open("wb")

    with source.open("rb") as stream, opened() as out:
        shutil.copyfileobj(stream, out)


def _copy_mode(old: Path, new: Path) -> None:
    """Give a new file the permissions and, if possible, the owner of the old one."""
    try:
        found = old.stat()
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):  # only root may change the owner
        os.chown(new, found.st_uid, found.st_gid)
    new.chmod(stat.S_IMODE(found.st_mode))
