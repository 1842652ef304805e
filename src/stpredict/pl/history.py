"""The course of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from stpredict._arguments import check_arguments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LOSSES = {"train_loss": ("training loss", "C0"), "val_loss": ("validation loss", "C1")}


def history(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Losses by epoch, and beside them the validation correlation and the learning rate where they were logged.

    Parameters
    ----------
    history : DataFrame
        What `tl.train` returns: columns `epoch`, `train_loss` and `val_loss` (either may be absent), and optionally
        `val_pcc` (drawn on the right) and `lr` (the grey ground; its peak is in the legend). NaN rows are skipped. With
        a column `member`, of an ensemble, a line each, and the ground of the first.
    ax : Axes, optional
        Where to draw the losses; None makes a figure.

    Returns
    -------
    Axes
        The axes of the losses. The epoch with the lowest validation loss is marked.

    Raises
    ------
    ValueError
        Where `epoch` or both losses are missing.

    Examples
    --------
    >>> history = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [1.0, 0.6, 0.5]})
    >>> stp.pl.history(history).get_ylabel()
    'loss'
    """
    check_arguments(globals()["history"], locals())  # the argument has the name of the function
    losses = [column for column in LOSSES if _logged(history, column)]
    if "epoch" not in history or not losses:
        raise ValueError(
            "a training history has a column 'epoch' and at least one of 'train_loss' and 'val_loss', got columns "
            f"{list(history.columns)} with {len(history)} rows."
        )
    ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")[1] if ax is None else ax
    for column in losses:
        name, color = LOSSES[column]
        for k, part in enumerate(_members(history)):
            points = part[["epoch", column]].dropna()
            ax.plot(
                points["epoch"], points[column], color=color, label=name if k == 0 else "_", marker="o", markersize=3
            )
    if "val_loss" in losses:
        best = history.iloc[history["val_loss"].reset_index(drop=True).idxmin()]
        ax.plot(
            best["epoch"], best["val_loss"], marker="o", markersize=9, markerfacecolor="none", color="C1",
            linestyle="none", label=f"lowest, epoch {best['epoch']:g}",
        )  # fmt: skip
    handles = ax.get_legend_handles_labels()[0]
    if _logged(history, "val_pcc"):
        handles.append(_correlation(ax, history))
    if _logged(history, "lr"):
        handles.append(_learning_rate(ax, _members(history)[0]))
    ax.set(xlabel="epoch", ylabel="loss")
    ax.spines["top"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def _members(history: pd.DataFrame) -> list[pd.DataFrame]:
    """The history of every member of an ensemble; of one model, its own."""
    return [part for _, part in history.groupby("member")] if "member" in history else [history]


def _logged(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool(history[column].notna().any())


def _correlation(ax: Axes, history: pd.DataFrame) -> Artist:
    points = history[["epoch", "val_pcc"]].dropna()
    right = ax.twinx()
    (line,) = right.plot(
        points["epoch"], points["val_pcc"], color="C2", marker="s", markersize=3, label="validation PCC (right)"
    )
    right.set_ylabel("PCC")
    right.spines["top"].set_visible(False)
    return line


def _learning_rate(ax: Axes, history: pd.DataFrame) -> Artist:
    points = history[["epoch", "lr"]].dropna()
    peak = points["lr"].max()
    ground = ax.twinx()
    area = ground.fill_between(
        points["epoch"], points["lr"], color="0.93", linewidth=0, label=f"learning rate, peak {peak:.2g}"
    )
    ground.set(ylim=(0, 1.05 * peak if peak > 0 else 1), yticks=[])
    ground.spines[:].set_visible(False)
    ground.set_zorder(ax.get_zorder() - 1)
    ax.patch.set_visible(False)  # else it would hide the ground
    return area
