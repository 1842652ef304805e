"""Target values from raw counts, and which spots are used (protocol stp-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from stpredict.metrics import MIN_COUNTS, log1p_cp10k

if TYPE_CHECKING:
    from numpy.typing import NDArray

Target = Literal["log1p_cp10k", "as_is"]
MIN_TISSUE_SHARE = 0.5


class NoUsableShape(ValueError):
    """Not one shape of a section may be trained on or scored."""


def target(
    counts: Any, *, target: Target = "log1p_cp10k", columns: NDArray[np.int64] | None = None, what: str = "the table"
) -> NDArray[np.float32]:
    """The target of some genes in every row, dense (n, g) float32.

    Parameters
    ----------
    counts : Any
        (n, all genes) raw counts, sparse or dense: the denominator of `log1p_cp10k` is the row's total over all genes
        of the table. With `as_is`, values of any kind, which are taken as they are.
    columns : ndarray, optional
        (g,) which genes are wanted, -1 for one that is missing (a column of NaN); None = all.

    Raises
    ------
    ValueError
        For counts that are NaN, negative or no integers, for an infinite or NaN value taken as it is, and for an
        unknown target.

    Notes
    -----
    A row without any count has no normalised value: NaN.
    """
    matrix = _csr(counts)
    columns = np.arange(matrix.shape[1]) if columns is None else np.asarray(columns)
    present = np.flatnonzero(columns >= 0)
    values = sparse_target(matrix, target=target, columns=columns[present], what=what)
    out = np.full((matrix.shape[0], len(columns)), np.nan, dtype=np.float32)
    out[:, present] = values.toarray()
    if target == "log1p_cp10k":
        out[totals(matrix) == 0] = np.nan
    return out


def sparse_target(
    counts: Any, *, target: Target = "log1p_cp10k", columns: NDArray[np.int64] | None = None, what: str = "the table"
) -> sp.csr_array:
    """As `target`, but (n, g) sparse float64 and without missing genes; a row without any count is all 0."""
    check_target(target)
    matrix = _csr(counts)
    if target == "log1p_cp10k":
        check_counts(matrix, what=what)
    chosen = matrix if columns is None else matrix[:, columns]
    chosen = sp.csr_array(chosen, dtype=np.float64, copy=True)
    chosen.eliminate_zeros()
    if target == "as_is":
        wrong = int((~np.isfinite(chosen.data)).sum())
        if wrong:
            raise ValueError(
                f'{what} has {wrong} values that are NaN or infinite; target="as_is" takes values as they '
                "are. Choose another layer=."
            )
        return chosen
    total = np.repeat(totals(matrix), np.diff(chosen.indptr))  # the row's total beside each value that is not 0
    chosen.data = log1p_cp10k(chosen.data[:, None], total)[:, 0]
    return chosen


def totals(counts: Any) -> NDArray[np.float64]:
    """(n,) sum of each row in float64."""
    return np.asarray(_csr(counts).sum(axis=1, dtype=np.float64)).ravel()


def check_target(target: str) -> None:
    """Raise ValueError for a target that does not exist."""
    if target not in get_args(Target):
        raise ValueError(f"unknown target {target!r}; there are {list(get_args(Target))}.")


def check_counts(counts: Any, *, what: str) -> None:
    """Raise ValueError unless all values are raw counts: finite, not negative, whole."""
    values = _csr(counts).data
    wrong = {
        "NaN or infinite": ~np.isfinite(values),
        "negative": values < 0,
        "not whole numbers": np.isfinite(values) & (values != np.rint(values)),
    }
    for name, where in wrong.items():
        if where.any():
            raise ValueError(
                f'target="log1p_cp10k" needs raw counts, but {what} has {int(where.sum())} values that are '
                f"{name}, for example {values[where][:3].tolist()}. Name the layer with raw counts by "
                'layer=; to train on values as they are, pass stp.tl.train(target="as_is"). A table of predictions '
                "alone (table_added=) has no counts."
            )


def usable(
    *,
    total: NDArray[np.float64] | None,
    on_image: NDArray[np.bool_],
    tissue_share: NDArray[np.float64],
    in_tissue: NDArray[np.bool_] | None = None,
    min_counts: float = MIN_COUNTS,
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which spots are used for training or scoring, and how many are dropped, by first reason.

    Parameters
    ----------
    total : ndarray | None
        (n,) raw counts of each spot; None where they are not known (target "as_is"): then depth drops nothing.
    on_image : ndarray of bool
        (n,) whether the spot lies wholly on the image.
    tissue_share : ndarray of float64
        (n,) share of the spot's area under the tissue mask, half of which is needed; 1 where there is no mask.
    in_tissue : ndarray, optional
        (n,) ``obs["in_tissue"]``, where the table has it.
    """
    reasons = {"not wholly on the image": ~on_image, "not on the tissue": tissue_share < MIN_TISSUE_SHARE}
    if in_tissue is not None:
        reasons["in_tissue is 0 in the table"] = ~in_tissue
    if total is not None:
        reasons[f"fewer than {min_counts:g} counts"] = (total < min_counts) | (total <= 0)
    keep, dropped = np.ones(len(on_image), dtype=bool), {}
    for reason, where in reasons.items():
        n = int((keep & where).sum())
        keep &= ~where
        if n:
            dropped[reason] = n
    return keep, dropped


def _csr(counts: Any) -> sp.csr_array:
    return sp.csr_array(counts if sp.issparse(counts) else np.atleast_2d(np.asarray(counts)))
