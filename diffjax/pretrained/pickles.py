"""Read state dicts in PyTorch's pickle formats, without torch and without running their code.

`pickle_machine` runs the pickle itself on a machine that knows data only. This module reads the two
kinds of files around it, the zip archive that torch has written since version 1.6 and the older
sequence of pickles, and compares the sizes of arrays with those that the pickle states.

Files are read so only if the caller passes ``allow_legacy_pickle=True``.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeGuard

import ml_dtypes
import numpy as np

from diffjax.pretrained.files import (
    PickleError,
    StrPath,
    Tensor,
    Weights,
    check_finite,
    open_safetensors,
)
from diffjax.pretrained.pickle_machine import (
    PICKLE_BYTES,
    Damaged,
    Machine,
    Refused,
    Storage,
    View,
)
from diffjax.untrusted import name_some, show

_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of before torch 1.6 begins with, as a pickle
_PROTOCOL = 1001
_DIRECTORY = 32 * 2**20  # bytes of a zip file's directory, about 90 per array
_RATIO, _SPARE = 20, 16 * 2**20  # members may expand to so many times the file, and so much more
_CHUNK = 2**20
_LOCAL_HEADER = 30  # bytes of a member's header before its name
_ENCRYPTED = 1
_BROKEN = (
    *(EOFError, OSError, ValueError, OverflowError, IndexError, struct.error, zlib.error),
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
)

# (storage, first, count) -> numbers
Read = Callable[[Storage, int, int], np.ndarray]


def open_pickle(path: StrPath) -> Weights:
    """Open a file of ``torch.save(module.state_dict())`` in the old or the new format.

    Dictionaries that hold a state dict under ``state_dict``, or the words of textual inversion
    under ``string_to_param``, are read too, and those of several state dicts, as ``part.key``. Only
    the pickle is read here; an array is read when it is asked for.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, names anything that a state dict does not need, or holds no
            state dict. Reading an array raises it too, if the array is damaged or not finite.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    with _explain_errors(source):
        found, read = _open_zip(source) if zipfile.is_zipfile(source) else _open_old(source)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    # Words of textual inversion, as web pages save them.
    if isinstance(found, dict) and isinstance(found.get("string_to_param"), dict):
        found = found["string_to_param"]
    found = _join_parts(found)
    views = {k: v for k, v in found.items() if type(v) is View} if _is_state(found) else {}
    if not views:
        raise ValueError(f"{source} holds no state dict, but {type(found).__name__}")
    return Weights({key: _describe_tensor(source, key, view, read) for key, view in views.items()})


def open_weights(path: StrPath, *, allow_legacy_pickle: bool = False) -> Weights:
    """Open a safetensors file, or a pickle if the caller allows it.

    Args:
        path: the file.
        allow_legacy_pickle: whether to read files of other suffixes than .safetensors as pickles.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a pickle that is not allowed or refused.
    """
    source = Path(path)
    if allow_legacy_pickle and source.suffix != ".safetensors":
        return open_pickle(source)
    try:
        return open_safetensors(source)
    except PickleError as error:
        raise PickleError(
            f"{error}, or allow_legacy_pickle=True, which reads it without running its code"
        ) from error


@contextlib.contextmanager
def _explain_errors(source: Path, key: str = "") -> Iterator[None]:
    """Turn every error of reading a file into a ValueError that names the file, and the tensor if
    any.

    Args:
        source: the file.
        key: key of the tensor that is being read, or "" for the pickle.

    Raises:
        ValueError: there was an error in the block.
    """
    where = f"{show(key)} in {source}" if key else f"{source}"
    try:
        yield
    except Refused as error:
        raise ValueError(f"{where} is refused: {error}") from error
    except (Damaged, *_BROKEN) as error:
        raise ValueError(
            f"{where} is no complete file of torch.save ({str(error)[:300] or type(error).__name__}"
            "); it may be a broken download: copy or download it again"
        ) from error


def _join_parts(found: object) -> object:
    """Join state dicts by name, as the parts of an IP-Adapter are, to one with dotted keys."""
    if not _is_state(found):
        return found
    parts = {name: one for name, one in found.items() if _is_state(one)}
    if len(parts) < len(found):
        return found
    return {f"{name}.{key}": value for name, one in parts.items() for key, value in one.items()}


def _is_state(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _find_dtype(storage: Storage) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _describe_tensor(source: Path, key: str, view: View, read: Read) -> Tensor:
    """Return an unread tensor for a view that a pickle describes.

    Args:
        source: the file.
        key: the tensor's key.
        view: where its entries lie in a storage.
        read: reads entries of a storage.
    """

    def values() -> np.ndarray:
        dtype = _find_dtype(view.storage)
        if view.last < 0:
            return np.empty(view.size, dtype)
        count = view.last - view.offset + 1
        with _explain_errors(source, key):
            flat = read(view.storage, view.offset, count)
            if flat.shape != (count,):
                raise Damaged(f"{len(flat)} of {count} numbers are there")
        # The view reaches from the first to the last of these numbers, and nothing beyond.
        steps = tuple(s * dtype.itemsize for s in view.stride)
        values = np.lib.stride_tricks.as_strided(flat, view.size, steps, writeable=False)
        check_finite(values, key, source)
        return values

    return Tensor(view.size, values)


def _check_lengths(machine: Machine, there: dict[str, int]) -> None:
    """Compare the lengths of storages that the pickle states with the bytes in the file.

    Args:
        machine: the machine that ran the pickle.
        there: number of bytes in the file, by key of the storage.

    Raises:
        Damaged: a storage is missing, or shorter than stated.
    """
    if missing := machine.storages.keys() - there.keys():
        raise Damaged(f"the arrays {name_some(missing)} are missing")
    for key, storage in machine.storages.items():
        wanted = storage.length * _find_dtype(storage).itemsize
        if there[key] < wanted:
            raise Damaged(f"the array {show(key)} has {there[key]} bytes, and should have {wanted}")


# ---- since torch 1.6 ----------------------------------------------------------------------------


def _open_zip(source: Path) -> tuple[object, Read]:
    """Open a zip archive with the pickle as NAME/data.pkl and every storage as NAME/data/KEY.

    Returns:
        The value of the pickle, and a function that reads storages.

    Raises:
        Refused: the archive is of a form that torch does not write, or is too large.
        Damaged: a member is missing or too short.
    """
    _check_directory(source)
    archive = zipfile.ZipFile(source)  # open as long as tensors may be read from it
    members = _list_members(archive, source.stat().st_size)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged(f"it holds {len(pickles)} files named data.pkl, and should hold one")
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order and (order.file_size > 16 or archive.read(order) != b"little"):
        raise Refused("its numbers are big-endian")
    if members[pickles[0]].file_size > PICKLE_BYTES:
        raise Refused(f"its pickle has more than {PICKLE_BYTES} bytes")
    machine = Machine()
    found = machine.run(io.BytesIO(archive.read(members[pickles[0]])))
    start = f"{root}data/"
    arrays = {name[len(start) :]: info for name, info in members.items() if name.startswith(start)}
    _check_lengths(machine, {key: info.file_size for key, info in arrays.items()})
    return found, _ZipReader(archive, arrays).read


def _check_directory(source: Path) -> None:
    """Check that the directory of a zip file is small enough to be read into memory.

    The sizes are in the record at the end of the file, or in the larger record of zip64.

    Raises:
        Refused: it is larger than `_DIRECTORY` bytes.
    """
    with source.open("rb") as file:
        file.seek(-min(source.stat().st_size, 2**16 + 200), io.SEEK_END)
        tail = file.read()
    end, large = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if size == 2**32 - 1 and large >= 0:  # as the larger record of zip64 says
        size = int.from_bytes(tail[large + 40 : large + 48], "little")
    if size > _DIRECTORY:
        raise Refused(f"its directory has {size} bytes, more than {_DIRECTORY}")


def _list_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by name.

    Args:
        archive: the archive.
        size: bytes of the file.

    Raises:
        Refused: two members have one name, one is encrypted or compressed by an unusual method, or
            all of them would expand to far more than the file.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = show(info.filename)
        if info.filename in found:
            raise Refused(f"it holds the member {name} twice")
        if info.flag_bits & _ENCRYPTED:
            raise Refused(f"its member {name} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"its member {name} is compressed by method {info.compress_type}")
        found[info.filename] = info
    total = sum(info.file_size for info in found.values())
    if total > _RATIO * size + _SPARE:
        raise Refused(f"its members expand to {total} bytes, but the file has only {size}")
    return found


class _ZipReader:
    """Reads entries of storages in a zip archive.

    The bytes of a stored member are compared with its checksum once, when it is first read. Members
    that are compressed are expanded for every tensor, within a bound on the total.
    """

    def __init__(self, archive: zipfile.ZipFile, arrays: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._arrays = archive, arrays
        self._path = Path(str(archive.filename))
        self._verified: set[str] = set()
        # Tensors that share a compressed storage expand it again and again.
        self._left = 4 * (_RATIO * self._path.stat().st_size + _SPARE)

    def read(self, storage: Storage, first: int, count: int) -> np.ndarray:
        """Return entries ``first`` to ``first + count - 1`` of a storage.

        Raises:
            Refused: compressed members would be expanded too often.
        """
        info, dtype = self._arrays[storage.key], _find_dtype(storage)
        start, size = first * dtype.itemsize, count * dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED:
            self._left -= info.file_size
            if self._left < 0:
                raise Refused("its tensors share compressed arrays, which takes too long to read")
            body = self._archive.read(info)[start : start + size]
            return np.frombuffer(body, dtype, len(body) // dtype.itemsize)
        if storage.key not in self._verified:
            with self._archive.open(info) as member:
                while member.read(_CHUNK):  # raises at the end if the checksum differs
                    pass
            self._verified.add(storage.key)
        return np.fromfile(self._path, dtype, count, offset=self._offset(info) + start)

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin: after its own header, name and extra field."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
        name, extra = struct.unpack("<HH", header[26:30])
        return int(info.header_offset + _LOCAL_HEADER + name + extra)


# ---- before -------------------------------------------------------------------------------------


def _open_old(source: Path) -> tuple[object, Read]:
    """Open a file of torch before 1.6: five pickles, then each storage as its length and its bytes.

    The pickles are a magic number, the protocol, the properties of the system, the state dict, and
    the keys of the storages in their order.

    Returns:
        The value of the fourth pickle, and a function that reads storages.

    Raises:
        Refused: the numbers are big-endian.
        Damaged: the file has another format, or ends early.
    """
    machine = Machine()
    with source.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":  # whose first letter is an instruction, too
            raise Damaged("the directory of the archive is missing")
        file.seek(0)
        if machine.run(file) != _MAGIC or machine.run(file) != _PROTOCOL:
            raise Damaged("it has another format")
        system = machine.run(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("its numbers are big-endian")
        found, keys = machine.run(file), machine.run(file)
        places = _find_places(file, keys, machine)
    _check_lengths(machine, {key: size for key, (_, size) in places.items()})

    def read(storage: Storage, first: int, count: int) -> np.ndarray:
        dtype = _find_dtype(storage)
        start = places[storage.key][0] + first * dtype.itemsize
        return np.fromfile(source, dtype, count, offset=start)

    return found, read


def _find_places(file: IO[bytes], keys: object, machine: Machine) -> dict[str, tuple[int, int]]:
    """Find the offset and the number of bytes of each storage in an old file.

    Args:
        file: the file, at the end of its last pickle.
        keys: keys of the storages in their order.
        machine: the machine that ran the pickles.

    Raises:
        Damaged: keys are missing or unknown, or the file ends early.
    """
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise Damaged("it has no list of its arrays")
    end = _measure_size(file)
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in machine.storages or key in places:
            raise Damaged(f"it lists the array {show(key)}, which no tensor has, or lists it twice")
        (length,) = struct.unpack("<q", file.read(8))
        size = length * _find_dtype(machine.storages[key]).itemsize
        if length < 0 or file.tell() + size > end:
            raise Damaged(f"its array {show(key)} is cut off")
        places[key] = file.tell(), size
        file.seek(size, io.SEEK_CUR)
    return places


def _measure_size(file: IO[bytes]) -> int:
    """Return the number of bytes of an open file, and leave its position where it was."""
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end
