"""Rows of a table that are of other shapes than those that are written: a table may annotate several samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from anndata.io import read_elem

from stpredict._sdata._store import Store
from stpredict._sdata._store_table import NAMESPACE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

# What may differ between the samples of one result: what it was read from, where, and when.
OF_A_SAMPLE = ("image_digest", "shapes_digest", "raster", "device", "versions", "model_path")


def keep_others(
    sdata: SpatialData, table_name: str, key: str, *, rows: NDArray[np.int64], values: NDArray[np.float32],
    coverage: NDArray[np.float64] | None, record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Fill in the rows of other shapes, as an earlier call has left them in the layer of this name.

    rows
        (m,) of the table, which are written now.
    values, coverage
        (n_obs, n_vars) and (n_obs,), changed in place: rows that were not written now and have earlier values.

    Values of another model, other genes or settings are not mixed in: those rows stay NaN, which a warning says.
    """
    old, covered, made = _earlier(sdata, table_name, key)
    if not isinstance(old, np.ndarray) or old.shape != values.shape:
        return
    other = np.ones(len(values), bool)
    other[rows] = False
    other &= np.isfinite(old).any(axis=1)
    if not other.any():
        return
    if _of_one_result(made, record):
        values[other] = old[other]
        if coverage is not None and covered is not None:
            coverage[other] = covered[other]
        return
    warnings.warn(
        f"{int(other.sum())} rows of table {table_name!r}, which annotate other shapes, held values of another model, "
        f"other genes or other settings under {key!r}; they are NaN now. Write these shapes again with this model, or "
        "pass another key_added for one of the two.",
        stacklevel=6,
    )


def _earlier(sdata: SpatialData, table_name: str, key: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """Layer, coverage and record of that name: those in memory, else those in the store."""
    table = sdata.tables[table_name]
    column, known = f"{key}_coverage", table.uns.get(NAMESPACE, {})
    if key in table.layers:
        covered = table.obs[column].to_numpy() if column in table.obs else None
        return table.layers[key], covered, known.get(key, {})
    store = None if sdata.path is None else Store(Path(sdata.path))
    if store is None or not store.has("tables", table_name, "layers", key):
        return None, None, {}
    group = zarr.open_group(store.path / "tables" / table_name, mode="r", use_consolidated=False)

    def read(*place: str) -> Any:
        return read_elem(group["/".join(place)]) if store.has("tables", table_name, *place) else None

    return read("layers", key), read("obs", column), read("uns", NAMESPACE, key) or {}


def _of_one_result(made: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether two records are of one model, its genes and its settings; lists come back from a store as arrays."""
    names = {*made, *record} - {*OF_A_SAMPLE}
    return bool(made) and all(np.asarray(made.get(n)).tolist() == np.asarray(record.get(n)).tolist() for n in names)
