"""What is known of each gene, one below the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from stpredict._arguments import check_arguments
from stpredict.pl._categories import PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLUMNS = ("gene", "val_pcc", "ridge_pcc", "ceiling", "verdict")
NO_EVIDENCE = "no held-out evidence"


def reliability(frame: pd.DataFrame, *, n_top: int | None = 40, ax: Axes | None = None) -> Axes:
    """Held-out correlation of each gene beside that of Ridge and its ceiling, coloured by the verdict.

    Parameters
    ----------
    frame : DataFrame
        What `stp.tl.reliability` returned, or some of its rows.
    n_top : int, default 40
        How many genes are drawn, those of the highest correlation first; None: all.
    ax : Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The axes, the best gene on top: a dot is the model, a cross is Ridge, a bar the ceiling, where each is known.
        Genes without held-out evidence stand last, without a dot. How many genes were left out is said in the title.

    Raises
    ------
    ValueError
        For a frame that lacks a column, or is empty.

    Examples
    --------
    >>> ax = stp.pl.reliability(stp.tl.reliability(slide, "ridge"))
    >>> ax.get_xlabel()
    'correlation on held-out data'
    """
    check_arguments(reliability, locals())
    lacking = [name for name in COLUMNS if name not in frame]
    if lacking or frame.empty:
        raise ValueError(f"frame lacks {lacking} of {len(frame)} rows; pass what stp.tl.reliability returned.")
    ordered = frame.sort_values("val_pcc", ascending=False, na_position="last", kind="stable")
    shown = ordered if n_top is None else ordered.head(n_top)
    if ax is None:
        ax = plt.subplots(figsize=(5.5, 1.2 + 0.18 * len(shown)), layout="constrained")[1]
    y = np.arange(len(shown))
    for k, (verdict, part) in enumerate(shown.assign(y=y).groupby("verdict", sort=False)):
        colour = "0.5" if verdict == NO_EVIDENCE else PALETTE[k % len(PALETTE)]
        ax.plot(part["val_pcc"], part["y"], "o", color=colour, markersize=5, label=str(verdict))
    ax.plot(shown["ridge_pcc"], y, "x", color="0.4", markersize=4, label="Ridge")
    ax.plot(shown["ceiling"], y, "|", color="black", markersize=7, label="ceiling")
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set_yticks(y, shown["gene"], fontsize="x-small")
    ax.set(ylim=(len(shown) - 0.5, -0.5), xlabel="correlation on held-out data")
    rest = len(frame) - len(shown)
    ax.set_title(f"{len(shown)} genes" + (f", {rest} more not shown" if rest else ""), fontsize="medium")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
