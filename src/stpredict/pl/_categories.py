"""Groups in a figure: their colours, which the colour-blind can tell apart, and their legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.lines import Line2D

from stpredict._spatialdata import missing_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# The first eight: Okabe and Ito, "Color universal design" (2008). The others: each the colour of lightness 12 to 82
# that lies farthest from all before (CIEDE2000; least of normal, protanopic and deuteranopic sight, the latter two by
# Machado et al. 2009).
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442", "#000000", "#CC79A7", "#0F0F69", "#960000",
    "#4B5A5A", "#69E1B4", "#2D00D2", "#2D2D3C", "#5A694B", "#5A2D2D", "#A5D2E1", "#3C87FF", "#2D4B78", "#FF5A78",
)  # fmt: skip
LEGEND_ROWS = 14


@dataclass(frozen=True)
class Groups:
    """Which group each row belongs to: `codes` (n,), -1 for none, into `names`."""

    codes: NDArray[np.int64]
    names: tuple[str, ...]


def column_groups(obs: pd.DataFrame, column: str, shown: NDArray[np.bool_], *, argument: str) -> Groups:
    """The groups of a column of `obs` among the shown rows; where it is NaN or not shown, there is none.

    Raises ValueError for a column that is not there, or holds measurements.
    """
    if column not in obs:
        raise missing_key(column, obs.columns, what="column of obs", argument=argument)
    if pd.api.types.is_float_dtype(obs[column]) or not shown.any():
        raise ValueError(f"obs[{column!r}] holds numbers of {obs[column].dtype}; {argument}= takes a column of names.")
    values = pd.Categorical(obs[column].where(shown)).remove_unused_categories()
    return Groups(np.asarray(values.codes, dtype=np.int64), tuple(map(str, values.categories)))


def group_colours(groups: Groups, *, remedy: str) -> ScalarMappable:
    """A scale that gives each code its colour; ValueError, with the remedy, for more groups than colours."""
    n = len(groups.names)
    if n > len(PALETTE):
        raise ValueError(f"{n} groups, and only {len(PALETTE)} colours that can be told apart: {remedy}.")
    return ScalarMappable(Normalize(-0.5, n - 0.5), ListedColormap(PALETTE[:n]))


def group_legend(ax: Axes, names: Sequence[str], *, title: str) -> None:
    """A legend of all groups beside the axes."""
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, markeredgewidth=0, color=colour, label=name)
        for name, colour in zip(names, PALETTE, strict=False)
    ]
    ax.legend(
        handles=handles, title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
        ncols=-(-len(names) // LEGEND_ROWS), handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
