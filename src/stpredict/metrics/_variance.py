"""How far the spread of a prediction is from that of the measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import per_gene

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

EPS = 0.01  # added to the measured variance, in squared target units; papers that leave it out are not comparable


def rvd(pred: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Relative variance distance of each gene: ((var(pred) - var(true)) / (var(true) + 0.01))^2.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, both in the same target space (usually log1p cp10k).

    Returns
    -------
    ndarray of float64
        (n_genes,), at least 0 and never NaN: a constant gene has the variance 0. The mean over genes is the figure of
        the papers; a gene that hardly varies in `true` can dominate it, for the 0.01 is all that bounds its share.

    Raises
    ------
    ValueError
        Where `mse` raises it.

    Notes
    -----
    Variances are population variances over spots. A prediction that is constant scores nearly 1, one that varies as
    much as the measurement 0, wherever it varies: read it beside `pcc`, never alone.

    References
    ----------
    The evaluation of TRIPLEX (Chung et al., CVPR 2024), as released.

    Examples
    --------
    >>> true = np.array([[0.0], [2.0]])
    >>> stp.metrics.rvd(true, true)
    array([0.])
    """
    check_arguments(rvd, locals())
    return per_gene(_rvd, pred, true, min_spots=1)


def _rvd(pred: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    measured = true.var(axis=0)
    return np.square((pred.var(axis=0) - measured) / (measured + EPS))
