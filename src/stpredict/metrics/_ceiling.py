"""Noise ceiling: split-half reliability of the measured counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import pcc
from stpredict.metrics._target import log1p_cp10k

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def ceiling(counts: Any, columns: ArrayLike, *, n_splits: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """The correlation that a perfect predictor of each gene's underlying mean could reach.

    Parameters
    ----------
    counts : Any
        (n_spots, n_all_genes) raw counts of the scored spots over **all** genes of the table, dense or scipy sparse.
    columns : array_like
        (n_genes,) positions of the scored genes among those columns, or a boolean mask over them.
    n_splits : int, default 1
        How many random splits the correlation of the halves is averaged over; the protocol makes 1.
    seed : int, default 0
        Of the splits.

    Returns
    -------
    ndarray of float64
        (n_genes,) in [0, 1]. A gene whose halves do not correlate (r <= 0) shows no signal at this depth: 0, not NaN,
        for dropping such genes would raise the mean over the rest. NaN where a half is constant, as in `pcc`,
        or where fewer than 2 spots can be split.

    Raises
    ------
    ValueError
        For counts that are negative, not integer or not finite; for spots without counts; for columns that do not
        exist.

    Notes
    -----
    Every count is split at random in two halves (binomial, p = 1/2); totals are recomputed per half over all genes, the
    target log1p cp10k per half; r = Pearson correlation of the halves over spots; reliability = 2 r / (1 + r)
    (Spearman-Brown); ceiling = its square root. Counts are overdispersed, so it is an upper bound.

    References
    ----------
    Protocol stp-2, "Ceiling".

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson([[5.0, 500.0], [9.0, 100.0]] * 50)
    >>> stp.metrics.ceiling(counts, [0, 1]).shape
    (2,)
    """
    check_arguments(ceiling, locals())
    matrix = _raw(counts)
    positions = _positions(columns, n_columns=matrix.shape[1])
    rng = np.random.default_rng(seed)
    r = np.mean([_halves_correlation(matrix, positions, rng) for _ in range(n_splits)], axis=0)
    return np.sqrt(np.where(r > 0, 2 * r / (1 + r), np.where(np.isnan(r), np.nan, 0.0)))


def _halves_correlation(
    matrix: sparse.csr_array, positions: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    first = rng.binomial(matrix.data, 0.5)
    halves = [
        sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
        for data in (first, matrix.data - first)
    ]
    totals = [np.asarray(half.sum(axis=1)).ravel() for half in halves]
    # of a bin of few counts a half may be empty; a spot without any count is refused below
    both = (totals[0] > 0) & (totals[1] > 0) | (totals[0] + totals[1] == 0)
    if both.sum() < 2:
        return np.full(len(positions), np.nan)
    return pcc(
        *(log1p_cp10k(half[both][:, positions].toarray(), n[both]) for half, n in zip(halves, totals, strict=True))
    )


def _raw(counts: Any) -> sparse.csr_array:
    """The counts as CSR of int64; raises where they are not counts."""
    matrix = sparse.csr_array(counts if sparse.issparse(counts) else np.atleast_2d(np.asarray(counts)))
    data = matrix.data
    tests = {
        "NaN or infinite": ~np.isfinite(data),
        "negative": data < 0,
        "not integers": data != np.floor(data),
    }
    for problem, found in tests.items():
        if found.any():
            raise ValueError(
                f"some counts are {problem} ({found.sum()} of {data.size} stored values, e.g. {data[found][0]}): the "
                "ceiling splits raw counts, and normalised values cannot be split. Pass the table's raw counts, or "
                "leave the ceiling out."
            )
    return sparse.csr_array((data.astype(np.int64), matrix.indices, matrix.indptr), shape=matrix.shape)


def _positions(columns: ArrayLike, *, n_columns: int) -> NDArray[np.int64]:
    array = np.asarray(columns)
    if array.dtype == np.bool_:
        if array.shape != (n_columns,):
            raise ValueError(f"the mask of columns must have shape ({n_columns},), got {array.shape}.")
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"columns must be a list of positions (or a boolean mask), got dtype {array.dtype}, shape {array.shape}. "
            "From gene names: table.var_names.get_indexer(genes)."
        )
    wrong = array[(array < 0) | (array >= n_columns)]
    if wrong.size:
        raise ValueError(
            f"columns outside the {n_columns} of counts: {wrong[:5].tolist()} ({wrong.size} of {array.size}). "
            "A -1 of get_indexer is a gene that the table lacks."
        )
    return array.astype(np.int64)
