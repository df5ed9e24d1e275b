"""Readers of files on disk: idx (MNIST family), CIFAR-10's binary records, image files.

Every reader checks what it reads completely before it returns: a file is whole, or it raises.
"""

from __future__ import annotations

import functools
import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.data.degradation import resize

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)  # of `diffjax.data.pictures.FORMATS`
_GZIP_MAGIC = b"\x1f\x8b"
_IDX_UBYTE = 0x08
_IDX_AXES, _IDX_MOST = 4, 4 * 2**30
_GZIP_RATIO = 1032  # largest ratio of deflate
_CIFAR_RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes
_CIFAR_PER_FILE = 10_000
_CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}


def _inflate(path: Path, hint: str) -> bytes:
    """Return the bytes of a file, expanded if it is compressed.

    These are as many as its header promises, and one to notice that there are more. A small
    file that expands without end thus takes neither memory nor time.

    Raises:
      ValueError: the file promises more than it can hold, or is truncated or damaged.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    try:
        with gzip.open(path) if compressed else path.open("rb") as stream:
            head = stream.read(4)
            head += stream.read(4 * head[3]) if len(head) == 4 and head[3] <= _IDX_AXES else b""
            whole = len(head) >= 4 and len(head) % 4 == 0
            dims = struct.unpack(f">{len(head) // 4 - 1}I", head[4:]) if whole else ()
            promised = math.prod(dims) if head[:3] == bytes((0, 0, _IDX_UBYTE)) else 0
            # This is checked before memory is reserved. Deflate expands by no more than this ratio.
            most = min(_IDX_MOST, path.stat().st_size * (_GZIP_RATIO if compressed else 1))
            if promised > most:
                raise ValueError(
                    f"{path} promises {promised} bytes in its header {dims}, more than the "
                    f"{most} that it can hold: it is truncated or damaged. {hint}"
                )
            body = stream.read(promised)
            # One byte more reaches the end of a whole file, where gzip compares its checksum.
            return head + body + stream.read(1)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} is a truncated or damaged gzip file ({error}; {size} bytes). {hint}"
        ) from error


def read_idx(path: str | Path, *, ndim: int, hint: str = "") -> np.ndarray:
    """Read an idx file of unsigned bytes; its content shows whether gzip compressed it.

    Layout (big-endian; Y. LeCun, the MNIST database): two zero bytes, the type 0x08, the number of
    dimensions, one uint32 per dimension, then exactly prod(dims) bytes.

    Args:
      path: the file.
      ndim: number of dimensions expected, 3 for images (N, H, W) and 1 for labels (N,).
      hint: how to get a good file, the last sentence of every error.

    Returns:
      Read-only uint8 array.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged gzip, wrong magic number, or more or fewer bytes than the header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected an idx file. {hint}")
    raw = _inflate(path, hint)
    magic = bytes((0, 0, _IDX_UBYTE, ndim))
    if raw[:4] != magic:
        raise ValueError(
            f"{path} has magic number 0x{raw[:4].hex()}, expected 0x{magic.hex()} "
            f"(idx, unsigned bytes, {ndim} dimension(s)). {hint}"
        )
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise ValueError(f"{path} ends inside its header, after {len(raw)} bytes. {hint}")
    dims = struct.unpack(f">{ndim}I", raw[4:start])
    # Python integers do not overflow for a damaged header.
    expected = int(np.prod(dims, dtype=object))
    if len(raw) - start != expected:
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data where its header {dims} promises "
            f"{expected}: it is truncated or damaged. {hint}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(dims)


def _read_cifar_chunks(
    path: Path, names: tuple[str, ...], hint: str
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each file, from the archive or from a folder."""
    if path.is_dir():
        for name in names:
            file = path / name
            if not file.is_file():
                raise FileNotFoundError(f"{file} not found. {hint}")
            yield name, file.read_bytes()
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found. {hint}")
    try:
        with tarfile.open(path) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
            for name in names:
                member = archive.extractfile(members[name]) if name in members else None
                if member is None:
                    raise ValueError(f"{path} holds no {name}. {hint}")
                yield name, member.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or no tar archive ({error}). {hint}") from error


def read_cifar10(
    path: str | Path, split: str, *, hint: str = "", per_file: int = _CIFAR_PER_FILE
) -> tuple[np.ndarray, np.ndarray]:
    """Read CIFAR-10's binary version: records of one label byte and 3 planes of 32x32 bytes.

    Args:
      path: `cifar-10-binary.tar.gz`, or a folder with `data_batch_1.bin`, ..., `test_batch.bin`.
      split: `train` or `test`.
      hint: how to get good files, the last sentence of every error.
      per_file: records in each file, 10,000.

    Returns:
      (images uint8 (N, 32, 32, 3), labels int32 (N,)).

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged archive, wrong length, or a label above 9.
    """
    records = []
    for name, raw in _read_cifar_chunks(Path(path), _CIFAR_FILES[split], hint):
        if len(raw) != per_file * _CIFAR_RECORD:
            raise ValueError(
                f"{name} of {path} has {len(raw)} bytes, expected {per_file * _CIFAR_RECORD}. "
                f"{hint}"
            )
        records.append(np.frombuffer(raw, np.uint8).reshape(per_file, _CIFAR_RECORD))
    table = np.concatenate(records)
    labels = table[:, 0].astype(np.int32)
    if labels.max(initial=0) > 9:
        raise ValueError(f"{path} has label {labels.max()}, expected 0 to 9. {hint}")
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def encode_png(image: np.ndarray) -> bytes:
    """Encode a uint8 image (H, W, 1) or (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


Size = int | tuple[int, int]  # pixels on a side of a square, or (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Return (height, width) in pixels of a size.

    Raises:
      ValueError: it is neither a number of pixels nor (height, width), or one is below 1.
    """
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(side, int | np.integer) and side is not True for side in pair)
    if len(pair) != 2 or not whole or min(pair) < 1:
        raise ValueError(
            f"image_size={size!r}: must be a number of pixels or (height, width), at least 1 each"
        )
    return int(pair[0]), int(pair[1])


def center_crop_resize(
    image: np.ndarray, size: Size, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Crop to the largest central square, or rectangle, and resize by a filter of Pillow's.

    Pillow widens the filter when it shrinks an image, so there is no aliasing (Parmar et al. 2022,
    "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").

    Args:
      image: uint8 (H, W, C).
      size: of the square, or (height, width).
      filter: bicubic if nothing is said.

    Returns:
      uint8 (height, width, C).
    """
    height, width, channels = image.shape
    h, w = sides(size)
    if (height, width) == (h, w):
        return image
    _, (top, left), (rows, columns) = fit_central((height, width), (h, w))
    # The crop comes first, since Pillow's filter would read pixels outside of a box.
    part = image[top : top + rows, left : left + columns]
    picture = Image.fromarray(np.ascontiguousarray(part[..., 0] if channels == 1 else part))
    resized = picture.resize((w, h), filter)
    return np.asarray(resized).reshape(h, w, channels)


def average_areas(image: np.ndarray, size: Size) -> np.ndarray:
    """Crop to the largest central square, or rectangle, and average areas as OpenCV does.

    A pixel is the mean of the part of the crop that it covers (``cv2.INTER_AREA``).

    Args:
      image: uint8 (H, W, C).
      size: of the square, or (height, width).

    Returns:
      uint8 (height, width, C).
    """
    h, w = sides(size)
    _, corner, cut = fit_central(image.shape[:2], (h, w))
    made = resize(_cut(image, cut, corner).astype(np.float32), (h, w), "area")
    return np.rint(made).astype(np.uint8)


def resize_by_halves(image: np.ndarray, size: Size) -> np.ndarray:
    """Halve by averages while at least twice too large, resize, and crop the middle.

    Dhariwal & Nichol 2021, released code, which DiT and SiT use too; the last step is Pillow's
    bicubic filter.

    Args:
      image: uint8 (H, W, C).
      size: of the square, or (height, width).

    Returns:
      uint8 (height, width, C).
    """
    h, w = sides(size)
    resized = _cover_by_halves(image, (h, w))
    return _cut(resized, (h, w), ((resized.shape[0] - h) // 2, (resized.shape[1] - w) // 2))


def _cover_by_halves(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Make the smallest picture of the ratio of an image that is at least (height, width)."""
    channels, (h, w) = image.shape[2], size
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    while min(picture.height // h, picture.width // w) >= 2:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    factor = max(h / picture.height, w / picture.width)
    # Rounding may not fall below the size that is cropped.
    near = (max(w, round(picture.width * factor)), max(h, round(picture.height * factor)))
    resized = np.asarray(picture.resize(near, Image.Resampling.BICUBIC))
    return resized.reshape(near[1], near[0], channels)


def _cut(image: np.ndarray, size: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    (h, w), (top, left) = size, corner
    return image[top : top + h, left : left + w]


RESIZERS: dict[str, Callable[[np.ndarray, Size], np.ndarray]] = {
    "bicubic": center_crop_resize,
    "lanczos": functools.partial(center_crop_resize, filter=Image.Resampling.LANCZOS),
    "halves": resize_by_halves,
    "area": average_areas,
}


def crop_resize_at(
    image: np.ndarray,
    size: Size,
    *,
    share: float,
    place: tuple[float, float],
    resize: str = "bicubic",
) -> np.ndarray:
    """A crop of an image, resized.

    Args:
      resize: a name in `RESIZERS`.
      share: sides of the crop over those of the largest one with the ratio of ``size``, in (0, 1].
      place: of the crop between top and bottom, and between left and right, in [0, 1).
    """
    h, w = sides(size)
    height, width = image.shape[:2]
    factor = fit_central((height, width), (h, w))[0] * share
    rows, columns = (min(n, max(1, round(s * factor))) for n, s in ((height, h), (width, w)))
    top, left = int(place[0] * (height - rows + 1)), int(place[1] * (width - columns + 1))
    return RESIZERS[resize](image[top : top + rows, left : left + columns], size)


def fit_central(
    found: tuple[int, int], wanted: tuple[int, int]
) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """Return (factor, corner, size) of the largest central rectangle with the ratio of another.

    Args:
      found: (height, width) of the image, in pixels.
      wanted: (height, width) of the result; it is the size of the rectangle over ``factor``.
    """
    factor = min(found[0] / wanted[0], found[1] / wanted[1])
    size = max(1, round(wanted[0] * factor)), max(1, round(wanted[1] * factor))
    corner = (found[0] - size[0]) // 2, (found[1] - size[1]) // 2
    return factor, corner, size


def halve_crop_at(
    image: np.ndarray,
    size: Size,
    *,
    share: float,
    place: tuple[float, float],
    bounds: tuple[float, float],
) -> np.ndarray:
    """Resize an image so that its shorter side is a little too long, and cut out a crop.

    The random crops of Dhariwal & Nichol 2021, released code. The shorter side is a whole number
    between those of which the crop is the largest and the smallest share, each as likely; the
    filters are those of `resize_by_halves`.

    Args:
      size: of the crop, the square of this side or (height, width).
      share: which of the sides, in [0, 1) from the shortest to the longest.
      place: as in `crop_resize_at`.
      bounds: smallest and largest share of the crop in the shorter side, in (0, 1].
    """
    h, w = sides(size)
    shortest, longest = (math.ceil(min(h, w) / bound) for bound in bounds[::-1])
    side = shortest + int(share * (longest - shortest + 1))
    near = (round(h * side / min(h, w)), round(w * side / min(h, w)))
    resized = _cover_by_halves(image, near)
    free = (resized.shape[0] - h + 1, resized.shape[1] - w + 1)
    return _cut(resized, (h, w), (int(place[0] * free[0]), int(place[1] * free[1])))
