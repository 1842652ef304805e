"""Labels of published tables: totals of the panel alone, and means over 3 x 3 spots; each is another protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial import KDTree

from stpredict import metrics
from stpredict._section import Section
from stpredict.models._patches import array_grid


def protocol_of(target: str, *, smooth_labels: bool, panel_totals: bool) -> str:
    """The name of the protocol that these labels make. Raises ValueError for a target that they are not made of."""
    if (smooth_labels or panel_totals) and target != "log1p_cp10k":
        raise ValueError(
            f"smooth_labels= and panel_totals= are made of counts per 10,000, and target={target!r} takes values as "
            "they are. Pass raw counts by layer=, or leave both out."
        )
    return metrics.PROTOCOL + "-panel" * panel_totals + "-smooth" * smooth_labels


def relabelled(section: Section, *, smooth_labels: bool, panel_totals: bool) -> Section:
    """The section with other labels, from those of the protocol (natural log1p of counts per 10,000 of all genes).

    Parameters
    ----------
    panel_totals : bool
        Counts per 10,000 of the section's own genes, the panel, in place of all genes.
    smooth_labels : bool
        Then, of every gene, the mean of the labels of the spots at most one row and one column of the array away, the
        spot's own among them; what the section lacks does not count. Source: TRIPLEX' code, which does so with training
        and test labels.
    """
    assert section.expression is not None
    values = section.expression.astype(np.float64)
    if panel_totals:
        rate = np.expm1(values)
        total = rate.sum(axis=1, keepdims=True)
        values = np.log1p(1e4 * np.divide(rate, total, out=np.zeros_like(rate), where=total > 0))
    if smooth_labels:
        places = array_grid(section)
        near = KDTree(places).query_ball_point(places, 1.5, p=np.inf, return_sorted=True)
        values = np.stack([values[rows].mean(axis=0) for rows in near])
    return replace(section, expression=values.astype(np.float32))
