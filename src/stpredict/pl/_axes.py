"""What all figures share: new axes, one colour scale, the colour bar, the frame of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from numpy.typing import NDArray

    Box = tuple[float, float, float, float]

HEIGHT_IN = 4.2  # of a map that makes its own figure


def new_axes(view: Box, *, n: int = 1) -> NDArray[np.object_]:
    """(n,) axes side by side in a new figure, as wide as the view needs."""
    x0, y0, x1, y1 = view
    width = float(np.clip(HEIGHT_IN * (x1 - x0) / (y1 - y0), 2.5, 8.0))
    # h_pad in inches: with less, a title of two lines over axes of fixed aspect is cut
    _, axes = plt.subplots(
        1, n, figsize=(n * width + 1.2, HEIGHT_IN + 0.4), layout=ConstrainedLayoutEngine(h_pad=0.12), squeeze=False
    )
    return axes[0]


def colour_scale(*values: NDArray, cmap: str, vmin: float | None, vmax: float | None) -> ScalarMappable:
    """One colour scale for all values: the range of what is finite, where `vmin` and `vmax` do not say else.

    Raises ValueError where no value is finite, or the given limits are in the wrong order.
    """
    finite = np.concatenate([np.asarray(v, dtype=np.float64)[np.isfinite(v)] for v in values])
    if finite.size == 0:
        raise ValueError("there is nothing to draw: every value is NaN.")
    low = float(finite.min()) if vmin is None else vmin
    high = float(finite.max()) if vmax is None else vmax
    if low > high:
        raise ValueError(f"the colour scale would run from {low:g} down to {high:g}: correct vmin= or vmax=.")
    return ScalarMappable(Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5), cmap)


def colour_bar(
    axes: Sequence[Axes], colours: ScalarMappable, *values: NDArray, label: str, alpha: float = 1.0
) -> Colorbar:
    """One colour bar for some axes; its arrows say on which side values lie beyond the scale."""
    low, high = colours.get_clim()
    below, above = any((v < low).any() for v in values), any((v > high).any() for v in values)
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = axes[0].figure.colorbar(
        colours, ax=list(axes), label=label, extend=extend, shrink=0.7, aspect=25, pad=0.02, alpha=alpha
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    return bar


def frame_map(ax: Axes, view: Box, *, title: str) -> None:
    """Limits, title and ticks of a map: y grows downwards, as in the image; a scale bar takes the place of ticks."""
    x0, y0, x1, y1 = view
    ax.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal", title=title)
    if any(type(artist).__name__ == "ScaleBar" for artist in ax.artists):
        ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)
