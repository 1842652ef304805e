"""Batches and samples that all models share, and the samples of patch-based models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stpredict import _coverage
from stpredict._section import ImageView, Section
from stpredict._window import Window
from stpredict.nn.pool import Pooling

READ_BYTES = 2**26  # of an image's own pixels that are read together


@dataclass
class Batch:
    """Images with the shapes in them.

    Parameters
    ----------
    image : Tensor
        (b, 3, h, w) uint8 RGB.
    pooling : Pooling | None
        How a dense latent is pooled inside the n shapes; None where a row is an image.
    expression : Tensor | None
        (n, g) float32 target; None where nothing was measured.
    genes : tuple[str, ...]
        Names of the columns of the target.
    rows : ndarray of int64
        (n, 2) which section (its position in the list) and which of its shapes each row is.
    extra : Mapping[str, Tensor], optional
        What else a model's own samples carry, by name.
    """

    image: Tensor
    pooling: Pooling | None
    expression: Tensor | None
    genes: tuple[str, ...]
    rows: NDArray[np.int64]
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device.

        Parameters
        ----------
        device : torch.device | str
            The device.

        Returns
        -------
        Batch
            The batch there.
        """
        return replace(
            self,
            image=self.image.to(device),
            pooling=None if self.pooling is None else self.pooling.to(device),
            expression=None if self.expression is None else self.expression.to(device),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )

    @property
    def measured(self) -> Tensor:
        """The target.

        Raises
        ------
        ValueError
            Where nothing was measured.
        """
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
    def collate(self, samples: Sequence[Any]) -> Batch:
        """Make a batch of samples.

        Parameters
        ----------
        samples : Sequence[Any]
            Samples, as indexing returned them.

        Returns
        -------
        Batch
            The batch.
        """

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of several indices, as torch's loaders ask for; what they share of an image may be read once."""
        return [self[i] for i in indices]


def dihedral(array: NDArray, turn: int) -> NDArray:
    """One of the 8 symmetries of a square, on the first two axes: `turn` % 4 quarter turns, after a flip if > 3."""
    return np.rot90(array[:, ::-1] if turn > 3 else array, turn % 4)


def held_in_memory(section: Section, *, limit_bytes: int) -> Section:
    """The section with its image read once at working resolution, where that takes at most `limit_bytes`."""
    view = section.image
    if view.height * view.width * 3 > limit_bytes or (isinstance(view.pixels, np.ndarray) and view.scale == (1.0, 1.0)):
        return section
    pixels = np.empty((3, view.height, view.width), dtype=np.uint8)
    for y in range(0, view.height, 1024):
        strip = Window(y, 0, min(1024, view.height - y), view.width)
        pixels[:, y : strip.y1] = np.moveaxis(view.read(strip), -1, 0)
    return replace(section, image=ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=view.mpp))


class Patch(NamedTuple):
    """One sample of a spot model: the patch around a shape, with what was measured there.

    Parameters
    ----------
    image : NDArray
        (h, w, 3) RGB uint8.
    expression : NDArray | None
        (g,) measured values, if there are any.
    row : tuple[int, int]
        Number of the section, and row of the shape in it.
    draw : int
        The number that random draws start from.
    """

    image: NDArray
    expression: NDArray | None
    row: tuple[int, int]
    draw: int


class PatchSamples(Samples):
    """A square patch around the centre of every shape; the same in training and prediction.

    Parameters
    ----------
    sections : Sequence[Section]
        Sections whose shapes are the samples, one after the other.
    patch_px : int
        Side of a patch.
    n_genes : int, optional
        How many genes, drawn anew for every batch, a batch carries; None: all.
    seed : int, default 0
        Of that draw.
    extra : Mapping[str, Tensor], optional
        What `Batch.extra` holds beside the images: rows of all shapes, section after section, by name.
    images : bool, default True
        Whether the images are read; without them a patch has no pixels, for models that know all they need by `extra`.
    """

    def __init__(
        self, sections: Sequence[Section], *, patch_px: int, n_genes: int | None = None, seed: int = 0,
        extra: Mapping[str, Tensor] | None = None, images: bool = True,
    ) -> None:  # fmt: skip
        self.sections, self.patch_px, self.n_genes, self.seed = sections, patch_px, n_genes, seed
        self.extra, self.images = dict(extra or {}), images
        self.shapes = [(i, k) for i, s in enumerate(sections) for k in range(s.n_shapes)]
        self.first = np.cumsum([0, *(section.n_shapes for section in sections)])
        self.bounds = [_coverage.bounds(s.shapes) for s in sections]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Patch:
        """Image (h, w, 3), expression (g,), row (2,) and index of one shape."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Patch]:
        """As `[index]` for each; a chunk of an image under several patches is read and decoded once."""
        shapes = [self.shapes[index % len(self.shapes)] for index in indices]
        images = self._read(shapes) if self.images else [np.empty((0, 0, 3), np.uint8)] * len(shapes)
        return [
            Patch(image, None if (of := self.sections[i].expression) is None else of[k], (i, k), index)
            for image, (i, k), index in zip(images, shapes, indices, strict=True)
        ]

    def _read(self, shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """The images of shapes, as many of one section together as `READ_BYTES` allows."""
        images: dict[int, NDArray[np.uint8]] = {}  # by the place in `shapes`
        for i in {i for i, _ in shapes}:
            places = [place for place, (section, _) in enumerate(shapes) if section == i]
            view = self.sections[i].image
            step = max(1, int(READ_BYTES / (3 * self.patch_px**2 * view.scale[0] * view.scale[1])))
            for first in range(0, len(places), step):
                part = places[first : first + step]
                images |= zip(part, view.read_all([self._window(*shapes[place]) for place in part]), strict=True)
        return [images[place] for place in range(len(shapes))]

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
        row = np.array(rows)
        at = torch.from_numpy(self.first[row[:, 0]] + row[:, 1])
        extra = {name: values[at] for name, values in self.extra.items()}
        batch = Batch(image, None, target, self.sections[0].genes or (), row, extra)
        return batch if self.n_genes is None else some_genes(batch, self.n_genes, draw=(self.seed, draws[0]))


class TurnedSamples(Samples):
    """Patches augmented by flips and quarter turns; a patch gets a new turn every epoch.

    Parameters
    ----------
    patches : PatchSamples
        What is turned.
    symmetries : int, default 8
        1: none; 4: quarter turns; 8: flips too.
    seed, stream
        Numbers that the draws start from, before and after that of the sample.
    """

    def __init__(self, patches: PatchSamples, *, symmetries: int = 8, seed: int, stream: tuple[int, ...] = ()) -> None:
        self.patches, self.symmetries, self.seed, self.stream = patches, symmetries, seed, stream

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Patch:
        """The patch of one shape, turned; the index decides how."""
        patch = self.patches[index]
        turn = int(np.random.default_rng([self.seed, index, *self.stream]).integers(self.symmetries))
        return patch._replace(image=dihedral(patch.image, turn))

    def collate(self, samples: Sequence[Patch]) -> Batch:
        return self.patches.collate(samples)


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
