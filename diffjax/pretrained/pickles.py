"""State dicts in PyTorch's pickle formats, read without torch and without running their code.

A pickle names functions to call. Those that a state dict needs stand here, re-made; any other name
is an error, so that nothing from the file is ever imported or run.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from diffjax.pretrained.files import PickleError, StrPath, Tensor, Weights, open_safetensors

_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of before torch 1.6 begins with, as a pickle
_PROTOCOL = 1001
_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, OverflowError),
    *(TypeError, ValueError, struct.error, zipfile.BadZipFile),
)


class _Storage(NamedTuple):
    """A flat array of the file: type, key and length."""

    dtype: np.dtype[Any]
    key: str
    length: int


Read = Callable[[_Storage], np.ndarray]


class _Refused(Exception):
    """The pickle asks for more than a state dict needs."""


def open_pickle(path: StrPath) -> Weights:
    """The tensors of a file of ``torch.save(module.state_dict())``, old or new format.

    Also of a dictionary that holds one under ``state_dict``. Only the pickle itself is read;
    arrays are when they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, names anything that a state dict does not need, or holds
            no state dict.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        found = _open_zip(source) if zipfile.is_zipfile(source) else _open_old(source)
    except _Refused as error:
        raise ValueError(f"{source} is refused: {error}") from error
    except _DAMAGE as error:
        raise ValueError(f"{source} is no complete file of torch.save ({error!r})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    # Words of textual inversion, as web pages save them.
    if isinstance(found, Mapping) and isinstance(found.get("string_to_param"), Mapping):
        found = found["string_to_param"]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if _is_dict(found) else {}
    if not tensors:
        raise ValueError(f"{source} holds no state dict, but {type(found).__name__}")
    return Weights(tensors)


def open_weights(path: StrPath, *, allow_legacy_pickle: bool = False) -> Weights:
    """The tensors of a safetensors file, or of a pickle if that is allowed.

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


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and storages."""

    def __init__(self, file: IO[bytes], read: Read):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}
        # Made anew for each file: what a pickle does to them, it does to nobody else.
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): partial(_tensor, read),
            ("torch._utils", "_rebuild_tensor"): partial(_tensor, read),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            **{("torch", name): name for name in _DTYPES},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise _Refused(f"it asks for {module}.{name}, which a state dict does not need")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or dtype not in _DTYPES or any(view):
            raise _Refused(f"it refers to {kind!r} of {dtype!r}, not to a plain storage")
        storage = _Storage(np.dtype(_DTYPES[dtype]), str(key), int(length))
        return self.storages.setdefault(storage.key, storage)


def _tensor(read: Read, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A strided view of a storage, within its bounds."""
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise ValueError("a tensor without a storage, or with strides for another shape")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage.length):
        raise ValueError(f"a tensor {size} with strides {stride} leaves its storage")

    def view() -> np.ndarray:
        if 0 in size:
            return np.empty(size, storage.dtype)
        flat = read(storage)[offset:]
        steps = tuple(s * flat.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)

    return Tensor(size, view)


def _open_zip(source: Path) -> Any:
    """Since torch 1.6: NAME/data.pkl, and every storage as NAME/data/KEY."""
    with zipfile.ZipFile(source) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        root = name.removesuffix("data.pkl")
        orders = [n for n in archive.namelist() if n == f"{root}byteorder"]
        if orders and archive.read(orders[0]) != b"little":
            raise _Refused("its numbers are big-endian")
        body = archive.read(name)

    def read(storage: _Storage) -> np.ndarray:
        with zipfile.ZipFile(source) as archive:
            raw = archive.read(f"{root}data/{storage.key}")
        return np.frombuffer(raw, storage.dtype, storage.length)

    return _Unpickler(io.BytesIO(body), read).load()


def _open_old(source: Path) -> Any:
    """Before torch 1.6: five pickles, then each storage as its length and its bytes."""
    places: dict[str, int] = {}

    def read(storage: _Storage) -> np.ndarray:
        return np.fromfile(source, storage.dtype, storage.length, offset=places[storage.key])

    with source.open("rb") as file:

        def load() -> Any:
            return _Unpickler(file, read).load()

        if load() != _MAGIC or load() != _PROTOCOL:
            raise ValueError("it has another format")
        if not load().get("little_endian"):
            raise _Refused("its numbers are big-endian")
        unpickler = _Unpickler(file, read)
        found = unpickler.load()
        for key in load():
            (length,) = struct.unpack("<q", file.read(8))
            places[key] = file.tell()
            file.seek(length * unpickler.storages[key].dtype.itemsize, io.SEEK_CUR)
        if file.tell() > source.stat().st_size:
            raise EOFError("the last array is cut off")
    return found
