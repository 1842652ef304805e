"""A commit on disk: the journal of renames that makes new elements visible, rolled forward or back after a kill.

``<store>/.stpredict-commit`` holds ``journal.json`` and, for the i-th place that changes (an element, a table, the
root's ``zarr.json``), ``new/i`` and ``old/i``; ``view`` is a symbolic link to ``old`` or ``new``. The steps are
renames, each of which is one system call:

1. What was built elsewhere moves into ``new``.
2. Each place is exchanged for a symbolic link to ``.stpredict-commit/view/i``, which leads to ``old/i``, where the old
   content went: a reader sees what it saw before.
3. ``view`` is switched to ``new``: all places show the new content at once. This is the commit.
4. Members of a changed table that stay (links from ``new/i`` to ``old/i`` until now) move over into ``new/i``.
5. Each link is exchanged for the new content, and the folder is deleted with all that is old.

A process that is killed in 1 or 2 leaves the old state, in 4 or 5 the new one. `recover` looks where ``view`` leads:
the steps are then undone, or done to the end. Every step may be repeated, as it looks whether it was done already.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

type Members = dict[tuple[str, ...], Path | bytes | None]  # by path: what was built, a file's content, or nothing

FOLDER = ".stpredict-commit"
JOURNAL = "journal.json"
_INDEX = {"kind": "inline", "must_understand": False}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h

_log = logging.getLogger("stpredict")


class Plan:
    """The folder of a commit while it is made, and its journal.

    Parameters
    ----------
    store : Path
        The folder of the store.
    folder : Path
        A new one, on the same file system.
    """

    def __init__(self, store: Path, folder: Path) -> None:
        self.store, self.folder = store, folder
        for each in ("new", "old"):
            (folder / each).mkdir(parents=True)
        self._places: dict[str, bool] = {}
        self._built: list[tuple[str, str]] = []
        self._kept: list[tuple[int, str]] = []
        self._new_nodes: dict[tuple[str, ...], tuple[Path, Path | None]] = {}  # and the old behind their links

    def put(self, kind: str, key: str, built: Path) -> None:
        """An element that lies in a store of its own at `built`; it is moved when the commit begins."""
        source = built / kind / key
        if (self.store / kind / "zarr.json").is_file():
            target = f"new/{self._add(f'{kind}/{key}')}"
        else:  # without its zarr.json a group, and all that is in it, is ignored in silence
            if kind not in self._places:
                group = self.folder / "new" / str(self._add(kind))
                group.mkdir()
                shutil.copyfile(built / kind / "zarr.json", group / "zarr.json")
                self._new_nodes[kind,] = group, None
            target = f"new/{list(self._places).index(kind)}/{key}"
        self._built.append((target, os.path.relpath(source.resolve(), self.store.resolve())))
        self._new_nodes[kind, key] = source, None

    def change(self, place: str, members: Members) -> None:
        """A folder of the store of which some members are new or gone; all others stay what they are."""
        i = self._add(place)
        self._overlay(i, (), members)
        self._new_nodes[tuple(place.split("/"))] = self.folder / "new" / str(i), self.store / place

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """The root's attributes, and the metadata of all that will be in the store; comes last."""
        meta = json.loads((self.store / "zarr.json").read_bytes())
        index = dict(sorted(self._nodes((), self.store, None), key=lambda node: (node[0].count("/"), node[0])))
        meta |= {"attributes": dict(attributes), "consolidated_metadata": {**_INDEX, "metadata": index}}
        new = self.folder / "new" / str(self._add("zarr.json"))
        new.write_text(json.dumps(meta, indent=2), encoding="utf-8")

    def write(self, checkpoint: Path | None) -> None:
        """Write the journal; `checkpoint` is a folder that is not needed any more after the commit."""
        (self.folder / "view").symlink_to("old")
        path = None if checkpoint is None else os.path.relpath(checkpoint.resolve(), self.store.resolve())
        plan = {"places": list(self._places.items()), "taken": self._built, "kept": self._kept, "run": path}
        (self.folder / JOURNAL).write_text(json.dumps(plan), encoding="utf-8")

    def _add(self, place: str) -> int:
        i = len(self._places)
        self._places[place] = os.path.lexists(self.store / place)
        (self.folder / "old" / str(i)).symlink_to(link_to_view(self.store, place, i))
        return i

    def _overlay(self, i: int, inside: tuple[str, ...], members: Members) -> None:
        """A folder of links to the members of an old one, but for those that change."""
        new = (self.folder / "new" / str(i)).joinpath(*inside)
        old = (self.store / list(self._places)[i]).joinpath(*inside)
        new.mkdir()
        changed = {path[len(inside)] for path in members if path[: len(inside)] == inside}
        for name in sorted({*os.listdir(old), *changed}):
            at = (*inside, name)
            if at in members:
                _write_member(members[at], new / name)
            elif name in changed:
                self._overlay(i, at, members)
            else:
                member = "/".join(at)
                (new / name).symlink_to(link_to_old(i, member))
                self._kept.append((i, member))

    def _nodes(self, path: tuple[str, ...], folder: Path, behind: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Groups and arrays below one, as consolidated metadata list them; `behind` is where a new folder's links lead.

        What zarr does too, but for opening every node.
        """
        there = set(os.listdir(folder))
        there |= {each[-1] for each in self._new_nodes if each[:-1] == path}
        for name in sorted(there):
            at = (*path, name)
            child, under = self._new_nodes.get(at, (folder / name, None if behind is None else behind / name))
            if under is not None and child.is_symlink():
                child, under = under, None
            file = child / "zarr.json"
            if under is not None and file.is_symlink():
                file = under / "zarr.json"
            if not file.is_file():
                continue
            meta = json.loads(file.read_bytes())
            if meta["node_type"] == "group":
                meta["consolidated_metadata"] = {**_INDEX, "metadata": {}}
                yield "/".join(at), meta
                yield from self._nodes(at, child, under)
            else:
                yield "/".join(at), meta


def _write_member(what: Path | bytes | None, new: Path) -> None:
    """Put a new member at its place; None: it is gone."""
    if isinstance(what, Path):
        os.rename(what, new)
    elif what is not None:
        new.write_bytes(what)


class Step(NamedTuple):
    """One step of a commit; neither way does anything where it was gone already."""

    what: str
    do: Callable[[], object]
    undo: Callable[[], object]


def steps(folder: Path) -> list[Step]:
    """The steps of the commit in this folder of a store, in the order of the module's head."""
    plan = json.loads((folder / JOURNAL).read_bytes())
    places = list(enumerate(plan["places"]))
    return [
        *(_move_built(folder, *each) for each in plan["taken"]),
        *(_link_to_view(folder, i, *place) for i, place in places),
        Step("switch to the new state", lambda: _switch_view(folder, "new"), lambda: _switch_view(folder, "old")),
        *(_move_kept(folder, i, member, folder / f"aside-{k}") for k, (i, member) in enumerate(plan["kept"])),
        *(_replace_link(folder, i, place) for i, (place, _) in places),
    ]


def recover(store: Path) -> bool:
    """Roll a killed commit forward or back; return whether there was one.

    The caller holds the store's lock.
    """
    folder = store / FOLDER
    if not (folder / JOURNAL).is_file():
        return False
    if os.readlink(folder / "view") == "new":
        for step in steps(folder):
            step.do()
        _log.warning("%s: finished the commit of a process that was killed", store)
        retire_checkpoint(folder)
    else:
        for step in reversed(steps(folder)):
            step.undo()
        _log.warning("%s: took back the commit of a process that was killed before its last step", store)
    return True


def retire_checkpoint(folder: Path) -> None:
    """Take away the checkpoint whose result was committed: there is nothing left to resume."""
    checkpoint = json.loads((folder / JOURNAL).read_bytes())["run"]
    if checkpoint is not None and (folder.parent / checkpoint).is_dir() and not (folder / "run").exists():
        os.rename(folder.parent / checkpoint, folder / "run")


def link_to_view(store: Path, place: str, i: int) -> str:
    """The target of a place's link while `view` decides what is there, relative to where the place really lies."""
    home = (store / place).parent.resolve()
    return os.path.join(os.path.relpath(store.resolve() / FOLDER, home), "view", str(i))


def link_to_old(i: int, member: str) -> str:
    """The way from a member of ``new/i`` to the same in ``old/i``."""
    return "../" * (member.count("/") + 2) + f"old/{i}/{member}"


def exchange(ours: Path, theirs: Path, aside: Path) -> None:
    """Exchange two files, folders or links: in one step where the system can, else in three renames, by `aside`."""
    if _exchanged_at_once(ours, theirs):
        return
    os.rename(ours, aside)
    try:
        os.rename(theirs, ours)
    except OSError:
        os.rename(aside, ours)
        raise
    os.rename(aside, theirs)


def _finish(ours: Path, theirs: Path, aside: Path) -> None:
    """Finish an exchange that was killed between its renames."""
    if os.path.lexists(aside):
        if not os.path.lexists(ours):
            os.rename(theirs, ours)
        os.rename(aside, theirs)


def _aside(path: Path) -> Path:
    """Where the i-th place of ``new`` or ``old`` waits: no member lies there, whatever it is called."""
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


def _links_to(path: Path, text: str) -> bool:
    """Whether there is a symbolic link of this target."""
    return path.is_symlink() and os.readlink(path) == text


def _switch_view(folder: Path, to: str) -> None:
    """Make `view` lead to ``new`` or ``old`` (3)."""
    new = folder / "view.new"
    new.unlink(missing_ok=True)
    new.symlink_to(to)
    os.replace(new, folder / "view")


def _move_built(folder: Path, target: str, source: str) -> Step:
    """Move what was built elsewhere into the commit (1)."""
    here, there = folder / target, folder.parent / source

    def do() -> None:
        if not os.path.lexists(here):
            os.rename(there, here)

    def undo() -> None:
        if os.path.lexists(here) and there.parent.is_dir() and not os.path.lexists(there):
            os.rename(here, there)

    return Step(f"move {there}", do, undo)


def _link_to_view(folder: Path, i: int, place: str, had: bool) -> Step:
    """Exchange what is there for a link to it (2); where nothing is there, the link leads nowhere."""
    here, there = folder / "old" / str(i), folder.parent / place
    new, text = folder / "new" / str(i), link_to_view(folder.parent, place, i)

    def do() -> None:
        _finish(here, there, _aside(here))
        if _links_to(there, text) or _links_to(new, text):
            return
        if had:
            exchange(here, there, _aside(here))
        else:
            os.rename(here, there)

    def undo() -> None:
        _finish(here, there, _aside(here))
        if not _links_to(there, text):
            return
        if had:
            exchange(here, there, _aside(here))
        else:
            os.rename(there, here)

    return Step(f"link to the old {place}", do, undo)


def _move_kept(folder: Path, i: int, member: str, aside: Path) -> Step:
    """Exchange a link in the new folder for the member of the old one that it leads to (4).

    It is put `aside` outside the folder, where another member may have any name.
    """
    here, there = (folder / kind / str(i) / member for kind in ("new", "old"))
    text = link_to_old(i, member)

    def swap(where: Path) -> None:
        _finish(here, there, aside)
        if _links_to(where, text):
            exchange(here, there, aside)

    return Step(f"keep {member}", lambda: swap(here), lambda: swap(there))


def _replace_link(folder: Path, i: int, place: str) -> Step:
    """Exchange the link for the new content (5)."""
    here, there = folder / "new" / str(i), folder.parent / place
    text = link_to_view(folder.parent, place, i)

    def swap(where: Path) -> None:
        _finish(here, there, _aside(here))
        if _links_to(where, text):
            exchange(here, there, _aside(here))

    return Step(f"put the new {place}", lambda: swap(there), lambda: swap(here))
