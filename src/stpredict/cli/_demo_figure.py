"""The demo's figure: the H&E, the true and the predicted map of one gene, and its spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from stpredict import pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def figure(test: SpatialData, *, gene: str) -> Figure:
    """Six panels: H&E, true and predicted map of a gene; its spots as measured, as predicted, and one against another.

    Parameters
    ----------
    test : SpatialData
        A toy section with images["pixnet"], images["truth"] and the layer "pixnet".
    gene : str
        One that was predicted.
    """
    drawn = Figure(figsize=(15, 9.6), layout="constrained")
    (tissue, truth, predicted), (measured, spots, scatter) = drawn.subplots(2, 3)
    _histology(test, tissue)
    values = test.images["truth"].sel(c=gene).to_numpy().astype(np.float64)
    low, high = np.nanpercentile(values, (1, 99))
    for ax, key, title in ((truth, "truth", "truth at every pixel"), (predicted, "pixnet", "PixNet's map")):
        pl.raster(test, key, gene=gene, image_key="image", ax=ax, alpha=1.0, vmin=float(low), vmax=float(high))
        ax.set_title(f"{gene}\n{title}")
    for ax in (tissue, predicted):
        ax.set(xlim=truth.get_xlim(), ylim=truth.get_ylim())
    pl.compare(test, "pixnet", gene=gene, shapes_key="spots", image_key="image", axes=[measured, spots])
    pl.gene_scatter(test, "pixnet", gene=gene, shapes_key="spots", image_key="image", ax=scatter)
    return drawn


def _histology(test: SpatialData, ax: Axes) -> None:
    whole, *coarser = (next(iter(level.data_vars.values())) for level in test.images["image"].values())
    drawn = coarser[0] if coarser else whole
    ax.imshow(drawn.transpose("y", "x", "c").to_numpy(), extent=(0, whole.sizes["x"], whole.sizes["y"], 0))
    ax.set(title="the section that was predicted\nH&E, simulated", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
