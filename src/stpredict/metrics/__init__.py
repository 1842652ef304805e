"""Scores of predicted expression, by the numeric protocol."""

from __future__ import annotations

from stpredict.metrics._ceiling import ceiling
from stpredict.metrics._scores import mae, mse, pcc, spearman
from stpredict.metrics._summary import correlation_summary, summary
from stpredict.metrics._target import MIN_COUNTS, PROTOCOL, log1p_cp10k

__all__ = [
    "MIN_COUNTS",
    "PROTOCOL",
    "ceiling",
    "correlation_summary",
    "log1p_cp10k",
    "mae",
    "mse",
    "pcc",
    "spearman",
    "summary",
]
