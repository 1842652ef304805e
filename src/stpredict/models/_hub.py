"""Models on a hub, by names "hf://owner/name@revision": fetched through huggingface_hub into its cache, and pushed.

Only a name that the caller typed reaches a hub. What comes from there is read as any folder of a stranger is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from stpredict._card import CARD, HUB_SCHEME, README, WEIGHTS, Card, find_model, is_hub_name, read_card, shipped
from stpredict._schema import LARGEST_JSON, shown
from stpredict.models._folder import write_model
from stpredict.models._info import ModelInfo
from stpredict.nn.architecture import is_offline

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
BROKEN = cast("type[Exception]", HfHubHTTPError.__bases__[0])  # what its HTTP client raises: no answer, or half of one
UNREACHABLE = (BROKEN, OSError)
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """A model on a hub.

    Parameters
    ----------
    repo_id : str
        "owner/name".
    revision : str, default "main"
        Branch, tag or commit.
    """

    repo_id: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubName:
        """From "hf://owner/name" or "hf://owner/name@revision"; ValueError for what is neither."""
        repo_id, at, revision = text.removeprefix(HUB_SCHEME).partition("@")
        name = cls(repo_id, revision) if at else cls(repo_id)
        check_repository(name.repo_id, text)
        check_revision(name.revision, text)
        return name

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo_id}@{self.revision}"


def check_repository(repo_id: str, where: str) -> None:
    """Raise ValueError for what is no "owner/name"."""
    if not _REPOSITORY.fullmatch(repo_id) or any(pair in repo_id for pair in ("..", "--")):
        raise ValueError(
            f"{shown(where)}: {shown(repo_id)} is no repository of a hub. Write 'owner/name', and to load "
            "'hf://owner/name' or 'hf://owner/name@revision'."
        )


def check_revision(revision: str, where: str) -> None:
    """Raise ValueError for what can be no branch, tag or commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"{shown(where)}: {shown(revision)} is no revision; name a branch, a tag or a commit.")


def find(name_or_path: str | Path, *, ask_hub: bool = True, weights: bool = True) -> tuple[Path, str]:
    """The folder of a model, and what is recorded of where it was: a shipped name, a folder, or a name with its commit.

    Parameters
    ----------
    name_or_path : str | Path
        Name of a shipped model, folder of a saved one, or name of one on a hub.
    ask_hub : bool, default True
        Whether a hub may be asked; else its cache alone, for names that nobody typed.
    weights : bool, default True
        Whether the weights are wanted too, or the card alone.

    Raises
    ------
    FileNotFoundError
        For a model that is not there, and a name that is not in the cache where no hub may be asked.
    ValueError
        For a name that is none, and for what is no model of stpredict.
    PermissionError
        For a gated model.
    ConnectionError
        Where the hub cannot be reached and the cache does not have it.
    """
    if isinstance(name_or_path, str) and is_hub_name(name_or_path):
        return _from_hub(HubName.parse(name_or_path), ask_hub=ask_hub, weights=weights)
    folder = find_model(name_or_path)
    return folder, str(name_or_path) if str(name_or_path) in shipped() else str(folder.resolve())


def endpoint() -> str:
    """Address of the hub: $HF_ENDPOINT as it is now, else that of huggingface_hub."""
    return (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")


def cache_folder() -> str:
    """Where huggingface_hub keeps what it fetched: $HF_HUB_CACHE as it is now, else its own choice."""
    return os.environ.get("HF_HUB_CACHE") or str(huggingface_hub.constants.HF_HUB_CACHE)


def _from_hub(name: HubName, *, ask_hub: bool, weights: bool) -> tuple[Path, str]:
    """The folder of one commit in the cache, and the name with this commit; raises as `find` does."""
    why = "no hub is asked for a name that stands in a record"
    if ask_hub:
        why = "HF_HUB_OFFLINE is set" if is_offline() else "" if _is_kept(name) else _why_not_reached(name)
    where: dict[str, Any] = {
        "repo_id": name.repo_id, "cache_dir": cache_folder(), "endpoint": endpoint(), "local_files_only": bool(why),
    }  # fmt: skip
    try:
        folder = Path(hf_hub_download(filename=CARD, revision=name.revision, **where)).parent
        exact = HubName(name.repo_id, folder.name)
        with said_of_hub(str(exact), folder):
            read_card(folder)  # what is no card of ours has no weights that are worth fetching
        if weights:
            hf_hub_download(filename=WEIGHTS, revision=exact.revision, **where)
    except LocalEntryNotFoundError as error:
        kind = ConnectionError if ask_hub else FileNotFoundError
        raise kind(
            f"{name} is not in the cache ({cache_folder()}), and {why or 'the hub has stopped answering'}. Load it "
            f"once where {endpoint()} can be reached, stp.models.load({str(name)!r}), or pass a folder of model.save."
        ) from error
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except BROKEN as error:
        raise ConnectionError(f"{name}: the download broke off ({type(error).__name__}); call again.") from error
    return folder, str(exact)


def _is_kept(name: HubName) -> bool:
    """Whether the card of this very commit is in the cache: what a commit is does not change, so no hub is asked."""
    if not _COMMIT.fullmatch(name.revision):
        return False
    return isinstance(try_to_load_from_cache(name.repo_id, CARD, cache_folder(), name.revision), str)


@contextmanager
def said_of_hub(loaded_from: str, folder: Path) -> Iterator[None]:
    """Errors of a folder that came from a hub say which model it is, and how to fetch it again."""
    try:
        yield
    except ValueError as error:
        if is_hub_name(loaded_from):
            error.add_note(
                f"This is {loaded_from} of {endpoint()}. If it was damaged here, remove {folder.parents[1]} and load "
                "it again."
            )
        raise


def _why_not_reached(name: HubName) -> str:
    """Ask the hub for the card: "" where it is there; why the cache is all there is where no answer comes.

    Raises what `find` does where the hub answers that it has no such model.
    """
    url = hf_hub_url(name.repo_id, CARD, revision=name.revision, endpoint=endpoint())
    try:
        found = huggingface_hub.get_hf_file_metadata(url, endpoint=endpoint(), token=huggingface_hub.get_token())
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise _refused(name, error) from error
        return f"{endpoint()} answers with status {error.response.status_code}"
    except UNREACHABLE as error:
        return f"{endpoint()} cannot be reached ({type(error).__name__})"
    if found.size is not None and found.size > LARGEST_JSON:
        raise ValueError(f"{name}: its {CARD} has {found.size} bytes, which no card has.")
    return ""


def _refused(name: HubName, error: HfHubHTTPError) -> Exception:
    """What to tell of a hub's answer that it has no such model, or does not give it."""
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{name} is gated: accept its terms at {endpoint()}/{name.repo_id} first. {LOG_IN}, of an account that has."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(
            f"{HUB_SCHEME}{name.repo_id} has no revision {name.revision!r}{_revisions(name)}. A tag, a branch or a "
            "whole commit may follow the @."
        )
    if isinstance(error, EntryNotFoundError):
        return ValueError(
            f"{name} is no model of stpredict: a model is {CARD} and {WEIGHTS}, and it holds {_content(name)}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"there is no {HUB_SCHEME}{name.repo_id} at {endpoint()}, or it is private and you may not see it. {LOG_IN}"
            " where it is yours; models that come with the package need no hub (stp.models.list_models())."
        )
    if error.response.status_code in (401, 403):
        return PermissionError(f"{endpoint()} does not let you at {name} ({_said(error)}). {LOG_IN}.")
    return OSError(f"{endpoint()} refuses {name}: {_said(error)}.")


def _said(error: HfHubHTTPError) -> str:
    """Status and message of an answer, in a line."""
    text = error.server_message or ""
    return f"status {error.response.status_code}" + (f", {shown(text)}" if text else "")


def _revisions(name: HubName) -> str:
    """The branches and tags of a repository, for a message; "" where they cannot be had."""
    try:
        refs = HfApi(endpoint=endpoint()).list_repo_refs(name.repo_id)
    except UNREACHABLE:
        return ""
    return f"; there are {shown(sorted(each.name for each in (*refs.branches, *refs.tags)))}"


def _content(name: HubName) -> str:
    """What a repository holds, for a message."""
    try:
        info = HfApi(endpoint=endpoint()).model_info(name.repo_id, revision=name.revision)
    except UNREACHABLE:
        return "something else"
    files = shown(sorted(each.rfilename for each in info.siblings or [])[:6])
    return files + (f" of {shown(info.library_name)[1:-1]}" if info.library_name else "")


def push(
    repo_id: str, state: Mapping[str, Tensor], card: Card, *, revision: str | None, private: bool,
    info: ModelInfo | None,
) -> tuple[Card, str]:  # fmt: skip
    """Commit weights, card and README to a repository, and return the card and the name of the commit.

    Raises
    ------
    ValueError
        For what is no name or branch, and as `write_model` does.
    PermissionError
        Where nobody is logged in, or the account may not write.
    ConnectionError
        Where the hub cannot be reached.
    OSError
        For whatever else it refuses.
    """
    name = HubName(repo_id, revision or "main")
    check_repository(repo_id, repo_id)
    check_revision(name.revision, f"revision={revision}")
    if _COMMIT.fullmatch(name.revision):
        raise ValueError(f"revision={revision!r} is a commit, which nothing can be added to; name a branch.")
    if is_offline():
        raise ConnectionError(f"HF_HUB_OFFLINE is set: {name} cannot be pushed.")
    api = HfApi(endpoint=endpoint())
    with TemporaryDirectory() as made:
        folder = Path(made)
        card = write_model(folder, state, card, overwrite=False, info=info, name=str(name))
        files = [CommitOperationAdd(each, folder / each) for each in (CARD, README, WEIGHTS)]
        message = f"{card.model} {card.version}".strip()
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and revision != "main":
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            done = api.create_commit(repo_id, files, commit_message=message, revision=name.revision)
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise PermissionError(
                    f"{endpoint()} does not let you write {name} ({_said(error)}). {LOG_IN}."
                ) from error
            raise OSError(f"{endpoint()} refuses {name}: {_said(error)}.") from error
        except UNREACHABLE as error:
            raise ConnectionError(f"{endpoint()} cannot be reached ({type(error).__name__}: {error}).") from error
    return card, str(HubName(repo_id, str(done.oid)))
