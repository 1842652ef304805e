"""New elements of a store: images, tables and shapes."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr
from anndata import AnnData
from anndata.io import write_elem
from spatialdata import SpatialData, get_dask_backing_files, read_zarr
from spatialdata.models import get_table_keys
from xarray import DataArray, DataTree

from stpredict._spatialdata._store._names import NewNames
from stpredict._spatialdata._store._scratch import InlineStore
from stpredict._spatialdata._store._transaction import Store, Transaction

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from stpredict._spatialdata._store._commit import Plan


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
    write_elem(group, name, table)
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
