"""Means and covariances of reference images, in the layouts in which they are published.

| layout | keys |
|---|---|
| pytorch-fid (TTUR) | ``mu`` (F,), ``sigma`` (F, F) |
| ADM | the same, ``mu_s`` and ``sigma_s`` of the spatial features, and often ``arr_0``, images |
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from diffjax.metrics.features import Features
from diffjax.metrics.statistics import Gaussian, Moments, moments
from diffjax.untrusted import show
from diffjax.writing import replace_file

StrPath = str | os.PathLike[str]
# NumPy and zipfile raise RuntimeError for an encrypted member, and SyntaxError and the like for a
# damaged header of an array.
_BROKEN = (
    *(
        EOFError,
        OSError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ),
    *(SyntaxError, KeyError, TypeError, OverflowError, MemoryError, tokenize.TokenError),
)
_RATIO, _SPARE = 100, 64 * 2**20  # an npz file may expand to _RATIO times its bytes plus _SPARE
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class Statistics(NamedTuple):
    """Moments of the features of a set, and of its spatial features if they are known.

    Attributes:
        features: of (N, F) features.
        spatial: of (N, S) features that keep positions, for spatial FID.
    """

    features: Moments | Gaussian
    spatial: Moments | Gaussian | None = None


def compute_statistics(found: Features) -> Statistics:
    """Return the moments of collected features."""
    spatial = None if found.spatial is None else moments(found.spatial)
    return Statistics(moments(found.features), spatial)


def load_statistics(path: StrPath) -> Statistics:
    """Load the statistics in an npz file of the ADM or the pytorch-fid layout.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has no statistics, or they have the wrong shape.
    """
    try:
        _check_members(Path(path))
        with np.load(path) as file:
            values = {k: file[k] for k in ("mu", "sigma", "mu_s", "sigma_s") if k in file}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} is not a complete npz file: {_take_first_line(error)}") from error
    if not {"mu", "sigma"} <= set(values):
        raise ValueError(f"{path} holds no statistics: it needs the arrays mu and sigma")
    spatial = None
    if {"mu_s", "sigma_s"} <= set(values):
        spatial = _make_gaussian(path, values["mu_s"], values["sigma_s"])
    return Statistics(_make_gaussian(path, values["mu"], values["sigma"]), spatial)


def _check_members(path: Path) -> None:
    """Check that the arrays of an npz file fit in its members, which expand within bounds.

    Raises:
        ValueError: a header promises more than is there, or members expand to far more.
    """
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > _RATIO * path.stat().st_size + _SPARE:
            raise ValueError("its members expand to far more than the file")
        if len({info.filename for info in infos}) < len(infos):
            raise ValueError("it holds a member twice")
        for info in infos:
            with archive.open(info) as member:
                if not info.filename.endswith(".npy") or not info.file_size:
                    continue
                shape, _, dtype = _read_header(member)
                if dtype.hasobject:
                    raise ValueError(f"its member {show(info.filename)} holds Python objects")
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"its array {show(info.filename)} is cut off")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and type of an array; the file is then at its first value."""
    version = np.lib.format.read_magic(file)
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return read(file)


def _take_first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _make_gaussian(path: StrPath, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    """Check published moments and return them as float64.

    Raises:
        ValueError: shapes do not fit each other, or values are not finite floats.
    """
    if mean.ndim != 1 or covariance.shape != (*mean.shape, *mean.shape):
        raise ValueError(
            f"{path} holds a mean {mean.shape} with a covariance {covariance.shape}; "
            "they must be (F,) and (F, F)"
        )
    for name, values in (("mean", mean), ("covariance", covariance)):
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"{path} holds a {name} that is not all finite floats")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))


def save_statistics(path: StrPath, statistics: Statistics) -> None:
    """Write statistics in the layout of `load_statistics`, all of the file or nothing.

    Raises:
        OSError: it cannot be written.
    """
    arrays = {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    with replace_file(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def list_arrays(path: StrPath) -> set[str]:
    """Return the names of the arrays in an npz file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {Path(name).stem for name in archive.namelist()}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} is not a complete npz file: {error}") from error


def load_array(path: StrPath, names: tuple[str, ...]) -> np.ndarray:
    """Load the first of the named arrays in an npz file; one that is not compressed is mapped.

    Args:
        path: of the file.
        names: in the order of preference.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has none of the names.
    """
    try:
        _check_members(Path(path))
        with zipfile.ZipFile(path) as archive:
            have = {Path(info.filename).stem: info for info in archive.infolist()}
            found = next((have[name] for name in names if name in have), None)
            if found is None:
                raise ValueError(f"it has {', '.join(have)}, none of {', '.join(names)}")
            if found.compress_type != zipfile.ZIP_STORED:
                with np.load(path) as file:
                    return np.asarray(file[Path(found.filename).stem])
            return _map_array(Path(path), found.header_offset)
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"cannot read an array of {path}: {_take_first_line(error)}") from error


def _map_array(path: Path, member: int) -> np.ndarray:
    """Map the array of a member that is stored without compression.

    Args:
        path: of the npz file.
        member: offset of the member's header.
    """
    with path.open("rb") as file:
        file.seek(member)
        header = file.read(_LOCAL_HEADER)
        file.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), 1)
        shape, fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
