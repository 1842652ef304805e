"""The read-out: channels of a stored raster inside shapes, every pixel weighted by the area that a shape covers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _sdata
from stpredict._section import array_of
from stpredict.tl._strips import Strips, strips_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._coverage import Weights
    from stpredict._window import Window

STRIP_CELLS = 2**20  # cells of the raster that are looked at together: a plane of them stays in a processor's cache
MOST_CELLS = 2**24  # of a strip that follows the chunks of a raster
VALUE_BYTES = 2**27  # of a strip's genes that are read together, as float32


def raster_of(sdata: SpatialData, raster_key: str, *, argument: str = "raster_key") -> Any:
    """The (c, y, x) raster of that name; else an error with the closest names, for the argument it was given by."""
    if raster_key not in sdata.images:
        raise _sdata.missing_key(raster_key, sdata.images, what="image", argument=argument)
    return _sdata.finest(sdata.images[raster_key])


def read_inside(
    sdata: SpatialData,
    raster_key: str,
    shapes_key: str,
    channels: NDArray[np.int64],
    *,
    stat: Literal["mean", "sum"],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Channels of a raster read inside shapes, in element order, strip by strip and some channels at a time.

    Which cells lie inside is worked out once for these shapes on this grid, and kept for the next call.

    channels
        (g,) positions on the raster's `c`.
    stat
        "mean": the area-weighted mean; "sum": the integral, values x square pixels of the raster. Pixels that are NaN
        count as not covered.

    Returns values (n, g) float32, NaN where nothing is covered, and the covered share (n,) of each area in [0, 1].

    Raises ValueError for shapes that all lie off the raster.
    """
    raster = raster_of(sdata, raster_key)
    geometry, radius, area, _ = _sdata.place(sdata, raster_key, shapes_key)
    _sdata.check_some_inside(geometry, shapes_key=shapes_key, image_key=raster_key, tissue_key=None)
    height, width = raster.sizes["y"], raster.sizes["x"]
    strips = strips_of(geometry, radius, height=height, width=width, rows=_strip_rows(raster))
    step = _n_together(raster, len(channels), min(strips.rows, height) * width)
    totals = _Totals(len(geometry), len(channels), step)
    for hit, weights, start, block in _blocks(raster, channels, strips, step):
        sums, areas = weights.of_planes(block)
        totals.add(hit, start, sums, weights.area if areas is None else areas)
    return totals.values(stat), np.clip(totals.covered() / area, 0.0, 1.0)


def warn_of_empty(n_empty: int, n_shapes: int, *, where: str, drop: str, stacklevel: int) -> None:
    """One warning, where shapes have no value: how many, and how to drop their rows."""
    if n_empty:
        warnings.warn(
            f"{n_empty} of {n_shapes} shapes have nothing on the {where}, so their values are NaN. Drop them before "
            f"scanpy or squidpy: {drop}.",
            stacklevel=stacklevel + 1,
        )


def _strip_rows(raster: Any) -> int:
    """Rows of a strip: whole rows of the raster's chunks, so that each is read once, unless those are very high."""
    width, chunk = raster.sizes["x"], raster.data.chunks[1][0]
    if chunk * width > MOST_CELLS:
        return max(1, STRIP_CELLS // width)
    return chunk * max(1, STRIP_CELLS // (chunk * width))


def _n_together(raster: Any, n_channels: int, n_cells: int) -> int:
    """How many channels are read together: whole chunks of them where memory allows."""
    chunk, most = raster.data.chunks[0][0], max(1, VALUE_BYTES // (4 * n_cells))
    return min(n_channels, most // chunk * chunk or most) or 1


def _blocks(
    raster: Any, channels: NDArray[np.int64], strips: Strips, step: int
) -> Iterator[tuple[NDArray[np.int64], Weights, int, NDArray[Any]]]:
    """Shapes, their weights, the first of `step` channels, and these on one strip (g, cells).

    The next block is read while one is used.
    """

    def read(strip: Window, start: int) -> NDArray[Any]:
        lazy = raster.data[channels[start : start + step], strip.y0 : strip.y1]
        block = array_of(lazy, f"the raster, rows {strip.y0} to {strip.y1},")
        return block.reshape(len(block), -1)

    with ThreadPoolExecutor(1) as reader:
        ahead: list[tuple[NDArray[np.int64], Weights, int, Future]] = []
        for strip, hit, weights in strips:
            for start in range(0, len(channels), step):
                ahead.append((hit, weights, start, reader.submit(read, strip, start)))
                if len(ahead) == 2:
                    *what, block = ahead.pop(0)
                    yield *what, block.result()
        for *what, block in ahead:
            yield *what, block.result()


class _Totals:
    """Sums (n, g) of values x covered area, and the areas of covered cells that have a value.

    `step` genes are added together. Mostly they share an area; only where they do not, areas are kept by gene.
    """

    def __init__(self, n_shapes: int, n_genes: int, step: int) -> None:
        self.sums, self.step = np.zeros((n_shapes, n_genes), dtype=np.float32), step
        self._area = np.zeros((n_shapes, -(-n_genes // step)))  # (n, blocks of genes), or (n, g)
        self._by_gene = False

    def add(self, hit: NDArray[np.int64], start: int, sums: NDArray[np.float32], area: NDArray[np.floating]) -> None:
        """What a strip adds to the shapes `hit`; area (k,), or (k, genes) where cells without a value differ."""
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
                block /= np.where(area > 0, area, 1.0).astype(np.float32)[:, None]
            block[area <= 0] = np.nan
        return self.sums

    def covered(self) -> NDArray[np.float64]:
        """(n,) the largest area over genes."""
        return self._area.max(axis=1, initial=0.0)
