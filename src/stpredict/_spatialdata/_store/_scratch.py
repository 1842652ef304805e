"""Scratch folders next to a store, in which elements are built before they become visible."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

_log = logging.getLogger("stpredict")


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
