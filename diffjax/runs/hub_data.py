"""Data sets on the Hugging Face Hub as folders of this machine.

``config.data.dir=hub:OWNER/NAME[@REVISION][/FOLDER]`` stands for the folder of pictures, or for the
parquet tables, of the split that is read. Nothing else is fetched.
"""

from __future__ import annotations

from diffjax import data
from diffjax.data.hub_layout import choose_split
from diffjax.data.parquet_files import unpack
from diffjax.pretrained.hub import download_data, parse_name
from diffjax.types import ConfigError

PREFIX = "hub:"


def find_folder(where: str, split: str) -> str:
    """Return the folder of a data set, which is fetched if it is on the Hub.

    Args:
        where: a folder of this machine, or ``hub:OWNER/NAME[@REVISION][/FOLDER]``.
        split: of the data set; of a folder nothing is read here.

    Raises:
        ConfigError: there is no such data set, split or revision; it is not open to this user; or
            a package is missing.
        ValueError: its layout is not read.
        OSError: the Hub cannot be reached, or failed.
    """
    if not where.startswith(PREFIX):
        return where
    name = parse_name(where.removeprefix(PREFIX))
    if name is None:
        raise ConfigError(
            f"config.data.dir={where} must be {PREFIX}OWNER/NAME, maybe with @REVISION or /FOLDER"
        )
    try:
        fetched = download_data(name, lambda names: choose_split(names, split, name.path).names)
        found = choose_split(fetched.names, split, name.path)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ValueError(f"the data set {name} on the Hub: {error}") from error
    if not found.tables:
        return str(fetched.folder / name.path)
    place = fetched.cache / "diffjax" / name.repo.replace("/", "--") / fetched.commit
    root = place / name.path if name.path else place
    unpack([fetched.folder / one for one in found.names], root / (found.split or "train"))
    return str(root)


def check_place(name: str, where: str) -> None:
    """
    Raises:
        ConfigError: a data set on the Hub is to be read as something else than a folder.
    """
    if where.startswith(PREFIX) and name not in data.FOLDERS:
        raise ConfigError(
            f"config.data.dir={where} is for folders of pictures: set config.data.name to one of "
            f"{', '.join(data.FOLDERS)}, got {name!r}"
        )
