"""The figures by which one section's prediction is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpredict._arguments import check_arguments
from stpredict.metrics._scores import mae, mse, pcc
from stpredict.metrics._target import PROTOCOL

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def summary(pred: ArrayLike, true: ArrayLike, *, n_top: int = 50) -> pd.Series:
    """The scores of one section by protocol stp-2.

    Parameters
    ----------
    pred, true : array_like
        (n_spots, n_genes) of the scored spots of one section, finite, both in the same target space.
    n_top : int, default 50
        How many genes make HEG and HVG; where fewer genes have a correlation, all of them do.

    Returns
    -------
    Series
        A float64 Series, ``attrs["protocol"]`` naming the protocol, of

        - ``pcc_f``, ``pcc_s``, ``pcc_m``: 25th percentile, median and mean of the Pearson correlations over genes;
        - ``heg``, ``hvg``: their mean over the `n_top` genes with the highest mean, or population variance, of `true`,
          chosen after NaN genes are removed; between equals the earlier column wins;
        - ``mse``, ``mae``: over all spots and genes;
        - ``n_spots``, ``n_genes``; ``n_nan_genes``: constant in `pred` or `true`, not in the correlations above;
          ``n_top``: the genes behind ``heg`` and ``hvg``.

    Raises
    ------
    ValueError
        For `n_top` below 1 or no genes, and where `pcc` raises it.

    Notes
    -----
    Where no gene has a correlation (the `Mean` null), those figures are NaN and the errors remain.

    References
    ----------
    Protocol stp-2, "Correlation".

    Examples
    --------
    >>> true = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(float(stp.metrics.summary(true, true)["pcc_m"]), 3)
    1.0
    """
    check_arguments(summary, locals())
    r = pcc(pred, true)
    if r.size == 0:
        raise ValueError(f"no genes to score: arrays of shape {np.shape(pred)}.")
    measured = np.asarray(true)
    valid = np.isfinite(r)
    scores = {
        **correlation_summary(r, measured, n_top=n_top),
        "mse": mse(pred, true).mean(),
        "mae": mae(pred, true).mean(),
        "n_spots": measured.shape[0],
        "n_genes": measured.shape[1],
        "n_nan_genes": int((~valid).sum()),
        "n_top": min(n_top, int(valid.sum())),
    }
    result = pd.Series(scores, dtype=np.float64)
    result.attrs["protocol"] = PROTOCOL
    return result


def correlation_summary(r: NDArray[np.float64], true: ArrayLike, *, n_top: int = 50) -> dict[str, float]:
    """``pcc_f``, ``pcc_s``, ``pcc_m``, ``heg``, ``hvg`` of `summary`, from correlations (n_genes,) that are known.

    Parameters
    ----------
    r : ndarray of float64
        One a gene; NaN genes are left out.
    true : array_like
        (n_spots, n_genes), by which the top genes are chosen.
    n_top : int, default 50
        How many genes make HEG and HVG; where fewer genes have a correlation, all of them do.

    Returns
    -------
    dict[str, float]
        The figures by name.

    Raises
    ------
    ValueError
        For `n_top` below 1, another number of correlations than genes, and values outside [-1, 1].

    Examples
    --------
    >>> true = np.arange(6.0).reshape(3, 2)
    >>> round(float(stp.metrics.correlation_summary(np.array([0.2, 0.4]), true)["pcc_m"]), 2)
    0.3
    """
    check_arguments(correlation_summary, locals())
    measured, r = np.asarray(true), np.asarray(r, dtype=np.float64)
    if measured.ndim != 2 or r.shape != measured.shape[1:] or (np.abs(r) > 1.001).any():
        raise ValueError(
            f"r must be a correlation in [-1, 1] for each gene of true, which is {measured.shape}; got shape {r.shape}"
            + (f", of values up to {np.nanmax(np.abs(r)):g}." if r.size and np.isfinite(r).any() else ".")
        )
    mean, variance = measured.mean(axis=0, dtype=np.float64), measured.var(axis=0, dtype=np.float64)
    return top_correlations(r, mean=mean, variance=variance, n_top=n_top)


def top_correlations(
    r: NDArray[np.float64], *, mean: NDArray[np.float64], variance: NDArray[np.float64], n_top: int = 50
) -> dict[str, float]:
    """The figures of `correlation_summary`, with the mean and population variance of the measured target known.

    Parameters
    ----------
    r : ndarray of float64
        (n_genes,) correlations; NaN genes are left out.
    mean, variance : ndarray of float64
        (n_genes,) mean and population variance of the measured target.
    n_top : int, default 50
        How many genes make HEG and HVG; where fewer genes have a correlation, all of them do.

    Returns
    -------
    dict[str, float]
        The figures by name.

    Raises
    ------
    ValueError
        For `n_top` below 1.
    """
    check_arguments(top_correlations, locals())
    valid = np.isfinite(r)
    n_top = min(n_top, int(valid.sum()))
    return {
        **_quartiles(r[valid]),
        "heg": _top_mean(r[valid], by=mean[valid], n_top=n_top),
        "hvg": _top_mean(r[valid], by=variance[valid], n_top=n_top),
    }


def _quartiles(r: NDArray[np.float64]) -> dict[str, float]:
    if r.size == 0:
        return dict.fromkeys(("pcc_f", "pcc_s", "pcc_m"), np.nan)
    return {"pcc_f": np.percentile(r, 25), "pcc_s": np.median(r), "pcc_m": r.mean()}


def _top_mean(r: NDArray[np.float64], *, by: NDArray[np.float64], n_top: int) -> float:
    if n_top == 0:
        return np.nan
    return float(r[np.argsort(-by, kind="stable")[:n_top]].mean())
