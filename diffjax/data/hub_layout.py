"""Which files of a data set on the Hugging Face Hub are a split: pictures, or parquet tables.

The Hub's imagefolder layout has folders ``train``, ``test`` and so on, with ``metadata.jsonl`` or
``metadata.csv``. Tables are called ``data/train-00000-of-00002.parquet`` or
``default/train/0000.parquet``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from diffjax.data.captions import SUFFIXES
from diffjax.data.folders import SPLITS
from diffjax.data.formats import IMAGE_SUFFIXES
from diffjax.data.metadata import FILES
from diffjax.untrusted import name_some

TABLE = ".parquet"


class HubFiles(NamedTuple):
    """The files of a split.

    Attributes:
        names: in the repository.
        split: whose files they are; empty if the repository has no splits.
        tables: whether they are parquet tables rather than pictures.
    """

    names: tuple[str, ...]
    split: str
    tables: bool


def choose_split(names: Collection[str], split: str, folder: str = "") -> HubFiles:
    """Choose the files of a split by their names; a split that is not there is ``train``.

    Args:
        names: of all files of the repository.
        split: such as train or test; ``all`` for all of them.
        folder: of the repository, to which the choice is limited.

    Raises:
        ValueError: there are neither pictures nor tables, or tables of several data sets.
    """
    prefix = f"{folder}/" if folder else ""
    here = sorted(name for name in names if name.startswith(prefix))
    tables = [name for name in here if name.lower().endswith(TABLE)]
    found = tables or [name for name in here if name.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise ValueError(
            f"there are neither pictures ({' '.join(IMAGE_SUFFIXES)}) nor {TABLE} files in it, but "
            f"{name_some(here) or 'nothing'}; archives and scripts are not read"
        )
    splits = {name: _find_split(name.removeprefix(prefix), bool(tables)) for name in found}
    there = set(splits.values())
    chosen = split if split in there else "train" if "train" in there else ""
    texts = [] if tables else [name for name in here if _describes(name)]
    # Metadata above the folders of splits may name the pictures of all of them.
    whole = split == "all" or any(
        _is_metadata(name) and not _find_split(name.removeprefix(prefix), False) for name in texts
    )
    if not whole and chosen in there:
        found = [name for name in found if splits[name] == chosen]
    if tables:
        _refuse_several(found)
        return HubFiles(tuple(found), "" if split == "all" else chosen, True)
    if not whole:
        texts = [n for n in texts if _find_split(n.removeprefix(prefix), False) in ("", chosen)]
    return HubFiles((*found, *texts), chosen, False)


def _find_split(name: str, table: bool) -> str:
    """Find the split of a file by its folders, and that of a table by its own name too."""
    *folders, last = name.lower().split("/")
    parts = [*(re.split(r"[-_.]", part)[0] for part in (*folders, last))] if table else folders[:1]
    return next((part for part in parts if part in SPLITS), "")


def _describes(name: str) -> bool:
    """Whether a file has captions: metadata, or a text beside a picture."""
    return _is_metadata(name) or name.lower().endswith(SUFFIXES)


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2] in FILES


def _refuse_several(tables: list[str]) -> None:
    """
    Raises:
        ValueError: the tables lie in folders of several data sets.
    """
    places = {
        "/".join(part for part in name.split("/")[:-1] if part.lower() not in SPLITS)
        for name in tables
    }
    if len(places) > 1:
        raise ValueError(
            f"it has tables of several data sets, in {name_some(sorted(places))}: add one of these "
            "folders to the name"
        )
