"""Structural similarity of predicted and measured maps, on the array of spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import is_constant, per_gene

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

K1, K2 = 0.01, 0.03  # of Wang et al. 2004
MOST_CELLS = 2**27  # Visium HD at 2 um has 11 M


def ssim(pred: ArrayLike, true: ArrayLike, grid: ArrayLike, *, win_size: int = 7) -> NDArray[np.float64]:
    """Structural similarity index of each gene's map, both laid on the array of the spots.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, the spots of one section, both in the same target space.
    grid : array_like
        (n_spots, 2) integers: row and column of each spot on its array, such as obs columns array_row and array_col
        (Visium's columns count in steps of two within a row: every other cell is then empty, which changes the size of
        a window, not the rule below).
    win_size : int, default 7
        Side of the square window in cells of the array, odd and at least 3.

    Returns
    -------
    ndarray of float64
        (n_genes,) in [-1, 1]; NaN where a gene is constant in `true`, up to rounding (the range is 0).

    Raises
    ------
    ValueError
        For a grid of another length, not of integers, or with two spots in one cell, for an impossible `win_size`, for
        a section where no window counts, and where `pcc` raises it.

    Notes
    -----
    Means, variances and covariance are those of the spots that are there: a cell without a spot has no weight, in any
    window. A window counts where it lies inside the bounding box of the spots, has a spot in its centre, and holds at
    least `win_size` spots; variances are divided by their number less one. The index is the mean over these windows,
    each weighing the same. Its constants come from the range of `true` over all spots, gene by gene.

    References
    ----------
    Wang et al., IEEE Transactions on Image Processing 13 (2004), 600; on a full grid it equals
    ``skimage.metrics.structural_similarity(true, pred, win_size=win_size, data_range=np.ptp(true))``.

    Examples
    --------
    >>> grid = np.argwhere(np.ones((9, 9)))
    >>> true = np.sin(grid[:, :1] / 2.0)
    >>> stp.metrics.ssim(true, true, grid)
    array([1.])
    """
    check_arguments(ssim, locals())
    if win_size < 3 or win_size % 2 == 0:
        raise ValueError(f"win_size must be odd and at least 3, got {win_size}.")
    members = _windows(_cells(grid), win_size)

    def score(pred: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(pred) != members.shape[1]:
            raise ValueError(f"grid must have a row for each of the {len(pred)} spots, got {members.shape[1]}.")
        return _mean_index(pred, true, members)

    return per_gene(score, pred, true, min_spots=2)


def _mean_index(pred: NDArray[np.float64], true: NDArray[np.float64], members: sparse.csr_array) -> NDArray[np.float64]:
    """`members` (n_windows, n_spots) holds 1 where a spot is in a window."""
    n = np.asarray(members.sum(axis=1)).reshape(-1, 1)
    # moments about each map's mean, so that a large offset costs no digits
    centre_p, centre_t = pred.mean(axis=0), true.mean(axis=0)
    p, t = pred - centre_p, true - centre_t
    mean_p, mean_t = (members @ p) / n, (members @ t) / n
    unbiased = n / (n - 1)
    var_p = unbiased * ((members @ (p * p)) / n - mean_p**2)
    var_t = unbiased * ((members @ (t * t)) / n - mean_t**2)
    cov = unbiased * ((members @ (p * t)) / n - mean_p * mean_t)
    mean_p, mean_t = mean_p + centre_p, mean_t + centre_t
    constant = is_constant(true)
    span = np.where(constant, 1.0, np.ptp(true, axis=0))
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    index = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    index /= (mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2)
    return np.where(constant, np.nan, index.mean(axis=0))


def _cells(grid: ArrayLike) -> NDArray[np.int64]:
    """The grid as int64, moved to start at row 0 and column 0."""
    cells = np.asarray(grid)
    if cells.ndim != 2 or cells.shape[1] != 2 or not len(cells):
        raise ValueError(f"grid must be (n_spots, 2), row and column of each spot, got shape {cells.shape}.")
    if cells.dtype.kind not in "iu":
        raise ValueError(
            f"grid must hold integers, got dtype {cells.dtype}. It is the array's rows and columns (array_row, "
            "array_col), not positions in pixels."
        )
    cells = cells.astype(np.int64)
    unique, counts = np.unique(cells, axis=0, return_counts=True)
    if len(unique) < len(cells):
        raise ValueError(
            f"two spots lie in one cell of grid: {unique[counts > 1][:5].tolist()} ({int((counts > 1).sum())} cells). "
            "Score one section at a time."
        )
    return cells - cells.min(axis=0)


def _windows(cells: NDArray[np.int64], win_size: int) -> sparse.csr_array:
    """(n_windows, n_spots): which spots are in each window that counts."""
    height, width = cells.max(axis=0) + 1
    if min(height, width) < win_size:
        raise ValueError(
            f"a window of {win_size} x {win_size} cells does not fit into the {height} x {width} cells that the spots "
            "span. Give a smaller win_size."
        )
    if height * width > MOST_CELLS:
        raise ValueError(
            f"grid spans {height} x {width} cells for {len(cells)} spots, more than the {MOST_CELLS} cells that an "
            "array of spots may have. It is the array's rows and columns (array_row, array_col), not positions in "
            "pixels."
        )
    half = win_size // 2
    spot_at = np.full((height, width), -1, dtype=np.int64)
    spot_at[cells[:, 0], cells[:, 1]] = np.arange(len(cells))
    inside = ((cells >= half) & (cells < np.array([height, width]) - half)).all(axis=1)
    centres = cells[inside]
    steps = [(dy, dx) for dy in range(-half, half + 1) for dx in range(-half, half + 1)]
    spots = np.stack([spot_at[centres[:, 0] + dy, centres[:, 1] + dx] for dy, dx in steps], axis=1)
    spots = spots[(spots >= 0).sum(axis=1) >= win_size]
    if not len(spots):
        raise ValueError(
            f"no window of {win_size} x {win_size} cells holds {win_size} spots around one in its centre: the spots "
            "are too scattered. Give a smaller win_size."
        )
    window, position = np.nonzero(spots >= 0)
    return sparse.csr_array((np.ones(len(window)), (window, spots[window, position])), shape=(len(spots), len(cells)))
