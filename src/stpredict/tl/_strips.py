"""Which cells of a raster lie inside which shapes: strip by strip, built once and kept for the next call."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import shapely

from stpredict import _coverage
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_BYTES = 2**28  # of weights that stay in memory after a call, all shapes together


@dataclass
class Strips:
    """The weights of some shapes on the strips of one grid.

    height, width, rows
        The grid, and how many of its rows make a strip.
    """

    geometry: NDArray[np.object_]
    radius: NDArray[np.float64]
    height: int
    width: int
    rows: int
    _made: dict[int, tuple[NDArray[np.int64], _coverage.Weights]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Window, NDArray[np.int64], _coverage.Weights]]:
        """Every strip that shapes reach into, these shapes, and their weights there."""
        bounds = _coverage.bounds(self.geometry, self.radius)
        for y in range(0, self.height, self.rows):
            strip = Window(y, 0, min(self.rows, self.height - y), self.width)
            if y in self._made:
                hit, weights = self._made[y]
            else:
                hit = np.flatnonzero((bounds[:, 0] < strip.y1) & (bounds[:, 2] > strip.y0))
                weights = _coverage.Weights.of(_coverage.coverage(self.geometry[hit], self.radius[hit], strip))
                if self.nbytes + weights.nbytes <= KEPT_BYTES:
                    self._made[y] = hit, weights
            if len(hit):
                yield strip, hit, weights

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(hit.nbytes + weights.nbytes for hit, weights in list(self._made.values()))


_kept: OrderedDict[str, Strips] = OrderedDict()
_lock = threading.Lock()


def strips_of(
    geometry: NDArray[np.object_], radius: NDArray[np.float64], *, height: int, width: int, rows: int
) -> Strips:
    """The strips of shapes on a grid, with the weights that an earlier call with the same has left."""
    key = _digest(geometry, radius, (height, width, rows))
    with _lock:
        strips = _kept.pop(key, None) or Strips(geometry, radius, height, width, rows)
        while _kept and sum(each.nbytes for each in _kept.values()) + strips.nbytes > KEPT_BYTES:
            _kept.popitem(last=False)
        _kept[key] = strips
    return strips


def forget() -> None:
    """Let go of all weights that are kept."""
    with _lock:
        _kept.clear()


def _digest(geometry: NDArray[np.object_], radius: NDArray[np.float64], grid: tuple[int, ...]) -> str:
    found = hashlib.sha256(repr(grid).encode())
    structure = (shapely.get_type_id, shapely.get_num_geometries, shapely.get_num_interior_rings)
    parts, part_of = shapely.get_parts(geometry, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    for column in (
        radius, shapely.get_coordinates(geometry), part_of, ring_of, shapely.get_num_coordinates(rings),
        *(each(geometry) for each in structure),
    ):  # fmt: skip
        found.update(np.ascontiguousarray(column))
    return found.hexdigest()
