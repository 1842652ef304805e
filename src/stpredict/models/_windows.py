"""PyTorch dataset for training dense models: square image windows, with the area weights of the shapes inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from stpredict import _coverage
from stpredict._places import tissues
from stpredict._section import Section
from stpredict._window import Window
from stpredict.models._samples import Batch, Samples, dihedral, some_genes
from stpredict.nn.pool import pooling
from stpredict.nn.stain import jitter


@dataclass(frozen=True)
class _Cut:
    """One window of one section with the shapes that count in it."""

    section: int
    window: Window
    shapes: NDArray[np.int64]
    turn: int = 0


class WindowSamples(Samples):
    """Square windows of sections; a shape counts only if it lies wholly inside.

    In training a window is placed at random around a random shape (sections in proportion to their shapes; where some
    are scales of one tissue, to the windows that cover them), turned by one of the 8 symmetries; otherwise windows are
    laid so that every shape counts exactly once, away from the edge.

    Parameters
    ----------
    sections : Sequence[Section]
        Sections that windows are cut from.
    window_px : int
        Side of a window.
    stride : float | int
        Of the model's latent map, in pixels; windows start at whole cells.
    reduction : {"mean", "sum"}
        How a map is pooled inside a shape: its area-weighted mean, or its sum over square micrometres.
    stain_jitter : float, default 0.0
        Strength of random changes of the stain; 0: none.
    train : bool
        Whether windows are drawn at random.
    seed : int
        Of the draws.
    n_genes : int, optional
        How many genes, drawn anew for every batch, a batch carries; None: all.

    Raises
    ------
    ValueError
        For a section with a shape that no window holds.

    Notes
    -----
    Of sections with counts, `Batch.extra` has "total" (n,), the counts over all genes of each shape, and "area" (n,),
    in square micrometres.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        *,
        window_px: int,
        stride: float | int,
        reduction: Literal["mean", "sum"],
        stain_jitter: float = 0.0,
        train: bool,
        seed: int,
        n_genes: int | None = None,
    ) -> None:
        self.sections, self.window_px, self.stride = sections, window_px, stride
        self.reduction, self.stain_jitter, self.train, self.seed = reduction, stain_jitter, train, seed
        self.n_genes = n_genes
        self.first = np.cumsum([0, *(section.n_shapes for section in sections)])
        known = [section.total for section in sections if section.total is not None]
        self.total = np.concatenate(known) if len(known) == len(sections) else None
        self.bounds = [_coverage.bounds(s.shapes) for s in sections]
        self.cells = [_coverage.in_cells(s.shapes, stride) for s in sections]
        self._check_extent()
        self.due = self._windows_due() if train else np.zeros(0)
        several = train and len(tissues(sections)) < len(sections)  # else the finest scale would be nearly all of them
        self.odds = self.due / self.due.sum() if several else None
        self.shapes = np.array([(i, k) for i, s in enumerate(sections) for k in range(s.n_shapes)])
        self.cuts = [] if train else [cut for i in range(len(sections)) for cut in self._lay(i)]

    def __len__(self) -> int:
        return max(1, int(np.ceil(sum(self.due)))) if self.train else len(self.cuts)

    def __getitem__(self, index: int) -> tuple[NDArray, sp.csr_array, NDArray | None, NDArray, int]:
        """Image (h, w, 3), coverage (n, cells), expression (n, g), rows (n, 2) and index of one window."""
        cut = self._draw(index) if self.train else self.cuts[index]
        section = self.sections[cut.section]
        n = round(self.window_px / self.stride)
        y0, x0 = round(cut.window.y0 / self.stride), round(cut.window.x0 / self.stride)
        shapes = self.cells[cut.section].rows(cut.shapes)
        covered = _coverage.coverage(shapes, Window(y0, x0, n, n)) * self.stride**2
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
        every = np.concatenate(rows)
        batch = Batch(image, into, target, section.genes or (), every, self._measure(every, covered))
        return batch if self.n_genes is None else some_genes(batch, self.n_genes, draw=(self.seed, draws[0]))

    def _measure(self, rows: NDArray[np.int64], covered: Sequence[sp.csr_array]) -> dict[str, torch.Tensor]:
        """Of the shapes `rows` (n, 2): counts over all genes, and covered areas; nothing where no counts are known."""
        if self.total is None:
            return {}
        total = self.total[self.first[rows[:, 0]] + rows[:, 1]]
        area = np.concatenate([part.sum(axis=1) for part in covered]) * self.sections[0].mpp ** 2
        return {"total": torch.from_numpy(total.astype(np.float32)), "area": torch.from_numpy(area.astype(np.float32))}

    def _check_extent(self) -> None:
        for section, bounds in zip(self.sections, self.bounds, strict=True):
            extent = np.nanmax(bounds[:, 2:] - bounds[:, :2], initial=0)
            if extent >= self.window_px:
                raise ValueError(
                    f"section {section.name!r} has a shape {extent * section.mpp:.0f} um wide; the training window is "
                    f"{self.window_px * section.mpp:.0f} um. Give the model a larger window_px or smaller shapes."
                )

    def _windows_due(self) -> NDArray[np.float64]:
        """Of every section so many windows that a shape is expected to count about once, if shapes fill the section."""
        due = []
        for section, bounds in zip(self.sections, self.bounds, strict=True):
            extent = np.nanmedian(bounds[:, 2:] - bounds[:, :2])
            y0, x0 = np.nanmin(bounds[:, :2], axis=0)
            y1, x1 = np.nanmax(bounds[:, 2:], axis=0)
            per_window = section.n_shapes * (self.window_px - extent) ** 2 / ((y1 - y0) * (x1 - x0))
            due.append(section.n_shapes / max(per_window, 1.0))
        return np.array(due)

    def _draw(self, index: int) -> _Cut:
        rng = np.random.default_rng([self.seed, index])
        if self.odds is None:
            i, k = map(int, self.shapes[rng.integers(len(self.shapes))])
        else:
            i = int(rng.choice(len(self.odds), p=self.odds))
            k = int(rng.integers(self.sections[i].n_shapes))
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
        return np.flatnonzero(_coverage.inside(self.sections[i].shapes, window))

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
