"""Data sets: simulated sections with known truth, and public ones."""

from __future__ import annotations

from stpredict.datasets.gse240429 import gse240429
from stpredict.datasets.hbd import hbd
from stpredict.datasets.her2st import her2st
from stpredict.datasets.toy import toy, toy_oracle, toy_truth, toy_truth_shapes
from stpredict.datasets.toy_bins import toy_bins

__all__ = ["gse240429", "hbd", "her2st", "toy", "toy_bins", "toy_oracle", "toy_truth", "toy_truth_shapes"]
