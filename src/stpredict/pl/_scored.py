"""Measured and predicted values of one gene, and their correlation over the spots that the protocol scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stpredict._spatialdata import SectionSpec, table_rows, usable_rows
from stpredict.metrics import pcc
from stpredict.pl._values import check_comparable, measured, predicted

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def pair(
    table: AnnData, layer: str, gene: str, *, measured_layer: str | None, table_name: str, min_counts: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One gene as it was measured and as it was predicted, (n_obs,) each, NaN where there is no value."""
    check_comparable(table, layer, measured_layer)
    return (
        measured(table, gene, layer=measured_layer, table_name=table_name, min_counts=min_counts),
        predicted(table, layer, gene, table_name=table_name),
    )


def scored_rows(
    sdata: SpatialData,
    *,
    image_key: str | None,
    shapes_key: str,
    table_name: str,
    measured_layer: str | None,
    min_counts: float,
) -> NDArray[np.int64]:
    """The rows that protocol stp-2 scores: wholly on the image, on tissue where the table says so, with enough counts.

    Without an image (None), all rows of these shapes, whose depth `pair` has judged already.
    """
    if image_key is None:
        return table_rows(sdata, table_name, shapes_key)[0]
    rows, _ = usable_rows(
        sdata,
        SectionSpec(
            image_key=image_key,
            shapes_key=shapes_key,
            table_name=table_name,
            layer=measured_layer,
            target="log1p_cp10k" if measured_layer is None else "as_is",
            min_counts=min_counts,
        ),
    )
    return rows


def correlation(true: NDArray[np.float64], pred: NDArray[np.float64]) -> tuple[float, int]:
    """Pearson correlation over the rows where both are finite, and how many those are; NaN where there is none."""
    both = np.isfinite(true) & np.isfinite(pred)
    n = int(both.sum())
    return (float(pcc(pred[both, None], true[both, None])[0]) if n > 1 else np.nan), n


def correlation_text(r: float, n: int) -> str:
    """The correlation for a title, with how many spots are behind it."""
    return f"r = {r:.2f}, {n:,} spots" if np.isfinite(r) else f"r not defined, {n:,} spots"
