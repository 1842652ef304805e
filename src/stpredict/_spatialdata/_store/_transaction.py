"""The store of an object as files with scratch folders next to it, and a transaction: steps all made or all undone."""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
import zarr
from anndata.io import read_elem
from zarr.storage import LocalStore

from stpredict._spatialdata._store import _commit
from stpredict._spatialdata._store._commit import Plan
from stpredict._spatialdata._store._lock import Lock, namespace, release_dead

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from zarr.core.buffer import Buffer

_log = logging.getLogger("stpredict")
_held = threading.local()  # stores that this thread has locked


@dataclass(frozen=True)
class Store:
    """The Zarr folder of a backed SpatialData object, seen as files."""

    path: Path

    def meta(self, *parts: str) -> dict[str, Any]:
        """What the ``zarr.json`` of a group or an array says."""
        return json.loads((self.path.joinpath(*parts) / "zarr.json").read_bytes())

    def has(self, *parts: str) -> bool:
        """Whether there is a group or an array at this place, visible or not."""
        return (self.path.joinpath(*parts) / "zarr.json").is_file()

    def members(self, *parts: str) -> list[str]:
        """Names of the groups and arrays that lie in a group; empty where there is no such group."""
        folder = self.path.joinpath(*parts)
        return sorted(each.parent.name for each in folder.glob("*/zarr.json")) if folder.is_dir() else []

    def columns(self, table_name: str, axis: str) -> list[str]:
        """The columns of a stored table's ``obs`` or ``var`` that a reader sees."""
        return list(self.meta("tables", table_name, axis)["attributes"]["column-order"])

    def check_agrees(self, table_name: str, table: AnnData) -> None:
        """Raise ValueError unless the stored table has the rows and columns of the one in memory, in the same order."""
        if not self.has("tables", table_name):
            raise ValueError(
                f"table {table_name!r} is in the object but not in its store {self.path}. Write it there first with "
                f"sdata.write_element({table_name!r})."
            )
        base = InlineStore(self.path / "tables" / table_name, read_only=True)
        group = zarr.open_group(base, mode="r", use_consolidated=False)
        for axis, memory in (("obs", table.obs_names), ("var", table.var_names)):
            stored = np.asarray(read_elem(group[f"{axis}/{group[axis].attrs['_index']}"]), dtype=object)
            _check_same(stored, np.asarray(memory, dtype=object), f"table {table_name!r}", axis, self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The block is the only one that writes into the store, of all threads and processes; it waits for others.

        A commit that was killed is finished or taken back first.
        """
        real = self.path.resolve()
        held: set[Path] = _held.__dict__.setdefault("stores", set())
        if real in held:
            yield
            return
        with self._explain_permission(), Lock(self.lock_file(), f"writing into {self.path}", wait=True):
            held.add(real)
            try:
                if _commit.recover(real):
                    self._sweep(real / _commit.FOLDER)
                    release_dead(sorted(real.parent.glob(f"{glob.escape(self.lock_file('').name)}*")))
                yield
            finally:
                held.discard(real)

    def recover(self) -> None:
        """Finish or take back a commit that was killed, if there is one; a reader sees the same before and after."""
        if (self.path / _commit.FOLDER).is_dir():
            with self.locked():
                pass

    def lock_file(self, key: str | None = None) -> Path:
        """The lock on the store, or on the run of a name into it."""
        real = self.path.resolve()
        return real.parent / f".{real.name}.stpredict-lock{'' if key is None else f'-{key}'}"

    def scratch(self) -> Path:
        """A new empty folder beside the store, on the same file system, so that a rename moves what is built in it."""
        real = self.path.resolve()
        prefix = f".{real.name}.stpredict-"
        mine = f"{prefix}scratch-{socket.gethostname()}-{namespace()}-"
        with self._explain_permission():
            clear_leftovers(real.parent, prefix, mine)
            folder = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=real.parent))
        if folder.stat().st_dev != real.stat().st_dev:
            folder.rmdir()
            raise OSError(
                f"the store {self.path} and the folder it lies in are on different file systems, so that results "
                "cannot be moved in whole. Copy the object with sdata.write(...) into an ordinary folder."
            )
        return folder

    def _sweep(self, folder: Path) -> None:
        """Delete a folder of the store, which is gone in one step."""
        scratch = self.scratch()
        os.rename(folder, scratch / "done")
        remove(scratch)

    @contextmanager
    def _explain_permission(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise PermissionError(
                f"cannot write beside the store {self.path} ({error}): results are built in a folder next to it and "
                "moved in whole. Copy the object with sdata.write(...) to a place where you may write."
            ) from error


def open_store(sdata: SpatialData) -> Store | None:
    """The store of a backed object, checked to be one that can be written; None for an object in memory.

    Raises
    ------
    FileNotFoundError
        If the store is gone, or not a folder of this machine.
    ValueError
        If it is in the older format (Zarr 2), into which nothing can be added without rewriting it.
    PermissionError
        If it may only be read.
    """
    if sdata.path is None:
        return None
    store = Store(Path(sdata.path))
    if not store.path.is_dir():
        raise FileNotFoundError(
            f"the object is backed by {sdata.path}, which is not a folder here. Write the object to a local store "
            "with sdata.write(...), or read it again."
        )
    root = store.meta() if store.has() else {}
    if root.get("zarr_format") != 3 or root["attributes"].get("spatialdata_attrs", {}).get("version") == "0.1":
        raise ValueError(
            f"the store {store.path} is in an older format of SpatialData (Zarr 2). Write the object to a new store "
            "with sdata.write(...) and go on there."
        )
    groups = [store.path, *(store.path / kind for kind in ("images", "tables") if store.has(kind))]
    closed = [str(path) for path in groups if not os.access(path, os.W_OK | os.X_OK)]
    if closed:
        raise PermissionError(
            f"the store {store.path} may only be read (no permission to write {closed[0]}). Copy the object with "
            "sdata.write(...) to a place where you may write."
        )
    store.recover()
    return store


class Transaction:
    """Steps that are all made or, where one of them raises, all undone in reverse order.

    Used as a context manager, under the lock of the store. It owns a scratch folder beside the store (None for an
    object in memory), where things are built.
    """

    def __init__(self, store: Store | None) -> None:
        self.folder = store.scratch() if store else None
        self._store = store
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._stuck = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end()
        if error is None or self._rollback(error):
            self._clean()

    def apply_step(self, what: str, do: Callable[[], object], undo: Callable[[], object]) -> None:
        """Do one thing; `undo` is known before it happens, so it must also be right if the thing did not happen."""
        _log.debug("step: %s", what)
        self._undo.append((what, undo))
        do()

    def plan(self) -> Plan:
        """A new plan of what goes into the store, in the scratch folder."""
        if self.folder is None or self._store is None:
            raise RuntimeError("an object in memory has no store to plan for.")
        return Plan(self._store.path, self.folder / "commit")

    def carry_out(self, plan: Plan, checkpoint: Path | None = None) -> None:
        """Make everything of the plan visible; `checkpoint` is a folder that is deleted then."""
        folder = plan.store / _commit.FOLDER
        plan.write(checkpoint)

        def back() -> None:
            if folder.exists():
                os.rename(folder, plan.folder)

        self.apply_step("begin", lambda: os.rename(plan.folder, folder), self._in_turn(back))
        for each in _commit.steps(folder):
            self.apply_step(each.what, each.do, self._in_turn(each.undo))

    def _in_turn(self, undo: Callable[[], object]) -> Callable[[], None]:
        """The undo of a step in the store; skipped once the undo of a later step has failed."""

        def back() -> None:
            if not self._stuck:
                self._stuck = True
                undo()
                self._stuck = False

        return back

    def _end(self) -> None:
        """Finish: from here on nothing can be undone."""
        if self._store is not None and self.folder is not None:
            folder = self._store.path / _commit.FOLDER
            if folder.is_dir():
                _commit.retire_checkpoint(folder)
                os.rename(folder, self.folder / "done")

    def _rollback(self, error: BaseException) -> bool:
        whole = True
        for what, undo in reversed(self._undo):
            try:
                undo()
            except Exception as other:  # noqa: BLE001 - the other ways back must be gone all the same
                whole = False
                error.add_note(f"could not undo {what!r} ({other!r}); the next call that writes there tries again.")
        return whole

    def _clean(self) -> None:
        if self.folder is not None:
            remove(self.folder)


def remove(folder: Path) -> None:
    """Delete a scratch folder; what cannot be deleted is named in the log, for the result is whole all the same."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("could not delete %s; it is not needed any more.", folder)


def clear_leftovers(folder: Path, prefix: str, mine: str) -> None:
    """Delete the scratch folders of processes of this machine that were killed: what they built is in no store.

    Folders of earlier versions, which may hold what was replaced, are only named.
    """
    for each in folder.glob(f"{glob.escape(prefix)}*"):
        pid = each.name.removeprefix(mine if each.name.startswith(mine) else prefix).partition("-")[0]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        if each.name.startswith(mine):
            remove(each)
        else:
            _log.warning("%s was left by a run that was killed; delete it unless you miss results in it.", each)


class InlineStore(LocalStore):
    """The same files as `zarr.storage.LocalStore`, for tables of many small ones: three times as fast.

    What is written is not there whole at once; use it for folders that no one else sees.
    """

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
        """The content of a file; None where there is none."""
        if prototype is None or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        try:
            return prototype.buffer.from_bytes((self.root / key).read_bytes())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self.root / key).is_file()

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._check_writable()
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.as_numpy_array())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file, unless it is there."""
        if not (self.root / key).is_file():
            await self.set(key, value)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names in a folder."""
        folder = self.root / prefix
        for name in os.listdir(folder) if folder.is_dir() else ():
            yield name


def _check_same(stored: Any, memory: Any, what: str, axis: str, path: Path) -> None:
    """Raise ValueError unless two (n,) arrays of names are equal."""
    if len(stored) == len(memory) and bool(np.all(stored == memory)):
        return
    at = next((i for i, (a, b) in enumerate(zip(stored, memory, strict=False)) if a != b), None)
    where = f", first at {at}: {stored[at]!r} and {memory[at]!r}" if at is not None else ""
    raise ValueError(
        f"{axis}_names of {what} differ between the store {path} ({len(stored)} of them) and memory ({len(memory)})"
        f"{where}. The table was filtered, sorted or renamed after it was read, and a result written to the store "
        "would make it unreadable. Save this object as a store of its own with sdata.write(...) and go on there, or "
        "read the store again."
    )
