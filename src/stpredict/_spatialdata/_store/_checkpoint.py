"""Checkpoint of an interrupted prediction: partial results of finished chunks, in a folder next to the store."""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from stpredict._partial import PartialSum
from stpredict._spatialdata._store._lock import Lock
from stpredict._spatialdata._store._transaction import Store, remove

_log = logging.getLogger("stpredict")
MANIFEST = "manifest.json"


def checkpoint_folder(path: str | Path, key: str) -> Path:
    """The folder of the checkpoint of a result of this name in the store at `path`, if there is one."""
    real = Path(path).resolve()
    return real.parent / f".{real.name}.stpredict-run-{key}"


class Checkpoint:
    """The folder of one prediction into a store, a context manager.

    It is deleted on success, and where the call itself was wrong (ValueError, TypeError); after any other error, an
    interrupt or the end of the process it stays, and `resume` goes on from its finished chunks.

    Parameters
    ----------
    key : str
        Name of the result; one run a name at a time.
    inputs : Mapping[str, Any]
        Plain values that decide the result; a run that was made of others is not gone on with.
    resume : bool
        Whether to go on with an earlier one; otherwise that is deleted.

    Raises
    ------
    ValueError
        For a run of something else.
    RuntimeError
        Where another process or thread is at work on the same name, whose lock it holds until then; see `Lock` for one
        that has ended.

    Notes
    -----
    `work`, within the folder, is where parts and raster are built. Its name is that of the run, so that what a worker
    still writes for a run that was given up does not get into the next.
    """

    def __init__(self, store: Store, key: str, inputs: Mapping[str, Any], *, resume: bool) -> None:
        self.store, self.key, self.resume = store, key, resume
        self.inputs = json.loads(json.dumps(dict(inputs)))
        self.folder = checkpoint_folder(store.path, key)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            what = f"predicting {self.key!r} into {self.store.path}"
            self._lock = stack.enter_context(Lock(self.store.lock_file(self.key), what, wait=False))
            token = (self._earlier() if self.folder.is_dir() else None) or uuid.uuid4().hex[:12]
            if not self.folder.is_dir():
                os.rename(self.store.scratch(), self.folder)  # says so where one may not write there
            self.work = self.folder / f"work-{token}"
            (self.work / "parts").mkdir(parents=True, exist_ok=True)
            new = self.folder / f"{MANIFEST}.new"
            new.write_text(json.dumps({"made_of": self.inputs, "token": token}, indent=2), encoding="utf-8")
            os.replace(new, self.folder / MANIFEST)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            finished = len(list((self.work / "parts").glob("*.npz")))
            if error is None or isinstance(error, ValueError | TypeError) or not finished:
                remove(self.folder)
            else:
                error.add_note(
                    f"The store {self.store.path} is as it was. {finished} finished chunks are kept in {self.folder}: "
                    "the same call with resume=True goes on from them; delete the folder if you do not want to."
                )

    def check(self) -> None:
        """Raise RuntimeError where another process has taken the run over."""
        self._lock.check()

    @property
    def parts(self) -> PartialFiles:
        """The partial sums of finished chunks."""
        return PartialFiles(self.work / "parts")

    def _earlier(self) -> str | None:
        """The token of an earlier run that is gone on with; one that shall not be is deleted.

        Raises for one that cannot be gone on with.
        """
        try:
            manifest = json.loads((self.folder / MANIFEST).read_bytes())
        except (OSError, json.JSONDecodeError):  # killed before it had one, or a late writer made its folder anew
            remove(self.folder)
            return None
        if not self.resume:
            _log.info("starting afresh: %s, left by an interrupted run, is deleted", self.folder)
            remove(self.folder)
            return None
        if manifest["made_of"] != self.inputs:
            old = manifest["made_of"]
            wrong = sorted(name for name in {*old, *self.inputs} if old.get(name) != self.inputs.get(name))
            raise ValueError(
                f"the interrupted run of {self.key!r} in {self.folder} differs from this call in {wrong}. Call as you "
                "did then, or without resume=True, which starts afresh."
            )
        done = len(list((self.folder / f"work-{manifest.get('token')}" / "parts").glob("*.npz")))
        _log.info("resuming the interrupted prediction in %s: %d chunks are finished", self.folder, done)
        return manifest.get("token")


@dataclass(frozen=True)
class PartialFiles:
    """Parts of chunks as files of a folder; a file that is there is whole."""

    folder: Path

    def has(self, chunk: int) -> bool:
        """Whether this chunk is finished."""
        return self._path(chunk).is_file()

    def load(self, chunk: int) -> PartialSum:
        """The part of a finished chunk. Raises ValueError for a file that is damaged."""
        try:
            with self._path(chunk).open("rb") as file, np.load(file, allow_pickle=False) as held:
                return PartialSum(held["rows"], held["values"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self._path(chunk)}, part of an interrupted run, is damaged ({error}). Predict without resume=True, "
                "which starts afresh; the store itself is as it was."
            ) from error

    def keep(self, chunk: int, part: PartialSum) -> None:
        """Write a part; it is there at once and whole, or not at all."""
        new = self._path(chunk).with_suffix(f".{socket.gethostname()}-{os.getpid()}")
        with new.open("wb") as file:
            np.savez(file, rows=part.rows, values=part.values)
        os.replace(new, self._path(chunk))

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk}.npz"


def recover(path: Path) -> None:
    """Finish or take back a commit into the store at `path` that was killed, if there is one."""
    Store(path).recover()
