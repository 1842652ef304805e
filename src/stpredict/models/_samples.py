"""What models cut from sections: windows of a dense map, patches around shapes; and the batches they become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stpredict import _coverage
from stpredict._section import ImageView, Section
from stpredict._window import Window
from stpredict.nn.pool import Pooling, pooling
from stpredict.nn.stain import jitter

READ_BYTES = 2**26  # of an image's own pixels that are read together


@dataclass
class Batch:
    """Images with the shapes in them.

    image
        (b, 3, h, w) uint8 RGB.
    pooling
        How a dense latent is pooled inside the n shapes; None where a row is an image.
    expression, genes
        (n, g) float32 target and its columns.
    rows
        (n, 2) which section (its position in the list) and which of its shapes each row is.
    extra
        What else a model's own samples carry, by name.
    """

    image: Tensor
    pooling: Pooling | None
    expression: Tensor | None
    genes: tuple[str, ...]
    rows: NDArray[np.int64]
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            image=self.image.to(device),
            pooling=None if self.pooling is None else self.pooling.to(device),
            expression=None if self.expression is None else self.expression.to(device),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )

    @property
    def measured(self) -> Tensor:
        """The target; raises ValueError where nothing was measured."""
        if self.expression is None:
            raise ValueError("this batch was cut from sections without expression; there is nothing to compare with.")
        return self.expression


class Samples(Dataset, ABC):
    """A sequence of samples; an index is global: `epoch * len + position` gives every epoch its own draw."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Any: ...

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch: ...

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of several indices, as torch's loaders ask for; what they share of an image may be read once."""
        return [self[i] for i in indices]


def to_cells(stride: float | int) -> NDArray[np.float64]:
    """The affine from working pixels to cells of a map with this stride."""
    return np.diag([1 / stride, 1 / stride, 1.0])


def dihedral(array: NDArray, turn: int) -> NDArray:
    """One of the 8 symmetries of a square, on the first two axes: `turn` % 4 quarter turns, after a flip if > 3."""
    return np.rot90(array[:, ::-1] if turn > 3 else array, turn % 4)


def held_in_memory(section: Section, *, limit_bytes: int) -> Section:
    """The section with its image read once at working resolution, where that takes at most `limit_bytes`."""
    view = section.image
    if view.height * view.width * 3 > limit_bytes:
        return section
    pixels = np.empty((3, view.height, view.width), dtype=np.uint8)
    for y in range(0, view.height, 1024):
        strip = Window(y, 0, min(1024, view.height - y), view.width)
        pixels[:, y : strip.y1] = np.moveaxis(view.read(strip), -1, 0)
    return replace(section, image=ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=view.mpp))


@dataclass(frozen=True)
class _Cut:
    """One window of one section with the shapes that count in it."""

    section: int
    window: Window
    shapes: NDArray[np.int64]
    turn: int = 0


class WindowSamples(Samples):
    """Square windows of sections; a shape counts only if it lies wholly inside.

    With `n_genes`, a batch carries so many genes, drawn anew. In training a window is placed at random around a random
    shape (sections in proportion to their shapes), turned by one of the 8 symmetries; otherwise windows are laid so
    that every shape counts exactly once, away from the edge.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        *,
        window_px: int,
        stride: float | int,
        reduction: Literal["mean", "sum"],
        stain_jitter: float,
        train: bool,
        seed: int,
        n_genes: int | None = None,
    ) -> None:
        self.sections, self.window_px, self.stride = sections, window_px, stride
        self.reduction, self.stain_jitter, self.train, self.seed = reduction, stain_jitter, train, seed
        self.n_genes = n_genes
        self.bounds = [_coverage.bounds(s.geometry, s.radius) for s in sections]
        self.cells = [_coverage.transform(s.geometry, s.radius, to_cells(stride)) for s in sections]
        self._check_extent()
        self.shapes = np.array([(i, k) for i, s in enumerate(sections) for k in range(s.n_shapes)])
        self.cuts = [] if train else [cut for i in range(len(sections)) for cut in self._lay(i)]

    def __len__(self) -> int:
        return self._n_random() if self.train else len(self.cuts)

    def __getitem__(self, index: int) -> tuple[NDArray, sp.csr_array, NDArray | None, NDArray, int]:
        """Image (h, w, 3), coverage (n, cells), expression (n, g), rows (n, 2) and index of one window."""
        cut = self._draw(index) if self.train else self.cuts[index]
        section = self.sections[cut.section]
        n = round(self.window_px / self.stride)
        y0, x0 = round(cut.window.y0 / self.stride), round(cut.window.x0 / self.stride)
        geometry, radius = (part[cut.shapes] for part in self.cells[cut.section])
        covered = _coverage.coverage(geometry, radius, Window(y0, x0, n, n)) * self.stride**2
        order = dihedral(np.arange(n * n).reshape(n, n), cut.turn).ravel()
        image = dihedral(section.image.read(cut.window), cut.turn)
        if self.stain_jitter:
            rng = np.random.default_rng([self.seed, index, 1])
            image = jitter(image, strength=self.stain_jitter, rng=rng)
        expression = None if section.expression is None else section.expression[cut.shapes]
        rows = np.column_stack([np.full(len(cut.shapes), cut.section), cut.shapes])
        return np.ascontiguousarray(image), sp.csr_array(covered[:, order]), expression, rows, index

    def collate(self, samples: Sequence[tuple[NDArray, sp.csr_array, NDArray | None, NDArray, int]]) -> Batch:
        images, covered, expression, rows, draws = zip(*samples, strict=True)
        section = self.sections[0]
        into = pooling(covered, reduction=self.reduction, mpp=section.mpp)
        target = None if expression[0] is None else torch.from_numpy(np.concatenate(expression))
        image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        batch = Batch(image, into, target, section.genes or (), np.concatenate(rows))
        return batch if self.n_genes is None else some_genes(batch, self.n_genes, draw=(self.seed, draws[0]))

    def _check_extent(self) -> None:
        for section, bounds in zip(self.sections, self.bounds, strict=True):
            extent = np.nanmax(bounds[:, 2:] - bounds[:, :2], initial=0)
            if extent >= self.window_px:
                raise ValueError(
                    f"section {section.name!r} has a shape {extent * section.mpp:.0f} um wide; the training window is "
                    f"{self.window_px * section.mpp:.0f} um. Give the model a larger window_px or smaller shapes."
                )

    def _n_random(self) -> int:
        """So many windows that a shape is expected to count about once an epoch, if shapes fill the section."""
        n = 0.0
        for section, bounds in zip(self.sections, self.bounds, strict=True):
            extent = np.nanmedian(bounds[:, 2:] - bounds[:, :2])
            y0, x0 = np.nanmin(bounds[:, :2], axis=0)
            y1, x1 = np.nanmax(bounds[:, 2:], axis=0)
            per_window = section.n_shapes * (self.window_px - extent) ** 2 / ((y1 - y0) * (x1 - x0))
            n += section.n_shapes / max(per_window, 1.0)
        return max(1, int(np.ceil(n)))

    def _draw(self, index: int) -> _Cut:
        rng = np.random.default_rng([self.seed, index])
        i, k = map(int, self.shapes[rng.integers(len(self.shapes))])
        low, high = self.bounds[i][k, :2], self.bounds[i][k, 2:]
        corner = rng.integers(np.ceil(high - self.window_px), np.floor(low) + 1)
        y0, x0 = self._snap(corner)
        window = Window(y0, x0, self.window_px, self.window_px)
        return _Cut(i, window, self._inside(i, window), int(rng.integers(8)))

    def _snap(self, corner: NDArray) -> tuple[int, int]:
        """The corner moved up and left to whole pixels that start a cell (strides may be halves)."""
        unit = self.stride if float(self.stride).is_integer() else 2 * self.stride
        y, x = np.floor(corner / unit) * unit
        return int(y), int(x)

    def _inside(self, i: int, window: Window) -> NDArray[np.int64]:
        section = self.sections[i]
        return np.flatnonzero(_coverage.inside(section.geometry, section.radius, window))

    def _lay(self, i: int) -> list[_Cut]:
        """Windows on a regular grid; each shape goes to the window whose centre is nearest."""
        bounds = self.bounds[i]
        extent = float(np.nanmax(bounds[:, 2:] - bounds[:, :2], initial=0))
        step = max(1.0, (self.window_px - extent) * 0.6)
        centre = (bounds[:, :2] + bounds[:, 2:]) / 2
        cells = np.floor(centre / step).astype(np.int64)
        cuts = []
        for y, x in np.unique(cells, axis=0):
            y0, x0 = self._snap((np.array([y, x]) + 0.5) * step - self.window_px / 2)
            shapes = np.flatnonzero((cells == (y, x)).all(axis=1))
            cuts.append(_Cut(i, Window(y0, x0, self.window_px, self.window_px), shapes))
        return cuts


class Patch(NamedTuple):
    """Image (h, w, 3), expression (g,), the row (2,) of its shape, and the number that random draws start from."""

    image: NDArray
    expression: NDArray | None
    row: tuple[int, int]
    draw: int


class PatchSamples(Samples):
    """A square patch around the centre of every shape; the same in training and prediction.

    n_genes
        How many genes, drawn anew for every batch, a batch carries; None: all.
    """

    def __init__(
        self, sections: Sequence[Section], *, patch_px: int, n_genes: int | None = None, seed: int = 0
    ) -> None:
        self.sections, self.patch_px, self.n_genes, self.seed = sections, patch_px, n_genes, seed
        self.shapes = [(i, k) for i, s in enumerate(sections) for k in range(s.n_shapes)]
        self.bounds = [_coverage.bounds(s.geometry, s.radius) for s in sections]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Patch:
        """Image (h, w, 3), expression (g,), row (2,) and index of one shape."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Patch]:
        """As `[index]` for each; a chunk of an image under several patches is read and decoded once."""
        images: dict[int, NDArray[np.uint8]] = {}  # by the place in `indices`
        shapes = [self.shapes[index % len(self.shapes)] for index in indices]
        for i in {i for i, _ in shapes}:
            places = [place for place, (section, _) in enumerate(shapes) if section == i]
            view = self.sections[i].image
            step = max(1, int(READ_BYTES / (3 * self.patch_px**2 * view.scale[0] * view.scale[1])))
            for first in range(0, len(places), step):
                part = places[first : first + step]
                images |= zip(part, view.read_all([self._window(*shapes[place]) for place in part]), strict=True)
        return [
            Patch(images[place], None if (of := self.sections[i].expression) is None else of[k], (i, k), index)
            for place, ((i, k), index) in enumerate(zip(shapes, indices, strict=True))
        ]

    def _window(self, i: int, k: int) -> Window:
        bounds = self.bounds[i][k]
        y, x = np.floor((bounds[:2] + bounds[2:] - self.patch_px) / 2 + 0.5).astype(int)
        return Window(int(y), int(x), self.patch_px, self.patch_px)

    def by_section(self) -> list[list[int]]:
        """The indices of every section's shapes: what a model needs that sees a whole section at once."""
        return [[j for j, (i, _) in enumerate(self.shapes) if i == section] for section in range(len(self.sections))]

    def collate(self, samples: Sequence[Patch]) -> Batch:
        images, expression, rows, draws = zip(*samples, strict=True)
        target = None if expression[0] is None else torch.from_numpy(np.stack(expression))
        image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        batch = Batch(image, None, target, self.sections[0].genes or (), np.array(rows))
        return batch if self.n_genes is None else some_genes(batch, self.n_genes, draw=(self.seed, draws[0]))


class SectionSamples(Samples):
    """Whole sections, for training a model that sees all spots of one: patches around up to `n_spots` of its shapes.

    An epoch has so many samples that every gene is expected once with every section, `n_genes` a batch.
    """

    def __init__(self, patches: PatchSamples, *, n_spots: int, n_genes: int, seed: int) -> None:
        self.patches, self.n_spots, self.n_genes, self.seed = patches, n_spots, n_genes, seed
        self.shapes = patches.by_section()
        self.repeats = -(-len(patches.sections[0].genes or ()) // n_genes)

    def __len__(self) -> int:
        return len(self.shapes) * self.repeats

    def __getitem__(self, index: int) -> list[Patch]:
        """The patches of one section, as `PatchSamples` gives them."""
        shapes = self.shapes[index % len(self.shapes)]
        if len(shapes) > self.n_spots:
            rng = np.random.default_rng([self.seed, index, 2])
            shapes = sorted(rng.choice(shapes, self.n_spots, replace=False).tolist())
        return [self.patches[j]._replace(draw=index) for j in shapes]

    def collate(self, samples: Sequence[list[Patch]]) -> Batch:
        return self.patches.collate([patch for section in samples for patch in section])


def some_genes(batch: Batch, n_genes: int, *, draw: Sequence[int]) -> Batch:
    """The batch with `n_genes` of its genes; the same ones for the same non-negative integers `draw`."""
    if batch.expression is None or n_genes >= len(batch.genes):
        return batch
    columns = np.sort(np.random.default_rng(draw).choice(len(batch.genes), n_genes, replace=False))
    genes = tuple(batch.genes[j] for j in columns)
    return replace(batch, expression=batch.expression[:, torch.from_numpy(columns)], genes=genes)


def sections_of(batch: Batch) -> list[slice]:
    """The rows of every section in a batch: they lie together, in rising order of its shapes.

    A section that is twice in a batch (two draws of some of its shapes) is two sections here.
    """
    section, shape = batch.rows.T
    start = np.flatnonzero(np.r_[True, (section[1:] != section[:-1]) | (shape[1:] <= shape[:-1])])
    return [slice(int(a), int(b)) for a, b in zip(start, np.r_[start[1:], len(section)], strict=True)]
