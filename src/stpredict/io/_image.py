"""A multiscale, chunked SpatialData image of RGB pixels, and coordinate systems in micrometres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation, set_transformation
from spatialdata.transformations import Sequence as Chain
from spatialdata.transformations.transformations import BaseTransformation
from xarray import DataArray, Dataset, DataTree

CHUNKS = (3, 1024, 1024)
COARSEST_PX = 1024  # the pyramid ends with the first level that fits into one chunk
MICROMETERS = "micrometers"


def coordinate_systems(mpp: float | None) -> dict[str, BaseTransformation]:
    """Pixels as "global" and, where the scale `mpp` (um per pixel) is known, micrometres as "micrometers"."""
    systems: dict[str, BaseTransformation] = {"global": Identity()}
    if mpp is not None:
        systems[MICROMETERS] = Scale([mpp, mpp], axes=("x", "y"))
    return systems


def add_micrometers(element: Any, *, system: str, unit_um: float) -> None:
    """Map an element to "micrometers" as well, through a coordinate system of which one unit is `unit_um`."""
    to_system: Any = get_transformation(element, system)
    scale = Scale([unit_um, unit_um], axes=("x", "y"))
    set_transformation(element, scale if to_system == Identity() else Chain([to_system, scale]), MICROMETERS)


def image_element(levels: Sequence[da.Array], *, mpp: float | None) -> DataTree:
    """A multiscale image element, dims (c, y, x), channels r, g, b, in chunks of 3 x 1024 x 1024.

    Parameters
    ----------
    levels : Sequence[da.Array]
        (3, y, x) uint8, finest first; coarser levels are added by halving, at least one, until one fits into a chunk.
    mpp : float | None
        Micrometres per pixel of the finest level; None leaves out the micrometre coordinate system.
    """
    pyramid = [level.rechunk(CHUNKS) for level in levels]
    # one level alone would come back from a store as no pyramid
    while min(pyramid[-1].shape[1:]) > 1 and (len(pyramid) == 1 or max(pyramid[-1].shape[1:]) > COARSEST_PX):
        pyramid.append(_halve(pyramid[-1]))
    full = pyramid[0].shape
    tree = DataTree.from_dict({f"scale{i}": Dataset({"image": _labelled(p, full)}) for i, p in enumerate(pyramid)})
    set_transformation(tree, coordinate_systems(mpp), set_all=True)
    Image2DModel().validate(tree)
    return tree


def _labelled(pixels: da.Array, full: tuple[int, ...]) -> DataArray:
    y, x = ((np.arange(n) + 0.5) * (m / n) for n, m in zip(pixels.shape[1:], full[1:], strict=True))
    return DataArray(pixels, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"], "y": y, "x": x}, name="image")


def _halve(pixels: da.Array) -> da.Array:
    """Means of 2 x 2 pixels, rounded; an odd last row or column is left out."""
    means = da.coarsen(_mean_of_four, pixels, {1: 2, 2: 2}, trim_excess=True)
    return means.rechunk(CHUNKS)


def _mean_of_four(block: NDArray[np.uint8], axis: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    # dask asks once without an axis, for the dtype
    total = block.sum(axis=axis, dtype=np.uint16)
    return np.asarray((total + 2) // 4).astype(np.uint8)
