"""Which cells of a raster lie inside which shapes: block by block, built once and kept for the next call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import shapely

from stpredict import _coverage
from stpredict._section import shapes_digest
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

OBJECT_BYTES = 350  # of a polygon besides its corners
KEPT_BYTES = 2**28  # of shapes and weights that stay in memory after a call, all together


@dataclass
class Blocks:
    """The weights of some shapes on the blocks of one grid.

    height, width, rows, columns
        The grid, and how many of its rows and columns make a block.
    """

    geometry: NDArray[np.object_]
    radius: NDArray[np.float64]
    height: int
    width: int
    rows: int
    columns: int
    _made: dict[Window, tuple[NDArray[np.int64], _coverage.Weights]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Window, NDArray[np.int64], _coverage.Weights]]:
        """Every block that shapes reach into, these shapes, and their weights there."""
        y0, x0, y1, x1 = _coverage.bounds(self.geometry, self.radius).T
        for y in range(0, self.height, self.rows):
            in_rows = np.flatnonzero((y0 < y + self.rows) & (y1 > y))
            for x in range(0, self.width, self.columns):
                block = Window(y, x, min(self.rows, self.height - y), min(self.columns, self.width - x))
                if block not in self._made:
                    hit = in_rows[(x0[in_rows] < block.x1) & (x1[in_rows] > block.x0)]
                    weights = _coverage.Weights.of(_coverage.coverage(self.geometry[hit], self.radius[hit], block))
                    if self.nbytes + weights.nbytes <= KEPT_BYTES:
                        self._made[block] = hit, weights
                else:
                    hit, weights = self._made[block]
                if len(hit):
                    yield block, hit, weights

    @property
    def nbytes(self) -> int:
        """What is kept."""
        shapes = 16 * int(shapely.get_num_coordinates(self.geometry).sum()) + OBJECT_BYTES * len(self.geometry)
        return shapes + sum(hit.nbytes + weights.nbytes for hit, weights in list(self._made.values()))


_kept: OrderedDict[tuple[int | str, ...], Blocks] = OrderedDict()
_lock = threading.Lock()


@contextmanager
def blocks_of(
    geometry: NDArray[np.object_], radius: NDArray[np.float64], *, grid: tuple[int, int], block: tuple[int, int]
) -> Iterator[Blocks]:
    """The blocks of shapes on a grid, with the weights that an earlier call with the same has left.

    grid, block
        (height, width) of the grid and of its blocks.
    """
    key = (*grid, *block, shapes_digest(geometry, radius))
    with _lock:
        blocks = _kept.pop(key, None) or Blocks(geometry, radius, *grid, *block)
    yield blocks
    with _lock:
        _kept[key] = blocks
        while _kept and sum(each.nbytes for each in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)


def forget() -> None:
    """Let go of all weights that are kept."""
    with _lock:
        _kept.clear()
