"""Folders of images and what belongs to each: a hint, a caption, rows of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffjax.data import captions, folders, formats, metadata, pictures
from diffjax.data.folder_sources import (
    Reading,
    fit_size,
    load_captioned,
    load_images,
    skip_damaged,
)
from diffjax.data.source import Indices, Source
from diffjax.untrusted import name_some


def load_pairs(
    root: str | Path,
    *,
    split: str = "train",
    image_size: formats.Size | None = None,
    channels: int = 3,
    background: str | pictures.Colour = pictures.WHITE,
    caption_column: str = "",
    damaged: str = "stop",
) -> Source:
    """Load images with hints, captions and arrays from one of two layouts.

    Either ``root/images`` beside ``root/hints``: the hint ``a/b.png`` belongs to the image
    ``a/b.jpg``. Or metadata files with a column ``conditioning_image``, as diffusers has them, see
    `diffjax.data.metadata`. Captions are found among the images as `diffjax.data.captions` says. A
    hint has the shape of its image, at the same or another resolution, and is cropped and resized
    like it; its transparent pixels are black. Row i of ``root/NAME.npy`` belongs to image i in
    alphabetical order, and a batch has it as NAME: token ids ``text``, or the embeddings that
    Stable Diffusion XL reads (`diffjax.model.condition`).

    Args:
        root: the folder.
        split: see `diffjax.data.folders`.
        image_size, channels, background, caption_column, damaged: of the images, see `load`.
            Hints are RGB.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no images.
        ValueError: an image has no hint, or a hint no image (some are named); or an array has
            another number of rows; or (when read) a hint has not the shape of its image.
    """
    size = None if image_size is None else formats.sides(image_size)
    colour = pictures.parse_colour(background)
    how = Reading(size, channels, colour, caption_column=caption_column, damaged=damaged)
    source = load_pair_source(split, Path(root), how)
    return skip_damaged(source) if damaged == "skip" else source


def load_pair_source(split: str, root: Path, how: Reading) -> Source:
    """Load the source of `load_pairs`, which stops at damaged images."""
    base, table = _find_images(root, how.caption_column)
    captioned = captions.has_captions(base, folders.list_files(base), table)
    source = (load_captioned if captioned else load_images)(split, base, how, None)
    hints = _find_hints(root, base, source, table)
    paths = source.paths or ()
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(root.glob("*.npy"))}
    for name, array in arrays.items():
        if len(array) != len(source):
            raise ValueError(f"{root / name}.npy has {len(array)} rows for {len(source)} images")

    def more(indices: Indices) -> dict[str, np.ndarray]:
        out = source.more(indices) if source.more else {}
        out |= {name: np.asarray(array[np.asarray(indices)]) for name, array in arrays.items()}
        if hints:
            read = [_read_hint(hints[i], paths[i], how) for i in indices]
            out["hint"] = np.stack(read).astype(np.float32) / 255
        return out

    def fingerprint() -> dict[str, object]:
        known = source.fingerprint() if source.fingerprint else {}
        listing = {"hints": folders.make_fingerprint(root, hints)["digest"]} if hints else {}
        return {**known, **listing}

    return dataclasses.replace(source, more=more, fingerprint=fingerprint)


def _read_hint(path: Path, image: Path, how: Reading) -> np.ndarray:
    """Read a hint, uint8 (H, W, 3), cropped and resized like its image.

    Raises:
        ValueError: it does not have the shape of its image, or is damaged.
    """
    hint = pictures.read_image(path, background=pictures.BLACK)
    wanted = pictures.read_size(image)
    check_hint_size(path, hint.shape[:2], image, wanted, scaled=how.size is not None)
    return fit_size(hint, how.size)


def check_hint_size(
    hint: Path,
    found: tuple[int, ...],
    image: Path,
    wanted: tuple[int, int],
    *,
    scaled: bool,
) -> None:
    """Check that a hint has the shape of its image, so that both can be cropped alike.

    Args:
        hint, image: the files, for messages.
        found, wanted: (height, width) of hint and image.
        scaled: whether they are resized; if not, the sizes have to be equal.

    Raises:
        ValueError: the ratios of their sides differ by more than a pixel, or the sizes.
    """
    factor = min(found[0] / wanted[0], found[1] / wanted[1])
    near = all(abs(have - factor * want) <= 1 for have, want in zip(found, wanted, strict=True))
    if found == wanted or (scaled and near):
        return
    sizes = "x".join(map(str, found)), "x".join(map(str, wanted))
    need = "ratio of height to width" if scaled else "size"
    raise ValueError(
        f"the hint {hint} is {sizes[0]} (height x width), but its image {image} {sizes[1]}: a hint "
        f"needs the {need} of its image, since both are cropped alike"
    )


def _find_images(root: Path, caption_column: str) -> tuple[Path, metadata.Table]:
    """Return the folder of the images, and the content of its metadata files.

    Raises:
        FileNotFoundError: there is no such folder, or it has neither of the two layouts.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    files = folders.list_files(root)
    if metadata.find_hints(root, files):
        return root, metadata.read_table(root, files, caption_column=caption_column)
    images = root / "images"
    if not images.is_dir():
        raise FileNotFoundError(
            f"{root} has neither a folder images (beside hints), nor metadata files with a column "
            f"{metadata.HINTS[0]}"
        )
    below = folders.list_files(images)
    return images, metadata.read_table(images, below, caption_column=caption_column)


def _find_hints(root: Path, base: Path, source: Source, table: metadata.Table) -> list[Path]:
    """Return the hint of every image; none if the folder has no hints.

    Raises:
        ValueError: some images have no hint.
    """
    paths = list(source.paths or ())
    if table.hints:
        if without := [str(path) for path in paths if path not in table.hints]:
            raise ValueError(
                f"{len(without)} images in {root} have no {metadata.HINTS[0]}, such as "
                f"{name_some(without)}"
            )
        return [table.hints[path] for path in paths]
    folder = root / "hints"
    return _match_hints(root, base, paths, folder) if folder.is_dir() else []


def _match_hints(root: Path, base: Path, paths: Sequence[Path], folder: Path) -> list[Path]:
    """Match hints to images by their names without the suffix.

    Raises:
        ValueError: an image has no hint, a hint no image, or two images share a name.
    """

    def name(path: Path, above: Path) -> str:
        return path.relative_to(above).with_suffix("").as_posix()

    hints = {name(path, folder): path for path in folders.list_images(folder)}
    every = {name(path, base) for path in folders.list_images(base)}
    names = [name(path, base) for path in paths]
    if alone := sorted((set(names) - set(hints)) | (set(hints) - every)):
        raise ValueError(
            f"{len(alone)} files in {root} are either an image without a hint or a hint without an "
            f"image, such as {name_some(alone)}"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"{base} has several images of one name, with different suffixes")
    return [hints[name] for name in names]
