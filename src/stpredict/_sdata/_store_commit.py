"""Changes of a store that become visible in one step, written down before they are begun.

A commit makes everything new beside what is there, in the folder ``.stpredict-commit`` of the store:

- ``new/0``, ``new/1``, ...: the new files and folders, one for every place that changes. Members of a folder that do
  not change are links to those in ``old``.
- ``old/0``, ...: where the old ones go; ``view``: a link to ``old``; ``journal.json``: what has to be done.

Then every place is exchanged for a link into ``view``, which shows a reader what was there before. Turning ``view``
from ``old`` to ``new`` is the commit: one rename that shows everything new. What follows is invisible: unchanged
members go over to the new folders, and these to their places. Every step can be done and undone twice, so that a
commit that was killed is finished, where ``view`` is ``new``, or taken back, where it is ``old``.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_log = logging.getLogger("stpredict")
FOLDER = ".stpredict-commit"
PLAN = "journal.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h


class Step(NamedTuple):
    """One step of a commit; neither way does anything where it was gone already."""

    what: str
    do: Callable[[], object]
    undo: Callable[[], object]


def steps(folder: Path) -> list[Step]:
    """The steps of the commit in this folder of a store, in their order."""
    plan = json.loads((folder / PLAN).read_bytes())
    places = list(enumerate(plan["places"]))
    return [
        *(_take(folder, *each) for each in plan["taken"]),
        *(_show_old(folder, i, *place) for i, place in places),
        Step("show what is new", lambda: _turn(folder, "new"), lambda: _turn(folder, "old")),
        *(_hand_over(folder, i, member) for i, member in plan["kept"]),
        *(_put_new(folder, i, place) for i, (place, _) in places),
    ]


def recover(store: Path) -> bool:
    """Finish or take back a commit that was killed, so that a reader sees what it saw; whether there was one.

    The caller holds the store's lock.
    """
    folder = store / FOLDER
    if not (folder / PLAN).is_file():
        return False
    if os.readlink(folder / "view") == "new":
        for step in steps(folder):
            step.do()
        _log.warning("%s: finished the commit of a process that was killed", store)
        retire_run(folder)
    else:
        for step in reversed(steps(folder)):
            step.undo()
        _log.warning("%s: took back the commit of a process that was killed before its last step", store)
    return True


def retire_run(folder: Path) -> None:
    """Take the folder of the run away whose result was committed: it has nothing left to go on with."""
    run = json.loads((folder / PLAN).read_bytes())["run"]
    if run is not None and (folder.parent / run).is_dir() and not (folder / "run").exists():
        os.rename(folder.parent / run, folder / "run")


def link_to_view(store: Path, place: str, i: int) -> str:
    """What a place says while `view` decides what is there: the way to it from where the place really lies."""
    home = (store / place).parent.resolve()
    return os.path.join(os.path.relpath(store.resolve() / FOLDER, home), "view", str(i))


def link_to_old(i: int, member: str) -> str:
    """The way from a member of ``new/i`` to the same in ``old/i``."""
    return "../" * (member.count("/") + 2) + f"old/{i}/{member}"


def exchange(ours: Path, theirs: Path) -> None:
    """Exchange two files, folders or links: in one step where the system can, else in three renames."""
    if _exchanged_at_once(ours, theirs):
        return
    aside = _aside(ours)
    os.rename(ours, aside)
    try:
        os.rename(theirs, ours)
    except OSError:
        os.rename(aside, ours)
        raise
    os.rename(aside, theirs)


def _finish(ours: Path, theirs: Path) -> None:
    """Finish an exchange that was killed between its renames."""
    aside = _aside(ours)
    if os.path.lexists(aside):
        if not os.path.lexists(ours):
            os.rename(theirs, ours)
        os.rename(aside, theirs)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.aside")


def _exchanged_at_once(a: Path, b: Path) -> bool:
    rename = _renameat2()
    return rename is not None and rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


@cache
def _renameat2() -> Any:
    """Linux's exchange of two names; None where there is no such call."""
    try:
        return ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return None


def _says(path: Path, text: str) -> bool:
    return path.is_symlink() and os.readlink(path) == text


def _turn(folder: Path, to: str) -> None:
    new = folder / "view.new"
    new.unlink(missing_ok=True)
    new.symlink_to(to)
    os.replace(new, folder / "view")


def _take(folder: Path, target: str, source: str) -> Step:
    """Bring in what was built elsewhere."""
    here, there = folder / target, folder.parent / source

    def do() -> None:
        if not os.path.lexists(here):
            os.rename(there, here)

    def undo() -> None:
        if os.path.lexists(here) and there.parent.is_dir() and not os.path.lexists(there):
            os.rename(here, there)

    return Step(f"take {there}", do, undo)


def _show_old(folder: Path, i: int, place: str, had: bool) -> Step:
    """Exchange what is there for a link to the same; where nothing is there, the link leads nowhere."""
    here, there = folder / "old" / str(i), folder.parent / place
    new, text = folder / "new" / str(i), link_to_view(folder.parent, place, i)

    def do() -> None:
        _finish(here, there)
        if _says(there, text) or _says(new, text):
            return
        if had:
            exchange(here, there)
        else:
            os.rename(here, there)

    def undo() -> None:
        _finish(here, there)
        if not _says(there, text):
            return
        if had:
            exchange(here, there)
        else:
            os.rename(there, here)

    return Step(f"show the old {place}", do, undo)


def _hand_over(folder: Path, i: int, member: str) -> Step:
    """Exchange a link in the new folder for the member of the old one that it leads to."""
    here, there = (folder / kind / str(i) / member for kind in ("new", "old"))
    text = link_to_old(i, member)

    def swap(where: Path) -> None:
        _finish(here, there)
        if _says(where, text):
            exchange(here, there)

    return Step(f"hand {member} over", lambda: swap(here), lambda: swap(there))


def _put_new(folder: Path, i: int, place: str) -> Step:
    """Exchange the link for what is new."""
    here, there = folder / "new" / str(i), folder.parent / place
    text = link_to_view(folder.parent, place, i)

    def swap(where: Path) -> None:
        _finish(here, there)
        if _says(where, text):
            exchange(here, there)

    return Step(f"put the new {place}", lambda: swap(there), lambda: swap(here))
