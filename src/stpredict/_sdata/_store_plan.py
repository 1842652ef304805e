"""What a commit puts into a store, built in a folder beside it: whole elements, changed tables, and the metadata."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stpredict._sdata._store_commit import PLAN, link_to_old, link_to_view

type Members = dict[tuple[str, ...], Path | bytes | None]  # by path: what was built, a file's content, or nothing

_INDEX = {"kind": "inline", "must_understand": False}


class Plan:
    """The folder of a commit while it is made; see `_store_commit`.

    store
        The folder of the store.
    folder
        A new one, on the same file system.
    """

    def __init__(self, store: Path, folder: Path) -> None:
        self.store, self.folder = store, folder
        for each in ("new", "old"):
            (folder / each).mkdir(parents=True)
        self._places: dict[str, bool] = {}
        self._taken: list[tuple[str, str]] = []
        self._kept: list[tuple[int, str]] = []
        self._fresh: dict[tuple[str, ...], tuple[Path, Path | None]] = {}  # new nodes, and the old behind their links

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
                self._fresh[kind,] = group, None
            target = f"new/{list(self._places).index(kind)}/{key}"
        self._taken.append((target, os.path.relpath(source.resolve(), self.store.resolve())))
        self._fresh[kind, key] = source, None

    def change(self, place: str, members: Members) -> None:
        """A folder of the store of which some members are new or gone; all others stay what they are."""
        i = self._add(place)
        self._overlay(i, (), members)
        self._fresh[tuple(place.split("/"))] = self.folder / "new" / str(i), self.store / place

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """The root's attributes, and the metadata of all that will be in the store; comes last."""
        meta = json.loads((self.store / "zarr.json").read_bytes())
        index = dict(sorted(self._nodes((), self.store, None), key=lambda node: (node[0].count("/"), node[0])))
        meta |= {"attributes": dict(attributes), "consolidated_metadata": {**_INDEX, "metadata": index}}
        new = self.folder / "new" / str(self._add("zarr.json"))
        new.write_text(json.dumps(meta, indent=2), encoding="utf-8")

    def write(self, run: Path | None) -> None:
        """Write down what has to be done; `run` is a folder that is not needed any more once it is."""
        (self.folder / "view").symlink_to("old")
        path = None if run is None else os.path.relpath(run.resolve(), self.store.resolve())
        plan = {"places": list(self._places.items()), "taken": self._taken, "kept": self._kept, "run": path}
        (self.folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")

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
                _place(members[at], new / name)
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
        there |= {each[-1] for each in self._fresh if each[:-1] == path}
        for name in sorted(there):
            at = (*path, name)
            child, under = self._fresh.get(at, (folder / name, None if behind is None else behind / name))
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


def _place(what: Path | bytes | None, new: Path) -> None:
    if isinstance(what, Path):
        os.rename(what, new)
    elif what is not None:
        new.write_bytes(what)
