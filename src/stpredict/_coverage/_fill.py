"""From boundaries to covered cells: running sums along the rows of boxes."""

from __future__ import annotations

import numpy as np

from stpredict._coverage import _compiled
from stpredict._coverage._boxes import Boxes, Floats, Integers
from stpredict._coverage._edges import Arcs, Lines, deposit

Filled = tuple[Integers, Floats, Integers]


def fill(arcs: Arcs, lines: Lines, boxes: Boxes, *, floor: Floats, n_cols: int) -> Filled:
    """The covered cells of some boxes.

    floor
        (m,) areas, in cells, up to which a value is rounding noise.
    n_cols
        Columns of the window.
    Returns (k,) index of the cell in the window, (k,) covered area in cells in (0, 1], (m,) how many of them each box
    has; sorted by box and index.
    """
    how = _in_loops if _compiled.COMPILED else _in_numpy
    return how(arcs, lines, boxes, floor, n_cols)


def _in_loops(arcs: Arcs, lines: Lines, boxes: Boxes, floor: Floats, n_cols: int) -> Filled:
    size, first = np.ascontiguousarray(boxes.size), np.ascontiguousarray(boxes.first)
    taken = size[0] * (size[1] + 1)
    stop = np.cumsum(taken)
    at, value = deposit(arcs, boxes, stop - taken)
    total = np.bincount(at, value, minlength=stop[-1] + 1).astype(np.float64)  # counts where there is no arc
    _compiled.add_sides(lines.box, lines.sign, np.ascontiguousarray(lines.ends), stop - taken, size, total)
    cells, values, counts = np.empty(len(total), np.int64), np.empty(len(total)), np.empty(len(floor), np.int64)
    n = _compiled.covered(first, size, floor, n_cols, total, cells, values, counts)
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
