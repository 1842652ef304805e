"""Spatial autocorrelation of predicted and measured expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import is_constant, per_gene

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def morans_i_gap(pred: ArrayLike, true: ArrayLike, graph: Any) -> NDArray[np.float64]:
    """Moran's I of the prediction minus Moran's I of the measurement, for each gene.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes), finite, the spots of one section.
    graph : Any
        (n_spots, n_spots) scipy sparse weights of neighbours, rows and columns in the order of the spots: what
        squidpy's graph builders leave in ``obsp["spatial_connectivities"]``. Rows are divided by their sums here, as
        squidpy does. After spots were dropped, cut the graph too: ``graph[keep][:, keep]``.

    Returns
    -------
    ndarray of float64
        (n_genes,), the sign kept: above 0 where the prediction is smoother than the measurement (the usual case: counts
        carry noise that no image shows), below 0 where it is rougher; ``np.abs`` of it is the distance. NaN where a
        gene is constant in `pred` or `true`, up to rounding, for Moran's I does not exist there.

    Raises
    ------
    ValueError
        For a graph that is not sparse, of another size, without edges, or with weights that are negative or not finite,
        and where `pcc` raises it.

    References
    ----------
    Both terms equal ``squidpy.gr.spatial_autocorr(mode="moran", transformation=True)``.

    Examples
    --------
    >>> from scipy import sparse
    >>> line = sparse.diags_array([np.ones(8), np.ones(8)], offsets=[-1, 1])
    >>> true = np.arange(9.0)[:, None]
    >>> stp.metrics.morans_i_gap(true, true, line.tocsr())
    array([0.])
    """
    check_arguments(morans_i_gap, locals())
    weights = _row_normalised(graph)

    def gap(pred: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(pred) != weights.shape[0]:
            raise ValueError(
                f"graph must have a row and a column for each of the {len(pred)} spots, got {weights.shape}. Cut it to "
                "the scored spots: graph[keep][:, keep]."
            )
        return _morans_i(pred, weights) - _morans_i(true, weights)

    return per_gene(gap, pred, true, min_spots=2)


def _morans_i(values: NDArray[np.float64], weights: sparse.csr_array) -> NDArray[np.float64]:
    """Moran's I of each column of `values` (n_spots, n_genes); NaN where it is constant."""
    constant = is_constant(values)
    centred = values - values[0]  # first, so that a large offset costs no digits
    centred -= centred.mean(axis=0)
    squares = np.einsum("sg,sg->g", centred, centred)
    products = np.einsum("sg,sg->g", centred, weights @ centred)
    scale = len(values) / weights.sum()
    return np.where(constant, np.nan, scale * products / np.where(constant, 1.0, squares))


def _row_normalised(graph: Any) -> sparse.csr_array:
    """The weights with rows that sum to 1; a spot without neighbours keeps an empty row."""
    if not sparse.issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(
            f"graph must be a square scipy sparse matrix of neighbours, got {type(graph).__name__} of shape "
            f'{np.shape(graph)}. A graph builder of squidpy.gr leaves one in table.obsp["spatial_connectivities"].'
        )
    weights = sparse.csr_array(graph, dtype=np.float64)
    if not (np.isfinite(weights.data) & (weights.data >= 0)).all():
        raise ValueError("graph holds weights that are negative or not finite. Pass connectivities of at least 0.")
    sums = np.asarray(weights.sum(axis=1)).ravel()
    if not sums.any():
        raise ValueError(f"graph has no edges between its {len(sums)} spots. Give more neighbours or a larger radius.")
    return sparse.csr_array(sparse.diags_array(1 / np.where(sums > 0, sums, 1.0)) @ weights)
