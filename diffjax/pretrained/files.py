"""Open safetensors files and folders of them, and read them tensor by tensor.

`Weights` is a mapping from keys to arrays that reads an array when it is asked for, so that loading
a model holds one tensor in memory beside the result. `models` fills networks from it.

Weights of other people are input like any other: pickles are refused, shard names must stay in
their folder, and so must the targets of links.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from diffjax.pretrained.state_dict import Place, from_state_dict
from diffjax.types import Config, JsonObject, Params
from diffjax.untrusted import AXES, name_some, parse_json, read_json, show
from diffjax.writing import write_atomically

StrPath = str | os.PathLike[str]
WEIGHTS = ("diffusion_pytorch_model", "model")  # names of diffusers and of transformers
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The variant is the group; shards are numbered.
_VARIANT = re.compile(rf"(?:{'|'.join(WEIGHTS)})(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_SHARED_BLOBS = ".huggingface-shared-blobs"  # the mark of what repositories of a cache share
_HEAD = 64  # bytes that tell what a file is
_HEADER = 9  # length of the header in 8 bytes, then its opening brace
_KEY_LENGTH = 1024
_NAME_LENGTH = 255  # bytes of a file's name
_DTYPES: dict[str, type] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Tensor(NamedTuple):
    """A tensor of a file that is read when it is asked for.

    Attributes:
        shape: the shape in the file, which `map` does not update.
        read: returns the array; it raises a ValueError if values are not finite.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """Return the tensor with a change that is applied to the array after reading."""
        return Tensor(self.shape, lambda: change(self.read()))


class Weights(Mapping[str, np.ndarray]):
    """A state dict whose arrays are read from files when they are asked for, and are not kept.

    Attributes:
        tensors: unread tensors by key.
        metadata: texts by name, from the header of a safetensors file.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})

    def __getitem__(self, key: str) -> np.ndarray:
        return self.tensors[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.tensors

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it.

        Raises:
            ValueError: there is no tensor of this key.
        """
        if key not in self.tensors:
            raise ValueError(f"the weights lack {key}")
        return self.tensors[key].shape

    def rename_keys(self, rename: Callable[[str], str]) -> Weights:
        """Return the same tensors under the keys that ``rename`` makes of theirs.

        Raises:
            ValueError: two keys become one.
        """
        out: dict[str, Tensor] = {}
        for key, tensor in self.tensors.items():
            _add(out, rename(key), tensor)
        return Weights(out)


def _add(tensors: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    """Add a tensor to a mapping.

    Raises:
        ValueError: the key is there already.
    """
    if key in tensors:
        raise ValueError(f"the weights hold {key} twice")
    tensors[key] = tensor


def open_safetensors(path: StrPath) -> Weights:
    """Open one safetensors file. Only its header is read, in a time linear in the number of keys.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder, or the file is a pickle, of another format, or damaged.
            The message says what the file is and what to do.
    """
    source = Path(path)
    if source.is_dir():
        raise ValueError(f"{source} is a folder; a .safetensors file is needed")
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    _check_kind(source)
    try:
        with safe_open(source, "numpy"):  # checks that the header and the size agree
            pass
    except SafetensorError as error:
        reason = name_some([str(error)])
        raise ValueError(
            f"{source} is no complete safetensors file ({reason}); copy or download it again"
        ) from error
    header, start = _read_header(source)
    metadata = header.pop("__metadata__", None)
    tensors = {key: _describe_tensor(source, key, entry, start) for key, entry in header.items()}
    return Weights(tensors, metadata)


def _read_header(source: Path) -> tuple[JsonObject, int]:
    """Read the JSON header of a safetensors file.

    A file begins with the length of the header in 8 bytes (little-endian); the data follow the
    header.

    Returns:
        The entries by key, ``__metadata__`` among them, and the offset at which the data start.

    Raises:
        ValueError: the header is damaged, or a key is too long.
    """
    with source.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(size), source)
    if long := [key for key in header if len(key) > _KEY_LENGTH]:
        raise ValueError(f"{source} has a key of {len(long[0])} characters, too many for a weight")
    return header, 8 + size


def _describe_tensor(source: Path, key: str, entry: JsonObject, start: int) -> Tensor:
    """Return an unread tensor for an entry of the header.

    Args:
        source: the file.
        key: the tensor's key.
        entry: ``dtype``, ``shape`` and ``data_offsets`` of the header.
        start: offset of the data in the file.

    Raises:
        ValueError: the type is unknown, or there are too many axes.
    """
    if entry["dtype"] not in _DTYPES:
        raise ValueError(
            f"{show(key)} in {source} has type {entry['dtype']}; known are "
            f"{', '.join(sorted(_DTYPES))}"
        )
    shape = tuple(entry["shape"])
    if len(shape) > AXES:
        raise ValueError(
            f"{show(key)} in {source} has {len(shape)} axes; tensors of at most {AXES} are read"
        )
    return Tensor(
        shape,
        partial(
            _read, source, key, _DTYPES[entry["dtype"]], shape, start + entry["data_offsets"][0]
        ),
    )


def _read(source: Path, key: str, dtype: type, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Read a tensor at an offset of a file.

    Raises:
        ValueError: it holds values that are not finite.
    """
    # Not mapped: pages of a mapped file count as memory until it is closed.
    values: np.ndarray = np.fromfile(source, dtype, math.prod(shape), offset=offset).reshape(shape)
    check_finite(values, key, source)
    return values


def check_finite(values: np.ndarray, key: str, source: Path) -> None:
    """Check that a tensor of a file holds neither NaN nor infinities.

    Integers and bools always pass.

    Raises:
        ValueError: it does; the message names the key and the file.
    """
    if values.dtype.kind not in "iub" and not np.isfinite(values).all():
        raise ValueError(
            f"{name_some([key])} in {source} holds values that are not finite; the weights are "
            "damaged"
        )


def _check_kind(source: Path) -> None:
    """Check by its first bytes that a file is of safetensors, and not something that is often
    mistaken for it.

    Reading a pickle can run any code, so no file that looks like one is opened as weights.

    Raises:
        ValueError: the file is empty, a pointer of Git LFS, a web page, a GGUF file or a pickle.
            The message says so, and what to do.
    """
    with source.open("rb") as file:
        head = file.read(_HEAD)
    text = head.lstrip().lower()
    if not head:
        raise ValueError(
            f"{source} is no complete safetensors file (it is empty); download it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{source} is a pointer of Git LFS in place of the weights; fetch them with "
            "'git lfs pull' in its repository"
        )
    if text.startswith((b"<!doctype html", b"<html")):
        raise ValueError(
            f"{source} is a web page in place of the weights; download the file itself, by the "
            "download link of that page"
        )
    if head.startswith(b"GGUF"):
        raise ValueError(f"{source} is a GGUF file, which is not read; use the .safetensors file")
    pickled = head.startswith((b"PK\x03\x04", b"\x80")) and head[_HEADER - 1 : _HEADER] != b"{"
    if pickled or source.suffix in PICKLE_SUFFIXES:
        raise PickleError(
            f"{source} is a pickle, which can run code when it is read; use the .safetensors file "
            "of the same weights"
        )


class PickleError(ValueError):
    """A file is a pickle, and pickles are not read here; see `diffjax.pretrained.pickles`."""


def load_safetensors(path: StrPath, like: Params, *, place: Place | None = None) -> Params:
    """Load a tree of parameters from a safetensors file.

    Args:
        path: the file, with keys in the names of `diffjax.pretrained.state_dict`.
        like: a tree of arrays or ``jax.ShapeDtypeStruct`` with the structure, shapes and types to
            load.
        place: see `from_state_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle, or damaged, or does not fit ``like``.
    """
    return from_state_dict(open_safetensors(path), like, place=place)


# ---- folders ----------------------------------------------------------------------------------


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, where the name comes from a file of someone else.

    Neither names in files nor links in folders may lead to other files of this machine. How the
    folder itself was reached is the caller's business. Files of a Hugging Face cache are links from
    ``snapshots`` to ``blobs``, or to those that its repositories share; these blobs count as part
    of the folder.

    Raises:
        ValueError: the name is not that of a file in the folder, or a link leads out of it.
    """
    plain = Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
    if not plain or len(name.encode()) > _NAME_LENGTH:
        raise ValueError(f"{show(name)} is not the name of a file in {folder}")
    path, here = folder / name, folder.resolve()
    cached, roots = [p.parent for p in here.parents if p.name == "snapshots"], [here]
    shared = [p.parent for p in cached if (p.parent / "blobs" / _SHARED_BLOBS).is_file()]
    roots += [(p / "blobs").resolve() for p in (*cached, *shared) if (p / "blobs").is_dir()]
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise ValueError(f"{path} is a link that leaves its folder, to {path.resolve()}")
    return path


def open_folder(folder: StrPath, *, variant: str | None = None) -> Weights:
    """Open the weights in the folder of a network: one file, or shards that an index lists.

    Args:
        folder: a folder as diffusers or transformers writes it.
        variant: part of the file names, such as ``"fp16"`` in model.fp16.safetensors.

    Raises:
        FileNotFoundError: there are no weights of that variant; the message names those that exist.
        ValueError: the weights are pickles or damaged, a shard's name or link leaves the folder, or
            two shards have one key.
    """
    source, name = Path(folder), find_weights_file(folder, variant)
    if name is None:
        raise _explain_absence(source, variant)
    path = resolve_inside(source, name)
    return _open_shards(source, path) if name.endswith(".json") else open_safetensors(path)


def find_weights_file(folder: StrPath, variant: str | None = None) -> str | None:
    """Return the name of the file with a folder's weights, or of the index of their shards, or
    None.

    Args:
        folder: the folder of a network.
        variant: see `open_folder`.
    """
    dot = f".{variant}" if variant else ""
    names = (
        name
        for base in WEIGHTS
        for name in (f"{base}{dot}.safetensors", f"{base}.safetensors.index{dot}.json")
    )
    return next((name for name in names if (Path(folder) / name).exists()), None)


def _open_shards(folder: Path, index: Path) -> Weights:
    """Open the shards that ``weight_map`` of an index lists, as one state dict.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the index is damaged, lists keys that no shard has, or two shards have one key.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise ValueError(f"{index} has no weight_map of file names")
    names = sorted(set(listed.values()))
    if gone := [name for name in names if not resolve_inside(folder, name).exists()]:
        raise FileNotFoundError(
            f"{index} lists {len(names)} files, of which {len(gone)} are not there: "
            f"{name_some(gone)}; copy or download them too"
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        for key, tensor in open_safetensors(resolve_inside(folder, name)).tensors.items():
            _add(tensors, key, tensor)
    if absent := sorted(set(listed) - set(tensors)):
        raise ValueError(f"{index} lists keys that no shard holds: {name_some(absent)}")
    return Weights(tensors)


def _explain_absence(folder: Path, variant: str | None) -> Exception:
    """Return the error for a folder without the weights that were asked for; it names those
    that exist.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if any(name.endswith(".safetensors") for name in names):
        there = name_some([name for name in names if name.endswith(".safetensors")])
        found = sorted({m[1] for name in names if (m := _VARIANT.fullmatch(name)) and m[1]})
        plain = any((m := _VARIANT.fullmatch(name)) and not m[1] for name in names)
        step = f'; give variant="{found[0]}"' if found else "; leave variant out" if plain else ""
        return FileNotFoundError(
            f"{folder} has no weights of variant {variant!r}; it has {there}{step}"
        )
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            return ValueError(
                f"{folder / name} is a pickle, which can run code when it is read; use the "
                ".safetensors file of the same weights"
            )
    return FileNotFoundError(f"{folder} has no .safetensors weights")


def write_json(path: Path, value: Config) -> None:
    """Write a JSON object, indented and sorted as diffusers writes it, all of it or nothing."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def split_shards(
    tensors: Iterable[tuple[str, np.ndarray]], limit: int
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Yield groups of tensors, in their order, that fit into one file each.

    Args:
        tensors: keys and arrays.
        limit: bytes of a group; a larger tensor has a group of its own.
    """
    group: list[tuple[str, np.ndarray]] = []
    size = 0
    for key, value in tensors:
        if group and size + value.nbytes > limit:
            yield group
            group, size = [], 0
        group.append((key, value))
        size += value.nbytes
    if group:
        yield group
