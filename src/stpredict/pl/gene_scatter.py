"""Measured against predicted expression of one gene, spot by spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from stpredict._arguments import check_arguments
from stpredict._spatialdata import resolve_shapes
from stpredict.pl._map import only_image
from stpredict.pl._scored import correlation, correlation_text, pair, scored_rows
from stpredict.pl._values import counts_for_display, find_table, layer_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

DENSE = 2_000  # spots from which points get small and faint


def gene_scatter(
    sdata: SpatialData,
    layer: str,
    *,
    gene: str,
    measured: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    image_key: str | None = None,
    min_counts: float | None = None,
    ax: Axes | None = None,
    color: str = "C0",
) -> Axes:
    """Every scored spot's measured (x) and predicted (y) value of one gene, with the line of equality.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object.
    layer : str
        As in `pl.compare`; only the spots that protocol stp-2 scores are drawn, those of the correlation in the title.
    gene : str
        Name of the gene.
    measured : str, optional
        As in `pl.compare`.
    min_counts : float, optional
        As in `pl.compare`.
    shapes_key, table_name : str, optional
        As in `pl.compare`.
    image_key : str, optional
        The H&E by which spots on the image are told; None: the object's only one.
    ax : Axes, optional
        Where to draw; None makes a figure.
    color : str, default "C0"
        Colour of the points.

    Returns
    -------
    Axes
        The axes, with one range for both directions.

    Raises
    ------
    ValueError
        Where `pl.compare` raises it, and where no spot has both values.

    Examples
    --------
    >>> ax = stp.pl.gene_scatter(slide, "ridge", gene=genes[0], shapes_key="spots")
    >>> ax.get_xlabel()
    'measured (log1p cp10k)'
    """
    check_arguments(gene_scatter, locals())
    table_name = find_table(sdata, table_name, shapes_key)
    table = sdata.tables[table_name]
    shapes_key = resolve_shapes(sdata, shapes_key, table_name=table_name)
    min_counts = counts_for_display(sdata, image_key, shapes_key, table_name, min_counts)
    true, pred = pair(table, layer, gene, measured_layer=measured, table_name=table_name, min_counts=min_counts)
    rows = scored_rows(
        sdata, image_key=only_image(sdata, image_key), shapes_key=shapes_key, table_name=table_name,
        measured_layer=measured, min_counts=min_counts,
    )  # fmt: skip
    both = rows[np.isfinite(true[rows]) & np.isfinite(pred[rows])]
    if len(both) == 0:
        raise ValueError(f"no scored spot has both a measured and a predicted value of {gene!r}.")
    ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")[1] if ax is None else ax
    x, y = true[both], pred[both]
    faint = len(both) > DENSE
    ax.scatter(x, y, s=4 if faint else 14, alpha=0.3 if faint else 0.7, color=color, linewidths=0, rasterized=faint)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 0.5
    ax.axline((low, low), slope=1, color="0.6", linewidth=1, linestyle="--", zorder=0)
    ax.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    ax.set(xlabel=f"measured ({layer_unit(table, measured)})", ylabel=f"{layer} ({layer_unit(table, layer)})")
    ax.set_title(f"{gene}\n{correlation_text(*correlation(x, y))}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
