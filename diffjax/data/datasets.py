"""Image data sets by name, as random-access sources of grey levels and labels.

| name | images | where they come from |
|---|---|---|
| digits | 1,797 of 8x8x1, 17 grey levels | inside scikit-learn |
| fashion_mnist | 70,000 of 28x28x1 | idx files, Debian's `dataset-fashion-mnist`, or TFDS |
| fashion_mnist14 | 70,000 of 14x14x1 | the same, 2x2 pixels averaged |
| cifar10 | 60,000 of 32x32x3 | its binary archive, or TFDS |
| mnist, celeb_a, celeb_a_hq, lsun_*, imagenet* | 30,000 and up | prepared by TFDS as array_record |
| image_folder | any | a folder of image files |
| captioned_folder | any | image files with captions, see `diffjax.data.captions` |
| paired_folder | any | image files with hints and arrays, see `diffjax.data.pairs` |
| shapes, shapes_single | 25,000 of any size | drawn by a program, with captions, masks and edges |
| latents | any | latents of another set, written by `experiments.encode` |

Without `data_dir`, the folder in the environment variable DIFFJAX_DATA_DIR is searched first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from diffjax.data import formats, latents, pictures, shapes, tfds_builders
from diffjax.data.captions import Buckets
from diffjax.data.folder_loaders import FOLDERS, load_folder
from diffjax.data.folder_sources import DAMAGED, Reading, Sides, fit_size
from diffjax.data.framing import USUAL, Framing, check_framing, frame
from diffjax.data.source import Arrays, Indices, Originals, Source, from_arrays

ENV_DIR = "DIFFJAX_DATA_DIR"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_DIGITS_TRAIN = 1500
_FASHION_HINT = (
    "Fashion-MNIST comes with `apt-get install dataset-fashion-mnist`; or put its four idx files "
    "(train|t10k-images-idx3-ubyte, train|t10k-labels-idx1-ubyte, plain or .gz) in a folder and "
    f"pass it as data_dir or {ENV_DIR}."
)
_CIFAR10_HINT = (
    "Get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and pass its "
    f"folder as data_dir or {ENV_DIR}."
)
_TFDS = {
    "mnist": "mnist",
    "celeb_a": "celeb_a",
    "celeb_a_hq": "celeb_a_hq/256",
    "lsun_bedroom": "lsun/bedroom",
    "lsun_church": "lsun/church_outdoor",
    "lsun_cat": "lsun/cat",
    **{f"imagenet{s}": f"imagenet_resized/{s}x{s}" for s in (8, 16, 32, 64)},
}


def names() -> tuple[str, ...]:
    """Return the names that `load` knows."""
    return (*_LOADERS, *_TFDS, *_DRAWN, *FOLDERS, "latents")


def load(
    name: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_size: formats.Size | None = None,
    channels: int | None = None,
    background: str | pictures.Colour = pictures.WHITE,
    buckets: Buckets | None = None,
    classes: Sequence[str] = (),
    caption_column: str = "",
    damaged: str = "stop",
    captions: Sequence[str] = (),
    framing: Framing = USUAL,
) -> Source:
    """Load a data set by name.

    Args:
      name: one of `names()`.
      split: `train`, `test` or `all`; for the TFDS sets the splits that TFDS gives them. digits
        has its first 1,500 images in train and the other 297 in test. `diffjax.data.folders` says
        when a folder has splits; if it has none, everything is in `train` and `all`.
      data_dir: folder of the original files, or TFDS folder; see the table above. With it, no
        other place is searched and nothing is downloaded.
      image_size: crop to the central square and resize to this, or crop to the central rectangle
        with the ratio of (height, width) and resize; None keeps the size.
      channels: of folders, 3 for RGB (the default) or 1 for grey.
      background: of folders, the colour that shows through transparent pixels: RGB, 0 to 255 each,
        or its name or ``#rrggbb``.
      buckets: of captioned_folder, crop to the nearest of these shapes instead.
      classes: of image_folder, the names of the labels in their order; none: the sub-folders of the
        training split in alphabetical order. Another class is an error.
      caption_column: of metadata files, see `diffjax.data.metadata`.
      damaged: of folders, `stop` at a damaged image or `skip` it, see
        `diffjax.data.folder_sources`. Other data always stop.
      captions: of captioned_folder, in place of those in files; every image comes with each.
      framing: of image_folder and what TFDS has prepared, which part of pictures is kept, and how
        it is resized.

    Returns:
      The source. TFDS stores its rows in its own shuffled order, so a set read from TFDS and the
      same set read from the original files differ in order (not in content).

    Raises:
      ValueError: unknown name or split, an impossible size, channels or buckets of data that have
        no choice of them, images of different sizes without image_size, or damaged files.
      FileNotFoundError: the data are not there; the message says how to get them.
    """
    if name not in names():
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(names())}")
    size = None if image_size is None else formats.sides(image_size)
    _check_folder_options(name, channels, buckets, damaged)
    check_framing(framing, name, (*_TFDS, "image_folder"))
    root = _find_given_dir(data_dir)
    if name in _TFDS:
        places = _list_places(root, data_dir is not None)
        return frame(_load_prepared(name, split, places, size), framing)
    if name in FOLDERS:
        how = Reading(
            *(size, channels or 3, pictures.parse_colour(background)),
            *(tuple(classes), caption_column, damaged),
            texts=tuple(captions),
        )
        return frame(load_folder(name, split, _require_root(name, root), how, buckets), framing)
    if name in _DRAWN:
        height, width = size or (shapes.SIZE, shapes.SIZE)
        if height != width:
            raise ValueError(f"image_size={image_size}: {name} are drawn as squares")
        return _draw_shapes(split, height, single=name == "shapes_single")
    if name == "latents":
        return _load_latents(split, root)
    arrays, num_classes, levels = _LOADERS[name](split, root, data_dir is not None)
    return from_arrays(
        _resize_all(arrays[0], size, levels),
        arrays[1],
        num_classes=num_classes,
        levels=levels,
    )


def _check_folder_options(
    name: str, channels: int | None, buckets: Buckets | None, damaged: str
) -> None:
    """Check the options that apply to folders of images only.

    Raises:
        ValueError: one of them is wrong, or the data are no such folder.
    """
    if channels is not None and name not in FOLDERS:
        raise ValueError(
            f"channels={channels}: the images of {name} have their own; {', '.join(FOLDERS)} "
            "can be read as grey "
            "or RGB"
        )
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels}: images are read as 3 (RGB) or 1 (grey)")
    if damaged not in DAMAGED:
        raise ValueError(f"damaged={damaged!r}: choose from {', '.join(DAMAGED)}")
    if buckets and name != "captioned_folder":
        raise ValueError(f"{name} has no buckets of aspect ratios; captioned_folder has")


def _find_given_dir(data_dir: str | None) -> Path | None:
    """Return data_dir, else the folder that the environment names, else None.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    origin = "data_dir" if data_dir is not None else ENV_DIR
    given = data_dir if data_dir is not None else os.environ.get(ENV_DIR) or None
    if given is None:
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{origin}={given} is not a folder")
    return root


def _list_places(root: Path | None, strict: bool, system: Sequence[Path] = ()) -> list[Path]:
    """List the folders to search in order.

    Args:
        root: the folder that the user chose, if any.
        strict: search no other.
        system: folders where packages of the operating system put the data.
    """
    given = [] if root is None else [root]
    return given if strict else [*given, *system, tfds_builders.find_default_dir()]


def _resize_all(images: np.ndarray, size: Sides | None, levels: int) -> np.ndarray:
    """Crop and resize images (N, H, W, C) of ``levels`` grey levels."""
    if size is None or images.shape[1:3] == size:
        return images
    resized = np.stack([formats.center_crop_resize(image, size) for image in images])
    return np.minimum(resized, np.uint8(levels - 1))  # the filter may overshoot


def _check_split(name: str, split: str, choices: Sequence[str]) -> None:
    """Raise a ValueError if a data set has no such split."""
    if split not in choices:
        raise ValueError(f"unknown split {split!r} of {name}: choose from {', '.join(choices)}")


def _load_digits(split: str, root: Path | None, strict: bool) -> tuple[Arrays, int, int]:
    """Load the digits of scikit-learn: ((images, labels), classes, grey levels)."""
    from sklearn.datasets import load_digits  # slow to import

    _check_split("digits", split, ("train", "test", "all"))
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    part = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}
    return (images[part[split]], bunch.target[part[split]]), 10, 17


def _find_idx_reader(root: Path) -> Callable[[str], Arrays] | None:
    """Return a function of the split that reads idx files, if they are in this folder."""

    def locate(folder: Path, name: str) -> Path:
        plain, packed = folder / name, folder / f"{name}.gz"
        return packed if packed.is_file() and not plain.is_file() else plain

    every = [name for files in tfds_builders.FASHION_FILES.values() for name in files.values()]
    for folder in (root, root / "fashion-mnist", root / "fashion_mnist"):
        if any(locate(folder, name).is_file() for name in every):
            break
    else:
        return None

    def read(split: str) -> Arrays:
        paths = {k: locate(folder, v) for k, v in tfds_builders.FASHION_FILES[split].items()}
        return tfds_builders.read_fashion_mnist(**paths, hint=_FASHION_HINT)

    return read


def _find_cifar_reader(root: Path) -> Callable[[str], Arrays] | None:
    """Return a function of the split that reads CIFAR-10's files, if they are in this folder."""
    for path in (root / tfds_builders.CIFAR10_ARCHIVE, root / "cifar-10-batches-bin", root):
        if path.is_file() or (path / "test_batch.bin").is_file():
            return lambda split: formats.read_cifar10(path, split, hint=_CIFAR10_HINT)
    return None


def _find(
    name: str,
    split: str,
    root: Path | None,
    strict: bool,
    *,
    reader: Callable[[Path], Callable[[str], Arrays] | None],
    system: Sequence[Path],
    hint: str,
) -> Arrays:
    """Read a small set from the first place that has it, or download it.

    Original files win over a prepared TFDS folder in the same place.

    Args:
        name, split: of the data set.
        root, strict, system: see `_list_places`.
        reader: ``folder -> (split -> arrays)``, or None if the folder does not have the files.
        hint: how to get the data, for messages.

    Raises:
        FileNotFoundError: the data are nowhere, and cannot be downloaded.
        ValueError: unknown split, or damaged files.
    """
    _check_split(name, split, ("train", "test", "all"))
    for place in _list_places(root, strict, system):
        read = reader(place)
        if read is not None:
            logging.info("%s: reading the files in %s", name, place)
            return _read_split(read, split)
        prepared = tfds_builders.find_prepared(name, place)
        if prepared is not None:
            logging.info("%s: reading %s", name, prepared)
            return _read_prepared(prepared, split)
    if strict:
        raise FileNotFoundError(f"{root} holds no {name}, neither files nor TFDS. {hint}")
    try:
        return _read_prepared(tfds_builders.prepare(name, tfds_builders.find_default_dir()), split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is not on this machine; {error}. {hint}") from error


def _read_split(read: Callable[[str], Arrays], split: str) -> Arrays:
    """Read a split; ``all`` joins both."""
    if split != "all":
        return read(split)
    train, test = read("train"), read("test")
    return np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])


def _read_prepared(folder: Path, split: str) -> Arrays:
    """Read all images and labels of a prepared TFDS folder into memory."""
    fetch, length, _ = tfds_builders.open_prepared(folder, split)
    rows = fetch(range(length))
    return np.stack([r["image"] for r in rows]), np.asarray([r["label"] for r in rows], np.int32)


def _load_fashion_mnist(split: str, root: Path | None, strict: bool) -> tuple[Arrays, int, int]:
    system, hint = (DEBIAN_FASHION,), _FASHION_HINT
    found = _find(
        "fashion_mnist", split, root, strict, reader=_find_idx_reader, system=system, hint=hint
    )
    return found, 10, 256


def _load_fashion_mnist14(split: str, root: Path | None, strict: bool) -> tuple[Arrays, int, int]:
    """Load Fashion-MNIST averaged over 2x2 pixels: a quarter of the work of 28x28."""
    (images, labels), classes, levels = _load_fashion_mnist(split, root, strict)
    pooled = images.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4), dtype=np.float32)
    return (np.rint(pooled).astype(np.uint8), labels), classes, levels


def _load_cifar10(split: str, root: Path | None, strict: bool) -> tuple[Arrays, int, int]:
    found = _find(
        "cifar10", split, root, strict, reader=_find_cifar_reader, system=(), hint=_CIFAR10_HINT
    )
    return found, 10, 256


def _load_prepared(name: str, split: str, places: list[Path], size: Sides | None) -> Source:
    """Load a large set that TFDS has prepared beforehand; rows are decoded when they are asked for.

    Raises:
        FileNotFoundError: it is not prepared; the message has the command.
        ValueError: images differ in size and ``size`` is None.
    """
    found = (tfds_builders.find_prepared(_TFDS[name], place) for place in places)
    folder = next((f for f in found if f is not None), None)
    if folder is None:
        expected = " or ".join(str(place / _TFDS[name] / "<version>") for place in places)
        raise FileNotFoundError(
            f"{name} is not prepared: expected {expected}. Prepare it once where TensorFlow is "
            f"installed, with `tfds build {_TFDS[name]} --file_format=array_record "
            f"--data_dir={places[0]}` (reading needs no TensorFlow), or read a folder of its "
            "images as `image_folder`."
        )
    fetch, length, features = tfds_builders.open_prepared(folder, split)
    num_classes = features["label"].num_classes if "label" in features else 0
    native = features["image"].shape
    if size is None and None in native:
        raise ValueError(f"images of {name} differ in size: image_size is needed")
    shape = native if size is None else (*size, native[-1])

    def read_originals(indices: Indices) -> Originals:
        rows = fetch([int(i) for i in indices])
        labels = np.asarray([row.get("label", 0) for row in rows], np.int32)
        return [row["image"] for row in rows], labels

    def read(indices: Indices) -> Arrays:
        pictures, labels = read_originals(indices)
        return np.stack([fit_size(picture, size) for picture in pictures]), labels

    return Source(
        *(shape, num_classes, 256, length, read),
        originals=read_originals,
        fingerprint=lambda: {"count": length},
    )


def _require_root(name: str, root: Path | None) -> Path:
    """Return the folder of the data.

    Raises:
        ValueError: the user has not named one.
    """
    if root is None:
        raise ValueError(f"{name} needs a folder: pass data_dir or set {ENV_DIR}")
    return root


_DRAWN = ("shapes", "shapes_single")


def _draw_shapes(split: str, size: int, *, single: bool) -> Source:
    """Load the captioned shapes; each image is drawn when it is first asked for.

    Args:
        split: ``train`` or ``test``.
        size: pixels on a side.
        single: draw one shape per image, with its colour and kind as the label.
    """
    _check_split("shapes", split, tuple(shapes.COUNTS))
    count = shapes.COUNTS[split]
    images, masks = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, size, size), "i1")
    labels, text = np.full(count, -1, np.int32), np.zeros((count, shapes.LENGTH), np.int32)

    def ensure(indices: Indices) -> None:
        for i in (int(i) for i in indices if labels[i] < 0):
            drawn = shapes.make_scene(split, i, single=single)
            images[i], masks[i] = shapes.draw(drawn, size)
            text[i] = shapes.tokenize([drawn.caption()])[0]
            labels[i] = drawn.label() if single else 0  # set last: it marks the image as drawn

    def read(indices: Indices) -> Arrays:
        ensure(indices)
        return images[indices], labels[indices]

    def more(indices: Indices) -> dict[str, np.ndarray]:
        ensure(indices)
        mask = masks[indices].astype(np.int32)
        return {"text": text[indices], "mask": mask, "edges": shapes.find_edges(mask)}

    def read_captions(indices: Indices) -> list[str]:
        return [shapes.make_scene(split, int(i), single=single).caption() for i in indices]

    classes = shapes.CLASSES if single else 0
    shape = (size, size, 3)
    return Source(shape, classes, 256, count, read, more=more, captions=read_captions)


def _load_latents(split: str, root: Path | None) -> Source:
    """Load the latents that `latents.write` wrote, from the sub-folder of the split.

    Raises:
        FileNotFoundError: the folder is not named, or holds no latents.
    """
    if root is None:
        raise FileNotFoundError(
            f"latents need data_dir (or {ENV_DIR}), the folder that they were written to"
        )
    stored = latents.open_folder(root / split)

    def read(indices: Indices) -> Arrays:
        labels = stored.read(indices)["label"]
        return np.zeros((len(labels), 0, 0, 0), np.uint8), labels

    def more(indices: Indices) -> dict[str, np.ndarray]:
        return {k: v for k, v in stored.read(indices).items() if k != "label"}

    height, width, channels = stored.image_shape
    shape = (height, width, channels)
    return Source(
        *(shape, stored.num_classes, stored.levels, len(stored), read),
        more=more,
        fingerprint=lambda: {"count": len(stored), "digest": stored.digest()},
    )


_LOADERS: dict[str, Callable[[str, Path | None, bool], tuple[Arrays, int, int]]] = {
    "digits": _load_digits,
    "fashion_mnist": _load_fashion_mnist,
    "fashion_mnist14": _load_fashion_mnist14,
    "cifar10": _load_cifar10,
}
