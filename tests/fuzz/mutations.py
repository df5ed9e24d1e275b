"""Changes to files: of bytes, and of what the bytes mean in JSON, safetensors, zip and gzip."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import warnings
import zipfile
from typing import Any, NamedTuple

NUMBERS = (
    *(float("nan"), float("inf"), float("-inf"), -1, 0, 1, 2, -0.5, 0.5, 5, 10**9, -(10**9)),
    *(10**30, 1e300, 2**31, 2**63, 2**64),
)
OTHERS = (
    *(None, True, False, "", "x", "../../etc/passwd", "a\0b", "\ud800", "9" * 50, [], {}, [[]]),
    *([None], ["x"], {"x": 1}, [1, 2, 3], [float("nan")], "x" * 10_000, [1] * 10_000),
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


class Change(NamedTuple):
    """A file's new bytes.

    Attributes:
        raw: the bytes, or None to remove the file.
        what: what was done, for a person.
        illegal: whether the result may not be read; see `change_json`.
    """

    raw: bytes | None
    what: str
    illegal: bool = False


def change_bytes(raw: bytes, rng: random.Random) -> Change:
    """A flipped bit, a cut, a repeated or removed part, an extreme number, or other bytes."""
    if not raw:
        return Change(rng.randbytes(rng.randint(1, 64)), "bytes in an empty file")
    out, at = bytearray(raw), rng.randrange(len(raw))
    if rng.random() < 0.5:
        at = min(at, rng.randrange(min(len(raw), 512)))  # headers are at the beginning
    end = min(len(raw), at + rng.choice((1, 2, 4, 8, 64, 1024)))
    kind = rng.randrange(7)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at:end] = rng.randbytes(end - at)
    elif kind == 2:
        del out[at:end]
    elif kind == 3:
        out[at:at] = out[at:end] * rng.choice((1, 2, 100))
    elif kind == 4:
        del out[at:]
    elif kind == 5:
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice(EXTREMES) % 2 ** (8 * size)
        out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    else:
        out[at:at] = rng.randbytes(rng.choice((1, 16, 256)))
    return Change(bytes(out), f"bytes {kind} at {at}")


# ---- JSON ---------------------------------------------------------------------------------------


def change_json(raw: bytes, rng: random.Random, checked: dict[str, str]) -> Change:
    """A value replaced, a key removed, added or repeated, deep nesting, or other bytes.

    Args:
        checked: what is known of keys: ``p`` a number above 0, ``n`` from 0, ``f`` any finite one,
            ``s`` from 0 to 1, ``i`` a whole one above 0, ``b`` a truth value, ``t`` text; ``w`` if
            it must be whole, ``e`` if it may be empty, ``?`` null, ``l`` large.
    """
    kind = rng.randrange(12)
    if kind == 0:
        return change_bytes(raw, rng)
    if kind == 1:
        deep = rng.choice((70, 1000, 100_000))
        return Change(b'{"a":' * deep + b"1" + b"}" * deep, f"{deep} levels", True)
    value = json.loads(raw)
    where, key = _place(value, rng, checked)
    if kind == 2:
        where.pop(key)
        return Change(json.dumps(value).encode(), f"{key!r} removed")
    if kind == 3 and isinstance(where, dict):
        text = json.dumps(value)
        twice = text.replace("{", '{"_twice": 1, "_twice": 2, ', 1)
        return Change(twice.encode(), "a key twice", True)
    if kind == 4 and isinstance(where, dict):
        where["".join(rng.choices("abc_", k=5))] = rng.choice(NUMBERS + OTHERS)
        return Change(_dump(value), "a key added")
    old, new = where[key], rng.choice(NUMBERS if rng.random() < 0.5 else OTHERS)
    where[key] = new
    top = where is value
    illegal = top and key in checked and not _is_legal(new, checked[key])
    return Change(_dump(value), f"{key!r}: {old!r:.40} -> {new!r:.40}", illegal)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _place(value: Any, rng: random.Random, checked: dict[str, str]) -> tuple[Any, Any]:
    """A container and a key of it; more often one that is checked."""
    if isinstance(value, dict) and rng.random() < 0.5 and (known := sorted(checked.keys() & value)):
        return value, rng.choice(known)
    places: list[tuple[Any, Any]] = []
    parts = [value]
    while parts and len(places) < 5000:
        part = parts.pop()
        keys = part if isinstance(part, dict) else range(len(part))
        places += [(part, key) for key in keys]
        parts += [part[key] for key in keys if isinstance(part[key], dict | list)]
    return rng.choice(places)


def _is_legal(value: Any, kind: str) -> bool:
    if value is None:
        return "?" in kind
    if "b" in kind:
        return isinstance(value, bool)
    if "t" in kind:
        return isinstance(value, str) and (value != "" or "e" in kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value != value or (abs(value) > 1e7 and "l" not in kind):
        return False
    if ("i" in kind or "w" in kind) and not isinstance(value, int):
        return False
    if "s" in kind:
        return 0 <= value <= 1
    return value > 0 if "p" in kind or "i" in kind else value >= 0 if "n" in kind else True


# ---- containers ---------------------------------------------------------------------------------


def change_safetensors(raw: bytes, rng: random.Random) -> Change:
    """Its header as JSON, numbers that are not finite, or bytes."""
    kind = rng.randrange(4)
    size = int.from_bytes(raw[:8], "little")
    head, data = raw[8 : 8 + size], bytearray(raw[8 + size :])
    if kind == 0:
        return change_bytes(raw, rng)
    if kind == 1:
        entries = {k: v for k, v in json.loads(head).items() if k != "__metadata__"}
        key = rng.choice([k for k, v in entries.items() if v["dtype"] == "F32"])
        start, end = entries[key]["data_offsets"]
        at = rng.randrange(start, end, 4)
        data[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"))))
        return Change(raw[: 8 + size] + data, f"{key} is not finite", True)
    if kind == 2:
        value = json.loads(head)
        key = rng.choice([k for k in value if k != "__metadata__"])
        part = rng.choice(("dtype", "shape", "data_offsets"))
        choices: dict[str, Any] = {
            "dtype": ["I32", "F16", "BF16", "F64", "U8", "X", 3],
            "shape": [[], [0], [2**40, 2**40], [-1], [1.5], "x", None, [1] * 1000],
            "data_offsets": [[0, 0], [4, 0], [0, 2**63], [-4, 4], [0], None],
        }
        value[key][part] = rng.choice(choices[part])
        new = Change(_dump(value), f"{part} of {key}: {value[key][part]!r:.40}")
    else:
        new = change_json(head, rng, {})
    body = new.raw or b""
    return Change(len(body).to_bytes(8, "little") + body + data, new.what)


def change_zip(raw: bytes, rng: random.Random) -> Change:
    """Members changed, removed, cut, repeated or compressed, with right checksums; or bytes."""
    kind = rng.randrange(7)
    if kind == 0:
        return change_bytes(raw, rng)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(parts))
    if rng.random() < 0.6:  # what says how the rest is read
        at = next((i for i, (name, _) in enumerate(parts) if name.endswith(".pkl")), at)
    name, body = parts[at]
    method, what = zipfile.ZIP_STORED, f"{name}: kind {kind}"
    if kind == 1:
        parts.pop(at)
    elif kind == 2:
        parts[at] = name, body[: rng.randrange(len(body) + 1)]
    elif kind == 3:
        parts.append((name, rng.choice((body, b"", rng.randbytes(32)))))
    elif kind == 4:
        parts[at] = name, body + bytes(rng.choice((1, 10**8)))
        method = zipfile.ZIP_DEFLATED
    else:
        parts[at] = name, change_bytes(body, rng).raw or b""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, body in parts:
            archive.writestr(name, body)
    return Change(out.getvalue(), what)


def change_gzip(raw: bytes, rng: random.Random) -> Change:
    """What is inside with a right checksum, an expansion without end, or bytes."""
    kind, inner = rng.randrange(4), gzip.decompress(raw)
    if kind == 0:
        return change_bytes(raw, rng)
    if kind == 1:
        return Change(gzip.compress(inner + bytes(3 * 10**7), 1), "30 MB more", True)
    if kind == 2:
        at = 4 * rng.randrange(1, 1 + inner[3])
        number = struct.pack(">I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
        inner = inner[:at] + number + inner[at + 4 :]
    return Change(gzip.compress(change_bytes(inner, rng).raw or b"", 1), "inside")
