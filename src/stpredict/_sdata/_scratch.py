"""Scratch folders beside a store: deleted when they are done with, and those of processes that were killed."""

from __future__ import annotations

import glob
import logging
import shutil
from pathlib import Path

import psutil

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
