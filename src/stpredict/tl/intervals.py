"""Intervals around predicted values, as wide as the errors on held-out data were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpredict import _spatialdata
from stpredict._arguments import check_arguments
from stpredict._card import ERROR_LEVELS
from stpredict._messages import warn
from stpredict.tl._predicted import PredictedLayer, predicted_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

OTHER_SIZE = 1.5  # times larger or smaller in area: the counts behind a value, and so its noise, are of another order


def intervals(
    sdata: SpatialData | str | Path,
    key: str,
    *,
    level: float = 0.8,
    genes: str | Sequence[str] | None = None,
    table_name: str | None = None,
    image_key: str | None = None,
    mpp: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lower and upper ends of intervals that a new measurement of a shape falls into, at a level.

    A value, and on both sides of it what the errors of its gene on held-out data did not exceed at that level
    (``var[f"{key}_val_error_80"]``, from the model's card). The held-out data are what the model was validated by in
    `stp.tl.train`: sections, or spatial blocks of the training sections.

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store, into which `stp.tl.predict` has written `key`.
    key : str
        Name of the predicted layer.
    level : float, default 0.8
        Share of measurements that the interval shall hold: 0.8 or 0.9.
    genes : str | Sequence[str], optional
        Which of the predicted genes; None: all.
    table_name : str, optional
        Table with the layer; None: the only one that has it.
    image_key : str, optional
        The H&E image, for the scale; None: the only one.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image; None: found as for `stp.tl.predict`.

    Returns
    -------
    tuple[DataFrame, DataFrame]
        Lower and upper ends, (n_obs, n_genes) in units of the target. NaN where nothing was predicted, for genes
        without held-out errors, and for shapes that are more than 1.5 times larger or smaller in area than those whose
        errors are known, which a warning says: the noise of a measurement goes by its counts.

    Raises
    ------
    ValueError
        For a layer that is not there, a level whose errors are not kept, a model without held-out errors, genes that
        were not predicted, and an image whose scale is not known.
    FileNotFoundError
        For a store that is not there.

    Notes
    -----
    Split conformal prediction. The level holds on average over shapes, for each gene by itself, where the shapes are
    exchangeable with the held-out ones: tissue, stain, scanner and assay of the same kind. Nothing is promised for
    other tissue, nor for a single shape, and spots of one section go up and down together: on a section the share may
    lie well below or above (benchmarks/README.md has four). Errors on blocks of the training sections are smaller than
    those on a new section.

    References
    ----------
    Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018.

    Examples
    --------
    >>> low, high = stp.tl.intervals(slide, "ridge", genes=genes[0])
    >>> bool((low < high).all(axis=None))
    True
    """
    check_arguments(intervals, locals())
    names = {share: name for name, share in ERROR_LEVELS.items()}
    if level not in names:
        raise ValueError(f"level={level:g}: errors are kept at the levels {sorted(names)}. Choose one of them.")
    sdata = _spatialdata.opened(sdata)
    layer = predicted_layer(sdata, key, table_name, genes)
    width = layer.of_genes(f"{key}_val_{names[level]}")
    if not np.isfinite(width).any():
        raise ValueError(
            f"no held-out errors are known of {key!r}: its model was trained without validation (val=0), on too few "
            "held-out shapes, or by an older version. Train it again with val=, best as sections, and predict anew."
        )
    values = layer.values(key)
    assert values is not None
    values[_of_another_size(sdata, layer, image_key, mpp)] = np.nan
    low, high = values - width, values + width
    if layer.record.get("target") == "log1p_cp10k":
        low = np.maximum(low, 0.0)  # no measurement lies below
    index, names_of_genes = layer.table.obs_names, layer.genes
    return pd.DataFrame(low, index, names_of_genes), pd.DataFrame(high, index, names_of_genes)


def _of_another_size(
    sdata: SpatialData, layer: PredictedLayer, image_key: str | None, mpp: float | None
) -> NDArray[np.bool_]:
    """(n_obs,) rows whose shapes are not of the size that errors are known of; a warning says how many."""
    sizes = np.asarray(layer.record.get("held_out_um2", ()), dtype=np.float64)
    other = np.zeros(layer.table.n_obs, bool)
    if len(sizes) != 2:
        return other
    found = []
    for shapes_key in _spatialdata.regions(layer.table):
        spec = _spatialdata.SectionSpec(
            image_key=image_key, shapes_key=shapes_key, table_name=layer.table_name, mpp=mpp
        )
        rows, positions = _spatialdata.table_rows(sdata, layer.table_name, shapes_key)
        area = _spatialdata.areas_um2(sdata, spec)[positions]
        other[rows] = (area < sizes[0] / OTHER_SIZE) | (area > sizes[1] * OTHER_SIZE)
        found.append(area)
    if other.any():
        warn(
            f"{int(other.sum())} of {len(other)} shapes have no interval: their median area is "
            f"{np.median(np.concatenate(found)):.4g} um2, and the errors of {layer.key!r} are known of shapes of "
            f"{sizes[0]:.4g} to {sizes[1]:.4g} um2. Train with held-out shapes of this size.",
        )
    return other
