"""Square bins with counts in a toy section, as of Visium HD: one draw of counts at every size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy import sparse
from spatialdata.models import ShapesModel, TableModel

from stpredict._arguments import check_arguments
from stpredict._spatialdata import geometry_of
from stpredict.datasets._toy_section import FIELD_KEY, PROFILES_KEY, TISSUE_KEY, check_number
from stpredict.datasets._toy_tissue import FIELD_MPP
from stpredict.io import coordinate_systems

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

DEPTH_UM = 8  # the bin whose counts are given
ROWS = 32  # of the finest bins that are drawn at a time


def toy_bins(
    sdata: SpatialData, *, bin_um: Sequence[int] = (16, 8, 2), umi_per_8um: float = 15.0, seed: int = 0
) -> None:
    """Add square bins with counts to a toy section, of several sizes that are sums of one another.

    Writes for every size shapes and a table that annotates them, named as spatialdata-io names those of Visium HD:
    shapes["toy_square_008um"] and tables["square_008um"]. Counts are Poisson in squares of 2 um, given the true rate in
    each, and larger bins hold the sums: all sizes measure one draw. Kept are bins whose centre lies on tissue.
    `stp.datasets.toy_truth_shapes` gives the truth of each.

    Parameters
    ----------
    sdata : SpatialData
        A section of `stp.datasets.toy`; it is changed in memory.
    bin_um : Sequence[int], default (16, 8, 2)
        Sides of the bins in micrometres, even numbers.
    umi_per_8um : float, default 15.0
        Depth: the median over bins of 8 um on tissue of the expected counts over all genes, whatever the depth of the
        spots.
    seed : int, default 0
        Of the counts.

    Raises
    ------
    ValueError
        For an object that is no toy section, sides that are not even or larger than the image, and bins that are there.

    Examples
    --------
    >>> stp.datasets.toy_bins(slide, bin_um=(16,))
    >>> sorted(slide.tables)
    ['square_016um', 'table']
    """
    check_arguments(toy_bins, locals())
    check_number("umi_per_8um", umi_per_8um, above=0.0)
    field, profile = _truth(sdata)
    _check_sides(sdata, bin_um, field)
    outline = geometry_of(sdata, TISSUE_KEY).geometry[0]
    mpp = float(sdata.attrs["toy"]["mpp"])
    rate = field.sum(axis=0) * FIELD_MPP**2
    usual = np.median(_summed(rate, DEPTH_UM)[_on_tissue(outline, rate.shape, DEPTH_UM, mpp)])
    counts = _draw(field * FIELD_MPP**2 * (umi_per_8um / usual), profile, np.random.default_rng([seed, 7]))
    for side in bin_um:
        _add(sdata, side, counts, rate.shape, _on_tissue(outline, rate.shape, side, mpp), mpp)


def _truth(sdata: SpatialData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if FIELD_KEY not in sdata.images or PROFILES_KEY not in getattr(sdata.tables.get("table"), "varm", {}):
        raise ValueError(
            f"the object is no toy section: it needs images[{FIELD_KEY!r}] and tables['table'].varm[{PROFILES_KEY!r}]. "
            "Make one with stpredict.datasets.toy."
        )
    return np.asarray(sdata.images[FIELD_KEY].data, np.float64), np.asarray(sdata.tables["table"].varm[PROFILES_KEY])


def _check_sides(sdata: SpatialData, bin_um: Sequence[int], field: NDArray[np.float64]) -> None:
    largest = int(min(field.shape[1:]) * FIELD_MPP)
    wrong = [side for side in bin_um if side < FIELD_MPP or side % FIELD_MPP or side > largest]
    if wrong or not len(bin_um):
        raise ValueError(f"bin_um={list(bin_um)} must be even numbers of micrometres from 2 to {largest}.")
    taken = [name for side in bin_um for name in _names(side) if name in sdata]
    if taken or len(set(bin_um)) < len(bin_um):
        raise ValueError(f"bin_um={list(bin_um)}: {taken[:1] or 'a size'} is there already; name every size once.")


def _names(side: int) -> tuple[str, str]:
    """Of shapes and table; element names are unique over all kinds."""
    return f"toy_square_{side:03}um", f"square_{side:03}um"


def _grid(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Whole bins along y and x."""
    k = int(side / FIELD_MPP)
    return shape[0] // k, shape[1] // k


def _summed(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    (n_y, n_x), k = _grid(values.shape, side), int(side / FIELD_MPP)
    return values[: n_y * k, : n_x * k].reshape(n_y, k, n_x, k).sum(axis=(1, 3))


def _on_tissue(outline: shapely.Geometry, shape: tuple[int, ...], side: int, mpp: float) -> NDArray[np.bool_]:
    """(y, x) whether the centre of a bin lies on the tissue, whose outline is in pixels of the image."""
    y, x = ((np.arange(n) + 0.5) * side / mpp for n in _grid(shape, side))
    return shapely.contains_xy(outline, *np.meshgrid(x, y))


def _draw(amount: NDArray[np.float64], profile: NDArray[np.float64], rng: np.random.Generator) -> sparse.csr_array:
    """(squares of 2 um, genes) counts, row by row of the grid, from RNA per square and component (k, y, x)."""
    parts = []
    for row in range(0, amount.shape[1], ROWS):
        expected = amount[:, row : row + ROWS].reshape(len(amount), -1).T @ profile.T
        parts.append(sparse.csr_array(rng.poisson(expected).astype(np.float32)))
    return sparse.csr_array(sparse.vstack(parts))


def _add(
    sdata: SpatialData, side: int, counts: sparse.csr_array, shape: tuple[int, ...], kept: NDArray[np.bool_], mpp: float
) -> None:
    """Sum counts in the bins that are kept, and add shapes and table."""
    (shapes_key, table_name), k = _names(side), int(side / FIELD_MPP)
    n_y, n_x = kept.shape
    y, x = np.indices(shape)
    inside = (y // k < n_y) & (x // k < n_x)
    of_bin = ((y // k) * n_x + x // k)[inside]
    into = sparse.csr_array(
        (np.ones(len(of_bin), np.float32), (of_bin, np.flatnonzero(inside.ravel()))),
        shape=(kept.size, len(counts.indptr) - 1),
    )
    ids = np.flatnonzero(kept.ravel())
    row, column = np.divmod(ids, n_x)
    px = side / mpp
    frame = GeoDataFrame(
        geometry=shapely.box(column * px, row * px, (column + 1) * px, (row + 1) * px), index=pd.Index(ids)
    )
    obs = pd.DataFrame(
        {"region": pd.Categorical([shapes_key] * len(ids)), "instance_id": ids, "array_row": row, "array_col": column},
        index=[f"{table_name}_{i}" for i in ids],
    )
    table = AnnData(sparse.csr_matrix((into @ counts)[ids]), obs=obs, var=sdata.tables["table"].var[[]].copy())
    table.obsm["spatial"] = np.column_stack([(column + 0.5) * px, (row + 0.5) * px])
    sdata.shapes[shapes_key] = ShapesModel.parse(frame, transformations=coordinate_systems(mpp))
    sdata.tables[table_name] = TableModel.parse(
        table, region=shapes_key, region_key="region", instance_key="instance_id"
    )
