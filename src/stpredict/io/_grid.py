"""The pitch of an array of spots in pixels, from the spots' positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

MAX_ANISOTROPY = 1.1  # pitch along one array axis over the other: beyond it the two files do not belong together
FIRST_SHELL = 1.25  # in nearest-neighbour distances: holds the 4 or 6 neighbours of a grid, not its diagonals


def pitch_px(
    xy: NDArray[np.float64], grid: NDArray[np.int64] | None, *, step: tuple[float, float] = (1.0, 1.0)
) -> float:
    """The distance between neighbouring spots, in pixels.

    Parameters
    ----------
    xy : ndarray of float64
        (n, 2) positions of spot centres (x, y) in pixels.
    grid : ndarray | None
        (n, 2) their column and row on the array, or None where they are not known.
    step : tuple[float, float], default (1.0, 1.0)
        Distance of neighbouring columns and of neighbouring rows, in pitches: (1, 1) on a square array, (1/2,
        sqrt(3)/2) on Visium's, whose neighbours in a row are two columns apart.

    Raises
    ------
    ValueError
        Where fewer than two neighbours exist or the two axes disagree.

    Notes
    -----
    With a grid: for every pair of spots in one array row (or column) the displacement per step; the median over pairs,
    per component, is the array's axis vector, and the geometric mean of the two lengths is returned. Legacy arrays are
    printed with a jitter of several per cent of the pitch: it cancels in a median of vectors, while a nearest distance
    is biased low and a mean distance high. Without a grid: the median distance in the first shell of neighbours, right
    for square and hexagonal arrays that are regular (Visium).
    """
    if grid is None:
        return _first_shell(xy)
    along_x, along_y = (_axis_px(xy, grid, axis) / step[axis] for axis in (0, 1))
    ratio = max(along_x, along_y) / min(along_x, along_y)
    if not ratio <= MAX_ANISOTROPY:
        raise ValueError(
            f"array coordinates and pixel positions of the spots disagree: the pitch is {along_x:.1f} px along the "
            f"array's columns and {along_y:.1f} px along its rows. Check that the spot file belongs to this image; for "
            "an array that is not square pass the pitch of its columns and of its rows."
        )
    return float(np.sqrt(along_x * along_y))


def _axis_px(xy: NDArray[np.float64], grid: NDArray[np.int64], axis: int) -> float:
    steps = []
    for line in np.unique(grid[:, 1 - axis]):
        on_line = grid[:, 1 - axis] == line
        first, second = np.triu_indices(int(on_line.sum()), 1)
        n_steps = grid[on_line, axis][second] - grid[on_line, axis][first]
        steps.append((xy[on_line][second] - xy[on_line][first]) / n_steps[:, None])
    per_step = np.concatenate(steps)
    if not len(per_step):
        raise ValueError(
            f"the pitch cannot be measured: no two of the {len(xy)} spots share an array "
            f"{'row' if axis == 0 else 'column'}."
        )
    return float(np.hypot(*np.median(per_step, axis=0)))


def _first_shell(xy: NDArray[np.float64]) -> float:
    if len(xy) < 2:
        raise ValueError(f"the pitch cannot be measured from {len(xy)} spot(s); at least 2 are needed.")
    tree = cKDTree(xy)
    nearest = float(np.median(tree.query(xy, k=2)[0][:, 1]))
    pairs = tree.query_pairs(FIRST_SHELL * nearest, output_type="ndarray")
    return float(np.median(np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)))
