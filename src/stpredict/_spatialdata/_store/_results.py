"""Build layers and tables of predicted values, and commit changes to an object and its store, all or none."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import psutil
from anndata import AnnData
from spatialdata.models import TableModel

from stpredict._card import HELD_OUT
from stpredict._spatialdata._store._element import ImageElement, NewNames, TableElement
from stpredict._spatialdata._store._table import NAMESPACE, TableEntry, earlier_record, keep_others
from stpredict._spatialdata._store._transaction import Store, Transaction

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._spatialdata._store._commit import Members

type Change = TableEntry | ImageElement | TableElement

LAYER_LIMIT_BYTES = 4_000_000_000


_paused = False  # the garbage collector, by `_collector_paused`
_writing = threading.Lock()  # anndata's setting and the garbage collector are those of the whole process


def commit(
    sdata: SpatialData, changes: Sequence[Change], *, overwrite: bool = False, checkpoint: Path | None = None
) -> None:
    """Make all changes in memory and, for a backed object, in its store; where anything raises, none of them.

    Parameters
    ----------
    changes : Sequence[Change]
        Any mix of `TableEntry` (a layer or obsm entry of an existing table), `TableElement` and `ImageElement`.
    overwrite : bool, default False
        Whether what is there under the same names is replaced. The old is deleted after everything has succeeded.
    checkpoint : Path, optional
        The folder of the checkpoint that they were made from, which is deleted with the commit.

    Raises
    ------
    ValueError
        For names that cannot be written or are taken, for values of a wrong shape, and for a table that differs between
        memory and store.
    PermissionError
        For a store that may only be read. Nothing has changed then.

    Notes
    -----
    In a store everything becomes visible in one step, and other writers wait. A process that is killed on the way
    leaves what was there before, or everything new; the next call that opens the store clears up (`_commit`).
    """
    names = NewNames(sdata, overwrite=overwrite)
    store = names.store
    with nullcontext() if store is None else store.locked():
        for change in changes:
            plain(change.record)
            change.register(names)
        names.check()
        for change in changes:
            change.check(sdata, store)
        _check_distinct(changes)
        with Transaction(store) as transaction:
            if store is not None:
                _write(transaction, store, changes, checkpoint)
            for change in changes:
                change.apply(transaction, sdata, store)
            known = sdata.attrs
            new = {**known, NAMESPACE: _records(known, changes)}
            transaction.apply_step(
                "set attrs", lambda: setattr(sdata, "attrs", new), lambda: setattr(sdata, "attrs", known)
            )


def _write(transaction: Transaction, store: Store, changes: Sequence[Change], checkpoint: Path | None) -> None:
    """Build the changes in the scratch folder, and make them visible in the store."""
    assert transaction.folder is not None
    tables: dict[str, Members] = {}
    plan = transaction.plan()
    for i, change in enumerate(changes):
        folder = transaction.folder / str(i)
        folder.mkdir()
        # shards of a gigabyte, anndata's default, are held in memory while they are written
        with _writing, _collector_paused(), anndata.settings.override(auto_shard_zarr_v3=False):
            change.build(folder)
        if isinstance(change, TableEntry):
            tables[change.table_name] = change.members(store, folder, tables.get(change.table_name, {}))
        else:
            change.put(plan, store, folder)
    for name, members in tables.items():
        plan.change(f"tables/{name}", members)
    plan.describe(_with_records(store.meta()["attributes"], changes))
    transaction.carry_out(plan, checkpoint)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Collect no cyclic garbage: zarr makes many small objects, and a full collection walks all that torch holds."""
    global _paused
    was = gc.isenabled()
    try:
        _paused = was
        gc.disable()
        yield
    finally:
        _paused = False
        if was:
            gc.enable()


def _resume_in_child() -> None:
    """Collect garbage again in a process that was forked while it was paused: the pause does not end there."""
    if _paused:
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume_in_child)


def check_layer_size(n_obs: int, n_vars: int, n_panel: int, *, limit_bytes: int = LAYER_LIMIT_BYTES) -> None:
    """Raise ValueError if a float32 layer as wide as the table is larger than `limit_bytes`."""
    wide, narrow = 4 * n_obs * n_vars, 4 * n_obs * n_panel
    if wide > limit_bytes:
        raise ValueError(
            f"a layer as wide as the table ({n_obs} x {n_vars}) takes {wide / 1e9:.1f} GB, above the limit of "
            f"{limit_bytes / 1e9:.1f} GB; the {n_panel} predicted genes alone take {narrow / 1e9:.1f} GB. Pass "
            "table_added='...' to write them as a new table of these genes that annotates the same shapes."
        )


def check_table_size(n_shapes: int, n_genes: int) -> None:
    """Raise ValueError if a new table of float32 values does not fit into memory.

    It is held twice: as X and as the layer.
    """
    need, free = 2 * 4 * n_shapes * n_genes, psutil.virtual_memory().available
    if need > free:
        raise ValueError(
            f"a new table of {n_shapes} shapes x {n_genes} genes needs {need / 1e9:.1f} GB while it is made, and "
            f"{free / 1e9:.1f} GB of memory are free. Pass fewer genes=, or predict parts of the shapes."
        )


def layer(
    sdata: SpatialData, table_name: str, key: str, *, values: NDArray[Any], join: tuple[NDArray[Any], NDArray[Any]],
    columns: NDArray[Any], coverage: NDArray[Any] | None = None, val_pcc: NDArray[Any] | None = None,
    held_out: Mapping[str, NDArray[Any]] | None = None, spread: NDArray[Any] | None = None,
    domain: NDArray[Any] | None = None, record: Mapping[str, Any] | None = None,
) -> TableEntry:  # fmt: skip
    """A layer of an existing table from values in element order.

    Parameters
    ----------
    values : ndarray[Any]
        (n, g), one row per shape and one column per predicted gene.
    join : tuple[ndarray[Any], ndarray[Any]]
        What `table_rows` returns: (m,) rows of the table, and for each the position (m,) of its shape in the element.
        All other rows of the table keep what an earlier call of the same model and genes has put there under this key
        for other shapes, and are NaN otherwise.
    columns : ndarray[Any]
        (g,) column of the table of each gene.
    coverage, val_pcc : ndarray[Any], optional
        (n,) covered share of each shape's area; (g,) the model's own reliability of each gene. None: no such column,
        and one of an earlier result is taken away.
    held_out : Mapping[str, ndarray[Any]], optional
        What else is known of each gene (g,), by its name in `HELD_OUT`: columns ``{key}_val_{name}``.
    spread : ndarray[Any], optional
        (n, g) standard deviation over the members of an ensemble: the layer ``{key}_sd``. None: that of an earlier
        result is taken away.
    domain : ndarray, optional
        (n,) percentile of each shape among those that were left out of the training: the column ``{key}_domain``. None:
        as for `coverage`.
    record : Mapping[str, Any], optional
        Plain values; see `plain`.
    """
    n_obs, n_vars = sdata.tables[table_name].shape
    rows, shapes = _index(join[0], n_obs, len(join[1]), "row"), _index(join[1], len(values), len(join[0]), "position")
    genes = _index(columns, n_vars, values.shape[1], "column")

    def widened(values: NDArray[Any]) -> NDArray[np.float32]:
        wide = np.full((n_obs, n_vars), np.nan, np.float32)
        wide[np.ix_(rows, genes)] = values[shapes]
        return wide

    wide, known = widened(values), {} if held_out is None else held_out
    layers: dict[str, NDArray[np.float32] | None] = {}
    if spread is not None or "n_models" in earlier_record(sdata, table_name, key):
        layers[f"{key}_sd"] = None if spread is None else widened(spread)
    predicted = np.zeros(n_vars, bool)
    predicted[genes] = True
    obs = {
        f"{key}_{name}": None if column is None else _spread(column[shapes], rows, n_obs)
        for name, column in (("coverage", coverage), ("domain", domain))
    }
    keep_others(sdata, table_name, key, rows=rows, values=wide, obs=obs, record=record or {}, layers=layers)
    of_genes = {f"{key}_val_{name}": _spread(known.get(name), genes, n_vars) for name in HELD_OUT}
    return TableEntry(
        table_name,
        key,
        wide,
        var={key: predicted, f"{key}_val_pcc": _spread(val_pcc, genes, n_vars), **of_genes},
        obs=obs,
        record=record or {},
        layers=layers,
    )


def new_table(
    values: NDArray[Any], *, key: str, genes: Sequence[str], region: str, instance_ids: NDArray[Any],
    centroids: NDArray[Any], coverage: NDArray[Any] | None = None, val_pcc: NDArray[Any] | None = None,
    held_out: Mapping[str, NDArray[Any]] | None = None, spread: NDArray[Any] | None = None,
    domain: NDArray[Any] | None = None, record: Mapping[str, Any] | None = None,
) -> AnnData:  # fmt: skip
    """A table of predicted values that annotates shapes, rows in element order.

    Parameters
    ----------
    values : ndarray[Any]
        (n, g): ``X``, which takes float32 over as it is, and, as a copy of its own, ``layers[key]``.
    genes : Sequence[str]
        (g,) unique names.
    region, instance_ids
        Name of the shapes, and their (n,) unique index values, of their own dtype.
    centroids : ndarray[Any]
        (n, 2) in (x, y), for ``obsm["spatial"]``.
    coverage, val_pcc, held_out, spread, domain, record
        As in `layer`.
    """
    n, g = values.shape
    ids = pd.Index(instance_ids)
    twins = pd.Index(genes)[pd.Index(genes).duplicated()].tolist()
    if twins or not ids.is_unique:
        raise ValueError(f"genes and instance ids must be unique, got twice: {(twins or ids[ids.duplicated()])[:5]}.")
    obs = pd.DataFrame({"region": pd.Categorical([region] * n), "instance_id": ids.to_numpy()}, index=ids.astype(str))
    obs.index.name = None
    if coverage is not None:
        obs[f"{key}_coverage"] = np.asarray(coverage)
    if domain is not None:
        obs[f"{key}_domain"] = np.asarray(domain)
    var = pd.DataFrame(index=list(genes))
    var[key] = np.ones(g, bool)
    if val_pcc is not None:
        var[f"{key}_val_pcc"] = np.asarray(val_pcc)
    for name, column in (held_out or {}).items():
        var[f"{key}_val_{name}"] = np.asarray(column)
    taken = np.asarray(values, np.float32)
    table = AnnData(
        taken,
        obs=obs,
        var=var,
        layers={key: taken.copy()} | ({} if spread is None else {f"{key}_sd": np.asarray(spread, np.float32)}),
        uns={NAMESPACE: {key: dict(record or {})}},
    )
    table.obsm["spatial"] = np.asarray(centroids, np.float64)
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def plain(record: Any, path: str = "record") -> None:
    """Raise TypeError unless a record is made of what attrs and uns both give back.

    That is: dicts with plain names as keys, str, bool, int, finite float, None, and flat lists of one of these types.
    """
    if isinstance(record, Mapping):
        for name, value in record.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise TypeError(f"{path} has the key {name!r}; keys must be strings without '/'.")
            plain(value, f"{path}[{name!r}]")
        return
    items = record if isinstance(record, list) else [record]
    types = {type(item) for item in items}
    allowed = {str, bool, int, float} if isinstance(record, list) else {str, bool, int, float, type(None)}
    if not types <= allowed or len(types) > 1:
        raise TypeError(f"{path} is {record!r}; give str, bool, int, float, None, a dict, or a flat list of one type.")
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        raise TypeError(f"{path} holds a number that is not finite: {record!r}. Give None instead.")


def _check_distinct(changes: Sequence[Change]) -> None:
    places = [place for change in changes for place in change.records({})]
    tables = {change.table_name for change in changes if isinstance(change, TableElement)}
    clash = [change.table_name for change in changes if isinstance(change, TableEntry) and change.table_name in tables]
    if len(set(places)) < len(places) or clash:
        raise ValueError(f"two changes go to the same place: {sorted(places)}.")


def _with_records(attrs: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """A store's attributes with the records of the changes."""
    return {**attrs, NAMESPACE: _records(attrs, changes)}


def _records(attrs: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The records in attributes after the changes; those in `attrs` stay as they are (objects share them)."""
    records = dict(attrs.get(NAMESPACE, {}))
    for change in changes:
        records |= change.records(records)
    return {place: record for place, record in records.items() if record is not None}


def _index(index: NDArray[Any], size: int, n: int, what: str) -> NDArray[np.int64]:
    """(n,) integers, unique and in [0, size)."""
    out = np.asarray(index, dtype=np.int64)
    if out.shape != (n,) or len(np.unique(out)) < len(out) or np.any(out < 0) or np.any(out >= size):
        raise ValueError(f"{what}s must be ({n},) different integers below {size}, got {out.shape} {out[:5]}.")
    return out


def _spread(values: NDArray[Any] | None, index: NDArray[np.int64], n: int) -> NDArray[np.float64] | None:
    """Values at their places in an (n,) column of NaN."""
    if values is None:
        return None
    out = np.full(n, np.nan)
    out[index] = values
    return out
