"""Where predicted values are written: a layer of an existing table, or a new table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _spatialdata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Destination:
    """A table and a key in it; `columns` are the table's columns of the genes, None for a new table."""

    shapes_key: str
    table_name: str
    key: str
    columns: NDArray[np.int64] | None


def resolve_destination(
    names: _spatialdata.NewNames,
    genes: Sequence[str],
    *,
    key: str,
    shapes_key: str | None,
    table_name: str | None,
    table_added: str | None,
    tissue_key: str | None,
    spread: bool = False,
) -> Destination:
    """Decide, register the names that are added, and check everything else that can be checked before the work.

    Raises ValueError for tables that do not annotate the shapes or are several, keys that are taken, genes the table
    lacks, layers that are too large, and a new table in a store that lacks the shapes.
    """
    sdata = names.sdata
    shapes_key = _spatialdata.resolve_shapes(sdata, shapes_key, table_name=table_name, tissue_key=tissue_key)
    if table_name is not None and table_added is not None:
        raise ValueError(
            f"table_name={table_name!r} asks for a layer of a table and table_added={table_added!r} for a new table; "
            "pass one of them."
        )
    existing = None if table_added else existing_table(sdata, shapes_key, table_name)
    if existing is None:
        new = table_added or f"{shapes_key}_{key}"
        names.check_stored(shapes_key)
        names.element("tables", new)
        _spatialdata.check_table_size(len(_spatialdata.shapes_element(sdata, shapes_key)), len(genes))
        return Destination(shapes_key, new, key, None)
    _spatialdata.table_rows(sdata, existing, shapes_key)
    names.layer(existing, key, spread=spread)
    table = sdata.tables[existing]
    columns, missing = _spatialdata.match_genes(genes, list(table.var_names), what=f"table {existing!r}", var=table.var)
    if missing:
        raise ValueError(
            f"table {existing!r} has {len(genes) - len(missing)} of the {len(genes)} genes to predict; it lacks "
            f"{missing[:5]} ({len(missing)}). Pass table_added='...' to write all of them as a new table, or genes= "
            "with those in both."
        )
    _spatialdata.check_layer_size(table.n_obs, (1 + spread) * table.n_vars, (1 + spread) * len(genes))
    return Destination(shapes_key, existing, key, columns)


def existing_table(sdata: SpatialData, shapes_key: str, table_name: str | None) -> str | None:
    """The table that gets a layer: the one that is named, or the only one of these shapes; None where they have none.

    Raises ValueError for a name that is not there, and where the shapes have several tables.
    """
    or_else = ", or write a new one with table_added="
    return _spatialdata.resolve_table(sdata, table_name, shapes_key=shapes_key, or_else=or_else)


def table_change(
    sdata: SpatialData,
    destination: Destination,
    *,
    values: NDArray[np.float32],
    share: NDArray[np.float64],
    genes: Sequence[str],
    gene_reliability: NDArray[np.float64] | None,
    record: Mapping[str, Any],
    held_out: Mapping[str, NDArray[np.float64]] | None = None,
    spread: NDArray[np.float32] | None = None,
    domain: NDArray[np.float64] | None = None,
) -> _spatialdata.Change:
    """The change that writes values (n, g) in element order, with covered shares (n,), to their destination.

    Parameters
    ----------
    gene_reliability, held_out
        (g,) correlation on held-out data, and what else is known of each gene by name.
    spread
        (n, g) standard deviation over the members of an ensemble.
    domain
        (n,) percentile among left-out training shapes.
    """
    if destination.columns is not None:
        join = _spatialdata.table_rows(sdata, destination.table_name, destination.shapes_key)
        return _spatialdata.layer(
            sdata, destination.table_name, destination.key, values=values, join=join, columns=destination.columns,
            coverage=share, val_pcc=gene_reliability, held_out=held_out, spread=spread, domain=domain,
            record=record,
        )  # fmt: skip
    shapes = _spatialdata.shapes_element(sdata, destination.shapes_key)
    centroids = _centroids(sdata, destination.shapes_key)
    table = _spatialdata.new_table(
        values, key=destination.key, genes=genes, region=destination.shapes_key, instance_ids=shapes.index.to_numpy(),
        centroids=centroids, coverage=share, val_pcc=gene_reliability, held_out=held_out, spread=spread, domain=domain,
        record=record,
    )  # fmt: skip
    return _spatialdata.TableElement(destination.table_name, destination.key, table, record=record)


def _centroids(sdata: SpatialData, shapes_key: str) -> NDArray[np.float64]:
    """(n, 2) x and y in "global", or in the first coordinate system where there is no such one."""
    known = _spatialdata.affines(sdata, shapes_key)
    affine = known["global"] if "global" in known else next(iter(known.values()))
    centre = _spatialdata.shapes_element(sdata, shapes_key).geometry.centroid
    return np.column_stack([centre.x, centre.y]) @ affine[:2, :2].T + affine[:2, 2]
