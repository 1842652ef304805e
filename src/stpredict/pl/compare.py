"""Measured and predicted expression of one gene, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from stpredict._arguments import check_arguments
from stpredict._spatialdata import resolve_shapes
from stpredict.pl._axes import colour_bar, colour_scale, frame_map, new_axes
from stpredict.pl._map import (
    background,
    cropped,
    display_px,
    draw,
    in_view,
    micrometres_per_unit,
    only_image,
    read_image,
    shapes_view,
    with_values,
)
from stpredict.pl._scored import correlation, correlation_text, pair, scored_rows
from stpredict.pl._values import counts_for_display, find_table, layer_unit, on_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def compare(
    sdata: SpatialData,
    layer: str,
    *,
    gene: str,
    measured: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    image_key: str | None = None,
    min_counts: float | None = None,
    axes: Sequence[Axes] | None = None,
    alpha: float = 1.0,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    coordinate_system: str = "global",
    crop: Sequence[float] | None = None,
) -> NDArray[np.object_]:
    """One gene as it was measured and as it was predicted, on one colour scale, with their Pearson correlation.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object.
    layer : str
        Layer of the table with the prediction.
    gene : str
        Name of the gene.
    measured : str, optional
        Layer with the measurement in the same target; None: log1p cp10k of the raw counts in X.
    shapes_key, table_name, image_key : str, optional
        As in `pl.expression`.
    alpha : float, default 1.0
        As in `pl.expression`.
    cmap : str, default "viridis"
        As in `pl.expression`.
    vmin, vmax : float, optional
        As in `pl.expression`.
    coordinate_system : str, default "global"
        As in `pl.expression`.
    crop : Sequence[float], optional
        As in `pl.expression`; the correlation stays that of all spots.
    min_counts : float, optional
        Spots with fewer raw counts are noise: they are left out of the measured map and of the correlation. None: by
        the area of the shapes, as in `stp.tl.evaluate`.
    axes : Sequence[Axes], optional
        Two axes to draw on, measured first; None makes a figure.

    Returns
    -------
    ndarray of object
        The two axes, (2,), measured first. The correlation in the second title is over the spots that protocol stp-2
        scores (wholly on the image, on tissue where the table says so, at least `min_counts`) and that were predicted;
        how many those are stands beside it.

    Raises
    ------
    ValueError
        Where `pl.expression` raises it; for an X that is not raw counts; for a prediction in another target than the
        measurement; for `axes` that are not two.

    Examples
    --------
    >>> axes = stp.pl.compare(slide, "ridge", gene=genes[0], shapes_key="spots", image_key="image")
    >>> axes.shape
    (2,)
    """
    check_arguments(compare, locals())
    table_name = find_table(sdata, table_name, shapes_key)
    table = sdata.tables[table_name]
    shapes_key = resolve_shapes(sdata, shapes_key, table_name=table_name)
    min_counts = counts_for_display(sdata, image_key, shapes_key, table_name, min_counts)
    true, pred = pair(table, layer, gene, measured_layer=measured, table_name=table_name, min_counts=min_counts)
    view = cropped(shapes_view(sdata, shapes_key, coordinate_system), crop)
    behind = background(sdata, image_key, coordinate_system=coordinate_system, view=view, cropped=crop is not None)
    image_key = only_image(sdata, image_key)
    rows = scored_rows(
        sdata, image_key=image_key, shapes_key=shapes_key, table_name=table_name, measured_layer=measured,
        min_counts=min_counts,
    )  # fmt: skip
    text = correlation_text(*correlation(true[rows], pred[rows]))
    maps = [on_shapes(sdata, values, table_name=table_name, shapes_key=shapes_key) for values in (true, pred)]
    if crop is not None:
        maps = [in_view(sdata, shapes_key, each, coordinate_system=coordinate_system, view=view) for each in maps]
    colours = colour_scale(*maps, cmap=cmap, vmin=vmin, vmax=vmax)
    two = new_axes(view, n=2) if axes is None else _two(axes)
    image = read_image(sdata, behind, coordinate_system=coordinate_system, view=view, n_px=display_px(two[0]))
    um = micrometres_per_unit(sdata, image_key or shapes_key, coordinate_system)
    for ax, values, title in zip(two, maps, (f"{gene}\nmeasured", f"{gene}\n{layer}, {text}"), strict=True):
        shapes = with_values(sdata, shapes_key, values, coordinate_system=coordinate_system)
        draw(ax, coordinate_system=coordinate_system, image=image, shapes=shapes, colours=colours, alpha=alpha, um=um)
        frame_map(ax, view, title=title)
    colour_bar(list(two), colours, *maps, label=layer_unit(table, measured), alpha=alpha)
    return two


def _two(axes: Sequence[Axes]) -> NDArray[np.object_]:
    two = np.asarray(axes, dtype=object).ravel()
    if len(two) != 2 or not all(isinstance(ax, Axes) for ax in two):
        raise ValueError(f"axes must be two matplotlib Axes, measured and predicted, got {axes!r}.")
    return two
