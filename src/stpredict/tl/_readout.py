"""The read-out: channels of a stored raster inside shapes, every pixel weighted by the area that a shape covers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from stpredict import _caches, _coverage, _spatialdata
from stpredict._messages import warn
from stpredict._prefetch import prefetch
from stpredict._section import array_of, shapes_digest
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

    from stpredict._coverage import Weights

BLOCK_CELLS = 2**20  # cells of the raster that are looked at together: a plane of them stays in a processor's cache
MOST_CELLS = 2**24  # of a chunk that is read whole
EXACT_BYTES = 2**28  # of sums in float64
VALUE_BYTES = 2**27  # of a block's genes that are read together, as float32
OBJECT_BYTES = 350  # of a polygon besides its corners
KEPT_BYTES = 2**28  # of shapes and weights that stay in memory after a call, all together
_lock = threading.Lock()


def find_raster(sdata: SpatialData, raster_key: str, *, argument: str = "raster_key") -> DataArray:
    """The (c, y, x) raster of that name; else an error with the closest names, for the argument it was given by."""
    if raster_key not in sdata.images:
        raise _spatialdata.missing_key(raster_key, sdata.images, what="image", argument=argument)
    return _spatialdata.finest(sdata.images[raster_key])


def read_inside(
    sdata: SpatialData,
    raster_key: str,
    shapes_key: str,
    channels: NDArray[np.int64],
    *,
    stat: Literal["mean", "sum"],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Channels of a raster read inside shapes, in element order, block by block and some channels at a time.

    Which cells lie inside is worked out once for these shapes on this grid, and kept for the next call.

    Parameters
    ----------
    channels : ndarray of int64
        (g,) positions on the raster's `c`.
    stat : {"mean", "sum"}
        "mean": the area-weighted mean; "sum": the integral, values x square pixels of the raster. Pixels that are NaN
        count as not covered.

    Returns
    -------
    tuple[ndarray, ndarray]
        Values (n, g) float32, NaN where nothing is covered, and the covered share (n,) of each area in [0, 1].

    Raises
    ------
    ValueError
        For shapes that all lie off the raster.
    """
    raster = find_raster(sdata, raster_key)
    shapes, area, _ = _spatialdata.shapes_in_pixels(sdata, raster_key, shapes_key)
    _spatialdata.check_some_inside(shapes, shapes_key=shapes_key, image_key=raster_key, tissue_key=None)
    height, width = raster.sizes["y"], raster.sizes["x"]
    shape = _block_shape(raster)
    step = _n_together(raster, len(channels), min(shape[0], height) * min(shape[1], width))
    totals = _Totals(len(shapes), len(channels), step)
    with (
        blocks_of(shapes, grid=(height, width), block=shape) as blocks,
        closing(_values(raster, channels, blocks, step)) as every,
    ):
        for hit, weights, start, values in every:
            sums, areas = weights.of_planes(values)
            totals.add(hit, start, sums, weights.area if areas is None else areas)
    return totals.values(stat), np.clip(totals.covered() / area, 0.0, 1.0)


def warn_of_empty(n_empty: int, n_shapes: int, *, where: str, drop: str) -> None:
    """One warning, where shapes have no value: how many, and how to drop their rows."""
    if n_empty:
        warn(
            f"{n_empty} of {n_shapes} shapes have nothing on the {where}, so their values are NaN. Drop them before "
            f"scanpy or squidpy: {drop}.",
        )


def _block_shape(raster: DataArray) -> tuple[int, int]:
    """Rows and columns of a block: whole chunks of the raster, so that each is read once, but for very large ones."""
    width, (genes, high, wide) = raster.sizes["x"], (sizes[0] for sizes in raster.data.chunks)
    if high * wide > MOST_CELLS:
        return max(1, BLOCK_CELLS // width), width
    n = max(1, min(BLOCK_CELLS, VALUE_BYTES // (4 * genes)) // (high * wide))  # chunks of a block
    across = min(n, -(-width // wide))
    return high * max(1, n // across), wide * across


def _n_together(raster: DataArray, n_channels: int, n_cells: int) -> int:
    """How many channels are read together: whole chunks of them where memory allows."""
    chunk, most = raster.data.chunks[0][0], max(1, VALUE_BYTES // (4 * n_cells))
    return min(n_channels, most // chunk * chunk or most) or 1


def _values(
    raster: DataArray, channels: NDArray[np.int64], blocks: Blocks, step: int
) -> Generator[tuple[NDArray[np.int64], Weights, int, NDArray[Any]]]:
    """Shapes, their weights, the first of `step` channels, and these on one block (g, cells).

    The next block is read while one is used.
    """

    def read(
        item: tuple[NDArray[np.int64], Weights, int, Window],
    ) -> tuple[NDArray[np.int64], Weights, int, NDArray[Any]]:
        hit, weights, start, block = item
        lazy = raster.data[channels[start : start + step], block.y0 : block.y1, block.x0 : block.x1]
        values = array_of(lazy, f"the raster, rows {block.y0} to {block.y1},")
        return hit, weights, start, values.reshape(len(values), -1)

    every = ((hit, weights, start, block) for block, hit, weights in blocks for start in range(0, len(channels), step))
    return prefetch(read, every, depth=1)


class _Totals:
    """Sums (n, g) of values x covered area, and the areas of covered cells that have a value.

    `step` genes are added together. Mostly they share an area; only where they do not, areas are kept by gene.
    """

    def __init__(self, n_shapes: int, n_genes: int, step: int) -> None:
        # many small sums lose digits in float32; where the result is large, its shapes are small
        exact = 8 * n_shapes * n_genes <= EXACT_BYTES
        self.sums, self.step = np.zeros((n_shapes, n_genes), dtype=np.float64 if exact else np.float32), step
        self._area = np.zeros((n_shapes, -(-n_genes // step)))  # (n, blocks of genes), or (n, g)
        self._by_gene = False

    def add(self, hit: NDArray[np.int64], start: int, sums: NDArray[np.float32], area: NDArray[np.floating]) -> None:
        """What a block adds to the shapes `hit`; area (k,), or (k, genes) where cells without a value differ."""
        genes = slice(start, start + self.step)
        self.sums[hit, genes] += sums
        if area.ndim == 2 and (area == area[:, :1]).all():
            area = area[:, 0]
        if area.ndim == 2 and not self._by_gene:
            self._area = np.repeat(self._area, self.step, axis=1)[:, : self.sums.shape[1]]
            self._by_gene = True
        if self._by_gene:
            self._area[hit, genes] += area if area.ndim == 2 else area[:, None]
        else:
            self._area[hit, start // self.step] += area

    def values(self, stat: Literal["mean", "sum"]) -> NDArray[np.float32]:
        """(n, g) means or sums, NaN where nothing is covered; made in place."""
        step = 1 if self._by_gene else self.step
        for k, area in enumerate(self._area.T):
            block = self.sums[:, k * step : (k + 1) * step]
            if stat == "mean":
                block /= np.where(area > 0, area, 1.0).astype(block.dtype)[:, None]
            block[area <= 0] = np.nan
        return self.sums.astype(np.float32, copy=False)

    def covered(self) -> NDArray[np.float64]:
        """(n,) the largest area over genes."""
        return self._area.max(axis=1, initial=0.0)


@dataclass
class Blocks:
    """The weights of some shapes on the blocks of one grid.

    Parameters
    ----------
    height, width, rows, columns : int
        The grid, and how many of its rows and columns make a block.
    """

    shapes: _coverage.Shapes
    height: int
    width: int
    rows: int
    columns: int
    _made: dict[Window, tuple[NDArray[np.int64], _coverage.Weights]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Window, NDArray[np.int64], _coverage.Weights]]:
        """Every block that shapes reach into, these shapes, and their weights there."""
        y0, x0, y1, x1 = _coverage.bounds(self.shapes).T
        for y in range(0, self.height, self.rows):
            in_rows = np.flatnonzero((y0 < y + self.rows) & (y1 > y))
            for x in range(0, self.width, self.columns):
                block = Window(y, x, min(self.rows, self.height - y), min(self.columns, self.width - x))
                if block not in self._made:
                    hit = in_rows[(x0[in_rows] < block.x1) & (x1[in_rows] > block.x0)]
                    weights = _coverage.Weights.of(_coverage.coverage(self.shapes.rows(hit), block))
                    if self.nbytes + weights.nbytes <= KEPT_BYTES:
                        self._made[block] = hit, weights
                else:
                    hit, weights = self._made[block]
                if len(hit):
                    yield block, hit, weights

    @property
    def nbytes(self) -> int:
        """What is kept."""
        corners = int(shapely.get_num_coordinates(self.shapes.geometry).sum())
        shapes = 16 * corners + OBJECT_BYTES * len(self.shapes)
        return shapes + sum(hit.nbytes + weights.nbytes for hit, weights in list(self._made.values()))


_kept: OrderedDict[tuple[int | str, ...], Blocks] = OrderedDict()


@contextmanager
def blocks_of(shapes: _coverage.Shapes, *, grid: tuple[int, int], block: tuple[int, int]) -> Iterator[Blocks]:
    """The blocks of shapes on a grid, with the weights that an earlier call with the same has left.

    Parameters
    ----------
    grid, block : tuple[int, int]
        (height, width) of the grid and of its blocks.
    """
    key = (*grid, *block, shapes_digest(shapes))
    with _lock:
        blocks = _kept.pop(key, None) or Blocks(shapes, *grid, *block)
    yield blocks
    with _lock:
        _kept[key] = blocks
        while _kept and sum(each.nbytes for each in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)


def clear() -> None:
    """Clear the cache of weights."""
    with _lock:
        _kept.clear()


def size() -> int:
    """The bytes of all weights that are kept."""
    with _lock:
        return sum(blocks.nbytes for blocks in _kept.values())


_caches.register("pixels inside shapes", clear, size)
