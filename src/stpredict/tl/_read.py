"""The read-out: channels of a stored raster inside shapes, every pixel weighted by the area that a shape covers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _coverage, _sdata
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

STRIP_CELLS = 2**22  # cells of the raster that are looked at together
VALUE_BYTES = 2**29  # of a strip's genes that are held as float64


def raster_of(sdata: SpatialData, raster_key: str, *, argument: str = "raster_key") -> Any:
    """The (c, y, x) raster of that name; else an error with the closest names, for the argument it was given by."""
    if raster_key not in sdata.images:
        raise _sdata.missing_key(raster_key, sdata.images, what="image", argument=argument)
    return _sdata.finest(sdata.images[raster_key])


def read_inside(
    sdata: SpatialData,
    raster_key: str,
    shapes_key: str,
    channels: NDArray[np.int64],
    *,
    stat: Literal["mean", "sum"],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Channels of a raster read inside shapes, in element order, strip by strip and some channels at a time.

    channels
        (g,) positions on the raster's `c`.
    stat
        "mean": the area-weighted mean; "sum": the integral, values x square pixels of the raster. Pixels that are NaN
        count as not covered.

    Returns values (n, g), NaN where nothing is covered, and the covered share (n,) of each shape's area in [0, 1].

    Raises ValueError for shapes that all lie off the raster.
    """
    raster = raster_of(sdata, raster_key)
    geometry, radius, area, _ = _sdata.place(sdata, raster_key, shapes_key, tissue_key=None)
    _sdata.check_some_inside(geometry, shapes_key=shapes_key, image_key=raster_key, tissue_key=None)
    sums, areas = _sums(raster, channels, geometry, radius)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(areas > 0, sums / areas if stat == "mean" else sums, np.nan)
    return values, np.clip(areas.max(axis=1, initial=0.0) / area, 0.0, 1.0)


def warn_of_empty(n_empty: int, n_shapes: int, *, where: str, drop: str, stacklevel: int) -> None:
    """One warning, where shapes have no value: how many, and how to drop their rows."""
    if n_empty:
        warnings.warn(
            f"{n_empty} of {n_shapes} shapes have nothing on the {where}, so their values are NaN. Drop them before "
            f"scanpy or squidpy: {drop}.",
            stacklevel=stacklevel + 1,
        )


def _sums(
    raster: Any, channels: NDArray[np.int64], geometry: NDArray[np.object_], radius: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums (n, g) of values x covered area, and the areas (n, g) of covered pixels that have a value."""
    height, width = raster.sizes["y"], raster.sizes["x"]
    sums, areas = np.zeros((len(geometry), len(channels))), np.zeros((len(geometry), len(channels)))
    bounds = _coverage.bounds(geometry, radius)
    rows = max(1, STRIP_CELLS // width)
    for y in range(0, height, rows):
        strip = Window(y, 0, min(rows, height - y), width)
        hit = np.flatnonzero((bounds[:, 0] < strip.y1) & (bounds[:, 2] > strip.y0))
        if len(hit):
            covered = _coverage.coverage(geometry[hit], radius[hit], strip)
            _add(raster, channels, strip, covered, sums, areas, hit)
    return sums, areas


def _add(
    raster: Any,
    channels: NDArray[np.int64],
    strip: Window,
    covered: Any,
    sums: NDArray[np.float64],
    areas: NDArray[np.float64],
    hit: NDArray[np.int64],
) -> None:
    n_cells = strip.height * strip.width
    step = max(1, VALUE_BYTES // (8 * n_cells))
    for k in range(0, len(channels), step):
        block = raster.data[channels[k : k + step], strip.y0 : strip.y1].compute()
        cells = block.reshape(len(block), n_cells).T.astype(np.float64)  # (cells, g)
        empty = np.isnan(cells)
        sums[hit, k : k + step] += covered @ np.where(empty, 0.0, cells)
        areas[hit, k : k + step] += covered @ (~empty).astype(np.float64)
