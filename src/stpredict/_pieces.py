"""Pieces of a section that are worked on one by one, in any order and in any process, and what each leaves."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from stpredict import _coverage
from stpredict._beside import beside
from stpredict._section import Section
from stpredict._window import Tile, Window, tiles
from stpredict.models._base import Model
from stpredict.models._samples import Batch, Samples, to_cells
from stpredict.nn.device import same_autocast

logger = logging.getLogger("stpredict")
PATCHES = 64  # images of spot models a forward pass
PIECE_ROWS = 1024  # shapes of spot models a piece, about
BEHIND = 1  # pieces that are read out while the next is computed

Raster = Callable[[slice, slice, NDArray[np.float32]], None]


@dataclass(frozen=True)
class Part:
    """What one piece adds: `values` (k, d) to the sums of the shapes `rows` (k,)."""

    rows: NDArray[np.int64]
    values: NDArray[np.floating]


class Parts(Protocol):
    """Where the parts of finished pieces are kept."""

    def has(self, piece: int) -> bool:
        """Whether this piece is finished."""

    def load(self, piece: int) -> Part:
        """The part of a finished piece."""

    def keep(self, piece: int, part: Part) -> None:
        """Keep the part of a piece; whatever else the piece writes is written by then."""


class Pieces(ABC):
    """The pieces of a section for one model. A piece is a forward pass or several; which ones never changes."""

    n: int

    def __init__(
        self, model: Model, section: Section, *, batch_size: int, device: torch.device, progress: bool
    ) -> None:
        self.model, self.section, self.batch_size = model, section, batch_size
        self.device, self.progress = device, progress
        self._at_once = batch_size

    def computed[Done](self, n: int, forward: Callable[[slice], Done]) -> list[Done]:
        """`forward` on n images, as many at a time as fit into memory: half as many whenever it runs out.

        Raises MemoryError where even one does not fit.
        """
        done: list[Done] = []
        first = 0
        while first < n:
            part = slice(first, min(n, first + self._at_once))
            try:
                done.append(forward(part))
                first = part.stop
                continue
            except torch.OutOfMemoryError as error:
                if self._at_once == 1:
                    raise MemoryError(
                        f"one image of the {type(self.model).__name__} does not fit into the memory of {self.device}. "
                        'Close what else runs there, pass device="cpu", or use a model with a smaller core_px.'
                    ) from error
            self._at_once = max(1, self._at_once // 2)  # out of the handler, which holds the tensors of the attempt
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.info("out of memory on %s: going on with %d images a forward pass", self.device, self._at_once)
        return done

    @abstractmethod
    def stream(self, which: Sequence[int]) -> Generator[Part]:
        """The parts of these pieces, one by one, in this order."""

    @abstractmethod
    def read(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """From the sums (n, d) the latent of every shape, 0 where nothing is covered, and covered shares (n,)."""


class Tiles(Pieces):
    """Tiles of a dense model: area-weighted sums of the latent inside every shape.

    raster, query
        Takes the cores of the map of these genes, (g, d); without `query` of the latent map itself. The values that it
        is handed are valid during the call only.
    fast
        The same model in fewer steps, for the latent; None: the model itself.

    The constant last channel of the latent adds up to the covered area. A piece is a batch of tiles.
    """

    def __init__(
        self, model: Model, section: Section, *, batch_size: int, device: torch.device, progress: bool,
        raster: Raster | None = None, query: Tensor | None = None, fast: Model | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, section, batch_size=batch_size, device=device, progress=progress)
        self.fast = model if fast is None else fast
        self.raster, self.query = raster, query
        image = shapely.box(0, 0, section.image.width, section.image.height)
        self.geometry, self.radius = _coverage.clip(section.geometry, section.radius, image)
        self.bounds = _coverage.bounds(self.geometry, self.radius) / model.stride
        there = np.flatnonzero(np.isfinite(self.bounds[:, 0]))
        middle = (self.bounds[there, 0] + self.bounds[there, 2]) / 2
        height = self.bounds[there, 2] - self.bounds[there, 0]
        tall = height > model.config.core_px / model.stride  # few, and looked at for every tile
        order = np.argsort(middle[~tall])  # from top to bottom
        self.tall, self.there, self.middle = there[tall], there[~tall][order], middle[~tall][order]
        self.reach = np.max(height[~tall], initial=0.0) / 2 + 1
        self._last_read: tuple[Window, NDArray[np.uint8]] | None = None
        if section.tissue is not None:
            shapely.prepare(section.tissue)
        c = model.config
        every = tiles(section.image.height, section.image.width, core_px=c.core_px, halo_px=c.halo_px)
        wanted = [tile for tile in every if len(self._hits(tile.core)) or (raster is not None and self._seen(tile))]
        self.groups = [wanted[k : k + batch_size] for k in range(0, len(wanted), batch_size)]
        self.n = len(self.groups)

    def stream(self, which: Sequence[int]) -> Generator[Part]:
        """While one batch is computed, the next is read, and the one before is read out and written."""
        with closing(self._computed(which)) as maps, closing(beside(self._part, maps, ahead=BEHIND)) as parts:
            yield from parts

    def _computed(self, which: Sequence[int]) -> Generator[tuple[int, Tensor]]:
        """Pieces and the latent maps of their cores.

        Two tensors (`BEHIND` and one) take turns: a piece is read out before the maps of the next but one are computed.
        Allocated in each forward pass, and freed in the next, maps would break up the heap from pass to pass.
        """
        model, cells = self.model, round(self.model.config.core_px / self.model.stride)
        shape = max(map(len, self.groups), default=0), model.query(model.genes[:1]).shape[1], cells, cells
        turns = [
            torch.empty(shape, dtype=torch.float32, device=self.device) for _ in range(min(BEHIND + 1, len(which)))
        ]
        with closing(beside(self._images, which, ahead=2)) as every:
            shown = tqdm(every, desc="tiles", total=len(which), disable=not self.progress, leave=False)
            for k, (i, images) in enumerate(zip(which, shown, strict=True)):
                yield i, self._maps(images, turns[k % len(turns)])

    def read(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Sums over areas."""
        model, section = self.model, self.section
        area = total[:, -1:].copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = 1 / area if model.config.reduction == "mean" else (model.stride * section.mpp) ** 2
            pooled = total if total.dtype == np.float32 else np.empty(total.shape, np.float32)
            np.multiply(total, weight, dtype=np.float64, out=pooled, casting="same_kind")
        pooled[area[:, 0] <= 0] = 0.0
        share = area[:, 0] * model.stride**2 / np.where(section.area > 0, section.area, np.inf)
        return pooled, np.clip(share, 0.0, 1.0)

    def _hits(self, core: Window) -> NDArray[np.int64]:
        """Shapes that reach into this core."""
        y0, x0, y1, x1 = (at / self.model.stride for at in (core.y0, core.x0, core.y1, core.x1))
        first, last = np.searchsorted(self.middle, (y0 - self.reach, y1 + self.reach))
        near = np.sort(np.concatenate([self.tall, self.there[first:last]]))
        b = self.bounds[near]
        return near[(b[:, 0] < y1) & (b[:, 2] > y0) & (b[:, 1] < x1) & (b[:, 3] > x0)]

    def _seen(self, tile: Tile) -> bool:
        """Whether there may be tissue in a core."""
        core, tissue = tile.core, self.section.tissue
        return tissue is None or bool(shapely.intersects(tissue, shapely.box(core.x0, core.y0, core.x1, core.y1)))

    def _images(self, piece: int) -> Tensor:
        read = np.stack([self._pixels(tile.read) for tile in self.groups[piece]])
        images = torch.from_numpy(read).permute(0, 3, 1, 2)
        return images.pin_memory() if self.device.type == "cuda" else images

    def _pixels(self, window: Window) -> NDArray[np.uint8]:
        """A window of the image. What it shares with the one before, mostly its neighbour, is not read again."""
        image, before = self.section.image, self._last_read
        if before is not None and before[0].shape == window.shape and before[0].y0 == window.y0:
            last, shared = before[0], before[0].x1 - window.x0
            if 0 < shared < window.width:
                rest = replace(window, x0=last.x1, width=window.width - shared)
                self._last_read = window, np.concatenate([before[1][:, -shared:], image.read(rest)], axis=1)
                return self._last_read[1]
        self._last_read = window, image.read(window)
        return self._last_read[1]

    @torch.inference_mode()
    def _maps(self, images: Tensor, out: Tensor) -> Tensor:
        """The latent maps (b, d, h, w) of the cores of tiles, in `out`."""

        def forward(part: slice) -> None:
            moved = images[part].to(self.device, non_blocking=True)
            batch = Batch(moved, None, None, (), np.empty((0, 2), np.int64))
            out[part] = _turned_latent(self.fast, batch)

        self.computed(len(images), forward)
        return out[: len(images)]

    @torch.inference_mode()
    def _part(self, computed: tuple[int, Tensor]) -> Part:
        """What a piece adds; its cores go to the raster."""
        group, maps = self.groups[computed[0]], computed[1]
        sums: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for tile, core in zip(group, maps, strict=True):
            sums.append(self._sums(tile.core, core))
            if self.raster is not None:
                self._hand_on(tile.core, core)
        if len(sums) == 1:
            return Part(*sums[0])
        rows, at = np.unique(np.concatenate([rows for rows, _ in sums]), return_inverse=True)
        values = np.zeros((len(rows), maps.shape[1]))
        np.add.at(values, at, np.concatenate([values for _, values in sums]))
        return Part(rows, values)

    def _sums(self, core: Window, latent: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The shapes in a core, and the sums of its latent (d, h, w) inside them."""
        d, h, w = latent.shape
        hits = self._hits(core)
        if not len(hits):
            return hits, np.zeros((0, d))
        window = Window(round(core.y0 / self.model.stride), round(core.x0 / self.model.stride), h, w)
        shapes = _coverage.transform(self.geometry[hits], self.radius[hits], to_cells(self.model.stride))
        weights = _coverage.Weights.of(_coverage.coverage(*shapes, window))
        if latent.is_cuda:
            sums = weights.of_cells(latent.movedim(0, -1).reshape(h * w, d).cpu().numpy()).astype(np.float64)
        else:  # in this thread alone: more would be in the way of the network's
            sums = weights.one_by_one(latent.reshape(d, h * w).cpu().numpy()).astype(np.float64)
        sums[:, -1] = weights.area  # of the constant channel
        return hits, sums

    def _hand_on(self, core: Window, latent: Tensor) -> None:
        """Values before the link (g, h, w) of one core to the raster."""
        assert self.raster is not None
        with torch.autocast(latent.device.type, enabled=False):
            values = latent if self.query is None else torch.einsum("gd,dhw->ghw", self.query, latent)
        height, width = raster_shape(self.model, self.section)
        y0, x0 = round(core.y0 / self.model.stride), round(core.x0 / self.model.stride)
        y1, x1 = min(y0 + values.shape[1], height), min(x0 + values.shape[2], width)
        self.raster(slice(y0, y1), slice(x0, x1), values[:, : y1 - y0, : x1 - x0].cpu().numpy())


class Patches(Pieces):
    """Patches of a spot model: the latent of every shape. A model that sees a whole section has one piece.

    fast
        The same model in fewer steps, for the latent; None: the model itself.
    """

    def __init__(
        self, model: Model, section: Section, *, batch_size: int, device: torch.device, progress: bool,
        fast: Model | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, section, batch_size=batch_size, device=device, progress=progress)
        self.fast = model if fast is None else fast
        self.share = _covered_share(section)
        on = np.flatnonzero(self.share > 0)
        step = max(len(on), 1) if model.sees_section else batch_size * -(-PIECE_ROWS // batch_size)
        self.groups = [on[k : k + step] for k in range(0, len(on), step)]
        self.n = len(self.groups)

    def stream(self, which: Sequence[int]) -> Generator[Part]:
        """Batch by batch within a piece; while one is computed, the next is cut out of the image and collated."""
        samples = self.model.samples([self.section], train=False)
        size, groups = self.batch_size, [self.groups[i] for i in which]
        batches = [group[k : k + size] for group in groups for k in range(0, len(group), size)]

        ambient = same_autocast(self.device)  # some samples hold features of an encoder

        def cut(rows: NDArray[np.int64]) -> tuple[list[Any], Batch]:
            with torch.inference_mode(), ambient:
                patches = samples.__getitems__(rows.tolist())
                return patches, samples.collate(patches)

        with (
            closing(beside(cut, batches, ahead=1)) as made,
            tqdm(made, desc="patches", total=len(batches), disable=not self.progress, leave=False) as shown,
        ):
            patches = iter(shown)
            for group in groups:
                found = []
                for _ in range(0, len(group), size):
                    every, batch = next(patches)
                    found += self.computed(len(every), partial(self._latent, samples, every, batch))
                yield Part(np.concatenate([of for _, of in found]), np.concatenate([latent for latent, _ in found]))

    def _latent(
        self, samples: Samples, patches: list[Any], batch: Batch, part: slice
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The latent of some samples of a batch, and their rows."""
        whole = part == slice(0, len(patches))
        batch = (batch if whole else samples.collate(patches[part])).to(self.device)
        return self.fast.latent(batch).float().cpu().numpy(), batch.rows[:, 1]

    def read(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The latent itself: every shape is in one piece."""
        return total.astype(np.float32, copy=False), self.share


def raster_shape(model: Model, section: Section) -> tuple[int, int]:
    """(height, width) of a dense model's raster of this section, in cells."""
    stride = model.stride
    return int(np.ceil(section.image.height / stride)), int(np.ceil(section.image.width / stride))


def _turned_latent(model: Model, batch: Batch) -> Tensor:
    """The latent maps (b, d, h, w) of cores, averaged in float32 over the first `turns` symmetries of the square."""
    halo, core = (round(px / model.stride) for px in (model.config.halo_px, model.config.core_px))
    total: Tensor | None = None
    for turn in range(model.config.turns):
        flip, quarters = turn > 3, turn % 4
        image = batch.image.flip(-1) if flip else batch.image
        image = image.rot90(quarters, (-2, -1)) if quarters else image  # a turn of nothing copies
        maps = model.latent(replace(batch, image=image))[..., halo : halo + core, halo : halo + core]
        maps = maps.to(torch.float32, copy=True) if model.config.turns > 1 else maps  # no view: the halo goes
        maps = maps.rot90(-quarters, (-2, -1)) if quarters else maps
        maps = maps.flip(-1) if flip else maps
        total = maps if total is None else total + maps
    assert total is not None
    return total if model.config.turns == 1 else total / model.config.turns


def _covered_share(section: Section) -> NDArray[np.float64]:
    image = shapely.box(0, 0, section.image.width, section.image.height)
    area = _coverage.areas(*_coverage.clip(section.geometry, section.radius, image))
    return np.clip(area / np.where(section.area > 0, section.area, np.inf), 0.0, 1.0)
