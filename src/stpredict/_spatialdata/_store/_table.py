"""New entries of an existing table: a layer or obsm entry with its columns and record."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import zarr
from anndata import ImplicitModificationWarning
from anndata.experimental import write_dispatched
from anndata.io import read_elem
from numcodecs import VLenUTF8, Zstd
from zarr.dtype import VariableLengthUTF8

from stpredict._messages import warn
from stpredict._record import of_one_result
from stpredict._spatialdata._store._transaction import InlineStore, Store, Transaction

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._spatialdata._store._commit import Members
    from stpredict._spatialdata._store._element import NewNames


NAMESPACE = "stpredict"  # of uns and of sdata.attrs


def write_element(group: zarr.Group, name: str, element: Any) -> None:
    """Write what `anndata.io.write_elem` writes, to the byte, in a third of the time.

    anndata writes the first text, integer and float, and whatever is out of the ordinary; other scalars get a copy of
    the first one's metadata, and their chunk directly. Dictionaries and arrays get their attributes when they are made.

    Parameters
    ----------
    group : zarr.Group
        Of an `InlineStore`, where nothing is under that name.
    """
    assert isinstance(group.store, InlineStore)
    root = group.store.root
    seen: dict[type, bytes] = {}

    def write(
        how: Callable[..., None], parent: Any, key: str, value: Any, /, *, iospec: Any,
        dataset_kwargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        usual = bool(key) and not {"/", "\\"} & set(key) and _is_usual(value)
        place = root / parent.path / key
        metadata = seen.get(type(value)) if usual else None
        chunk = None if metadata is None else _scalar_chunk(metadata, value)
        if metadata is not None and chunk is not None:
            place.mkdir()
            (place / "zarr.json").write_bytes(metadata)
            (place / "c").write_bytes(chunk)
            return
        spec = {"encoding-type": iospec.encoding_type, "encoding-version": iospec.encoding_version}
        if usual and type(value) is dict:
            inner = parent.create_group(key, attributes=spec)
            for inner_key, each in value.items():
                write_dispatched(inner, inner_key, each, write, dataset_kwargs=dataset_kwargs)
            return
        text = spec["encoding-type"] == "string-array"
        plain = usual and type(value) is np.ndarray and value.size and value.ndim
        if plain and (text or value.dtype.kind in "biuf") and not anndata.settings.auto_shard_zarr_v3:
            dtype = VariableLengthUTF8() if text else value.dtype
            parent.create_array(key, shape=value.shape, dtype=dtype, attributes=spec, **dataset_kwargs)[...] = value
            return
        how(parent, key, value, dataset_kwargs=dataset_kwargs)
        if usual and type(value) in (str, int, float):
            seen[type(value)] = (place / "zarr.json").read_bytes()

    write_dispatched(group, name, element, write)


def _is_usual(value: Any) -> bool:
    """Whether NumPy keeps a value as it is: a text has no zero at its end and no half letter, an integer 64 bits."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    if type(value) is str:
        whole = value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
        return whole and not value.endswith("\0")
    return True


def _scalar_chunk(metadata: bytes, value: str | float) -> bytes | None:
    """The only chunk of a scalar array; None where zarr writes none, for its fill value, or codecs are others."""
    told = json.loads(metadata)
    match told["codecs"]:
        case [{"name": "vlen-utf8"}, {"name": "zstd", "configuration": {"level": level, "checksum": checksum}}]:
            plain = VLenUTF8().encode(np.array([value], object))
        case [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": level, "checksum": checksum}},
        ]:
            plain = np.array(value, np.dtype(told["data_type"]).newbyteorder("<")).tobytes()
        case _:
            return None
    usual_key = told["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
    return Zstd(level=level, checksum=checksum).encode(plain) if value and usual_key else None


@dataclass(frozen=True)
class TableEntry:
    """A layer or an obsm entry of a table, and what belongs to it.

    Parameters
    ----------
    table_name, key : str
        Where it goes; `place` is ``layers`` for (n_obs, n_vars) or ``obsm`` for (n_obs, d).
    values : ndarray of float32
        Float32, rows and columns as in the table; NaN where nothing was predicted.
    var, obs : Mapping[str, ndarray[Any] | None], optional
        Columns by their full names, (n_vars,) and (n_obs,), numbers or bool. None takes a column of that name away.
    record : Mapping[str, Any], optional
        What ``uns["stpredict"][key]`` and ``sdata.attrs["stpredict"]`` say of it.
    layers : Mapping[str, ndarray of float32 | None], optional
        Further layers of the same result by their full names. None takes a layer of that name away.
    """

    table_name: str
    key: str
    values: NDArray[np.float32]
    place: str = "layers"
    var: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    obs: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, NDArray[np.float32] | None] = field(default_factory=dict)

    def records(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in the provenance, by place."""
        return {f"tables/{self.table_name}/{self.place}/{self.key}": dict(self.record)}

    def register(self, names: NewNames) -> None:
        """Add the names of the entry and its columns to those that are checked."""
        names.entry(
            self.table_name, self.key, group=self.place, var=self.var, obs=self.obs, layers=self._further_layers
        )

    def check(self, sdata: SpatialData, store: Store | None) -> None:
        """Raise ValueError for values that do not fit the table."""
        table = sdata.tables[self.table_name]
        n_obs, n_vars = table.shape
        form = (n_obs, n_vars) if self.place == "layers" else (n_obs, *self.values.shape[1:2])
        if self.values.shape != form or self.values.dtype != np.float32:
            raise ValueError(
                f"{self.place}[{self.key!r}] must be float32 {form}, got {self.values.dtype} {self.values.shape}."
            )
        for name, values in self._further_layers.items():
            if values.shape != (n_obs, n_vars) or values.dtype != np.float32:
                raise ValueError(
                    f"layers[{name!r}] must be float32 {n_obs, n_vars}, got {values.dtype} {values.shape}."
                )
        for axis, n in (("var", n_vars), ("obs", n_obs)):
            for name, column in getattr(self, axis).items():
                if column is not None and (np.shape(column) != (n,) or np.asarray(column).dtype.kind not in "bif"):
                    raise ValueError(f"{axis}[{name!r}] must be ({n},) numbers or bool, got {np.shape(column)}.")

    def build(self, folder: Path) -> None:
        """Write everything aside, as anndata writes it."""
        group = zarr.open_group(InlineStore(folder / self._aside), mode="w", zarr_format=3)
        for axis in ("var", "obs"):
            write_element(group, axis, {k: np.asarray(v) for k, v in getattr(self, axis).items() if v is not None})
        write_element(group, "uns", {NAMESPACE: {self.key: dict(self.record)}})
        write_element(group, self.place, {self.key: self.values})
        for name, values in self._further_layers.items():
            write_element(group.require_group("layers"), name, values)

    def members(self, store: Store, folder: Path, known: Members) -> Members:
        """What changes inside the stored table, by path; `known` is what other entries change there."""
        base, aside = Store(store.path / "tables" / self.table_name), folder / self._aside
        out = dict(known)
        meta = base.meta()
        if meta.pop("consolidated_metadata", None) is not None:
            # an index of the table's own, as anndata writes it, would hide what is new
            out["zarr.json",] = _json(meta)
        for axis in ("var", "obs"):
            columns: Mapping[str, Any] = getattr(self, axis)
            if columns:
                out |= {
                    (axis, name): None if column is None else aside / axis / name for name, column in columns.items()
                }
                out[axis, "zarr.json"] = _reordered(base, axis, columns, out)
        further = [("layers", name) for name in self._further_layers]
        for path in (("uns", NAMESPACE, self.key), (self.place, self.key), *further):
            out |= _member(base, aside, path, out)
        gone = [("layers", name) for name, values in self.layers.items() if values is None]
        return out | {path: None for path in gone if base.has(*path)}

    def apply(self, transaction: Transaction, sdata: SpatialData, store: Store | None) -> None:
        """Set everything in memory."""
        table = sdata.tables[self.table_name]
        for axis in ("var", "obs"):
            for name, column in getattr(self, axis).items():
                _set(transaction, table, axis, name, column)
        known = table.uns.get(NAMESPACE, {})
        _set(transaction, table, "uns", NAMESPACE, {**known, self.key: dict(self.record)})
        _set(transaction, table, self.place, self.key, self.values)
        for name, values in self.layers.items():
            _set(transaction, table, "layers", name, values)

    @property
    def _further_layers(self) -> dict[str, NDArray[np.float32]]:
        return {name: values for name, values in self.layers.items() if values is not None}

    @property
    def _aside(self) -> str:
        return f"{self.table_name}-{self.place}-{self.key}"


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()


def _reordered(base: Store, axis: str, columns: Mapping[str, Any], known: Members) -> bytes:
    """The ``zarr.json`` of a frame that has these columns too; None takes one away."""
    earlier = known.get((axis, "zarr.json"))
    meta = json.loads(earlier) if isinstance(earlier, bytes) else base.meta(axis)
    seen = meta["attributes"]["column-order"]
    order = [*seen, *(name for name in columns if name not in seen)]
    meta["attributes"]["column-order"] = [name for name in order if name not in columns or columns[name] is not None]
    return _json(meta)


def _member(base: Store, aside: Path, path: tuple[str, ...], known: Members) -> Members:
    """The member of a group that is new, or the outermost group around it that the table lacks."""
    for depth in range(1, len(path)):
        group = path[:depth]
        if isinstance(made := known.get(group), Path):  # by another entry: what is new goes into its group
            os.rename(aside.joinpath(*path[: depth + 1]), made / path[depth])
            return {}
        if not base.has(*group):
            return {group: aside.joinpath(*group)}
    return {path: aside.joinpath(*path)}


def _set(transaction: Transaction, table: AnnData, place: str, name: str, value: Any) -> None:
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

    transaction.apply_step(f"set {place}[{name!r}]", lambda: put(value, value is not None), lambda: put(old, had))


def keep_others(
    sdata: SpatialData, table_name: str, key: str, *, rows: NDArray[np.int64], values: NDArray[np.float32],
    obs: Mapping[str, NDArray[np.float64] | None], record: Mapping[str, Any],
    layers: Mapping[str, NDArray[np.float32] | None] | None = None,
) -> None:  # fmt: skip
    """Fill in the rows of other shapes, as an earlier call has left them in the layer of this name.

    Parameters
    ----------
    rows : ndarray of int64
        (m,) of the table, which are written now.
    values, obs
        (n_obs, n_vars), and columns (n_obs,) by name, changed in place: rows that were not written now and have earlier
        values.
    layers
        Further layers of the result, changed in place as `values` are.

    Notes
    -----
    Values of another model, other genes or settings are not mixed in: those rows stay NaN, which a warning says.
    """
    old, columns, made = _earlier(sdata, table_name, key, obs)
    if not isinstance(old, np.ndarray) or old.shape != values.shape:
        return
    other = np.ones(len(values), bool)
    other[rows] = False
    other &= np.isfinite(old).any(axis=1)
    if not other.any():
        return
    if of_one_result(made, record):
        values[other] = old[other]
        for name, column in obs.items():
            if column is not None and columns[name] is not None:
                column[other] = columns[name][other]
        for name, layer in (layers or {}).items():
            earlier = None if layer is None else _earlier(sdata, table_name, name)[0]
            if layer is not None and isinstance(earlier, np.ndarray):
                layer[other] = earlier[other]
        return
    warn(
        f"{int(other.sum())} rows of table {table_name!r}, which annotate other shapes, held values of another model, "
        f"other genes or other settings under {key!r}; they are NaN now. Write these shapes again with this model, or "
        "pass another key_added for one of the two.",
    )


def _earlier(
    sdata: SpatialData, table_name: str, key: str, obs: Iterable[str] = ()
) -> tuple[Any, dict[str, Any], Mapping[str, Any]]:
    """Layer, columns of obs and record of that name: those in memory, else those in the store; None where one lacks."""
    table = sdata.tables[table_name]
    known = table.uns.get(NAMESPACE, {})
    if key in table.layers:
        columns = {name: table.obs[name].to_numpy() if name in table.obs else None for name in obs}
        return table.layers[key], columns, known.get(key, {})
    store = None if sdata.path is None else Store(Path(sdata.path))
    if store is None or not store.has("tables", table_name, "layers", key):
        return None, {}, {}
    group = zarr.open_group(store.path / "tables" / table_name, mode="r", use_consolidated=False)

    def read(*place: str) -> Any:
        return read_elem(group["/".join(place)]) if store.has("tables", table_name, *place) else None

    columns = {name: read("obs", name) for name in obs}
    return read("layers", key), columns, read("uns", NAMESPACE, key) or {}


def earlier_record(sdata: SpatialData, table_name: str, key: str) -> Mapping[str, Any]:
    """The record of a result of that name, in memory or in the store; empty where there is none."""
    known = sdata.tables[table_name].uns.get(NAMESPACE, {})
    if key in known or sdata.path is None:
        return known.get(key, {})
    store = Store(Path(sdata.path))
    if not store.has("tables", table_name, "uns", NAMESPACE, key):
        return {}
    group = zarr.open_group(store.path / "tables" / table_name, mode="r", use_consolidated=False)
    record: Any = read_elem(group[f"uns/{NAMESPACE}/{key}"])
    return record
