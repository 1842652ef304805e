"""A predicted layer of a table: where it is, of which genes, and what is known of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _spatialdata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


@dataclass(frozen=True)
class PredictedLayer:
    """A layer that `stp.tl.predict` wrote; `columns` (g,) are those of the genes that it was predicted for."""

    table: AnnData
    table_name: str
    key: str
    columns: NDArray[np.int64]

    @property
    def genes(self) -> list[str]:
        """Names of the predicted genes, in the order of the table."""
        return [str(name) for name in self.table.var_names[self.columns]]

    @property
    def record(self) -> Mapping[str, Any]:
        """The provenance; empty where there is none."""
        return self.table.uns.get("stpredict", {}).get(self.key, {})

    def values(self, name: str) -> NDArray[np.float32] | None:
        """(n_obs, g) of the layer of that name, None where there is none."""
        if name not in self.table.layers:
            return None
        values: Any = self.table.layers[name]
        return np.asarray(values[:, self.columns], dtype=np.float32)

    def of_genes(self, name: str) -> NDArray[np.float64]:
        """(g,) of the column of var of that name; NaN where there is none."""
        if name not in self.table.var:
            return np.full(len(self.columns), np.nan)
        return np.asarray(self.table.var[name], dtype=np.float64)[self.columns]


def predicted_layer(
    sdata: SpatialData, key: str, table_name: str | None, genes: Sequence[str] | None = None
) -> PredictedLayer:
    """The predicted layer of a key, for all of its genes or for some, in the order of the table.

    Raises
    ------
    ValueError
        For a table that is not there, a layer that is in no table or in several, and genes that were not predicted.
    """
    if table_name is not None and table_name not in sdata.tables:
        raise _spatialdata.missing_key(table_name, sdata.tables, what="table", argument="table_name")
    names = list(sdata.tables) if table_name is None else [table_name]
    there = [name for name in names if key in sdata.tables[name].layers and key in sdata.tables[name].var]
    if len(there) > 1:
        raise ValueError(f"{key!r} is a predicted layer of several tables: {there}. Choose one with table_name=.")
    if not there:
        known = {layer for name in names for layer in sdata.tables[name].layers if layer in sdata.tables[name].var}
        raise _spatialdata.missing_key(key, known, what="predicted layer", argument="key")
    table = sdata.tables[there[0]]
    columns = np.flatnonzero(table.var[key].to_numpy(dtype=bool))
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        lacking = sorted(set(wanted) - set(table.var_names[columns]))
        if lacking:
            raise ValueError(f"genes that {key!r} was not predicted for: {lacking[:5]} ({len(lacking)}).")
        columns = columns[np.isin(table.var_names[columns], wanted)]
    return PredictedLayer(table, there[0], key, columns)
