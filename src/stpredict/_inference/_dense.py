"""Dense inference: tiles of an image through a dense model, pooled inside shapes and handed to a raster writer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from shapely import STRtree
from torch import Tensor

from stpredict import _coverage
from stpredict._inference._chunks import ChunkedInference, Runtime
from stpredict._partial import PartialSum
from stpredict._prefetch import prefetch
from stpredict._section import Section
from stpredict._window import Tile, Window, tiles
from stpredict.models._base import Model, Tiling
from stpredict.models._samples import Batch

READ_DEPTH = 2  # chunks that are read while one is computed
POOL_DEPTH = 1  # chunks that are pooled while the next is computed

# Takes rows, columns (both in cells) and values (g, h, w) before the link; the values are valid during the call only.
Raster = Callable[[slice, slice, NDArray[np.float32]], None]


class DenseInference(ChunkedInference):
    """Tiles of a dense model: area-weighted sums of the latent inside every shape. A chunk is a batch of tiles.

    Parameters
    ----------
    raster : Raster, optional
        Called with the map of every core; None: no raster is written.
    query : Tensor, optional
        (g, d) rows of the genes on the raster; None: the raster holds the latent itself.
    fast : Model, optional
        The model with its batch norms folded (`fold_batch_norms`), which computes the latent; None: the model itself.

    Notes
    -----
    The last channel of the latent is 1 everywhere, so its sum inside a shape is the covered area.
    """

    def __init__(
        self, model: Model, section: Section, runtime: Runtime, *, raster: Raster | None = None,
        query: Tensor | None = None, fast: Model | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, section, runtime)
        self.fast = model if fast is None else fast
        self.raster, self.query = raster, query
        image = shapely.box(0, 0, section.image.width, section.image.height)
        self.shapes = _coverage.clip(section.shapes, image)
        self.bounds = _coverage.bounds(self.shapes) / model.stride
        y0, x0, y1, x1 = self.bounds.T
        self._tree = STRtree(shapely.box(x0, y0, x1, y1))
        self._last_read: tuple[Window, NDArray[np.uint8]] | None = None
        if section.tissue is not None:
            shapely.prepare(section.tissue)
        self.tiling = t = tiling_of(model)
        halo, core = (round(px / model.stride) for px in (t.halo_px, t.core_px))
        self._core = ..., slice(halo, halo + core), slice(halo, halo + core)  # of the map of a tile
        all_tiles = tiles(section.image.height, section.image.width, core_px=t.core_px, halo_px=t.halo_px)
        wanted = [
            tile
            for tile in all_tiles
            if len(self._shapes_in(tile.core)) or (raster is not None and self._has_tissue(tile))
        ]
        size = runtime.batch_size
        self.groups = [wanted[k : k + size] for k in range(0, len(wanted), size)]
        self.n = len(self.groups)

    def _shapes_in(self, core: Window) -> NDArray[np.int64]:
        """Rows of the shapes whose bounds overlap this core, rising."""
        y0, x0, y1, x1 = (at / self.model.stride for at in (core.y0, core.x0, core.y1, core.x1))
        near = np.sort(self._tree.query(shapely.box(x0, y0, x1, y1)))
        b = self.bounds[near]
        return near[(b[:, 0] < y1) & (b[:, 2] > y0) & (b[:, 1] < x1) & (b[:, 3] > x0)]  # those that only touch are out

    def _in_cells(self, core: Window) -> Window:
        """A core in cells of the map."""
        return Window(*(round(px / self.model.stride) for px in (core.y0, core.x0, core.height, core.width)))

    def _has_tissue(self, tile: Tile) -> bool:
        """Whether there may be tissue in a core."""
        core, tissue = tile.core, self.section.tissue
        return tissue is None or bool(shapely.intersects(tissue, shapely.box(core.x0, core.y0, core.x1, core.y1)))

    def stream(self, which: Sequence[int]) -> Generator[PartialSum]:
        """The partial sums of these chunks, in this order.

        A chunk goes through three stages, which work on three chunks at once: its tiles are read from the image in a
        thread; the network maps them here; in another thread the maps are pooled inside shapes and written to the
        raster.
        """
        images = prefetch(self._read_tiles, which, depth=READ_DEPTH)
        maps = self._latent_maps(which, images)
        return prefetch(self._pool_and_write, maps, depth=POOL_DEPTH)

    def _read_tiles(self, chunk: int) -> Tensor:
        """First stage: the pixels (b, 3, h, w) of the tiles of a chunk."""
        pixels = np.stack([self._pixels(tile.read) for tile in self.groups[chunk]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return images.pin_memory() if self.device.type == "cuda" else images

    def _pixels(self, window: Window) -> NDArray[np.uint8]:
        """The pixels (h, w, 3) of a window; columns that the window read before, mostly its neighbour, has are kept."""
        pixels: NDArray[np.uint8] | None = None
        if self._last_read is not None:
            last, held = self._last_read
            shared = last.x1 - window.x0
            if last.shape == window.shape and last.y0 == window.y0 and 0 < shared < window.width:
                rest = replace(window, x0=last.x1, width=window.width - shared)
                pixels = np.concatenate([held[:, -shared:], self.section.image.read(rest)], axis=1)
        if pixels is None:
            pixels = self.section.image.read(window)
        self._last_read = window, pixels
        return pixels

    def _latent_maps(self, which: Sequence[int], batches: Generator[Tensor]) -> Generator[tuple[int, Tensor]]:
        """Second stage: chunks, by number, and the latent maps (b, d, h, w) of their cores.

        Two buffers (`POOL_DEPTH` and one) take turns: a chunk is pooled before the maps of the next but one are
        computed. Allocated in each forward pass, and freed in the next, maps would break up the heap.
        """
        model, cells = self.model, round(self.tiling.core_px / self.model.stride)
        width = model.query(model.genes[:1]).shape[1]  # of the latent: what a gene's row is multiplied with
        shape = max(map(len, self.groups), default=0), width, cells, cells
        buffers = [
            torch.empty(shape, dtype=torch.float32, device=self.device) for _ in range(min(POOL_DEPTH + 1, len(which)))
        ]
        with closing(batches), self.bar(len(which)) as bar:
            for k, (chunk, images) in enumerate(zip(which, batches, strict=True)):
                maps = buffers[k % len(buffers)][: len(images)]
                self.in_batches(len(images), partial(self._forward, images, maps))
                bar.update()
                yield chunk, maps

    @torch.inference_mode()
    def _forward(self, images: Tensor, out: Tensor, part: slice) -> None:
        """Write the latent maps (b, d, h, w) of the cores of some tiles into `out[part]`.

        With `turns` above 1 they are averaged in float32 over the first `turns` symmetries of the square.
        """
        images, turns = images[part].to(out.device, non_blocking=True), self.tiling.turns
        if turns == 1:
            out[part] = self.fast.latent(_batch(images))[self._core]
            return
        total = self._turned_maps(images, 0)
        for turn in range(1, turns):
            total = total + self._turned_maps(images, turn)
        out[part] = total / turns

    def _turned_maps(self, images: Tensor, turn: int) -> Tensor:
        """The maps in float32 of images that are turned (see `dihedral`), turned back."""
        flip, quarters = turn > 3, turn % 4
        images = images.flip(-1) if flip else images
        images = images.rot90(quarters, (-2, -1)) if quarters else images  # rot90 copies even at 0 quarters
        maps = self.fast.latent(_batch(images))[self._core].to(torch.float32, copy=True)  # so that the halo is freed
        maps = maps.rot90(-quarters, (-2, -1)) if quarters else maps
        return maps.flip(-1) if flip else maps

    @torch.inference_mode()
    def _pool_and_write(self, computed: tuple[int, Tensor]) -> PartialSum:
        """Third stage: pool the latent maps of a chunk inside its shapes, and write them to the raster."""
        chunk, maps = computed
        sums: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for tile, latent in zip(self.groups[chunk], maps, strict=True):
            sums.append(self._pooled_sums(tile.core, latent))
            if self.raster is not None:
                self._write_raster_tile(tile.core, latent)
        if len(sums) == 1:
            return PartialSum(*sums[0])
        rows, at = np.unique(np.concatenate([rows for rows, _ in sums]), return_inverse=True)
        values = np.zeros((len(rows), maps.shape[1]))
        np.add.at(values, at, np.concatenate([values for _, values in sums]))
        return PartialSum(rows, values)

    def _pooled_sums(self, core: Window, latent: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The shapes in a core, and the sums of its latent (d, h, w) inside them."""
        d, h, w = latent.shape
        hits = self._shapes_in(core)
        if not len(hits):
            return hits, np.zeros((0, d))
        shapes = _coverage.in_cells(self.shapes.rows(hits), self.model.stride)
        weights = _coverage.Weights.of(_coverage.coverage(shapes, self._in_cells(core)))
        if latent.is_cuda:
            sums = weights.of_cells(latent.movedim(0, -1).reshape(h * w, d).cpu().numpy()).astype(np.float64)
        else:  # in this thread alone: more would be in the way of the network's
            sums = weights.one_by_one(latent.reshape(d, h * w).cpu().numpy()).astype(np.float64)
        sums[:, -1] = weights.area  # of the constant channel
        return hits, sums

    def _write_raster_tile(self, core: Window, latent: Tensor) -> None:
        """Values before the link (g, h, w) of one core to the raster."""
        assert self.raster is not None
        with torch.autocast(latent.device.type, enabled=False):
            values = latent if self.query is None else torch.einsum("gd,dhw->ghw", self.query, latent)
        cells, (height, width) = self._in_cells(core), raster_shape(self.model, self.section)
        y1, x1 = min(cells.y1, height), min(cells.x1, width)  # cores reach over the border
        values = values[:, : y1 - cells.y0, : x1 - cells.x0]
        self.raster(slice(cells.y0, y1), slice(cells.x0, x1), values.cpu().numpy())

    def from_sums(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Divide the sums by the covered areas (mean), or scale them (sum); also covered shares.

        Float32 sums are overwritten: the result takes their memory.
        """
        model, section = self.model, self.section
        area = total[:, -1:].copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = 1 / area if self.tiling.reduction == "mean" else (model.stride * section.mpp) ** 2
            pooled = total if total.dtype == np.float32 else np.empty(total.shape, np.float32)
            np.multiply(total, weight, dtype=np.float64, out=pooled, casting="same_kind")
        pooled[area[:, 0] <= 0] = 0.0
        share = area[:, 0] * model.stride**2 / np.where(section.area > 0, section.area, np.inf)
        return pooled, np.clip(share, 0.0, 1.0)


def _batch(images: Tensor) -> Batch:
    """Images (b, 3, h, w) alone, as a dense model takes them."""
    return Batch(images, None, None, (), np.empty((0, 2), np.int64))


def tiling_of(model: Model) -> Tiling:
    """How a dense model goes over an image."""
    assert model.tiling is not None
    return model.tiling


def raster_shape(model: Model, section: Section) -> tuple[int, int]:
    """(height, width) of a dense model's raster of this section, in cells."""
    stride = model.stride
    return int(np.ceil(section.image.height / stride)), int(np.ceil(section.image.width / stride))
