"""The outline of a label mask as exact polygons: every pixel a unit square, holes kept.

spatialdata.to_polygons is not used: it cuts pixel corners off, is half a pixel off, and fills holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

ROWS = 512  # read at a time


def outline(labels: Any) -> BaseGeometry:
    """The area of all pixels that are not 0, as one Polygon or MultiPolygon in (x, y); empty where there are none.

    labels
        (y, x) integers, numpy or dask: read in bands of rows. Pixel (i, j) covers [j, j + 1) x [i, i + 1).
    """
    bands = [_band(np.asarray(labels[y : y + ROWS]) != 0, y) for y in range(0, labels.shape[0], ROWS)]
    return shapely.simplify(shapely.union_all(bands), 0.0)


def _band(mask: NDArray[np.bool_], y: int) -> BaseGeometry:
    """The pixels of a band of rows that begins at row y."""
    step = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(step > 0)
    _, stop = np.nonzero(step < 0)
    run, row, height = _stack(row, start, stop)
    return shapely.union_all(shapely.box(start[run], y + row, stop[run], y + row + height))


def _stack(
    row: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Equal runs in rows that follow each other, as one box each: an index of its run, its first row, its height."""
    order = np.lexsort((row, stop, start))
    row, start, stop = row[order], start[order], stop[order]
    same = (np.diff(start) == 0) & (np.diff(stop) == 0) & (np.diff(row) == 1)
    first = np.flatnonzero(np.concatenate([[True], ~same])) if len(row) else np.empty(0, dtype=np.int64)
    return order[first], row[first], np.diff(np.append(first, len(row)))
