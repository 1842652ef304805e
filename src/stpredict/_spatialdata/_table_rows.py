"""Rows of a table and shapes of an element, joined by instance id, never by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from spatialdata.models import get_table_keys

from stpredict._spatialdata._elements import missing_key, regions
from stpredict._spatialdata._shapes import shapes_element

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def table_rows(sdata: SpatialData, table_name: str, shapes_key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of a table annotate an element, and the position of each one's shape in it.

    Returns rows (m,) of the table in rising order, and positions (m,) in the element: row `rows[k]` belongs to shape
    `positions[k]`. Rows of other regions are left out; shapes that no row annotates are allowed.

    Raises ValueError for a table that annotates nothing or other shapes, for instance ids that occur twice in the
    table or in the element, and for ids that the element lacks.
    """
    if table_name not in sdata.tables:
        raise missing_key(table_name, sdata.tables, what="table", argument="table_name")
    table = sdata.tables[table_name]
    rows = _rows_of_region(table, table_name, shapes_key)
    _, _, instance_key = get_table_keys(table)
    wanted, existing = _comparable(
        pd.Index(table.obs[instance_key].iloc[rows]), shapes_element(sdata, shapes_key).index
    )
    _check_unique(existing, f"shapes {shapes_key!r}")
    _check_unique(wanted, f"table {table_name!r}, obs[{instance_key!r}]")
    positions = existing.get_indexer(wanted).astype(np.int64)
    if (positions < 0).any():
        lost = wanted[positions < 0]
        raise ValueError(
            f"{len(lost)} of {len(wanted)} rows of table {table_name!r} name instance ids that shapes "
            f"{shapes_key!r} lack: {lost[:5].tolist()}; there are {existing[:5].tolist()} ... "
            f"Correct obs[{instance_key!r}] or drop those rows."
        )
    return rows, positions


def _rows_of_region(table: AnnData, table_name: str, shapes_key: str) -> NDArray[np.int64]:
    annotated = regions(table)
    if shapes_key not in annotated:
        said = f"annotates {annotated}, not {shapes_key!r}" if annotated else "annotates no shapes"
        raise ValueError(
            f"table {table_name!r} {said}. Pass shapes_key= or table_name= so that they belong together, or "
            "set the region with spatialdata.models.TableModel.parse."
        )
    _, region_key, instance_key = get_table_keys(table)
    absent = [key for key in (region_key, instance_key) if key not in table.obs]
    if absent:
        raise ValueError(
            f"table {table_name!r} says that obs[{absent[0]!r}] names its shapes, but has no such column; "
            f"there are {list(table.obs.columns)[:10]}."
        )
    rows = np.flatnonzero(table.obs[region_key].astype(str).to_numpy() == shapes_key)
    if len(rows) == 0:
        raise ValueError(f"table {table_name!r} has no row whose obs[{region_key!r}] is {shapes_key!r}.")
    if table.obs[instance_key].iloc[rows].isna().any():
        raise ValueError(f"table {table_name!r} has rows without an instance id in obs[{instance_key!r}].")
    return rows


def _comparable(left: pd.Index, right: pd.Index) -> tuple[pd.Index, pd.Index]:
    """Both as they are where their types agree, else both as text: ids 7 and "7" are one shape."""
    plain = [_plain(left), _plain(right)]
    if plain[0].inferred_type != plain[1].inferred_type:
        plain = [index.astype(str) for index in plain]
    return plain[0], plain[1]


def _plain(index: pd.Index) -> pd.Index:
    if isinstance(index.dtype, pd.CategoricalDtype):
        index = pd.Index(index.astype(index.categories.dtype))
    if pd.api.types.is_float_dtype(index) and (index == np.floor(index)).all():
        return index.astype(np.int64)
    return index.astype(np.int64) if pd.api.types.is_integer_dtype(index) else index.astype(object)


def _check_unique(index: pd.Index, what: str) -> None:
    if not index.is_unique:
        twice = index[index.duplicated()].unique()
        raise ValueError(
            f"{what}: instance ids are not unique: {twice[:5].tolist()} ({len(twice)} occur more than "
            "once). A value could not be given to one shape; make them unique."
        )
