"""What a call adds to an object and its store: the names of all of it, checked together, and new elements."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr
from anndata import AnnData
from spatialdata import SpatialData, get_dask_backing_files, read_zarr
from spatialdata.models import get_table_keys
from xarray import DataArray, DataTree

from stpredict._card import HELD_OUT
from stpredict._schema import shown, with_article
from stpredict._spatialdata._store._table import write_element
from stpredict._spatialdata._store._transaction import InlineStore, Store, Transaction, open_store

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from stpredict._spatialdata._store._commit import Plan

_ALLOWED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
LONGEST_NAME = 150  # characters: a file system takes 255, and locks and columns have longer names
KINDS = ("images", "labels", "points", "shapes", "tables")


@dataclass(frozen=True)
class NewName:
    """A name to be written.

    Parameters
    ----------
    key
        A name of letters, digits, ``_``, ``.`` and ``-`` that does not start with a point or two underscores: what
        spatialdata reads, and keeps apart on every file system.
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
        plain = isinstance(key, str) and _ALLOWED.fullmatch(key) and len(key) <= LONGEST_NAME
        if not plain or key.lower() in {"zarr.json", "_index"} or key[:2] == "__":
            raise ValueError(
                f"{shown(key)} cannot be the name of {with_article(what)}: names are made of A-Z, a-z, 0-9, '_', '.' "
                f"and '-', {LONGEST_NAME} at most, do not start with '.' or '__', and are not 'zarr.json'. Pass "
                "another name."
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
        seen = (f"{key}_coverage", f"{key}_domain")
        self.entry(table_name, key, var=columns, obs=seen, layers=(f"{key}_sd",) if spread else ())

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


@dataclass(frozen=True)
class ImageElement:
    """An image element, parsed by Image2DModel, or the folder in which `RasterTarget` has built one.

    Exactly one of `element` and `built` is given; `built` lies on the file system of the store.
    """

    kind: ClassVar[str] = "images"
    key: str
    element: DataArray | None = None
    built: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def records(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in the provenance, by place."""
        return {f"images/{self.key}": dict(self.record)}

    def register(self, names: NewNames) -> None:
        """Add the name of the image to those that are checked."""
        names.element(self.kind, self.key)

    def check(self, sdata: SpatialData, store: Store | None) -> None:
        """Raise ValueError where the image cannot go into the object or its store."""
        if (self.element is None) == (self.built is None) or (self.built is not None and store is None):
            raise ValueError("an image is given as an element, or for a backed object as the folder it was built in.")
        if store is not None and store.has(self.kind, self.key):
            _check_unused(sdata, store.path / self.kind / self.key, self.key)

    def build(self, folder: Path) -> None:
        """Write the element aside, as spatialdata writes it."""
        if self.element is not None:
            write_aside(folder / self.kind, images={self.key: self.element})

    def put(self, plan: Plan, store: Store, folder: Path) -> None:
        """Plan the element's move into the store."""
        plan.put(self.kind, self.key, self.built or folder / self.kind)

    def apply(self, transaction: Transaction, sdata: SpatialData, store: Store | None) -> None:
        """Put the element into the object; for a backed object, one that reads from the store."""
        element = self.element if store is None else read_zarr(store.path, selection=("images",)).images[self.key]
        _set_element(transaction, sdata, self.kind, self.key, element)


@dataclass(frozen=True)
class TableElement:
    """A whole new table that annotates shapes; `key` names its layer in the provenance."""

    kind: ClassVar[str] = "tables"
    table_name: str
    key: str
    table: AnnData
    record: Mapping[str, Any] = field(default_factory=dict)

    def records(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in the provenance, by place: what an older table of this name held is gone."""
        old = {place: None for place in known if place.startswith(f"tables/{self.table_name}/")}
        return {**old, f"tables/{self.table_name}/layers/{self.key}": dict(self.record)}

    def register(self, names: NewNames) -> None:
        """Add the name of the table to those that are checked."""
        names.element(self.kind, self.table_name)

    def check(self, sdata: SpatialData, store: Store | None) -> None:
        """A new table fits everywhere."""

    def build(self, folder: Path) -> None:
        """Write the table aside, as spatialdata writes it."""
        write_table(folder / self.kind, self.table_name, self.table)

    def put(self, plan: Plan, store: Store, folder: Path) -> None:
        """Plan the table's move into the store."""
        plan.put(self.kind, self.table_name, folder / self.kind)

    def apply(self, transaction: Transaction, sdata: SpatialData, store: Store | None) -> None:
        """Put the table into the object."""
        _set_element(transaction, sdata, self.kind, self.table_name, self.table)


def write_table(path: Path, name: str, table: AnnData) -> None:
    """Write a table as ``tables/{name}`` of a new folder, with what spatialdata says of it."""
    group = zarr.open_group(InlineStore(path), mode="w", zarr_format=3).create_group("tables")
    write_element(group, name, table)
    keys = zip(("region", "region_key", "instance_key"), get_table_keys(table), strict=True)
    group[name].attrs.update(_table_attributes() | dict(keys))


@cache
def _table_attributes() -> dict[str, Any]:
    """What spatialdata says of every table, in its order; seen once, in one that it writes itself."""
    with tempfile.TemporaryDirectory() as folder:
        write_aside(Path(folder) / "s", tables={"t": AnnData(np.zeros((1, 1), np.float32))})
        known = json.loads((Path(folder) / "s" / "tables" / "t" / "zarr.json").read_bytes())["attributes"]
    return {name: value for name, value in known.items() if not name.startswith("encoding-")}


def write_aside(path: Path, **elements: Any) -> None:
    """Write elements as a SpatialData store of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        SpatialData(**elements).write(path)


def _set_element(transaction: Transaction, sdata: SpatialData, kind: str, key: str, element: Any) -> None:
    elements = getattr(sdata, kind)
    had, old = key in elements, elements.get(key)

    def back() -> None:
        if had:
            elements[key] = old
        elif key in elements:
            del elements[key]

    transaction.apply_step(f"set {kind}[{key!r}]", lambda: elements.__setitem__(key, element), back)


def _check_unused(sdata: SpatialData, path: Path, key: str) -> None:
    """Raise ValueError if another element reads lazily from files that are about to be replaced."""
    for kind, name, element in sdata.gen_elements():
        if (kind, name) == ("images", key) or not isinstance(element, DataArray | DataTree):
            continue
        if any(Path(file).is_relative_to(path) for file in get_dask_backing_files(element)):
            raise ValueError(
                f"{kind}[{name!r}] reads lazily from images[{key!r}], which would be replaced. Load it into memory or "
                "delete it, or pass another key_added."
            )


def add_shapes(sdata: SpatialData, key: str, element: GeoDataFrame) -> None:
    """Put a shapes element, parsed by ShapesModel, under a name that is free.

    Raises ValueError for a name that is taken or cannot be kept apart. Where anything raises, nothing has changed.
    """
    names = NewNames(sdata, overwrite=False)
    store = names.store
    with nullcontext() if store is None else store.locked(), Transaction(store) as transaction:
        names.element("shapes", key)
        names.check()
        if store is not None and transaction.folder is not None:
            write_aside(transaction.folder / "built", shapes={key: element})
            plan = transaction.plan()
            plan.put("shapes", key, transaction.folder / "built")
            plan.describe(store.meta()["attributes"])
            transaction.carry_out(plan)
        sdata.shapes[key] = element
