"""Names of new results: all of one call are checked together, before the work and again under the lock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stpredict._card import HELD_OUT
from stpredict._spatialdata._store._transaction import Store, open_store

if TYPE_CHECKING:
    from spatialdata import SpatialData

_ALLOWED = re.compile(r"[A-Za-z0-9_.-]+")
KINDS = ("images", "labels", "points", "shapes", "tables")


@dataclass(frozen=True)
class NewName:
    """A name to be written.

    Parameters
    ----------
    key
        A name of letters, digits, ``_``, ``.`` and ``-`` that does not start with two underscores: what spatialdata
        keeps apart on every file system.
    what
        What it names, as a message says it (``layer of table 'table'``).
    existing
        The names in that group, in memory and in the store.
    """

    key: str
    what: str
    existing: frozenset[str]

    def check(self, *, overwrite: bool) -> None:
        """Raise ValueError for a name that is not allowed, taken, or that differs from another by case alone."""
        key, what = self.key, self.what
        if not isinstance(key, str) or not _ALLOWED.fullmatch(key) or key in {".", "..", "_index"} or key[:2] == "__":
            raise ValueError(
                f"{key!r} cannot be the name of a {what}: names are made of A-Z, a-z, 0-9, '_', '.' and '-', and do "
                "not start with '__'. Pass another name."
            )
        if key in self.existing and not overwrite:
            raise ValueError(f"there is a {what} called {key!r} already. Pass another name, or overwrite=True.")
        twins = sorted(name for name in self.existing if name != key and name.lower() == key.lower())
        if twins:
            raise ValueError(
                f"{key!r} differs from the existing {what} {twins[0]!r} by case alone, and not every file system can "
                "keep the two apart. Pass another name."
            )


class NewNames:
    """The names that the results of one call take; `store` is that of the object, opened once.

    Parameters
    ----------
    overwrite
        Whether a name that is taken may be replaced; a name that differs by case alone never may.
    """

    def __init__(self, sdata: SpatialData, *, overwrite: bool) -> None:
        self.sdata, self.overwrite = sdata, overwrite
        self.store: Store | None = open_store(sdata)
        self._names: list[NewName] = []

    def element(self, kind: str, key: str) -> None:
        """Add an element of a kind (``images``, ``shapes``, ``tables``).

        An element's name is unique over all kinds; what is in the store but not in the object counts too.

        Raises
        ------
        ValueError
            Where an element of another kind has that name, whatever its case.
        """
        names = {each: self._existing(getattr(self.sdata, each), each) for each in KINDS}
        what = kind.removesuffix("s")
        self._names.append(NewName(key, what, names[kind]))
        for other in KINDS:
            twins = sorted(name for name in names[other] if other != kind and name.lower() == str(key).lower())
            if twins:
                raise ValueError(
                    f"{key!r} cannot be the name of the new {what}: there is {twins[0]!r} in {other}, and element "
                    "names are unique over all kinds, whatever their case. Pass another name."
                )

    def entry(
        self, table_name: str, key: str, *, group: str = "layers", var: Iterable[str] = (), obs: Iterable[str] = (),
        layers: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Add a layer or obsm entry (`group`) of a table, with its columns of var and obs, and further layers.

        Raises
        ------
        ValueError
            For a table that is not in the store, or whose rows and columns there are not those in memory.
        """
        table, store = self.sdata.tables[table_name], self.store
        if store is not None:
            store.check_agrees(table_name, table)
        what = f"{'layer' if group == 'layers' else 'obsm entry'} of table {table_name!r}"
        self._names.append(NewName(key, what, self._existing(getattr(table, group), "tables", table_name, group)))
        there = self._existing(table.layers, "tables", table_name, "layers")
        self._names += [NewName(name, f"layer of table {table_name!r}", there) for name in layers]
        for axis, columns in (("var", var), ("obs", obs)):
            stored = store.columns(table_name, axis) if store else ()
            seen = frozenset(map(str, (*getattr(table, axis).columns, *stored)))
            self._names += [NewName(name, f"column of {axis} of table {table_name!r}", seen) for name in columns]

    def layer(self, table_name: str, key: str, *, spread: bool = False) -> None:
        """Add a layer with the columns that `layer` gives it, and the layer of its spread."""
        columns = (key, *(f"{key}_val_{name}" for name in ("pcc", *HELD_OUT)))
        self.entry(table_name, key, var=columns, obs=(f"{key}_coverage",), layers=(f"{key}_sd",) if spread else ())

    def check(self) -> None:
        """Raise ValueError unless all of them may be written."""
        for name in self._names:
            name.check(overwrite=self.overwrite)

    def check_stored(self, shapes_key: str) -> None:
        """Raise ValueError where the store lacks these shapes: a new table there would annotate nothing."""
        store = self.store
        if store is not None and not any(store.has(kind, shapes_key) for kind in ("shapes", "labels")):
            raise ValueError(
                f"the shapes {shapes_key!r} are in memory only, and the new table would go into the store "
                f"{store.path}, where it would annotate nothing. Call sdata.write_element({shapes_key!r}) first."
            )

    def _existing(self, members: Iterable[str], *path: str) -> frozenset[str]:
        stored = self.store.members(*path) if self.store else ()
        return frozenset(name for name in (*members, *stored) if name is not None)  # list(layers) has None: X
