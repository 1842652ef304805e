"""Ridge regression of reduced rank within sections; its penalty and its rank are chosen on what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS = 4096  # of the features in float64 at a time


class ReducedRank(NamedTuple):
    """A map of features (f,) onto `rank` axes, and of these onto genes.

    Parameters
    ----------
    projection : ndarray of float64
        (rank, f), rows of unit length.
    weight : ndarray of float64
        (g, rank).
    penalty : float
        The penalty that was chosen, or given.
    """

    projection: NDArray[np.float64]
    weight: NDArray[np.float64]
    penalty: float


class _Ridge(NamedTuple):
    """Principal axes (f, m) of centred features, their sums of squares (m,), and components times targets (m, g)."""

    axes: NDArray[np.float64]
    variance: NDArray[np.float64]
    product: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.float64]) -> _Ridge:
        axes, variance = _principal(x)
        return cls(axes, variance, axes.T @ _product(x, y))

    def coefficients(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(m, g) of the full ridge, and (g, r) directions of genes by falling size of what it fits, penalty included.

        The best fit of rank k under the penalty is the full one projected on the first k directions.
        """
        scale = 1 / (self.variance + penalty)[:, None]
        return scale * self.product, _principal(np.sqrt(scale) * self.product)[0]


def reduced_rank_ridge(
    x: NDArray[np.floating],
    y: NDArray[np.float64],
    *,
    sections: NDArray[np.int64],
    folds: NDArray[np.int64],
    penalties: Sequence[float],
    max_rank: int,
    weights: NDArray[np.float64] | None = None,
) -> ReducedRank:
    """Fit features and targets, both around the means of their section.

    What differs between sections as a whole (stain, depth) is thus no evidence. Every penalty and every rank up to
    `max_rank` is tried on each fold, by the squared error around the means of the fold's sections (those in training,
    where a section is only partly left out); of a single fold the largest penalty and the full rank are taken.

    Parameters
    ----------
    x : ndarray of floating
        (n, f) features, standardised.
    y : ndarray of float64
        (n, g) targets.
    sections, folds : ndarray of int64
        (n,) the section of every row, and what is left out with it.
    penalties : Sequence[float]
        The penalties tried, rising.
    max_rank : int
        The largest rank tried.
    weights : ndarray of float64, optional
        (n,) how much the squared error of a row counts, also where it is left out, and in the means; None: all alike.
    """
    ranks = min(max_rank, y.shape[1], *x.shape)
    error = np.zeros((len(penalties), ranks))
    parts = np.unique(folds)
    for part in parts if len(parts) > 1 else []:
        held = folds == part
        means = _means(x, y, sections, ~held, weights)
        fitted = _Ridge.of(*_around(x, y, sections, means, ~held, weights))
        held_x, held_y = _around(x, y, sections, _means(x, y, sections, held, weights) | means, held, weights)
        components = held_x @ fitted.axes
        for i, tried in enumerate(penalties):
            full, directions = fitted.coefficients(tried)
            truth, found = held_y @ directions, components @ full @ directions
            gain = (found * (found - 2 * truth)).sum(axis=0)[:ranks]
            error[i] += np.cumsum(np.pad(gain, (0, ranks - len(gain))))
    at = int(error.argmin()) if len(parts) > 1 else error.size - 1
    penalty, rank = float(penalties[at // ranks]), at % ranks + 1
    every = np.ones(len(x), dtype=bool)
    fitted = _Ridge.of(*_around(x, y, sections, _means(x, y, sections, every, weights), every, weights))
    full, directions = fitted.coefficients(penalty)
    kept = directions[:, :rank]
    projection = (fitted.axes @ (full @ kept)).T
    length = np.maximum(np.linalg.norm(projection, axis=1), 1e-300)
    return ReducedRank(projection / length[:, None], kept * length, penalty)


def _principal(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes (f, m) of rows (n, f) by falling sum of squares, and these (m,), by the smaller of the matrices of products.

    Axes along which there is nothing but rounding are left out.
    """
    few_rows = len(x) < x.shape[1]
    size, axes = np.linalg.eigh(_product(x.T, x.T) if few_rows else _product(x, x))
    kept = np.flatnonzero(size > 1e-10 * size.max(initial=0))[::-1]
    size, axes = size[kept], axes[:, kept]
    return (_product(x, axes) / np.sqrt(size) if few_rows else axes), size


Means = dict[int, tuple[NDArray[np.floating], NDArray[np.float64]]]


def _means(
    x: NDArray[np.floating], y: NDArray[np.float64], sections: NDArray[np.int64], rows: NDArray[np.bool_],
    weights: NDArray[np.float64] | None,
) -> Means:  # fmt: skip
    """Of features and targets, of every section that has some of these rows."""
    found = {}
    for section in np.unique(sections[rows]):
        own = rows & (sections == section)
        share = np.ones(own.sum()) if weights is None else weights[own]
        share = (share / share.sum())[:, None]
        found[int(section)] = _product(share, x[own])[0].astype(x.dtype), _product(share, y[own])[0]
    return found


def _around(
    x: NDArray[np.floating], y: NDArray[np.float64], sections: NDArray[np.int64], means: Means,
    rows: NDArray[np.bool_], weights: NDArray[np.float64] | None,
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:  # fmt: skip
    """Copies of these rows around the means of their sections, times the roots of their weights."""
    x, y, sections = x[rows], y[rows], sections[rows]
    for section, (of_x, of_y) in means.items():
        x[sections == section] -= of_x
        y[sections == section] -= of_y
    if weights is not None:
        root = np.sqrt(weights[rows])[:, None]
        x *= root.astype(x.dtype)
        y *= root
    return x, y


def _product(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """a' b, in float64."""
    out = np.zeros((a.shape[1], b.shape[1]))
    for k in range(0, len(a), ROWS):
        out += a[k : k + ROWS].T.astype(np.float64) @ b[k : k + ROWS].astype(np.float64)
    return out
