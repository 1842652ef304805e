"""Weighted sums of values inside shapes: a coverage matrix, prepared for many genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stpredict._coverage._shapes import in_threads, n_threads

PART_CELLS = 128  # added in float32 at a time: more would lose digits (1,000 equal numbers lose 1e-5)


@dataclass(frozen=True)
class Weights:
    """Covered areas (n, cells) as float32, for threads over shapes.

    Parameters
    ----------
    parts : tuple[sparse.csr_array, ...]
        Runs of rows of about as many covered cells each; a row holds at most PART_CELLS of one shape.
    start : ndarray of int64
        (n,) the first row of each shape.
    area : ndarray of float64
        (n,) float64 covered area of each shape.
    """

    parts: tuple[sparse.csr_array, ...]
    start: NDArray[np.int64]
    area: NDArray[np.float64]

    @classmethod
    def of(cls, covered: sparse.csr_array) -> Self:
        """From `coverage`."""
        n_cells = np.diff(covered.indptr)
        n_rows = np.maximum(-(-n_cells // PART_CELLS), 1)
        start = np.cumsum(n_rows) - n_rows
        step = np.arange(n_rows.sum()) - np.repeat(start, n_rows)
        begin = np.append(np.repeat(covered.indptr[:-1], n_rows) + PART_CELLS * step, covered.nnz)
        data = covered.data.astype(np.float32)
        cuts = np.searchsorted(begin, np.linspace(0, covered.nnz, n_threads() + 1)[1:-1])
        rows = np.unique(np.r_[0, cuts, len(begin) - 1])
        parts = []
        for first, last in zip(rows[:-1], rows[1:], strict=True):
            here = slice(begin[first], begin[last])
            index = begin[first : last + 1] - begin[first]
            shape = (int(last - first), covered.shape[1])
            parts.append(sparse.csr_array((data[here], covered.indices[here], index), shape=shape))
        return cls(tuple(parts), start, np.asarray(covered.sum(axis=1)).ravel())

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return sum(p.data.nbytes + p.indices.nbytes + p.indptr.nbytes for p in self.parts) + 2 * self.start.nbytes

    def of_cells(self, cells: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, g) sums of values x covered area, of values (cells, g), such as a (y, x, gene) block; NaN spreads."""
        cells = np.ascontiguousarray(cells, dtype=np.float32)
        return self._joined(np.concatenate(list(in_threads(lambda part: part @ cells, self.parts))))

    def one_by_one(self, planes: NDArray[np.floating]) -> NDArray[np.float32]:
        """The same of values (g, cells), to the bit, without threads."""
        return np.stack([self._inside(plane.astype(np.float32, copy=False)) for plane in planes], axis=1)

    def of_planes(self, planes: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The same of values (g, cells), in which NaN counts as not covered.

        Returns sums (n, g), and the areas of covered cells that have a value: (n, g), or None where all have.
        """
        found = list(in_threads(self._plane, planes))
        sums = np.stack([one for one, _ in found], axis=1)
        if all(area is None for _, area in found):
            return sums, None
        full = self.area.astype(np.float32)
        return sums, np.stack([full if area is None else area for _, area in found], axis=1)

    def _plane(self, plane: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        plane = plane.astype(np.float32)
        sums = self._inside(plane)
        if not np.isnan(sums).any():
            return sums, None
        gone = np.isnan(plane)
        plane[gone] = 0.0
        return self._inside(plane), self._inside((~gone).astype(np.float32))

    def _inside(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._joined(np.concatenate([part @ values for part in self.parts]))

    def _joined(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows of the same shape, added in float64."""
        if len(rows) == len(self.start):
            return rows
        return np.add.reduceat(rows, self.start, axis=0, dtype=np.float64).astype(np.float32)
