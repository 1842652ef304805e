"""A score of every gene, model beside model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

from stpredict._arguments import check_arguments
from stpredict.metrics import METRICS
from stpredict.pl._categories import PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NO_MODEL = ("ceiling", "log depth", "measured")
SPREAD = 0.32  # half the width in which the points of a model lie


def scores(
    result: pd.DataFrame,
    *,
    metric: str = "pcc",
    models: Sequence[str] | None = None,
    section: str | None = None,
    paired: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The distribution of a score over genes, a box a model, with every gene as a point.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.
    metric : str, default "pcc"
        A name in its column `metric`, such as "pcc", "mse" or "ssim".
    models : Sequence[str], optional
        Which, and in which order; None: all that have the metric, log depth and ceiling last.
    section : str, optional
        One section; None: the mean over sections (and seeds) for each gene that all shown models have.
    paired : bool, default True
        Draw a line from each gene of a model to the same gene of the next one.
    ax : Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The axes. A box spans the quartiles, its line is the median, the whiskers end at percentiles 5 and 95; the
        diamond is the mean. Genes without the score (constant in prediction or truth) are left out.

    Raises
    ------
    ValueError
        For a metric, model or section that the result does not have.

    Examples
    --------
    >>> stp.pl.scores(result, metric="mse").get_title()
    '4 genes, mean over sections'
    """
    check_arguments(scores, locals())
    table = _by_gene(result, metric, models, section)
    if ax is None:
        ax = plt.subplots(figsize=(1.6 + 0.75 * table.shape[1], 3.8), layout="constrained")[1]
    values = table.to_numpy()
    # the same place in the cloud for a gene in every model, so that lines do not cross for no reason
    x = np.arange(values.shape[1]) + np.random.default_rng(0).uniform(-SPREAD, SPREAD, (len(values), 1))
    if paired and values.shape[1] > 1:
        ax.add_collection(LineCollection(list(np.stack([x, values], axis=2)), colors="0.6", linewidths=0.3, alpha=0.25))
    for j, name in enumerate(table.columns):
        color = "0.5" if name in NO_MODEL else PALETTE[j % len(PALETTE)]
        ax.plot(x[:, j], values[:, j], ".", color=color, markersize=3, alpha=0.45, label=name)
    ax.boxplot(
        values, positions=range(values.shape[1]), widths=0.5, whis=(5, 95), showfliers=False, showmeans=True,
        medianprops={"color": "black"},
        meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4},
    )  # fmt: skip
    ax.set_xticks(range(values.shape[1]), table.columns, rotation=40, ha="right", rotation_mode="anchor")
    known = METRICS.get(metric)
    ax.set_ylabel(metric.replace("_", " ") if known is None else known.title)
    ax.set_title(f"{len(table)} genes, {section or 'mean over sections'}", fontsize="medium")
    if known is not None and known.scale_free:
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _by_gene(result: pd.DataFrame, metric: str, models: Sequence[str] | None, section: str | None) -> pd.DataFrame:
    """(genes, models) scores of the genes that all of them have."""
    part = result[result["metric"] == metric]
    if part.empty:
        known = sorted(set(result.loc[~result["model"].isin(["measured"]), "metric"].dropna()))
        raise ValueError(f"metric={metric!r} is none of this result: {known}.")
    if section is not None:
        if section not in set(part["section"]):
            raise ValueError(f"section={section!r} is none of this result: {list(dict.fromkeys(part['section']))}.")
        part = part[part["section"] == section]
    table = part.groupby(["gene", "model"], sort=False)["value"].mean().unstack()
    table = table.dropna(axis=1, how="all")
    if unknown := [m for m in models or () if m not in table]:
        raise ValueError(f"models={unknown} have no {metric} in this result: {list(table.columns)} do.")
    present = [m for m in dict.fromkeys(part["model"]) if m in table]
    own = [m for m in present if m not in NO_MODEL] + [m for m in present if m in NO_MODEL]
    return table[own if models is None else list(models)].dropna()
