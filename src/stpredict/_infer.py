"""Inference: a section tile by tile, read out inside its shapes and streamed as a raster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from stpredict import _coverage
from stpredict._section import Section
from stpredict._window import Tile, Window, tiles
from stpredict.models._base import Model
from stpredict.models._samples import Batch, to_cells
from stpredict.nn.allocator import keep_freed_memory
from stpredict.nn.device import autocast, resolve_device, resolve_precision

logger = logging.getLogger("stpredict")
PATCHES = 64  # images of spot models a forward pass
HEAD_ROWS = 8192  # shapes whose genes are predicted together, where a model does not want all of a section


@dataclass(frozen=True)
class Runtime:
    """Where and how the forward pass runs: device, number format, images a batch, progress bar."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | str = "auto"
    progress: bool = True


def predict(
    model: Model,
    section: Section,
    genes: Sequence[str],
    *,
    runtime: Runtime,
    raster: Callable[[slice, slice, NDArray[np.float32]], None] | None = None,
    latent: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Predict inside the shapes of a section, and hand its raster on piece by piece.

    genes
        Panel genes to predict, in the wanted order.
    raster
        Called once for every core of the tiling with its rows and columns on the raster grid and the values (g, h, w)
        before the link (or, with `latent`, the latent map (d, h, w)); only for dense models.

    Returns values (n, g) float32 in target units, NaN where nothing of a shape is on the image, and the covered share
    (n,) of each shape's area in [0, 1]. The raster of all genes is never held.

    Raises ValueError where a raster is asked of a model that has none.
    """
    if raster is not None and model.output != "raster":
        raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no raster; use output='layer'.")
    if latent and raster is not None:
        genes = []
    with _running(model, runtime) as device:
        with torch.autocast(device.type, enabled=False):
            query = model.query(genes).float() if genes else None
        rows, share = _rows(model, section, runtime, device, _Maps(raster, None if latent else query))
        values = np.full((section.n_shapes, len(genes)), np.nan, dtype=np.float32)
        on = np.flatnonzero(share > 0)
        if len(on) and query is not None:
            values[on] = _headed(model, rows[on], query)
        return values, share


def embed(model: Model, section: Section, *, runtime: Runtime) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What a model sees of each shape before any gene is asked: its latent, pooled inside the shape.

    Returns values (n, d) float32, NaN where nothing of a shape is on the image (a dense model's constant channel is
    left out), and the covered share (n,) of each shape's area.
    """
    with _running(model, runtime) as device:
        rows, share = _rows(model, section, runtime, device, _Maps(None, None))
    values = np.where(share[:, None] > 0, rows, np.nan).astype(np.float32)
    return (values[:, :-1] if model.output == "raster" else values), share


@contextmanager
def _running(model: Model, runtime: Runtime) -> Iterator[torch.device]:
    device = resolve_device(runtime.device)
    model.to(device).eval()
    precision = resolve_precision(runtime.precision, device)
    with keep_freed_memory(), torch.inference_mode(), autocast(precision, device):
        yield device


def _rows(
    model: Model, section: Section, runtime: Runtime, device: torch.device, maps: _Maps
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The latent of every shape (n, d) float32, 0 where nothing is covered, and covered shares (n,)."""
    if model.output == "spots":
        return _patches(model, section, runtime, device)
    return _tiles(model, section, runtime, device, maps)


def _headed(model: Model, rows: NDArray[np.float32], query: Tensor) -> NDArray[np.float32]:
    """(n, g) values in target units; models that see a whole section get all its rows at once."""
    step = len(rows) if model.context == "section" else HEAD_ROWS
    with torch.autocast(query.device.type, enabled=False):
        parts = [torch.from_numpy(rows[k : k + step]).to(query.device) for k in range(0, len(rows), step)]
        return np.concatenate([model.link(model.head(part, query)).float().cpu().numpy() for part in parts])


def raster_shape(model: Model, section: Section) -> tuple[int, int]:
    """(height, width) of a dense model's raster of this section, in cells."""
    stride = model.stride
    return int(np.ceil(section.image.height / stride)), int(np.ceil(section.image.width / stride))


@dataclass(frozen=True)
class _Maps:
    """Where the cores of a map go, and which genes; without `query` the latent map itself."""

    raster: Callable[[slice, slice, NDArray[np.float32]], None] | None
    query: Tensor | None


def _tiles(
    model: Model, section: Section, runtime: Runtime, device: torch.device, maps: _Maps
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    shapes = _Sums(section, stride=model.stride)
    every = tiles(section.image.height, section.image.width, core_px=model.config.core_px, halo_px=model.config.halo_px)
    wanted = [tile for tile in every if maps.raster is not None or shapes.touch(tile.core)]
    for tile, core in _stream(model, section, wanted, runtime, device):
        shapes.add(tile.core, core)
        if maps.raster is not None:
            values = core if maps.query is None else _values(core, maps.query)
            _hand_on(values, tile.core, model, section, maps.raster)
    return shapes.read(model)


def _values(core: Tensor, query: Tensor) -> Tensor:
    """(g, h, w) values before the link of one core (d, h, w)."""
    with torch.autocast(core.device.type, enabled=False):
        return torch.einsum("gd,dhw->ghw", query, core)


def _hand_on(
    values: Tensor,
    core: Window,
    model: Model,
    section: Section,
    raster: Callable[[slice, slice, NDArray[np.float32]], None],
) -> None:
    height, width = raster_shape(model, section)
    y0, x0 = round(core.y0 / model.stride), round(core.x0 / model.stride)
    y1, x1 = min(y0 + values.shape[1], height), min(x0 + values.shape[2], width)
    raster(slice(y0, y1), slice(x0, x1), values[:, : y1 - y0, : x1 - x0].cpu().numpy())


def _stream(
    model: Model, section: Section, wanted: Sequence[Tile], runtime: Runtime, device: torch.device
) -> Iterator[tuple[Tile, Tensor]]:
    """Each tile with the latent map (d, h, w) float32 of its core; the next images are read while one is computed."""
    n = (4 if device.type == "cuda" else 1) if runtime.batch_size == "auto" else int(runtime.batch_size)
    groups = [wanted[k : k + n] for k in range(0, len(wanted), n)]
    halo, core = (round(px / model.stride) for px in (model.config.halo_px, model.config.core_px))
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(_read, section, group) for group in groups[:2]]
        for k, group in enumerate(tqdm(groups, desc="tiles", disable=not runtime.progress, leave=False)):
            image = ahead.pop(0).result()
            if k + 2 < len(groups):
                ahead.append(reader.submit(_read, section, groups[k + 2]))
            batch = Batch(image.to(device, non_blocking=True), None, None, (), np.empty((0, 2), dtype=np.int64))
            maps = _turned_latent(model, batch)[..., halo : halo + core, halo : halo + core]
            yield from zip(group, maps, strict=True)


def _turned_latent(model: Model, batch: Batch) -> Tensor:
    """The latent maps (b, d, h, w) float32, averaged over the first `turns` symmetries of the square."""
    total: Tensor | None = None
    for turn in range(model.config.turns):
        flip = turn > 3
        image = torch.rot90(batch.image.flip(-1) if flip else batch.image, turn, dims=(-2, -1))
        maps = torch.rot90(model.latent(replace(batch, image=image)).float(), -turn, dims=(-2, -1))
        maps = maps.flip(-1) if flip else maps
        total = maps if total is None else total + maps
    assert total is not None
    return total / model.config.turns


def _read(section: Section, group: Sequence[Tile]) -> Tensor:
    images = np.stack([section.image.read(tile.read) for tile in group])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class _Sums:
    """Area-weighted sums of the latent inside every shape, added up core by core.

    The constant last channel of the latent adds up to the covered area.
    """

    def __init__(self, section: Section, *, stride: float) -> None:
        image = shapely.box(0, 0, section.image.width, section.image.height)
        geometry, radius = _coverage.clip(section.geometry, section.radius, image)
        self.geometry, self.radius = _coverage.transform(geometry, radius, to_cells(stride))
        self.bounds = _coverage.bounds(self.geometry, self.radius)
        self.section, self.stride = section, stride
        self.sums: NDArray[np.float64] | None = None

    def _hits(self, core: Window) -> NDArray[np.int64]:
        y0, x0 = core.y0 / self.stride, core.x0 / self.stride
        y1, x1 = core.y1 / self.stride, core.x1 / self.stride
        b = self.bounds
        return np.flatnonzero((b[:, 0] < y1) & (b[:, 2] > y0) & (b[:, 1] < x1) & (b[:, 3] > x0))

    def touch(self, core: Window) -> bool:
        """Whether any shape reaches into this core."""
        return len(self._hits(core)) > 0

    def add(self, core: Window, latent: Tensor) -> None:
        """Add the latent (d, h, w) of a core."""
        d, h, w = latent.shape
        if self.sums is None:
            self.sums = np.zeros((self.section.n_shapes, d))
        hits = self._hits(core)
        if len(hits):
            window = Window(round(core.y0 / self.stride), round(core.x0 / self.stride), h, w)
            covered = _coverage.coverage(self.geometry[hits], self.radius[hits], window)
            rows = latent.movedim(0, -1).reshape(h * w, d).cpu().numpy()
            self.sums[hits] += covered @ rows

    def read(self, model: Model) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The latent of every shape (n, d) float32, 0 where nothing is covered, and covered shares (n,)."""
        n = self.section.n_shapes
        if self.sums is None:
            return np.zeros((n, 0), dtype=np.float32), np.zeros(n)
        area = self.sums[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = 1 / area if model.config.reduction == "mean" else (self.stride * self.section.mpp) ** 2
            pooled = np.where(area > 0, self.sums * weight, 0.0).astype(np.float32)
        share = area[:, 0] * self.stride**2 / np.where(self.section.area > 0, self.section.area, np.inf)
        return pooled, np.clip(share, 0.0, 1.0)


def _patches(
    model: Model, section: Section, runtime: Runtime, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    samples = model.samples([section], train=False)
    share = _covered_share(section)
    n = PATCHES if runtime.batch_size == "auto" else int(runtime.batch_size)
    on = np.flatnonzero(share > 0)
    rows: NDArray[np.float32] | None = None
    for k in tqdm(range(0, len(on), n), desc="patches", disable=not runtime.progress, leave=False):
        batch = samples.collate([samples[int(i)] for i in on[k : k + n]]).to(device)
        latent = model.latent(batch).float().cpu().numpy()
        rows = np.zeros((section.n_shapes, latent.shape[1]), dtype=np.float32) if rows is None else rows
        rows[batch.rows[:, 1]] = latent
    return np.zeros((section.n_shapes, 0), dtype=np.float32) if rows is None else rows, share


def _covered_share(section: Section) -> NDArray[np.float64]:
    image = shapely.box(0, 0, section.image.width, section.image.height)
    area = _coverage.areas(*_coverage.clip(section.geometry, section.radius, image))
    return np.clip(area / np.where(section.area > 0, section.area, np.inf), 0.0, 1.0)
