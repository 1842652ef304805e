"""What was measured of the genes of a report, and how well they were predicted where it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpredict import _spatialdata
from stpredict.tl.evaluate import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict.tl._report._source import Source

logger = logging.getLogger("stpredict")
MOST_LAYERS = 6  # other predictions that are scored beside this one
SCORES = {
    "pcc_f": "PCC@F", "pcc_s": "PCC@S", "pcc_m": "PCC@M", "heg": "HEG", "hvg": "HVG", "mse": "MSE", "mae": "MAE",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Measured values of some genes in the target of the prediction, or why there are none.

    Parameters
    ----------
    values
        (n_shapes, g) in element order, NaN where nothing was measured or too little; None: no counts.
    why_not
        Why there are none, in words.
    n_used, dropped
        How many shapes are scored, and how many not, by reason.
    """

    values: NDArray[np.float32] | None = None
    why_not: str = ""
    n_used: int = 0
    dropped: dict[str, int] | None = None


@dataclass(frozen=True)
class Scores:
    """A row a prediction and, of the one that is reported, a row a gene; None where nothing could be scored."""

    table: pd.DataFrame | None = None
    genes: pd.DataFrame | None = None
    targeted: int | None = None
    min_counts: float | None = None


def measured(source: Source, genes: Sequence[str], *, layer: str | None, min_counts: float | None) -> Measured:
    """The measured values of the genes that the table has, by the rules of the protocol."""
    if source.table_name is None or source.shapes_key is None:
        return Measured(why_not="the object has no table of counts that annotates shapes")
    sdata, table = source.sdata, source.sdata.tables[source.table_name]
    if layer is None and _spatialdata.measured_shapes(sdata, source.table_name, source.shapes_key) is None:
        return Measured(why_not=f"table {source.table_name!r} holds predictions alone, and no counts")
    what = f"table {source.table_name!r}, " + ("X" if layer is None else f"layer {layer!r}")
    if layer is not None and layer not in table.layers:
        raise _spatialdata.missing_key(
            layer, [n for n in table.layers if n is not None], what="layer", argument="layer"
        )
    try:
        matrix = _spatialdata.matrix_of(table, layer, what=what)
        if source.target == "log1p_cp10k":
            _spatialdata.check_counts(matrix, what=what)
        used, dropped = _spatialdata.usable_rows(sdata, source.spec(layer=layer, min_counts=min_counts))
    except ValueError as error:
        return Measured(why_not=str(error))
    rows, positions = source.rows()
    shape_of = dict(zip(rows.tolist(), positions.tolist(), strict=True))
    columns = table.var_names.get_indexer(list(genes)).astype(np.int64)
    values = np.full((len(_spatialdata.shapes_element(sdata, source.shapes_key)), len(genes)), np.nan, np.float32)
    values[[shape_of[row] for row in used.tolist()]] = _spatialdata.target(
        matrix[used], target=source.target, columns=columns, what=what
    )
    return Measured(values, "", len(used), dropped)


def predicted(source: Source, genes: Sequence[str]) -> NDArray[np.float32] | None:
    """(n_shapes, g) of the predicted layer in element order, NaN where no row is; None without a layer."""
    if source.layer is None or source.shapes_key is None:
        return None
    rows, positions = source.rows()
    columns = source.layer.table.var_names.get_indexer(list(genes))
    layer: Any = source.layer.table.layers[source.key]
    out = np.full((len(_spatialdata.shapes_element(source.sdata, source.shapes_key)), len(genes)), np.nan, np.float32)
    out[positions] = np.asarray(layer[np.ix_(rows, columns)], dtype=np.float32)
    return out


def scores(source: Source, *, layer: str | None, min_counts: float | None) -> Scores:
    """Scores on this object of the prediction and of others in the same table, which may be nulls."""
    assert source.layer is not None and source.table_name is not None
    table = source.layer.table
    others = [
        name
        for name in table.layers.keys()
        if name is not None and name != source.key and name in table.var and np.asarray(table.var[name]).dtype == bool
    ]
    panel = np.asarray(table.var[source.key], dtype=bool)
    same = [name for name in others if np.array_equal(np.asarray(table.var[name], dtype=bool), panel)][:MOST_LAYERS]
    found, summaries = {}, {}
    for name in [source.key, *same]:
        frame = evaluate(
            source.sdata, name, layer=layer, table_name=source.table_name, image_key=source.image_key,
            shapes_key=source.shapes_key, tissue_key=source.scored_tissue, min_counts=min_counts,
        )  # fmt: skip
        found[name], summaries[name] = frame, frame.attrs["summary"].iloc[0]
    own = found[source.key]
    targeted = next(iter(own.attrs["targeted_panel"].values()), None)
    needed = next(iter(own.attrs["min_counts"].values()), None)
    summary = pd.DataFrame(summaries).T[list(SCORES)].rename(columns=SCORES)
    return Scores(summary, own.set_index("gene"), targeted, needed)
