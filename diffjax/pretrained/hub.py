"""Names of models on the Hugging Face Hub, and the local files that they stand for.

A name is ``owner/name[@revision][/path]``: a repository, maybe a branch, tag or commit of it, and
maybe a file or a folder inside. `download` turns a name into a path, which every reader of
`diffjax` takes; the readers call it themselves. The cache is that of huggingface_hub, shared with
diffusers and transformers, and so are its environment variables: HF_ENDPOINT, HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from diffjax.pretrained.files import StrPath
from diffjax.pretrained.hub_files import MANIFEST, Chosen, Wanted, choose_files
from diffjax.types import ConfigError, suggest
from diffjax.untrusted import name_some, read_json

LIBRARY = "diffjax"  # how we introduce ourselves to the Hub
_ATTEMPTS = 3  # of a download that broke off or ended at a wrong size
_NEEDED = "pip install 'diffjax[hub]'"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?"
    r"(?:/(?P<path>[^@]+))?"
)
_ADDRESS = re.compile(
    rf"https?://[^/]+/(?P<repo>{_PART}/{_PART})"
    r"(?:/(?:blob|resolve|tree)/(?P<revision>[^/?]+)(?:/(?P<path>[^?]+))?)?/?(?:\?.*)?"
)


class HubName(NamedTuple):
    """A model, or a data set, on the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag or commit; None for the main branch.
        path: a file or folder inside of the repository; empty for all of it.
        kind: ``model`` or ``dataset``.
    """

    repo: str
    revision: str | None = None
    path: str = ""
    kind: str = "model"

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{'/' if self.path else ''}{self.path}"


def parse_name(where: StrPath) -> HubName | None:
    """Read ``owner/name[@revision][/path]``; None for what cannot be a name of the Hub.

    Raises:
        ConfigError: it is a web address; the name is given.
    """
    if not isinstance(where, str):
        return None  # a Path means this machine
    if found := _ADDRESS.fullmatch(where):
        known = HubName(found["repo"], found["revision"], found["path"] or "")
        raise ConfigError(f"{where} is a web address; give the name {str(known)!r}")
    found = _NAME.fullmatch(where)
    if not found or (not found["path"] and found["repo"].endswith((".safetensors", ".json"))):
        return None
    parts = (found["path"] or "").strip("/").split("/")
    if ".." in parts or "." in parts or "" in parts[1:]:
        return None
    return HubName(found["repo"], found["revision"], "/".join(parts))


def download(
    where: StrPath,
    *,
    parts: Collection[str] | None = None,
    variant: str | None = None,
    fall_back: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    pickles: bool = False,
) -> Path:
    """The local path of a path, or of a name on the Hub, whose files are fetched if need be.

    A path that exists comes back as it is. Of a repository only what diffjax reads is fetched:
    configs, tokenizers, and each network's safetensors in one variant. Files that are in the cache
    already are not fetched again, and a download that broke off goes on.

    Args:
        where: a path, or ``owner/name[@revision][/path]``.
        parts: the folders of a pipeline whose weights are needed, such as ``("vae",)``; None for
            all that are read. Others, such as ``safety_checker``, are fetched if they are here.
        variant: part of the names of weights, such as ``"fp16"``.
        fall_back: take weights without a variant where there are none of it.
        revision: branch, tag or commit, in place of one in the name.
        token: of the Hub, in place of the one that ``hf auth login`` stored; False for none.
        local_files_only: use the cache alone.
        pickles: also fetch a file that is a pickle, if ``where`` names it.

    Raises:
        ConfigError: there is no such repository, revision, variant or file, or it is not open to
            this user; or huggingface_hub is not installed. The message says what to do.
        OSError: the Hub cannot be reached, or failed.
    """
    name = None if os.path.exists(where) else parse_name(where)
    if name is None:
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} is for names of the Hub, such as owner/name, but {where} "
                f"is {'on this machine' if os.path.exists(where) else 'none'}"
            )
        return Path(where)
    if revision is not None and name.revision not in (None, revision):
        raise ConfigError(f"revision={revision!r} differs from the one in {str(name)!r}")
    name = name._replace(revision=revision or name.revision)
    wanted = Wanted(name.path, parts, variant, fall_back, pickles)
    hub = import_hub(name)
    with explain_errors(name, local_files_only):
        return _Repository(hub, name, token, local_files_only).fetch(wanted)


class FetchedData(NamedTuple):
    """Files of a data set on this machine.

    Attributes:
        folder: of the repository at its commit.
        names: of all files of the repository.
        commit: what the revision stands for.
        cache: folder beside that of the Hub, for what is made of the files.
    """

    folder: Path
    names: tuple[str, ...]
    commit: str
    cache: Path


def download_data(
    name: HubName, choose: Callable[[Collection[str]], Collection[str]]
) -> FetchedData:
    """Fetch files of a data set, if they are not in the cache.

    Args:
        name: of the data set.
        choose: from the names of all files to those that are needed.

    Raises:
        ConfigError, OSError: as `download`; and what ``choose`` raises.
    """
    hub = import_hub(name)
    name = name._replace(kind="dataset")
    with explain_errors(name):
        return _Repository(hub, name, None, False).fetch_data(choose)


def import_hub(name: HubName) -> Any:
    """
    Raises:
        ConfigError: huggingface_hub is not installed, or is too old.
    """
    try:
        import huggingface_hub

        _ = huggingface_hub.resolve_revision, huggingface_hub.get_cached_repo_tree
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{name} is not on this machine; as a name on the Hub it needs a current "
            f"huggingface_hub: {_NEEDED}"
        ) from error
    return huggingface_hub


class _Repository:
    """One repository at one commit."""

    def __init__(self, hub: Any, name: HubName, token: Any, local: bool) -> None:
        self._hub, self._name = hub, name
        self._options = {
            "token": token,
            "local_files_only": local or hub.is_offline_mode(),
            "library_name": LIBRARY,
            "repo_type": name.kind,
        }
        api = hub.HfApi(token=token, library_name=LIBRARY)
        commit = api.resolve_revision(
            name.repo,
            repo_type=name.kind,
            revision=name.revision,
            local_files_only=self._options["local_files_only"],
        )
        self._commit = commit.resolved

    def fetch(self, wanted: Wanted) -> Path:
        """Bring the files of a model onto this machine, and return where they are."""
        prefix = f"{wanted.path}/" if wanted.path else ""
        folder = self._fetch_quietly(prefix + MANIFEST)
        index = folder / prefix / MANIFEST
        manifest = read_json(index) if index.is_file() else None
        chosen = choose_files(self._list_names(folder), manifest, wanted, str(self._name))
        self._fetch_files(chosen, folder)
        return folder / chosen.root if chosen.root else folder

    def fetch_data(self, choose: Callable[[Collection[str]], Collection[str]]) -> FetchedData:
        """Bring some files of a data set onto this machine."""
        folder = self._fetch_quietly(MANIFEST)  # there is none; the list of all names is kept
        names = self._list_names(folder)
        self._fetch_files(Chosen(tuple(choose(names)), ""), folder)
        cache = Path(self._hub.constants.HF_HUB_CACHE).parent
        return FetchedData(folder, tuple(names), self._commit, cache)

    def _fetch_quietly(self, name: str) -> Path:
        """Fetch a file if the repository has it, and the list of all names, without a word."""

        levels = self._hub.logging
        before = levels.get_verbosity()
        levels.set_verbosity_error()
        try:
            found = self._hub.snapshot_download(
                self._name.repo,
                revision=self._commit,
                allow_patterns=[glob.escape(name)],
                tqdm_class=_make_silent_bar(),
                **self._options,
            )
        finally:
            levels.set_verbosity(before)
        return Path(found)

    def _list_names(self, folder: Path) -> list[str]:
        """Names of all files at this commit; those in the cache if nothing else is known."""
        try:
            tree = self._hub.get_cached_repo_tree(
                self._name.repo, repo_type=self._name.kind, revision=self._commit
            )
        except self._hub.errors.CachedRepoTreeNotFoundError:
            return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return [entry.path for entry in tree]

    def _fetch_files(self, chosen: Chosen, folder: Path) -> None:
        missing = [name for name in chosen.files if not (folder / name).is_file()]
        if not missing:
            return
        if self._options["local_files_only"]:
            raise ConfigError(
                f"the copy of {self._name} in the cache is not complete: {len(missing)} of "
                f"{len(chosen.files)} files are missing ({name_some(missing)}); load it once with "
                "a network"
            )
        logging.info("%s at commit %s: %d files", self._name, self._commit[:8], len(missing))
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._hub.snapshot_download(
                    self._name.repo,
                    revision=self._commit,
                    allow_patterns=[glob.escape(name) for name in missing],
                    **self._options,
                )
                return
            except (OSError, self._hub.errors.HTTPError) as error:
                if not left or not self._may_pass(error):
                    raise
                logging.warning("%s: %s; trying again", self._name, _first_line(error))

    def _may_pass(self, error: Exception) -> bool:
        """Whether another attempt may succeed: a connection broke, or a file had a wrong size."""
        broke = isinstance(error, self._hub.errors.HTTPError) and not isinstance(error, OSError)
        return broke or _has_wrong_size(error)


def _make_silent_bar() -> type:
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _first_line(error: BaseException) -> str:
    return (
        next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        or type(error).__name__
    )


def _has_wrong_size(error: Exception) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


# ---- errors -----------------------------------------------------------------------------------


@contextlib.contextmanager
def explain_errors(name: HubName, local_files_only: bool = False) -> Iterator[None]:
    """Say in one sentence what the Hub, or the network, refused.

    Raises:
        ConfigError: there is no such thing, or it is not open to this user.
        OSError: the Hub cannot be reached, or failed.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{name} is no name of the Hub: {_first_line(error)}") from error
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{name} is gated: accept its terms at {constants.ENDPOINT}/{_find_page(name)}, then "
            f"{say_login()}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"there is no {name} on this machine, and {constants.ENDPOINT} shows no repository "
            f"{name.repo} to {_say_reader(error)}; if it is private, {say_login()}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{name.repo} has no revision {name.revision!r}{_list_revisions(name)}"
        ) from error
    except errors.DisabledRepoError as error:
        raise ConfigError(f"the Hub has disabled {name.repo}") from error
    except errors.LocalTokenNotFoundError as error:
        raise ConfigError(f"token=True: nobody is logged in; {say_login()}") from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError) as error:
        raise _explain_absence(name, error, local_files_only) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(
                f"the Hub refused {name} to {_say_reader(error)} "
                f"({error.server_message or error.response.status_code}); {say_login()}"
            ) from error
        raise ConnectionError(
            f"{name}: {constants.ENDPOINT} answered {error.response.status_code}"
            f"{f' ({error.server_message})' if error.server_message else ''}; try again later"
        ) from error
    except errors.HTTPError as error:
        raise ConnectionError(
            f"{name}: the connection to {constants.ENDPOINT} broke ({_first_line(error)}); what "
            "has come is kept: run it again"
        ) from error
    except OSError as error:
        if not _has_wrong_size(error):
            raise
        raise ConnectionError(f"{name}: {_first_line(error)}; run it again") from error


def _find_page(name: HubName) -> str:
    """The part of a repository's address behind that of the server."""
    return f"datasets/{name.repo}" if name.kind == "dataset" else name.repo


def say_login() -> str:
    """Say in messages how a user gets a token."""
    return "log in with 'hf auth login' or set HF_TOKEN"


def _say_reader(error: Any) -> str:
    given = "authorization" in error.response.request.headers
    return "the token in use" if given else "those who are not logged in"


def _list_revisions(name: HubName) -> str:
    """Branches and tags of a repository for a message; nothing if they cannot be listed."""
    import huggingface_hub

    try:
        refs = huggingface_hub.HfApi(library_name=LIBRARY).list_repo_refs(
            name.repo, repo_type=name.kind
        )
    except (OSError, huggingface_hub.errors.HTTPError):
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"{suggest(name.revision, names)}; it has {name_some(names)}"


def _explain_absence(name: HubName, error: BaseException, local_files_only: bool) -> Exception:
    """Return the error for a model that is not in the cache while the Hub cannot be asked."""
    from huggingface_hub import constants

    told = f"there is no {name} on this machine, neither as a path nor in {constants.HF_HUB_CACHE}"
    if local_files_only:
        return ConfigError(f"{told}, and local_files_only=True lets nothing be fetched")
    if constants.HF_HUB_OFFLINE:
        return ConfigError(f"{told}, and HF_HUB_OFFLINE lets nothing be fetched")
    cause = error.__cause__ or error
    return ConnectionError(
        f"{told}, and {constants.ENDPOINT} cannot be reached ({_first_line(cause)})"
    )
