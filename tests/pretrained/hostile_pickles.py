"""Pickles that nobody means well with, put together instruction by instruction."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DATA = np.arange(4, dtype=np.float32).tobytes()


class Case(NamedTuple):
    """A pickle, the members beside it, and what the refusal says.

    Attributes:
        body: the pickle, without the instruction that ends it.
        message: of the error, as a regular expression.
        arrays: storages by key.
    """

    body: bytes
    message: str
    arrays: dict[str, bytes] = {"0": DATA}  # noqa: RUF012


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(
    kind: str = "FloatStorage", key: bytes = text("0"), length: bytes = integer(4)
) -> bytes:
    return b"(" + text("storage") + name("torch", kind) + key + text("cpu") + length + b"tQ"


def tensor(
    offset: int = 0,
    size: bytes = sizes(4),
    stride: bytes = sizes(1),
    *,
    of: bytes | None = None,
    more: bytes = b"\x89}",
) -> bytes:
    parts = b"(" + (of or storage()) + integer(offset) + size + stride + more + b"t"
    return name("torch._utils", "_rebuild_tensor_v2") + parts + b"R"


def state(value: bytes, key: bytes = text("w")) -> bytes:
    return b"}" + key + value + b"s"


def write_zip(path: Path, case: Case, **options: Any) -> Path:
    """The new format; options are those of a member."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("a/data.pkl", case.body + b".")
        for key, value in case.arrays.items():
            archive.writestr(f"a/data/{key}", value)
    return path


def old_head(little: bool = True) -> bytes:
    """The three pickles before the state dict in the format of before torch 1.6."""
    system = dict(protocol_version=1001, little_endian=little, type_sizes=dict(long=4))
    parts = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join(pickle.dumps(part, 2) for part in parts)


def old_file(
    body: bytes, keys: list[Any] | None = None, lengths: tuple[int, ...] = (4,), data: bytes = DATA
) -> bytes:
    """A file of the old format."""
    tail = b"".join(struct.pack("<q", n) + data for n in lengths)
    return old_head() + body + b"." + pickle.dumps(["0"] if keys is None else keys, 2) + tail


HUGE = 10**15
NESTED = b"".join([b"("] * 100_000 + [b"t"] * 100_000)
ONE = state(tensor())
CASES = {
    # Sizes that are not those of what is there.
    "storage shorter than it says": Case(ONE, "has 12 bytes, and should have 16", {"0": DATA[:12]}),
    "storage empty": Case(ONE, "has 0 bytes, and should have 16", {"0": b""}),
    "storage far shorter": Case(
        state(tensor(size=sizes(2**40), of=storage(length=integer(2**40)))), "should have 43980465"
    ),
    "length of another type": Case(ONE.replace(b"FloatS", b"DoubleS"), "should have 32"),
    "length huge": Case(state(tensor(of=storage(length=integer(HUGE)))), "has the length"),
    "length negative": Case(state(tensor(of=storage(length=integer(-4)))), "has the length -4"),
    "length text": Case(state(tensor(of=storage(length=text("4")))), "has the length '4'"),
    "length true": Case(state(tensor(of=storage(length=b"\x88"))), "has the length True"),
    "length real": Case(state(tensor(of=storage(length=b"F4\n"))), "has the length 4.0"),
    "storage missing": Case(ONE, "arrays 0 are missing", {"1": DATA}),
    # Views that leave their storage, or make much of little.
    "offset negative": Case(state(tensor(-1)), "leaves its storage"),
    "offset beyond": Case(state(tensor(4, sizes(1))), "leaves its storage"),
    "offset huge": Case(state(tensor(HUGE)), "no offset"),
    "offset text": Case(state(tensor().replace(integer(0), text("0"))), "no offset"),
    "stride negative": Case(state(tensor(3, sizes(2), sizes(-1))), "leaves its storage"),
    "stride huge": Case(state(tensor(0, sizes(2), sizes(2**62))), "sizes or strides"),
    "stride that wraps": Case(state(tensor(0, sizes(2, 2), sizes(2**47, 2**47))), "leaves its"),
    "strides for another shape": Case(state(tensor(0, sizes(2, 2), sizes(1))), "another shape"),
    "size negative": Case(state(tensor(0, sizes(-4))), "leaves its storage"),
    "size huge": Case(state(tensor(0, sizes(2**80))), "sizes or strides"),
    "size of a million digits": Case(
        state(tensor(0, b"(" + b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"t")),
        "sizes or strides",
    ),
    "size of many axes": Case(state(tensor(0, sizes(*[1] * 70), sizes(*[1] * 70))), "short list"),
    "size text": Case(state(tensor(0, text("abcd"))), "short list"),
    "overlapping without end": Case(
        state(tensor(0, sizes(2**30, 2**10), sizes(0, 0))), "more numbers than its storage"
    ),
    "overlapping windows": Case(
        state(tensor(0, sizes(3, 70_000), sizes(1, 0))), "more numbers than its storage"
    ),
    # What is called, changed or asked for.
    "partial": Case(
        state(name("functools", "partial") + b"(" + name("builtins", "eval") + b"tR"),
        r"asks for functools\.partial",
    ),
    "state of a function": Case(
        state(name("torch._utils", "_rebuild_tensor_v2") + b"}" + text("a") + text("b") + b"sb"),
        "attributes of what is no dictionary",
    ),
    "state of a tensor": Case(state(tensor() + b"}b"), "attributes of what is no dictionary"),
    "call of a storage's type": Case(state(name("torch", "FloatStorage") + b")R"), "no function"),
    "call of text": Case(state(text("eval") + b")R"), "calls what is no function"),
    "call without a tuple": Case(state(name("collections", "OrderedDict") + b"]R"), "arguments"),
    "new object": Case(state(name("collections", "OrderedDict") + b")\x81"), "instruction NEWOBJ"),
    "instance": Case(state(b"(ios\nsystem\n"), "instruction INST"),
    "extension": Case(state(b"\x82\x01"), "instruction EXT1"),
    "name of two texts": Case(state(text("os") + text("system") + b"\x93"), r"asks for os\.system"),
    "name of no text": Case(state(b"NN\x93"), "a name that is no text"),
    "name with escapes": Case(state(name("os\x1b[2J", "x")), r"asks for os\\x1b\[2J\.x"),
    "name inside torch": Case(state(name("torch", "load")), r"asks for torch\.load"),
    "tensor of a dictionary": Case(state(tensor(of=b"}")), "what is no storage"),
    "tensor of too many arguments": Case(state(tensor(more=b"N" * 40)), "what is no storage"),
    "parameter of a list": Case(
        state(name("torch._utils", "_rebuild_parameter") + b"(]\x89}tR"), "what is no tensor"
    ),
    # References to storages.
    "reference of text": Case(state(b"Pabc\n"), "instruction PERSID"),
    "reference of a list": Case(state(text("storage") + b"Q"), "than a plain storage"),
    "reference too short": Case(state(b"(" + text("storage") + b"tQ"), "than a plain storage"),
    "reference of a module": Case(
        ONE.replace(text("storage"), text("module0")), "not to a plain storage"
    ),
    "reference with a view": Case(
        state(tensor(of=storage()[:-2] + sizes(0) + b"tQ")), "than a plain storage"
    ),
    "key that is a number": Case(state(tensor(of=storage(key=integer(0)))), "key is no text"),
    "key out of the archive": Case(
        state(tensor(of=storage(key=text("../../etc/passwd")))), "passwd are missing"
    ),
    "storage of two types": Case(
        state(tensor()) + text("v") + tensor(of=storage("IntStorage")) + b"s", "two types"
    ),
    # Structures.
    "keys nested deeply": Case(state(tensor(), b"(" + NESTED + b"t"), "is a tuple that is long"),
    "keys that are shared": Case(
        state(tensor(), b")q\x00" + b"0h\x00h\x00\x86q\x00" * 60), "is a tuple that is long"
    ),
    "key that is a list": Case(state(tensor(), b"]"), "of type list"),
    "key that is no number": Case(state(tensor(), b"Fnan\n"), "of type float"),
    "keys of one hash": Case(state(tensor(), integer(2**61 - 1)), "of type int"),
    "key twice": Case(state(tensor()) + text("w") + tensor() + b"s", "key 'w' twice"),
    "key of half a character": Case(state(tensor(), text("\ud800")), "text that is no Unicode"),
    "memo far away": Case(state(b"Nr\xff\xff\xff\xffh\x00"), "has not stored"),
    "memo bomb": Case(state(b"N" + b"(h\x00h\x00tq\x00" * 3), "has not stored"),
    "list of pairs again and again": Case(
        state(b"](" + b"N" * 2000 + b"eq\x00" + name("collections", "OrderedDict") + b"h\x00\x85R"),
        "no list of pairs",
    ),
    "group without a beginning": Case(b"}NNu", "no beginning"),
    "value that is not there": Case(b"}s", "takes a value that is not there"),
    "entries of what is no list": Case(state(b"}Na"), "what is no list"),
    "code unknown": Case(b"}\xff", "no complete file"),
    "text longer than the file": Case(b"}X\xff\xff\xff\xff", "more than 67108864 bytes"),
    "bytes longer than any file": Case(b"}\x8e" + b"\xff" * 7 + b"\x7f", "more than 67108864"),
    "buffer out of band": Case(state(b"\x97"), "instruction NEXT_BUFFER"),
    "byte array": Case(state(b"\x96" + struct.pack("<Q", 4) + b"abcd"), "instruction BYTEARRAY8"),
    "too many instructions": Case(b"}" + b"N0" * 1_100_000, "more than 2000000 instructions"),
    "no end": Case(b"}" + b"(", "takes a value that is not there"),
}


def members(pickled: bytes = ONE + b".") -> dict[str, bytes]:
    """What an archive of one tensor holds."""
    return {"a/data.pkl": pickled, "a/byteorder": b"little", "a/data/0": DATA}


def archive(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file; names may come twice."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for member, value in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice
                out.writestr(member, value)
    return stream.getvalue()


def flag(raw: bytes, *, bit: int = 1, method: int | None = None) -> bytes:
    """An archive whose members all have a flag, or a method of compression."""
    out = bytearray(raw)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = raw.find(mark)
        while place >= 0:
            if method is None:
                out[place + at] |= bit
            else:
                out[place + at + 2 : place + at + 4] = struct.pack("<H", method)
            place = raw.find(mark, place + 4)
    return bytes(out)
