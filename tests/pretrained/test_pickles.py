"""State dicts of torch.save, recorded from torch in both formats, and what must be refused."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffjax.pretrained.pickles import open_pickle, open_weights

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
