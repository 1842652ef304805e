"""Inner loops of the coverage, compiled by numba where that works; `_grid` has the same in NumPy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

try:
    import numba
except (ImportError, OSError) as error:  # no compiler for this platform
    numba = None  # type: ignore[assignment]
    logging.getLogger("stpredict").info("coverage is worked out in NumPy, several times slower: %s", error)

COMPILED = numba is not None and not numba.config.DISABLE_JIT  # type: ignore[attr-defined]


def _compiled[**Given, Result](function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Compiled at the first call, once a machine, or once a process where that cannot be kept beside the package."""
    if not COMPILED:
        return function
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def add_piece(low: float, high: float, cover: float, at: int, n_columns: int, total: Floats) -> None:
    """A piece within one row, from x = `low` to `high`, of height `cover`; `at` is the position of the row."""
    if high <= 0.0:  # left of the box: counts at its border
        total[at] += cover
        return
    if low >= n_columns:
        total[at + n_columns] += cover
        return
    column = floor(low)
    if column >= 0 and high <= column + 1.0:  # the most: within one cell
        part = cover * ((low + high) / 2 - column)
        total[at + column] += cover - part
        total[at + column + 1] += part
        return
    width, done = high - low, max(low, 0.0)
    total[at] += cover * ((done - low) / width)
    for c in range(max(column, 0), n_columns):
        to = min(high, c + 1.0)
        share = cover * ((to - done) / width)
        part = share * ((done + to) / 2 - c)
        total[at + c] += share - part
        total[at + c + 1] += part
        done = to
        if done >= high:
            return
    total[at + n_columns] += cover * ((high - done) / width)


@_compiled
def add_sides(
    box: Integers, sign: Floats, ends: Floats, start: Integers, size: Integers, total: Floats
) -> None:  # fmt: skip
    """Add to `total` what each side of a polygon deposits, see `_edges.deposit`.

    Parameters
    ----------
    box, sign, ends
        (e,), (e,) and (2, 2, e), as in `_edges.Edges`.
    start, size : Integers
        (m,) position of the first cell of each box, and (2, m) its cells along y and x.
    total : Floats
        (k,) running sums in cells; changed in place.
    """
    for e in range(len(box)):
        n_rows, n_columns = size[0, box[e]], size[1, box[e]]
        y0, y1, x0, x1 = ends[0, 0, e], ends[0, 1, e], ends[1, 0, e], ends[1, 1, e]
        left, right, slope = min(x0, x1), max(x0, x1), (x1 - x0) / (y1 - y0)
        first, last = floor(min(max(y0, 0.0), float(n_rows))), ceil(max(min(y1, float(n_rows)), 0.0))
        for row in range(first, last):
            top, bottom = max(y0, float(row)), min(y1, row + 1.0)
            here = x0 if top == y0 else min(max(x0 + (top - y0) * slope, left), right)
            there = x1 if bottom == y1 else min(max(x0 + (bottom - y0) * slope, left), right)
            at = start[box[e]] + row * (n_columns + 1)
            add_piece(min(here, there), max(here, there), sign[e] * (bottom - top), at, n_columns, total)


@_compiled
def covered(
    first: Integers, size: Integers, floor: Floats, n_cols: int, total: Floats, cells: Integers, values: Floats,
    counts: Integers,
) -> int:  # fmt: skip
    """Run the sums of `total` along the rows of boxes and keep what is above `floor`; returns how many are kept.

    Parameters
    ----------
    first, size, floor, n_cols
        As in `_grid.fill`.
    cells, values, counts
        (k,), (k,) and (m,): filled with what `_grid.fill` returns.
    """
    n, at = 0, 0
    for b in range(size.shape[1]):
        before = n
        for row in range(size[0, b]):
            index, area = (first[0, b] + row) * n_cols + first[1, b], 0.0
            for column in range(size[1, b]):
                area += total[at + column]
                if area > floor[b]:
                    cells[n], values[n] = index + column, min(area, 1.0)
                    n += 1
            at += size[1, b] + 1
        counts[b] = n - before
    return n
