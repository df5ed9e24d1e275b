"""The layouts of folders of images by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffjax.data.captions import Buckets
from diffjax.data.folder_sources import Reading, load_captioned, load_images, skip_damaged
from diffjax.data.pairs import load_pair_source
from diffjax.data.source import Source


def _load_paired(split: str, root: Path, how: Reading, buckets: Buckets | None) -> Source:
    return load_pair_source(split, root, how)


LOADERS: dict[str, Callable[[str, Path, Reading, Buckets | None], Source]] = {
    "image_folder": load_images,
    "captioned_folder": load_captioned,
    "paired_folder": _load_paired,
}
FOLDERS = tuple(LOADERS)  # names of data that are folders of image files


def load_folder(
    name: str, split: str, root: Path, how: Reading, buckets: Buckets | None = None
) -> Source:
    """Load a folder of image files as a source.

    Args:
      name: one of `FOLDERS`.
      split: see `diffjax.data.folders`.
      root: the folder.
      how: how images are read.
      buckets: shapes of a captioned folder.

    Raises:
      ValueError, OSError: as `diffjax.data.load`.
    """
    source = LOADERS[name](split, root, how, buckets)
    return skip_damaged(source) if how.damaged == "skip" else source
