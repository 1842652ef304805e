"""The part of the grid that each shape can reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpredict._window import Window

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK_CELLS = 2**18  # cells held dense at a time: what stays in a processor's cache


@dataclass(frozen=True)
class Boxes:
    """The part of the grid that each shape can reach; one box for each shape that meets the window.

    row
        (m,) rows of the shapes, ascending.
    first, size
        (2, m) first cell and number of cells, along (y, x).
    origin
        (2, m) pixel coordinates (y, x) of the corner of the first cell.
    cell_px
        Side of a cell.
    """

    row: Integers
    first: Integers
    size: Integers
    origin: Integers
    cell_px: int

    def take(self, part: Integers) -> Boxes:
        """Some of the boxes."""
        return Boxes(self.row[part], self.first[:, part], self.size[:, part], self.origin[:, part], self.cell_px)


def boxes_of(around: Floats, window: Window, cell_px: int, shape: tuple[int, int]) -> Boxes:
    """The boxes of shapes from their bounds, (n, 4)."""
    corner, n_cells = np.array([[window.y0], [window.x0]]), np.array(shape)[:, None]
    low, high = (around[:, :2].T - corner) / cell_px, (around[:, 2:].T - corner) / cell_px
    meets = ((high > 0) & (low < n_cells) & (n_cells > 0)).all(axis=0)  # NaN, an empty shape, meets nothing
    first = np.clip(np.floor(low[:, meets]), 0, n_cells - 1).astype(np.int64)
    last = np.clip(np.ceil(high[:, meets]), first + 1, n_cells).astype(np.int64)
    return Boxes(np.flatnonzero(meets), first, last - first, corner + first * cell_px, cell_px)


def blocks(size: Integers) -> Iterator[slice]:
    """Runs of boxes of these sizes (2, m) that have about BLOCK_CELLS cells together."""
    block = np.cumsum(size.prod(axis=0)) // BLOCK_CELLS
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    for start, stop in zip(starts, np.append(starts, len(block))[1:], strict=True):
        yield slice(int(start), int(stop))
