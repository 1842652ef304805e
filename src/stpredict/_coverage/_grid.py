"""The exact area of every shape in every cell of a grid, and sums of values weighted by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import sparse

from stpredict._coverage import _edges, _kernels
from stpredict._coverage._edges import Arcs, Boxes, Floats, Integers, Lines, blocks, boxes_of, deposit
from stpredict._coverage._shapes import Shapes, areas_of, bounds, check_valid, in_threads, n_threads
from stpredict._window import Window

Part = tuple[NDArray[Any], Floats, Integers]  # as `Filled`, in square pixels

NOISE = 1e-12  # of a cell, or of the shape where that is smaller; rounding leaves 1e-16 to 1e-15
SAME_AREA = 1e-12  # of the area; rounding leaves 1e-15
PART_CELLS = 128  # added in float32 at a time: more would lose digits (1,000 equal numbers lose 1e-5)
Filled = tuple[Integers, Floats, Integers]


def coverage(shapes: Shapes, window: Window, *, cell_px: int = 1) -> sparse.csr_array:
    """Area of each shape inside each cell of a window.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes. Rows are independent: shapes may overlap, cross the window or miss it.
    window : Window
        Pixels that the cells tile from its corner; height and width are multiples of `cell_px`.
    cell_px : int, default 1
        Side of a cell in pixels.

    Returns
    -------
    sparse.csr_array
        (n, rows * cols) float64 in square pixels, cells row-major, indices sorted, no stored zeros. Circles are exact
        by their arcs, polygons by their sides, upright rectangles by the products of two lengths, at any size.

    Raises
    ------
    ValueError
        For a polygon that is not valid, if it reaches the window, and where the cells do not tile the window.

    References
    ----------
    Signed areas accumulated along the boundary, the method of exact-area font rasterisers (FreeType's smooth
    rasteriser), with circular segments added to the chords of arcs; equals exactextract and shapely cell by cell.
    """
    if cell_px != int(cell_px) or cell_px < 1 or window.height % cell_px or window.width % cell_px:
        raise ValueError(
            f"cells of {cell_px} px do not tile a window of {window.height} x {window.width} px. "
            "cell_px is a whole number of pixels, at least 1, that divides both sides; pad the window to a multiple."
        )
    shape = window.height // cell_px, window.width // cell_px
    around = bounds(shapes)
    boxes = boxes_of(around, window, int(cell_px), shape)
    check_valid(shapes.geometry[boxes.row], boxes.row)
    floor = NOISE * np.minimum(areas_of(shapes)[boxes.row] / cell_px**2, 1.0)
    flat = ~shapes.circle[boxes.row] & upright(shapes.geometry[boxes.row], around[boxes.row])

    wide = np.int64 if shape[0] * shape[1] >= 2**31 else np.int32

    def part(which: Integers) -> Part:
        block, row = boxes.take(which), boxes.row[which]
        if flat[which[0]]:
            cells, share, count = _products(around[row], block, floor=floor[which], n_cols=shape[1])
        else:
            chosen = shapes.rows(row)
            edges = _edges.arcs(chosen, block), _edges.lines(chosen, block)
            cells, share, count = fill(*edges, block, floor=floor[which], n_cols=shape[1])
        return cells.astype(wide), share * cell_px**2, count

    parts = [np.flatnonzero(kind)[some] for kind in (flat, ~flat) for some in blocks(boxes.size[:, kind])]
    return _matrix(boxes.row, parts, list(in_threads(part, parts)), (len(shapes), shape[0] * shape[1]))


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


def upright(geometry: NDArray[np.object_], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each polygon fills its bounds (n, 4)."""
    y0, x0, y1, x1 = bounds.T
    box = (y1 - y0) * (x1 - x0)
    return np.abs(shapely.area(geometry) - box) <= SAME_AREA * box


def products(
    low: NDArray[np.float64], high: NDArray[np.float64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Covered share of every cell of some boxes.

    Parameters
    ----------
    low, high : ndarray of float64
        (2, m) borders of the rectangles along (y, x), in cells from the corner of their boxes.
    size : ndarray of int64
        (2, m) cells of the boxes.

    Returns
    -------
    tuple[ndarray, ndarray, ndarray, ndarray]
        (k,) box, (k,) row, (k,) column, (k,) covered share in [0, 1]; row-major within a box.
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


def fill(arcs: Arcs, lines: Lines, boxes: Boxes, *, floor: Floats, n_cols: int) -> Filled:
    """The covered cells of some boxes.

    Parameters
    ----------
    floor : Floats
        (m,) areas, in cells, up to which a value is rounding noise.
    n_cols : int
        Columns of the window.

    Returns
    -------
    Filled
        (k,) index of the cell in the window, (k,) covered area in cells in (0, 1], (m,) how many of them each box has;
        sorted by box and index.
    """
    how = _in_loops if _kernels.COMPILED else _in_numpy
    return how(arcs, lines, boxes, floor, n_cols)


def _in_loops(arcs: Arcs, lines: Lines, boxes: Boxes, floor: Floats, n_cols: int) -> Filled:
    size, first = np.ascontiguousarray(boxes.size), np.ascontiguousarray(boxes.first)
    taken = size[0] * (size[1] + 1)
    stop = np.cumsum(taken)
    at, value = deposit(arcs, boxes, stop - taken)
    total = np.bincount(at, value, minlength=stop[-1] + 1).astype(np.float64)  # counts where there is no arc
    _kernels.add_sides(lines.box, lines.sign, np.ascontiguousarray(lines.ends), stop - taken, size, total)
    cells, values, counts = np.empty(len(total), np.int64), np.empty(len(total)), np.empty(len(floor), np.int64)
    n = _kernels.covered(first, size, floor, n_cols, total, cells, values, counts)
    return cells[:n], values[:n], counts


def _in_numpy(arcs: Arcs, lines: Lines, boxes: Boxes, floor: Floats, n_cols: int) -> Filled:
    height, width = boxes.size
    stop = np.cumsum(height * (width + 1))
    start = stop - height * (width + 1)
    deposits = [deposit(some, boxes, start) for some in (arcs, lines) if len(some.box)]
    at, value = (np.concatenate(column) for column in zip(*deposits, strict=True))
    total = np.cumsum(np.bincount(at, value, minlength=stop[-1] + 1)[:-1])
    box = np.repeat(np.arange(len(height)), height)  # of each row, as all that follows
    row = np.arange(len(box)) - np.repeat(np.cumsum(height) - height, height)
    begin = start[box] + row * (width[box] + 1)
    before = np.where(begin > 0, total[begin - 1], 0.0)
    area = total - np.repeat(before, width[box] + 1)
    area[begin + width[box]] = 0.0
    kept = np.flatnonzero(area > np.repeat(floor[box], width[box] + 1))
    counts = np.diff(np.searchsorted(kept, np.append(begin, stop[-1])))
    shift = (boxes.first[0, box] + row) * n_cols + boxes.first[1, box] - begin
    per_box = np.bincount(box, counts, minlength=len(height)).astype(np.int64)
    return kept + np.repeat(shift, counts), np.minimum(area[kept], 1.0), per_box


@dataclass(frozen=True)
class Weights:
    """Covered areas (n, cells) as float32, for threads over shapes.

    Parameters
    ----------
    parts : tuple[sparse.csr_array, ...]
        Runs of rows of about as many covered cells each; a row holds at most PART_CELLS of one shape.
    start : ndarray of int64
        (n,) the first row of each shape.
    area : ndarray of float64
        (n,) float64 covered area of each shape.
    """

    parts: tuple[sparse.csr_array, ...]
    start: NDArray[np.int64]
    area: NDArray[np.float64]

    @classmethod
    def of(cls, covered: sparse.csr_array) -> Self:
        """From `coverage`."""
        n_cells = np.diff(covered.indptr)
        n_rows = np.maximum(-(-n_cells // PART_CELLS), 1)
        start = np.cumsum(n_rows) - n_rows
        step = np.arange(n_rows.sum()) - np.repeat(start, n_rows)
        begin = np.append(np.repeat(covered.indptr[:-1], n_rows) + PART_CELLS * step, covered.nnz)
        data = covered.data.astype(np.float32)
        cuts = np.searchsorted(begin, np.linspace(0, covered.nnz, n_threads() + 1)[1:-1])
        rows = np.unique(np.r_[0, cuts, len(begin) - 1])
        parts = []
        for first, last in zip(rows[:-1], rows[1:], strict=True):
            here = slice(begin[first], begin[last])
            index = begin[first : last + 1] - begin[first]
            shape = (int(last - first), covered.shape[1])
            parts.append(sparse.csr_array((data[here], covered.indices[here], index), shape=shape))
        return cls(tuple(parts), start, np.asarray(covered.sum(axis=1)).ravel())

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return sum(p.data.nbytes + p.indices.nbytes + p.indptr.nbytes for p in self.parts) + 2 * self.start.nbytes

    def of_cells(self, cells: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, g) sums of values x covered area, of values (cells, g), such as a (y, x, gene) block; NaN spreads."""
        cells = np.ascontiguousarray(cells, dtype=np.float32)
        return self._joined(np.concatenate(list(in_threads(lambda part: part @ cells, self.parts))))

    def one_by_one(self, planes: NDArray[np.floating]) -> NDArray[np.float32]:
        """The same of values (g, cells), to the bit, without threads."""
        return np.stack([self._inside(plane.astype(np.float32, copy=False)) for plane in planes], axis=1)

    def of_planes(self, planes: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The same of values (g, cells), in which NaN counts as not covered.

        Returns sums (n, g), and the areas of covered cells that have a value: (n, g), or None where all have.
        """
        found = list(in_threads(self._plane, planes))
        sums = np.stack([one for one, _ in found], axis=1)
        if all(area is None for _, area in found):
            return sums, None
        full = self.area.astype(np.float32)
        return sums, np.stack([full if area is None else area for _, area in found], axis=1)

    def _plane(self, plane: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        plane = plane.astype(np.float32)
        sums = self._inside(plane)
        if not np.isnan(sums).any():
            return sums, None
        gone = np.isnan(plane)
        plane[gone] = 0.0
        return self._inside(plane), self._inside((~gone).astype(np.float32))

    def _inside(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._joined(np.concatenate([part @ values for part in self.parts]))

    def _joined(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows of the same shape, added in float64; sums that float32 cannot hold are infinite."""
        if len(rows) == len(self.start):
            return rows
        with np.errstate(over="ignore", invalid="ignore"):
            return np.add.reduceat(rows, self.start, axis=0, dtype=np.float64).astype(np.float32)
