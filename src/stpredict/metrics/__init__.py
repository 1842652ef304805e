"""Scores of predicted expression, by the numeric protocol."""

from __future__ import annotations

from stpredict.metrics._ceiling import ceiling
from stpredict.metrics._morans_i import morans_i_gap
from stpredict.metrics._pooled import pooled_pcc
from stpredict.metrics._registry import METRICS, Metric
from stpredict.metrics._scores import mae, mse, pcc, spearman
from stpredict.metrics._ssim import ssim
from stpredict.metrics._summary import correlation_summary, summary, top_correlations
from stpredict.metrics._target import MIN_COUNTS, PROTOCOL, default_min_counts, log1p_cp10k
from stpredict.metrics._variance import rvd

__all__ = [
    "METRICS",
    "MIN_COUNTS",
    "Metric",
    "PROTOCOL",
    "ceiling",
    "correlation_summary",
    "default_min_counts",
    "log1p_cp10k",
    "mae",
    "morans_i_gap",
    "mse",
    "pcc",
    "pooled_pcc",
    "rvd",
    "spearman",
    "ssim",
    "summary",
    "top_correlations",
]
