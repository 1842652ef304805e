"""Agreement of prediction and measurement, gene by gene."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from stpredict._arguments import check_arguments

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# A column that spans less than a millionth of its magnitude (eight units in the last place of float32, the type of
# every prediction) holds rounding, not variation: a constant map read out of areas comes back like that.
CONSTANT = 1e-6
BLOCK_VALUES = 2**24  # values in float64 at a time: 128 MB, whatever the number of spots


def pcc(pred: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Pearson correlation of each gene across spots.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, both in the same target space (usually log1p cp10k).

    Returns
    -------
    ndarray of float64
        (n_genes,) in [-1, 1]; NaN where a gene is constant in `pred` or `true`, up to rounding, never 0.

    Raises
    ------
    ValueError
        For arrays of unequal shape, not 2-D, with fewer than 2 spots, or with values that are not finite.

    References
    ----------
    Protocol stp-2, "Correlation"; equals ``scipy.stats.pearsonr`` column by column.

    Examples
    --------
    >>> true = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> stp.metrics.pcc(2 * true + 1, true)  # the second gene is constant
    array([ 1., nan])
    """
    check_arguments(pcc, locals())
    return per_gene(_pearson, pred, true, min_spots=2)


def spearman(pred: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Spearman correlation of each gene across spots: Pearson of the ranks, ties sharing their mean rank.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite; only their order matters.

    Returns
    -------
    ndarray of float64
        (n_genes,) in [-1, 1]; NaN where a gene is constant in `pred` or `true`, up to rounding, never 0.

    Raises
    ------
    ValueError
        Where `pcc` raises it.

    References
    ----------
    Equals ``scipy.stats.spearmanr`` column by column.

    Examples
    --------
    >>> true = np.array([[0.0], [1.0], [2.0]])
    >>> stp.metrics.spearman(np.exp(true), true)
    array([1.])
    """
    check_arguments(spearman, locals())
    return per_gene(_spearman, pred, true, min_spots=2)


def mse(pred: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Mean squared error of each gene across spots.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, both in the same target space.

    Returns
    -------
    ndarray of float64
        (n_genes,), at least 0, in squared target units.

    Raises
    ------
    ValueError
        For arrays of unequal shape, not 2-D, without spots, or with values that are not finite.

    Examples
    --------
    >>> stp.metrics.mse(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    array([2.])
    """
    check_arguments(mse, locals())
    return per_gene(lambda p, t: np.square(p - t).mean(axis=0), pred, true, min_spots=1)


def mae(pred: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Mean absolute error of each gene across spots.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, both in the same target space.

    Returns
    -------
    ndarray of float64
        (n_genes,), at least 0, in target units.

    Raises
    ------
    ValueError
        Where `mse` raises it.

    Examples
    --------
    >>> stp.metrics.mae(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    array([1.])
    """
    check_arguments(mae, locals())
    return per_gene(lambda p, t: np.abs(p - t).mean(axis=0), pred, true, min_spots=1)


def validated(pred: ArrayLike, true: ArrayLike, *, min_spots: int) -> tuple[NDArray, NDArray]:
    """`pred` and `true` as arrays of one shape (n_spots, n_genes), all finite, else a ValueError."""
    _check_labels(pred, true)
    arrays = {"pred": _dense("pred", pred), "true": _dense("true", true)}
    shape = arrays["pred"].shape
    if shape != arrays["true"].shape:
        raise ValueError(
            f"pred and true must have one shape (n_spots, n_genes), got {shape} and {arrays['true'].shape}. "
            "Bring both to the same spots and the same genes, in the same order."
        )
    if shape[0] < min_spots:
        raise ValueError(f"at least {min_spots} spots are needed, got {shape[0]} (arrays of shape {shape}).")
    for name, array in arrays.items():
        _check_finite(name, array)
    return arrays["pred"], arrays["true"]


def _check_labels(pred: Any, true: Any) -> None:
    """Raise ValueError where both are frames whose rows or columns are others, or in another order."""
    for what, axis in (("spots", "index"), ("genes", "columns")):
        labels = [getattr(each, axis, None) if hasattr(each, "to_numpy") else None for each in (pred, true)]
        if labels[0] is None or labels[1] is None or len(labels[0]) != len(labels[1]):
            continue  # what has no labels is taken as it stands; another number of them is another shape
        if list(labels[0]) != list(labels[1]):
            same = set(labels[0]) == set(labels[1])
            i = next(i for i, (p, t) in enumerate(zip(*labels, strict=True)) if p != t)
            raise ValueError(
                f"pred and true have {'the same' if same else 'other'} {what}{' in another order' if same else ''}: "
                f"number {i} is {labels[0][i]!r} in pred and {labels[1][i]!r} in true. Align them, with "
                f"pred.loc[true.index, true.columns], or pass arrays."
            )


def _dense(name: str, values: ArrayLike) -> NDArray:
    if sparse.issparse(values):
        raise ValueError(f"{name} is a sparse matrix; scores need dense arrays: pass {name}.toarray().")
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be (n_spots, n_genes), got {array.ndim} dimension(s), shape {array.shape}. "
            "For a single gene pass a column: values[:, None]."
        )
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    return array


def _check_finite(name: str, array: NDArray) -> None:
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    genes = bad.all(axis=0)
    spots = bad[:, ~genes].any(axis=1)
    found = []
    if spots.any():
        found.append(
            f"in {spots.sum()} of {len(spots)} spots; drop those spots (nothing of them is on image or tissue) from "
            f"pred and true: keep = np.isfinite({name}).all(axis=1)"
        )
    if genes.any():
        found.append(
            f"in all spots of {genes.sum()} of {len(genes)} genes; keep the genes that were predicted: "
            "table[:, table.var[key]]"
        )
    raise ValueError(f"{name} holds NaN or infinite values {'; and '.join(found)}.")


def per_gene(
    score: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    pred: ArrayLike,
    true: ArrayLike,
    *,
    min_spots: int,
) -> NDArray[np.float64]:
    """`score` of float64 blocks of genes, so that a million bins do not need twice their size again."""
    pred, true = validated(pred, true, min_spots=min_spots)
    n_spots, n_genes = pred.shape
    out = np.empty(n_genes, dtype=np.float64)
    step = max(1, BLOCK_VALUES // n_spots)
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        out[genes] = score(pred[:, genes].astype(np.float64), true[:, genes].astype(np.float64))
    return out


def is_constant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.ptp(values, axis=0) <= CONSTANT * np.abs(values).max(axis=0)


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of mean 0 and length 1; zeros stay zeros."""
    values = values - values[0]  # first, so that a large offset costs no digits
    values -= values.mean(axis=0)
    largest = np.abs(values).max(axis=0)
    values /= np.where(largest > 0, largest, 1.0)  # so that squares of tiny values do not vanish
    length = np.sqrt(np.einsum("sg,sg->g", values, values))
    return values / np.where(length > 0, length, 1.0)


def _pearson(pred: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    r = np.clip(np.einsum("sg,sg->g", _centred(pred), _centred(true)), -1.0, 1.0)
    r[is_constant(pred) | is_constant(true)] = np.nan
    return r


def _spearman(pred: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    # judged before ranking: ranks would turn rounding into a full-size signal
    constant = is_constant(pred) | is_constant(true)
    r = _pearson(rankdata(pred, axis=0), rankdata(true, axis=0))
    r[constant] = np.nan
    return r
