"""Folders of pictures: the files of a split, the class of each, and what tells folders apart.

A folder *is split* if every sub-folder with pictures has a split's name, such as ``train`` and
``test``. Otherwise its sub-folders are classes. A sub-folder that has the name of a split among at
least two others is a class as well, if none of them has sub-folders of its own. Whatever else mixes
splits and other names could be read both ways, and is refused.

Hidden folders and files, and those that systems add, such as ``__MACOSX``, hold no data. Links are
followed.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from diffjax.data.formats import IMAGE_SUFFIXES
from diffjax.types import JsonObject
from diffjax.untrusted import name_some

SPLITS = ("train", "test", "validation", "valid", "val", "dev")
ALL = "all"
LISTED = 1000  # most files that a fingerprint lists by name and size
_UNREAD = (".heic", ".heif", ".jp2", ".jxl", ".svg", ".tga")
_SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information")


class NoSuchSplit(ValueError):
    """A folder has no split of that name."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name holds no data: hidden, or added by a system."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_files(root: Path) -> list[Path]:
    """List all files below a folder in alphabetical order, without hidden ones; links are followed.

    Raises:
        OSError: a folder cannot be read, or a link to a picture leads nowhere.
    """
    return sorted(_walk(root, ()))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield the files below a folder; ``above`` identifies its parents, against loops."""
    found = folder.stat()
    this = found.st_dev, found.st_ino
    if this in above:  # a link to a folder that holds it
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        path = folder / entry.name
        if path.is_dir():  # this is false for a link to itself
            yield from _walk(path, (*above, this))
        elif path.is_file():
            yield path
        elif entry.is_symlink() and path.suffix.lower() in IMAGE_SUFFIXES:
            raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is not there")


def list_images(root: Path) -> list[Path]:
    """List image files below a folder in alphabetical order, as `list_files` finds them.

    Pictures of kinds that are not read are left out, which a warning says.

    Raises:
        OSError: as `list_files`.
    """
    return select_images(root, list_files(root))


def select_images(root: Path, files: Sequence[Path]) -> list[Path]:
    """Return the image files among those of a folder, see `list_images`."""
    unread = [file.name for file in files if file.suffix.lower() in _UNREAD]
    if unread:
        logging.warning(
            "%s: %d pictures are left out, since files of their kind are not read: %s",
            *(root, len(unread), name_some(unread)),
        )
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


# ---- splits and classes -------------------------------------------------------------------------


def find_splits(root: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Return the folders of the splits by their names in lower case; {} if there are none.

    Args:
        root: the folder.
        paths: the pictures below it.

    Raises:
        ValueError: the sub-folders can be read as splits and as classes, or two have one name.
    """
    parts = [path.relative_to(root).parts for path in paths]
    below = sorted({p[0] for p in parts if len(p) > 1})
    named = [name for name in below if name.lower() in SPLITS]
    splits = {name.lower(): root / name for name in named}
    if len(splits) < len(named):
        raise ValueError(f"{root} has two folders of one split: {', '.join(named)}; join them")
    others = [name for name in below if name.lower() not in SPLITS]
    loose = [p[0] for p in parts if len(p) == 1]
    if splits and not others:
        if loose:
            logging.warning(
                "%s: %d pictures outside of the splits are left out: %s",
                *(root, len(loose), name_some(loose)),
            )
        return splits
    if not splits or loose:
        return {}
    if len(splits) == 1 and len(others) > 1 and all(len(p) == 2 for p in parts):
        return {}
    raise ValueError(
        f"the sub-folders of {root} mix names of splits ({', '.join(sorted(splits))}) with others "
        f"({name_some(others)}). If they are splits, move the others out of it. If all of them are "
        "classes, put them into a folder named train, and pass the folder that holds it"
    )


def split_folders(root: Path, paths: Sequence[Path], split: str) -> list[Path]:
    """Return the folders whose pictures are a split; `all` has every split.

    Args:
        root: the folder.
        paths: the pictures below it.
        split: name of the split, or of a sub-folder.

    Raises:
        NoSuchSplit: there is none of that name; the message lists those that there are.
        ValueError: as `find_splits`.
    """
    if split not in (*SPLITS, ALL) and (root / split).is_dir():
        return [root / split]
    splits = find_splits(root, paths)
    if split == ALL:
        return [splits[name] for name in sorted(splits)] or [root]
    if not splits and split == "train":
        return [root]
    if split in splits:
        return [splits[split]]
    known = ", ".join([*sorted(splits or {"train"}), ALL])
    raise NoSuchSplit(f"{root} has no split {split!r}: choose from {known}")


def warn_of_empty_folders(folders: Sequence[Path], classes: Sequence[str]) -> None:
    """Name the sub-folders without pictures in the log: they are no classes."""
    for folder in folders:
        below = (path for path in sorted(folder.iterdir()) if path.is_dir())
        names = (path.name for path in below if not is_hidden(path.name))
        empty = [name for name in names if unicodedata.normalize("NFC", name) not in classes]
        if empty:
            logging.warning(
                "%s: sub-folders without pictures are no classes: %s", folder, name_some(empty)
            )


def select_below(paths: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """Return those paths that lie below one of the folders, in their order."""
    return [path for path in paths if any(path.is_relative_to(folder) for folder in folders)]


def find_classes(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Return the class of every path: its first folder below those of the split; "" for none.

    Raises:
        ValueError: some pictures lie in sub-folders and some outside.
    """
    found, loose = [], []
    for path in paths:
        folder = next(folder for folder in folders if path.is_relative_to(folder))
        parts = path.relative_to(folder).parts
        found.append(unicodedata.normalize("NFC", parts[0]) if len(parts) > 1 else "")
        if len(parts) == 1:
            loose.append(path.name)
    if loose and len(loose) < len(paths):
        raise ValueError(
            f"{folders[0]} has images both in sub-folders (classes) and outside, such as "
            f"{name_some(loose)}; move those into a sub-folder, too"
        )
    return found


def number_classes(
    classes: Sequence[str], known: Sequence[str], where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels (N,) int32 by the order of the known classes, and the names of the classes.

    Without any class, all labels are 0 and there are no names.

    Args:
        classes: of every picture.
        known: names of the classes in the order of their labels; none: as ``classes`` has them, in
            alphabetical order.
        where: the folder, for the message.

    Raises:
        ValueError: a class is not known.
    """
    names = tuple(known) or tuple(sorted(set(classes) - {""}))
    numbers = {name: i for i, name in enumerate(names)}
    if set(classes) <= {""}:
        return np.zeros(len(classes), np.int32), ()
    if strange := sorted(set(classes) - set(numbers)):
        raise ValueError(
            f"{where} has sub-folders of classes that training does not know: "
            f"{name_some(strange)}; the classes are {', '.join(names[:20])}"
        )
    return np.asarray([numbers[name] for name in classes], np.int32), names


# ---- what tells data apart ----------------------------------------------------------------------


def make_fingerprint(root: Path, paths: Sequence[Path], texts: Sequence[str] = ()) -> JsonObject:
    """Return what tells a folder from others: count, names and sizes of files, and digests.

    Names are relative to ``root``, so that a folder may be moved. Of more than `LISTED` files the
    first ones are listed; the digest covers all.

    Args:
        root: the folder.
        paths: its pictures.
        texts: their captions, which get a digest of their own.
    """
    rows = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
    listing = "".join(f"{name}\0{size}\n" for name, size in rows)
    found = {
        "count": len(rows),
        "bytes": sum(size for _, size in rows),
        "digest": _digest(listing),
        "files": [list(row) for row in rows[:LISTED]],
    }
    return found | ({"captions": _digest("\0".join(texts))} if texts else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
