"""Results that go into an existing table: layers and obsm entries, with the columns and the record beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from anndata import ImplicitModificationWarning
from anndata.io import write_elem

from stpredict._sdata._store import Journal, Store, check_key

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

NAMESPACE = "stpredict"  # of uns and of sdata.attrs


@dataclass(frozen=True)
class Entry:
    """A layer or an obsm entry of a table, and what belongs to it.

    table_name, key
        Where it goes; `place` is ``layers`` for (n_obs, n_vars) or ``obsm`` for (n_obs, d).
    values
        float32, rows and columns as in the table; NaN where nothing was predicted.
    var, obs
        Columns by their full names, (n_vars,) and (n_obs,), numbers or bool. None takes a column of that name away.
    record
        What ``uns["stpredict"][key]`` and ``sdata.attrs["stpredict"]`` say of it.
    """

    table_name: str
    key: str
    values: NDArray[np.float32]
    place: str = "layers"
    var: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    obs: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def records(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in the provenance, by place."""
        return {f"tables/{self.table_name}/{self.place}/{self.key}": dict(self.record)}

    def check(self, sdata: SpatialData, store: Store | None, *, overwrite: bool) -> None:
        """Raise ValueError where the entry cannot go into the object or its store; see `check_entry`."""
        table = sdata.tables[self.table_name]
        names = {"var": tuple(self.var), "obs": tuple(self.obs)}
        check_entry(table, store, self, names, overwrite=overwrite)
        n_obs, n_vars = table.shape
        form = (n_obs, n_vars) if self.place == "layers" else (n_obs, *self.values.shape[1:2])
        if self.values.shape != form or self.values.dtype != np.float32:
            raise ValueError(
                f"{self.place}[{self.key!r}] must be float32 {form}, got {self.values.dtype} {self.values.shape}."
            )
        for axis, n in (("var", n_vars), ("obs", n_obs)):
            for name, column in getattr(self, axis).items():
                if column is not None and (np.shape(column) != (n,) or np.asarray(column).dtype.kind not in "bif"):
                    raise ValueError(f"{axis}[{name!r}] must be ({n},) numbers or bool, got {np.shape(column)}.")

    def build(self, folder: Path) -> None:
        """Write everything aside, as anndata writes it."""
        group = zarr.open_group(folder / self._aside, mode="w", zarr_format=3)
        for axis in ("var", "obs"):
            write_elem(group, axis, {k: np.asarray(v) for k, v in getattr(self, axis).items() if v is not None})
        write_elem(group, "uns", {NAMESPACE: {self.key: dict(self.record)}})
        write_elem(group, self.place, {self.key: self.values})

    def move(self, journal: Journal, store: Store, folder: Path) -> None:
        """Rename the parts into the stored table; the last rename makes the entry visible."""
        base = store.path / "tables" / self.table_name
        meta = Store(base).meta()
        if meta.pop("consolidated_metadata", None) is not None:
            # an index of the table's own, as anndata writes it, would hide what is moved in
            journal.replace(base / "zarr.json", meta)
        journal.move_out(base / self.place / self.key)
        for axis in ("var", "obs"):
            self._move_columns(journal, store, folder / self._aside / axis, axis)
        _move_member(journal, folder / self._aside / "uns", base / "uns", NAMESPACE, self.key)
        _move_member(journal, folder / self._aside / self.place, base / self.place, self.key)

    def apply(self, journal: Journal, sdata: SpatialData, store: Store | None) -> None:
        """Set everything in memory."""
        table = sdata.tables[self.table_name]
        for axis in ("var", "obs"):
            for name, column in getattr(self, axis).items():
                _set(journal, table, axis, name, column)
        known = table.uns.get(NAMESPACE, {})
        _set(journal, table, "uns", NAMESPACE, {**known, self.key: dict(self.record)})
        _set(journal, table, self.place, self.key, self.values)

    @property
    def _aside(self) -> str:
        return f"{self.table_name}-{self.place}-{self.key}"

    def _move_columns(self, journal: Journal, store: Store, aside: Path, axis: str) -> None:
        """A column is seen once ``column-order`` names it, so it is taken off before and put there after the rename."""
        columns: Mapping[str, Any] = getattr(self, axis)
        if not columns:
            return
        group = store.path / "tables" / self.table_name / axis
        seen = store.columns(self.table_name, axis)
        hidden = [name for name in seen if name not in columns]
        if hidden != seen:
            _order(journal, group, hidden)
        for name, column in columns.items():
            journal.move_out(group / name)
            if column is not None:
                journal.move(aside / name, group / name)
        new = [name for name in columns if name not in seen]
        order = [name for name in [*seen, *new] if name not in columns or columns[name] is not None]
        if order != hidden:
            _order(journal, group, order)


def check_entry(
    table: AnnData, store: Store | None, entry: Entry, names: Mapping[str, tuple[str, ...]], *, overwrite: bool
) -> None:
    """Raise ValueError unless the entry's key and the names of its columns may be written."""
    base = ("tables", entry.table_name)
    if store is not None:
        store.check_agrees(entry.table_name, table)
    existing = {*getattr(table, entry.place), *(store.members(*base, entry.place) if store else ())}
    kind = "layer" if entry.place == "layers" else "obsm entry"
    check_key(entry.key, existing, overwrite=overwrite, what=f"{kind} of table {entry.table_name!r}")
    for axis in ("var", "obs"):
        seen = {*getattr(table, axis).columns, *(store.columns(entry.table_name, axis) if store else ())}
        for name in names[axis]:
            what = f"column of {axis} of table {entry.table_name!r}"
            check_key(name, map(str, seen), overwrite=overwrite, what=what)


def _order(journal: Journal, group: Path, order: list[str]) -> None:
    meta = Store(group).meta()
    meta["attributes"]["column-order"] = order
    journal.replace(group / "zarr.json", meta)


def _move_member(journal: Journal, aside: Path, group: Path, *names: str) -> None:
    """Rename ``aside/a/b`` to ``group/a/b``; where ``group`` or ``group/a`` is missing, that whole folder instead."""
    if not Store(group).has():
        journal.move_out(group)
        journal.move(aside, group)
        return
    if len(names) > 1:
        _move_member(journal, aside / names[0], group / names[0], *names[1:])
        return
    journal.move_out(group / names[0])
    journal.move(aside / names[0], group / names[0])


def _set(journal: Journal, table: AnnData, place: str, name: str, value: Any) -> None:
    """Set (None: take away) one member of a table's mapping or frame, with its way back."""
    before = getattr(table, place)
    had, old = name in before, before[name] if name in before else None

    def put(new: Any, there: bool) -> None:
        with warnings.catch_warnings():
            # a table that is a view becomes a table of its own here, which is what we want
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            if there:
                getattr(table, place)[name] = new
            elif name in getattr(table, place):
                del getattr(table, place)[name]

    journal.step(f"set {place}[{name!r}]", lambda: put(value, value is not None), lambda: put(old, had))
