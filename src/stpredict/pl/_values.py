"""One gene's numbers: from a raster, a layer, or raw counts by the protocol; and what their unit is called."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stpredict._spatialdata import (
    SectionSpec,
    check_counts,
    matrix_of,
    missing_key,
    needed_counts,
    resolve_shapes,
    resolve_table,
    shapes_element,
    table_rows,
    totals,
)
from stpredict.metrics import log1p_cp10k

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

UNITS = {"log1p_cp10k": "log1p cp10k", "as_is": "units of the training layer"}


def gene_position(gene: str, names: Sequence[str], *, what: str) -> int:
    """Where a gene stands among names; else an error with the closest ones, for there may be thousands."""
    found = [i for i, name in enumerate(names) if name == gene]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{what} has gene {gene!r} {len(found)} times; make its names unique.")
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(str(name).casefold(), str(name))
    close = [folded[name] for name in get_close_matches(str(gene).casefold(), folded, n=3)]
    hint = f"Closest: {close}." if close else f"It begins with {[str(name) for name in names[:5]]}."
    raise ValueError(f"{what} has no gene {gene!r} among its {len(names)}. {hint}")


def find_table(sdata: SpatialData, table_name: str | None, shapes_key: str | None) -> str:
    """The name of the table: the one given, else the only one, else the one that annotates the shapes.

    Raises ValueError for a name that is not there (with the closest ones), and where several tables could be meant.
    """
    if table_name is not None:
        if table_name not in sdata.tables:
            raise missing_key(table_name, sdata.tables, what="table", argument="table_name")
        return table_name
    if not sdata.tables:
        raise ValueError("the object has no table to show values of; stp.tl.predict writes one.")
    if len(sdata.tables) == 1:
        return str(next(iter(sdata.tables)))
    shapes_key = resolve_shapes(sdata, shapes_key)
    found = resolve_table(sdata, None, shapes_key=shapes_key)
    if found is None:
        raise ValueError(
            f"none of the tables {sorted(sdata.tables)} annotates the shapes {shapes_key!r}. Choose one with "
            "table_name=."
        )
    return found


def predicted(table: AnnData, layer: str, gene: str, *, table_name: str) -> NDArray[np.float64]:
    """(n_obs,) of one gene in a layer; NaN where there is no value.

    Raises ValueError for a layer or a gene that is not there, and for a gene that the layer was not predicted for.
    """
    what = f"table {table_name!r}"
    values = matrix_of(table, layer, what=what)
    column = _column(values, gene_position(gene, list(table.var_names), what=what))
    if not np.isfinite(column).any():
        panel = table.var_names[table.var[layer]] if layer in table.var and table.var[layer].dtype == bool else [gene]
        if gene not in panel:
            gene_position(gene, list(panel), what=f"the panel of layer {layer!r}")
        raise ValueError(f"layer {layer!r} of {what} has no value of {gene!r}: NaN in all {len(column)} rows.")
    return column


def measured(
    table: AnnData, gene: str, *, layer: str | None, table_name: str, min_counts: float
) -> NDArray[np.float64]:
    """(n_obs,) of one gene as it was measured.

    Parameters
    ----------
    layer : str | None
        None: log1p cp10k of the raw counts in X, NaN in rows below `min_counts`; else that layer as it stands.

    Raises
    ------
    ValueError
        For a gene or layer that is not there, for an X that is not raw counts, and where every row is below
        `min_counts`.
    """
    what = f"table {table_name!r}"
    if layer is not None:
        return predicted(table, layer, gene, table_name=table_name)
    counts = matrix_of(table, None, what=what)
    position = gene_position(gene, list(table.var_names), what=what)
    try:
        check_counts(counts, what=f"X of {what}")
    except ValueError as error:
        raise ValueError(
            f"X of {what} does not hold raw counts, so the measured log1p cp10k cannot be computed. Name a layer with "
            "the measured values, in the target of the prediction, by measured=."
        ) from error
    depth = totals(counts)
    deep = depth >= max(min_counts, 1)
    if not deep.any():
        raise ValueError(
            f"no row of {what} has {min_counts:g} counts (the deepest has {depth.max():g}); normalised values below "
            "that are noise. Lower min_counts= to see them all the same."
        )
    values = np.full(len(depth), np.nan)
    values[deep] = log1p_cp10k(_column(counts, position)[deep, None], depth[deep])[:, 0]
    return values


def counts_for_display(
    sdata: SpatialData, image_key: str | None, shapes_key: str, table_name: str, min_counts: float | None = None
) -> float:
    """How many counts a spot needs to be shown as measured: `min_counts`, else by the area of the shapes."""
    spec = SectionSpec(image_key=image_key, shapes_key=shapes_key, table_name=table_name, min_counts=min_counts)
    return needed_counts(sdata, spec)


def on_shapes(
    sdata: SpatialData, values: NDArray[np.float64], *, table_name: str, shapes_key: str
) -> NDArray[np.float64]:
    """Values of table rows (n_obs,) in the order of the shapes (n_shapes,), by instance id; NaN where no row is."""
    rows, positions = table_rows(sdata, table_name, shapes_key)
    out = np.full(len(shapes_element(sdata, shapes_key)), np.nan)
    out[positions] = values[rows]
    return out


def layer_unit(table: AnnData, layer: str | None) -> str:
    """What a colour bar calls the values of a layer; None: of the measured target by the protocol."""
    if layer is None:
        return UNITS["log1p_cp10k"]
    return _unit(table.uns.get("stpredict", {}).get(layer, {}), of=f"layer {layer!r}")


def raster_unit(sdata: SpatialData, raster_key: str) -> str:
    """What a colour bar calls the values of a raster, which are kept before the model's link."""
    provenance = sdata.attrs.get("stpredict", {}).get(f"images/{raster_key}", {})
    unit, link = _unit(provenance, of=f"raster {raster_key!r}"), provenance.get("link", "identity")
    return unit if link == "identity" else f"{unit}, before {link}"


def check_comparable(table: AnnData, layer: str, measured_layer: str | None) -> None:
    """Raise ValueError where the measurement would be in another target than the prediction says of itself."""
    target = table.uns.get("stpredict", {}).get(layer, {}).get("target", "log1p_cp10k")
    if measured_layer is None and target != "log1p_cp10k":
        raise ValueError(
            f"layer {layer!r} predicts target {target!r}, which log1p cp10k of X cannot be compared with. Name the "
            "layer with the measured values by measured=."
        )


def _unit(provenance: Any, *, of: str) -> str:
    target = provenance.get("target")
    return f"{of}, unit not recorded" if target is None else UNITS.get(target, str(target))


def _column(values: Any, position: int) -> NDArray[np.float64]:
    column = values[:, [position]]
    dense = column.toarray() if sparse.issparse(column) else np.asarray(column)
    return dense.astype(np.float64).ravel()
