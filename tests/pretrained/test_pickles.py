"""State dicts of torch.save, recorded from torch in both formats, and what must be refused."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffjax.pretrained.pickles import open_pickle, open_weights
from tests.pretrained import hostile_pickles as hostile

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["new.pth", "old.pth"])
def test_every_tensor_is_read(name):
    weights = open_pickle(GOLDEN / name)
    expected = {
        "weight": np.ones(2),
        "bias": np.zeros(2),
        "running_mean": np.zeros(2),
        "running_var": np.ones(2),
        "num_batches_tracked": np.array(0),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "slice": np.arange(3, 7),
        "half": np.array([1.5, -2.0]),
        "brain": np.array([3.0]),
        "parameter": np.ones((1, 2)),
    }
    assert set(weights) == set(expected)
    for key, value in expected.items():
        assert weights.shape(key) == value.shape
        np.testing.assert_array_equal(weights[key].astype(value.dtype), value, key)
    assert (weights["half"].dtype, weights["slice"].dtype) == (np.float16, np.int64)


@pytest.mark.parametrize("name", ["new.pth", "old.pth"])
def test_a_cut_file_is_damaged(name, tmp_path):
    path = tmp_path / "cut.pth"
    whole = (GOLDEN / name).read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="no complete file of torch"):
            open_pickle(path)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(path, value):
    """The new format, made by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value))
        archive.writestr("a/data/0", np.arange(4, dtype=np.float32).tobytes())
    return path


def test_code_is_not_run(tmp_path):
    victim = tmp_path / "victim"
    path = saved(tmp_path / "evil.pth", {"a": Evil(io.open, str(victim), "w")})
    with pytest.raises(ValueError, match=r"refused: it asks for \w+\.open, which a state dict"):
        open_pickle(path)
    assert not victim.exists()
    path.write_bytes(pickle.dumps(Evil(eval, "1/0"), protocol=2))
    with pytest.raises(ValueError, match=r"refused: it asks for __builtin__\.eval"):
        open_pickle(path)


def tensor(offset, size, stride, kind="storage", name="FloatStorage"):
    """A pickle of {"w": a tensor}, spelled out."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (kind, "torch." + name, "0", "cpu", 4) if value == "STORAGE" else None

    class Rebuild:
        def __reduce__(self):
            arguments = ("STORAGE", offset, size, stride, False, collections.OrderedDict())
            return (_rebuild_tensor_v2, arguments)

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": Rebuild()})
    here = __name__.encode()
    body = stream.getvalue().replace(here + b"\n_rebuild", b"torch._utils\n_rebuild")
    # The storage's type is a global in real files.
    text = b"torch." + name.encode()
    return body.replace(
        b"X" + len(text).to_bytes(4, "little") + text, b"ctorch\n" + name.encode() + b"\n"
    )


def _rebuild_tensor_v2(*arguments):
    raise AssertionError("only its name is used")


def test_a_file_made_by_hand_is_read(tmp_path):
    weights = open_pickle(saved(tmp_path / "a.pth", tensor(1, (3,), (1,))))
    np.testing.assert_array_equal(weights["w"], [1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset": 2, "size": (3,), "stride": (1,)}, "leaves its storage"),
        ({"offset": -1, "size": (3,), "stride": (1,)}, "leaves its storage"),
        ({"offset": 3, "size": (3,), "stride": (-1,)}, "leaves its storage"),
        ({"offset": 0, "size": (2, 2), "stride": (1,)}, "strides for another shape"),
        ({"offset": 0, "size": (1,), "stride": (1,), "kind": "module"}, "not to a plain storage"),
        (
            {"offset": 0, "size": (1,), "stride": (1,), "name": "QUInt8Storage"},
            "asks for torch.QUInt8Storage",
        ),
    ],
)
def test_tensors_stay_in_their_storage(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_pickle(saved(tmp_path / "a.pth", tensor(**arguments)))


def test_other_contents(tmp_path):
    with pytest.raises(ValueError, match="holds no state dict, but list"):
        open_pickle(saved(tmp_path / "a.pth", [1, 2]))
    with pytest.raises(ValueError, match="holds no state dict, but dict"):
        open_pickle(saved(tmp_path / "a.pth", {"epoch": 3}))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_pickle(tmp_path / "none.pth")


def test_pickles_need_permission():
    with pytest.raises(
        ValueError, match="or allow_legacy_pickle=True, which reads it without running"
    ):
        open_weights(GOLDEN / "new.pth")
    assert "weight" in open_weights(GOLDEN / "new.pth", allow_legacy_pickle=True)


# ---- files that nobody means well with -----------------------------------------------------------


def refused(path, message):
    """Opening a file, or reading all of it, ends in one sentence with its name."""
    with pytest.raises(ValueError, match=message) as error:
        weights = open_pickle(path)
        for key in weights:
            weights[key].sum()
    text = str(error.value)
    assert str(path) in text and len(text) < 1000
    assert text.isprintable()


@pytest.mark.parametrize("name", hostile.CASES)
def test_hostile_pickles_are_refused(name, tmp_path):
    case = hostile.CASES[name]
    refused(hostile.write_zip(tmp_path / "a.pth", case), case.message)


# What the old format has as well, where lengths stand before the arrays.
OLD = {k: v for k, v in hostile.CASES.items() if v.arrays == hostile.Case.__new__.__defaults__[0]}
EARLY = ("length of another type", "storage far shorter", "key out of the archive")


@pytest.mark.parametrize("name", [name for name in OLD if name not in EARLY])
def test_hostile_pickles_of_the_old_format_are_refused(name, tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(hostile.old_file(OLD[name].body))
    refused(path, OLD[name].message)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (hostile.old_file(hostile.ONE, lengths=(-1,)), "array '0' is cut off"),
        (hostile.old_file(hostile.ONE, lengths=(2**62,)), "array '0' is cut off"),
        (hostile.old_file(hostile.ONE, lengths=(3,)), "has 12 bytes, and should have 16"),
        (hostile.old_file(hostile.ONE, data=hostile.DATA[:8]), "array '0' is cut off"),
        (hostile.old_file(hostile.ONE, keys=[]), "arrays 0 are missing"),
        (hostile.old_file(hostile.ONE, keys=["0", "0"], lengths=(4, 4)), "lists it twice"),
        (hostile.old_file(hostile.ONE, keys=["1"]), "array '1', which no tensor has"),
        (hostile.old_file(hostile.ONE, keys=[0]), "no list of its arrays"),
        (hostile.old_file(hostile.ONE, keys={}), "no list of its arrays"),
        (hostile.old_head(little=False) + hostile.ONE + b".", "big-endian"),
        (pickle.dumps(1), "another format"),
        (hostile.old_head()[:30], "no complete file"),
        (b"\x8a\xff" + b"\x00" * 20, "no complete file"),
        (b"L" + b"9" * 10_000 + b"L\n.", "no complete file"),
        (b"", "no complete file"),
    ],
)
def test_damaged_files_of_the_old_format_are_refused(raw, message, tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(raw)
    refused(path, message)


def changed(raw, old, new):
    assert raw.count(old) >= 1 and len(old) == len(new)
    return raw.replace(old, new)


PARTS = hostile.members()
WHOLE = hostile.archive(list(PARTS.items()))
ARCHIVES = {
    "an array with a bad checksum": (changed(WHOLE, hostile.DATA, b"\1" * 16), "Bad CRC-32"),
    "a pickle with a bad checksum": (changed(WHOLE, b"cpu", b"gpu"), "Bad CRC-32"),
    "no array": (hostile.archive([("a/data.pkl", PARTS["a/data.pkl"])]), "arrays 0 are missing"),
    "no pickle": (hostile.archive([("a/data/0", hostile.DATA)]), "holds 0 files named data.pkl"),
    "two pickles": (
        hostile.archive([*PARTS.items(), ("b/data.pkl", b"}.")]), "holds 2 files named data.pkl"
    ),
    "an array twice": (
        hostile.archive([*PARTS.items(), ("a/data/0", bytes(16))]), "'a/data/0' twice"
    ),
    "a pickle twice": (
        hostile.archive([*PARTS.items(), ("a/data.pkl", b"}.")]), r"'a/data\.pkl' twice"
    ),
    "encrypted members": (hostile.flag(WHOLE), "is encrypted"),
    "bzip2": (hostile.archive(list(PARTS.items()), zipfile.ZIP_BZIP2), "compressed by method 12"),
    "a method that nobody knows": (hostile.flag(WHOLE, method=77), "compressed by method 77"),
    "big-endian numbers": (
        hostile.archive(list((PARTS | {"a/byteorder": b"big"}).items())), "big-endian"
    ),
    "an order of bytes without end": (
        hostile.archive(list((PARTS | {"a/byteorder": b"l" * 10**6}).items())), "big-endian"
    ),
    "an array that expands": (
        hostile.archive(list((PARTS | {"a/data/0": bytes(2**25)}).items()), zipfile.ZIP_DEFLATED),
        "members expand to",
    ),
    "a pickle that expands": (
        hostile.archive(
            list((PARTS | {"a/data.pkl": b"}" + b"N0" * 2**24}).items()), zipfile.ZIP_DEFLATED
        ),
        "members expand to",
    ),
    "members that claim to expand": (
        changed(WHOLE, *(size.to_bytes(4, "little") * 2 for size in (16, 2**31))), "expand to"
    ),
    "a directory of gigabytes": (
        WHOLE[:-10] + (2**31).to_bytes(4, "little") + WHOLE[-6:], "directory has 2147483648 bytes"
    ),
    "a directory that is elsewhere": (WHOLE[:-6] + b"\xf0\xff\0\0\0\0", "no complete file"),
    "no directory": (WHOLE[:-22], "no complete file"),
    "no directory, and a line break in the first header's time": (
        WHOLE[:10] + b"\n\n" + WHOLE[12:-22], "no complete file"
    ),
    "headers of members overwritten": (
        changed(WHOLE, b"PK\x03\x04", b"XXXX"), "no complete file"
    ),
    "other names in the headers": (
        WHOLE.replace(b"a/data/0", b"a/data/1", 1), "no complete file"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives_are_refused(name, tmp_path):
    raw, message = ARCHIVES[name]
    path = tmp_path / "a.pth"
    path.write_bytes(raw)
    refused(path, message)


def test_compressed_arrays_are_read_within_bounds(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(hostile.archive(list(PARTS.items()), zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(open_pickle(path)["w"], [0, 1, 2, 3])
    shared = b"}" + b"".join(
        hostile.text(f"w{i}") + hostile.tensor(of=hostile.storage(length=hostile.integer(2**21)))
        + b"s"
        for i in range(40)
    )  # fmt: skip
    parts = PARTS | {"a/data.pkl": shared + b".", "a/data/0": bytes(2**23)}
    path.write_bytes(hostile.archive(list(parts.items()), zipfile.ZIP_DEFLATED))
    refused(path, "share compressed arrays")


def test_views_of_a_part_of_an_array(tmp_path):
    body = hostile.state(hostile.tensor(1, hostile.sizes(2, 2), hostile.sizes(1, 1)))
    body += hostile.text("one") + hostile.tensor(3, hostile.sizes(5, 2), hostile.sizes(0, 0)) + b"s"
    body += (
        hostile.text("none") + hostile.tensor(9, hostile.sizes(0, 7), hostile.sizes(1, 1)) + b"s"
    )
    for path, raw in (
        (tmp_path / "new.pth", hostile.archive(list(hostile.members(body + b".").items()))),
        (tmp_path / "old.pth", hostile.old_file(body)),
    ):
        path.write_bytes(raw)
        weights = open_pickle(path)
        np.testing.assert_array_equal(weights["w"], [[1, 2], [2, 3]])
        np.testing.assert_array_equal(weights["one"], np.full((5, 2), 3))
        assert weights["none"].shape == (0, 7)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["new", "compressed", "old", "half"])
def test_numbers_that_are_not_finite_are_damage(number, form, tmp_path):
    data, kind = np.array([1, 2, number, 4], np.float16 if form == "half" else np.float32), "Float"
    if form == "half":
        kind = "Half"
    of = hostile.storage(f"{kind}Storage")
    body = hostile.state(hostile.tensor(of=of))
    body += hostile.text("part") + hostile.tensor(0, hostile.sizes(2), of=of) + b"s"
    body += hostile.text("none") + hostile.tensor(0, hostile.sizes(0), of=of) + b"s"
    path = tmp_path / "a.pth"
    if form == "old":
        path.write_bytes(hostile.old_file(body, data=data.tobytes()))
    else:
        method = zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
        case = hostile.Case(body, "", {"0": data.tobytes()})
        hostile.write_zip(path, case, compression=method)
    weights = open_pickle(path)
    with pytest.raises(ValueError, match=r"w in .*a\.pth holds values that are not finite"):
        weights["w"]
    # What a tensor does not show does not count.
    np.testing.assert_array_equal(weights["part"], [1, 2])
    assert weights["none"].shape == (0,)


def test_structures_that_hold_themselves_are_harmless(tmp_path):
    """They are neither walked, nor hashed, nor printed."""
    own = b"]q\x01h\x01a" + b"}q\x02" + hostile.text("me") + b"h\x02s"
    doubled = b")q\x03" + b"0h\x03h\x03\x86q\x03" * 200
    extra = b"".join(
        hostile.text(f"x{i}") + part + b"s"
        for i, part in enumerate([own[:6], own[6:], doubled, hostile.NESTED])
    )
    body = hostile.state(hostile.tensor()) + extra
    path = hostile.write_zip(tmp_path / "a.pth", hostile.Case(body, ""))
    assert list(open_pickle(path)) == ["w"]


def test_dictionaries_of_older_pythons(tmp_path):
    pair = b"](" + hostile.text("w") + hostile.tensor() + b"e"
    body = hostile.name("collections", "OrderedDict") + b"(]" + pair + b"atR"
    path = hostile.write_zip(tmp_path / "a.pth", hostile.Case(body, ""))
    np.testing.assert_array_equal(open_pickle(path)["w"], [0, 1, 2, 3])


def test_damage_at_every_byte_is_noticed_or_harmless(tmp_path):
    """Of the old format, which has no checksums: what is read is what the file says."""
    path, whole = tmp_path / "a.pth", (GOLDEN / "old.pth").read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            weights = open_pickle(path)
            for key in weights:
                assert weights[key].shape == weights.shape(key)
        except ValueError as error:
            assert str(path) in str(error)
