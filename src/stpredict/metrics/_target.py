"""What the protocol fixes about measured expression: its name, the smallest spot, the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stpredict._arguments import check_arguments

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

PROTOCOL = "stp-2"
MIN_COUNTS = 500  # of a spot of 55 um or more; those below it hold noise: her2st has spots of 1 and 2 counts
FULL_SPOT_UM2 = np.pi * 27.5**2  # of a spot that must have them all


def default_min_counts(area_um2: float) -> float:
    """How many counts a spot, bin or cell needs to be used, by its area alone, never by the counts of a section.

    Parameters
    ----------
    area_um2 : float
        Median area of the shapes in square micrometres.

    Returns
    -------
    float
        500 from the area of a 55-um spot up; below it 500 times the share of that area, and at least 1.

    Raises
    ------
    ValueError
        For an area that is no finite number, or below 0.

    References
    ----------
    Protocol stp-2, "Spots".

    Examples
    --------
    >>> round(stp.metrics.default_min_counts(8.0 * 8.0), 1)  # of a bin of 8 um
    13.5
    """
    check_arguments(default_min_counts, locals())
    return max(1.0, MIN_COUNTS * min(1.0, float(area_um2) / FULL_SPOT_UM2))


def log1p_cp10k(counts: ArrayLike, totals: ArrayLike) -> NDArray[np.float64]:
    """The target of protocol stp-2: natural log1p of counts per ten thousand.

    Parameters
    ----------
    counts : array_like
        (n_spots, n_genes) raw counts of the wanted genes, dense.
    totals : array_like
        (n_spots,) all counts of each spot, over all genes of the table before any subsetting; above 0.

    Returns
    -------
    ndarray of float64
        (n_spots, n_genes) float64, at least 0.

    Raises
    ------
    ValueError
        Where a spot has no counts at all, or more than its total, or where the two disagree on the number of spots.

    Examples
    --------
    >>> stp.metrics.log1p_cp10k(np.array([[1, 3]]), np.array([4])).round(2)
    array([[7.82, 8.92]])
    """
    check_arguments(log1p_cp10k, locals())
    counts, totals = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if counts.ndim != 2 or totals.shape != counts.shape[:1]:
        raise ValueError(
            f"counts must be (n_spots, n_genes) and totals (n_spots,), got {counts.shape} and {totals.shape}."
        )
    for name, values in (("counts", counts), ("totals", totals)):
        wrong = ~np.isfinite(values) | (values < 0)
        if wrong.any():
            raise ValueError(
                f"{name} holds {int(wrong.sum())} values that are NaN, infinite or negative, such as "
                f"{values[wrong][0]:g}; pass raw counts, and their sums over all genes of the table."
            )
    n_empty = int((totals <= 0).sum())
    if n_empty:
        raise ValueError(
            f"{n_empty} of {len(totals)} spots have no counts, so their share per gene does not exist. "
            f"Drop spots of few counts first: below {MIN_COUNTS} from 55 um up (protocol {PROTOCOL})."
        )
    short = counts.sum(axis=1) > totals * (1 + 1e-6)
    if short.any():
        raise ValueError(
            f"the counts of {int(short.sum())} of {len(totals)} spots are more than their totals, such as "
            f"{counts.sum(axis=1)[short][0]:g} and {totals[short][0]:g}; totals are sums over all genes of the table."
        )
    return np.log1p(counts / totals[:, None] * 1e4)
