"""Correlation over the spots of all sections together: the second, labelled figure of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import pcc, validated

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def pooled_pcc(preds: Sequence[ArrayLike], trues: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Pearson correlation of each gene across the spots of all sections together.

    Parameters
    ----------
    preds, trues : Sequence[array_like]
        One array (n_spots, n_genes) a section, finite, with the same genes in the same order.

    Returns
    -------
    ndarray of float64
        (n_genes,) in [-1, 1]; NaN where a gene is constant over all spots in `preds` or `trues`, up to rounding.

    Raises
    ------
    ValueError
        Where the two name different numbers of sections or none, where sections differ in their number of genes, and as
        `pcc` for each section.

    Notes
    -----
    A gene that merely differs between sections correlates here, so this is no substitute for the mean over sections of
    `pcc`: protocol stp-2 prints it beside that, labelled, where a paper used it. A gene that is constant in one section
    but not over all has a value here, and none there.

    Examples
    --------
    >>> one, other = np.array([[0.0], [1.0]]), np.array([[5.0], [6.0]])
    >>> stp.metrics.pooled_pcc([one, other], [one, other])
    array([1.])
    """
    check_arguments(pooled_pcc, locals())
    if len(preds) != len(trues) or not len(preds):
        raise ValueError(
            f"preds and trues must hold one array for each section, the same sections; got {len(preds)} and "
            f"{len(trues)}."
        )
    sections = [_section(i, pred, true) for i, (pred, true) in enumerate(zip(preds, trues, strict=True))]
    n_genes = [pred.shape[1] for pred, _ in sections]
    if len(set(n_genes)) > 1:
        raise ValueError(
            f"the sections have {n_genes} genes. Bring all to the genes that they have in common, in one order."
        )
    pred, true = (np.concatenate(arrays) for arrays in zip(*sections, strict=True))
    return pcc(pred, true)


def _section(i: int, pred: ArrayLike, true: ArrayLike) -> tuple[NDArray, NDArray]:
    try:
        return validated(pred, true, min_spots=1)
    except ValueError as error:
        raise ValueError(f"section {i} of preds and trues: {error}") from None
