"""Upright rectangles, such as the bins of a regular grid: their coverage is a product of two lengths."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

SAME_AREA = 1e-12  # of the area; rounding leaves 1e-15


def upright(geometry: NDArray[np.object_], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each polygon fills its bounds (n, 4)."""
    y0, x0, y1, x1 = bounds.T
    box = (y1 - y0) * (x1 - x0)
    return np.abs(shapely.area(geometry) - box) <= SAME_AREA * box


def products(
    low: NDArray[np.float64], high: NDArray[np.float64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Covered share of every cell of some boxes.

    low, high
        (2, m) borders of the rectangles along (y, x), in cells from the corner of their boxes.
    size
        (2, m) cells of the boxes.
    Returns (k,) box, (k,) row, (k,) column, (k,) covered share in [0, 1]; row-major within a box.
    """
    lengths, starts = [], []
    for axis in range(2):
        n = size[axis]
        start = np.cumsum(n) - n
        at = np.arange(n.sum()) - np.repeat(start, n)
        ends = np.minimum(np.repeat(high[axis], n), at + 1) - np.maximum(np.repeat(low[axis], n), at)
        lengths.append(np.clip(ends, 0.0, 1.0))
        starts.append(start)
    width = np.repeat(size[1], size[0])  # of each row
    row = np.arange(len(width)) - np.repeat(starts[0], size[0])
    box_of_row = np.repeat(np.arange(size.shape[1]), size[0])
    column = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    box = np.repeat(box_of_row, width)
    share = np.repeat(lengths[0], width) * lengths[1][starts[1][box] + column]
    return box, np.repeat(row, width), column, share
