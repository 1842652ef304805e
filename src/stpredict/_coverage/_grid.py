"""The exact area of every shape in every cell of a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stpredict._coverage import _edges
from stpredict._coverage._boxes import Boxes, Floats, Integers, blocks, boxes_of
from stpredict._coverage._fill import Filled, fill
from stpredict._coverage._rectangles import products, upright
from stpredict._coverage._shapes import areas_of, bounds, check_valid, checked
from stpredict._coverage._threads import in_threads
from stpredict._window import Window

Part = tuple[NDArray[Any], Floats, Integers]  # as `Filled`, in square pixels

NOISE = 1e-12  # of a cell, or of the shape where that is smaller; rounding leaves 1e-16 to 1e-15


def coverage(geometry: ArrayLike, radius: ArrayLike, window: Window, *, cell_px: int = 1) -> sparse.csr_array:
    """Area of each shape inside each cell of a window.

    geometry, radius
        (n,) shapes, see the package. Rows are independent: shapes may overlap, cross the window or miss it.
    window
        Pixels that the cells tile from its corner; height and width are multiples of `cell_px`.
    cell_px
        Side of a cell in pixels.
    Returns (n, rows * cols) float64 in square pixels, cells row-major, indices sorted, no stored zeros. Circles are
    exact by their arcs, polygons by their sides, upright rectangles by the products of two lengths, at any size.
    Raises ValueError for rows that are no shape (a polygon that is not valid, if it reaches the window), and where
    the cells do not tile the window.
    Source: signed areas accumulated along the boundary, the method of exact-area font rasterisers (FreeType's smooth
    rasteriser), with circular segments added to the chords of arcs; equals exactextract and shapely cell by cell.
    """
    if cell_px != int(cell_px) or cell_px < 1 or window.height % cell_px or window.width % cell_px:
        raise ValueError(
            f"cells of {cell_px} px do not tile a window of {window.height} x {window.width} px. "
            "cell_px is a whole number of pixels, at least 1, that divides both sides; pad the window to a multiple."
        )
    geometry, radius, circle = checked(geometry, radius)
    shape = window.height // cell_px, window.width // cell_px
    around = bounds(geometry, radius)
    boxes = boxes_of(around, window, int(cell_px), shape)
    check_valid(geometry[boxes.row], boxes.row)
    floor = NOISE * np.minimum(areas_of(geometry, radius, circle)[boxes.row] / cell_px**2, 1.0)
    flat = ~circle[boxes.row] & upright(geometry[boxes.row], around[boxes.row])

    wide = np.int64 if shape[0] * shape[1] >= 2**31 else np.int32

    def part(which: Integers) -> Part:
        block, row = boxes.take(which), boxes.row[which]
        if flat[which[0]]:
            cells, share, count = _products(around[row], block, floor=floor[which], n_cols=shape[1])
        else:
            arcs = _edges.arcs(geometry[row], radius[row], circle[row], block)
            lines = _edges.lines(geometry[row], circle[row], block)
            cells, share, count = fill(arcs, lines, block, floor=floor[which], n_cols=shape[1])
        return cells.astype(wide), share * cell_px**2, count

    parts = [np.flatnonzero(kind)[some] for kind in (flat, ~flat) for some in blocks(boxes.size[:, kind])]
    return _matrix(boxes.row, parts, list(in_threads(part, parts)), (len(geometry), shape[0] * shape[1]))


def _matrix(rows: Integers, parts: list[Integers], filled: list[Part], shape: tuple[int, int]) -> sparse.csr_array:
    """The rows of the boxes of every part, from the cells, areas and counts that it was filled with."""
    which = np.concatenate([np.empty(0, np.int64), *parts])
    n = np.concatenate([np.empty(0, np.int64), *(count for _, _, count in filled)])
    indices, data = (
        _joined([cells for cells, _, _ in filled], np.int32),
        _joined([area for _, area, _ in filled], np.float64),
    )
    counts = np.zeros(shape[0], np.int64)
    counts[rows[which]] = n
    indptr = np.concatenate([[0], np.cumsum(counts)])
    if (np.diff(which) < 0).any():  # rows of both kinds: bring them into order
        begin = np.cumsum(n) - n
        order = np.argsort(which)
        at = np.repeat(begin[order] - indptr[rows[which[order]]], n[order]) + np.arange(len(data))
        indices, data = indices[at], data[at]
    return sparse.csr_array((data, indices, indptr), shape=shape)


def _joined(pieces: list[NDArray[Any]], empty: type) -> NDArray[Any]:
    """Pieces one after the other, copied in threads; no piece has type `empty`."""
    out = np.empty(sum(map(len, pieces)), pieces[0].dtype if pieces else empty)
    stop = np.cumsum([len(piece) for piece in pieces])

    def copy(i: int) -> None:
        out[stop[i] - len(pieces[i]) : stop[i]] = pieces[i]

    list(in_threads(copy, range(len(pieces))))
    return out


def _products(around: Floats, boxes: Boxes, *, floor: Floats, n_cols: int) -> Filled:
    """As `fill`, for upright rectangles of these bounds (m, 4)."""
    low, high = ((around[:, ends].T - boxes.origin) / boxes.cell_px for ends in (slice(0, 2), slice(2, 4)))
    box, row, column, share = products(low, high, boxes.size)
    kept = np.flatnonzero(share > floor[box])
    box = box[kept]
    cells = (boxes.first[0, box] + row[kept]) * n_cols + boxes.first[1, box] + column[kept]
    return cells, share[kept], np.bincount(box, minlength=boxes.size.shape[1])
