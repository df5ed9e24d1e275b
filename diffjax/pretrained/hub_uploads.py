"""Files of this machine that become repositories on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffjax.pretrained.hub import (
    LIBRARY,
    HubName,
    explain_errors,
    import_hub,
    parse_name,
    say_login,
)
from diffjax.types import ConfigError


def list_uploads(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in a repository; hidden ones stay here."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p for name, p in found.items() if not name.startswith(".") and "/." not in name}


def check_target(where: str, token: str | bool | None = None) -> HubName:
    """Read the name of a repository to write to, as far as that needs no network.

    Raises:
        ConfigError: it is no name, or nobody is logged in, or HF_HUB_OFFLINE is set.
    """
    name = parse_name(where)
    if name is None or name.path:
        raise ConfigError(f"{where!r} is no name of a repository; it must be OWNER/NAME[@BRANCH]")
    hub = import_hub(name)
    if hub.is_offline_mode():
        raise ConfigError(f"HF_HUB_OFFLINE lets nothing be sent to {name}")
    if token is None and hub.get_token() is None:
        raise ConfigError(f"to write to {name}, {say_login()}; the token must allow writing")
    return name


def upload(
    files: Mapping[str, Path],
    where: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Upload by diffjax",
) -> str:
    """Put files into a repository on the Hub in one commit, and return the commit's address.

    Files that are there already and are not among these stay. Files that have not changed are not
    sent again.

    Args:
        files: by their names in the repository.
        where: ``owner/name``, made if there is none; or ``owner/name@branch``.
        private: whether a new repository is; None for the owner's default.
        token: see `download`; it must allow writing.

    Raises:
        ConfigError: this is no such name, or the Hub refuses it; the message says what to do.
        OSError: the Hub cannot be reached, or failed.
    """
    name = check_target(where, token)
    hub = import_hub(name)
    api = hub.HfApi(token=token, library_name=LIBRARY)
    with explain_errors(name):
        api.create_repo(name.repo, private=private, exist_ok=True)
        added = [hub.CommitOperationAdd(path, str(file)) for path, file in files.items()]
        done = api.create_commit(name.repo, added, commit_message=message, revision=name.revision)
    return str(done.commit_url)
