"""One gene on spots, bins or cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stpredict._arguments import check_arguments
from stpredict._spatialdata import resolve_shapes
from stpredict.pl._axes import colour_bar, colour_scale, frame_map
from stpredict.pl._map import cropped, draw_values, in_view, shapes_view
from stpredict.pl._values import counts_for_display, find_table, layer_unit, measured, on_shapes, predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def expression(
    sdata: SpatialData,
    layer: str | None,
    *,
    gene: str,
    shapes_key: str | None = None,
    table_name: str | None = None,
    image_key: str | None = None,
    ax: Axes | None = None,
    alpha: float = 1.0,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    coordinate_system: str = "global",
    crop: Sequence[float] | None = None,
) -> Axes:
    """One gene's values on the shapes that a table annotates, over the H&E.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object.
    layer : str | None
        Layer of the table; None: the measurement, log1p cp10k of the raw counts in X (spots of too few counts are
        left out, as everywhere by protocol stp-2).
    gene : str
        Name of the gene.
    shapes_key : str, optional
        Circles or polygons; None: the ones that the table annotates. Rows find their shape by instance id. A shape
        without a value (no row, or NaN: no image or tissue under it) is not drawn.
    table_name : str, optional
        None: the only table, or the one that annotates the shapes.
    image_key : str, optional
        The H&E beneath; None: the object's only one, or none where it has none.
    ax : Axes, optional
        Where to draw; None makes a figure.
    alpha : float, default 1.0
        Opacity of the shapes in [0, 1].
    cmap : str, default "viridis"
        Name of a colour map of matplotlib.
    vmin, vmax : float, optional
        Ends of the colour scale in the layer's unit; None: the range of what is shown.
    coordinate_system : str, default "global"
        In which shapes and H&E are laid over each other; both must have a transformation to it.
    crop : Sequence[float], optional
        Draw only what lies in x0, y0, x1, y1 of the coordinate system, over as much of the H&E as is there; None:
        everything.

    Returns
    -------
    Axes
        The axes. The colour bar names the transform of the values.

    Raises
    ------
    ValueError
        For a table, layer, gene, shapes, image or coordinate system that is not there (with the closest names), for
        several and no key, for a gene that is NaN throughout, and for a crop with nothing in it.

    Examples
    --------
    >>> ax = stp.pl.expression(slide, "ridge", gene=genes[0], shapes_key="spots", image_key="image")
    >>> ax.get_title() == genes[0]
    True
    """
    check_arguments(expression, locals())
    table_name = find_table(sdata, table_name, shapes_key)
    table = sdata.tables[table_name]
    shapes_key = resolve_shapes(sdata, shapes_key, table_name=table_name)
    if layer is None:
        least = counts_for_display(sdata, image_key, shapes_key, table_name)
        rows = measured(table, gene, layer=None, table_name=table_name, min_counts=least)
    else:
        rows = predicted(table, layer, gene, table_name=table_name)
    view = cropped(shapes_view(sdata, shapes_key, coordinate_system), crop)
    values = on_shapes(sdata, rows, table_name=table_name, shapes_key=shapes_key)
    if crop is not None:
        values = in_view(sdata, shapes_key, values, coordinate_system=coordinate_system, view=view)
    colours = colour_scale(values, cmap=cmap, vmin=vmin, vmax=vmax)
    ax = draw_values(
        sdata, shapes_key, values, view=view, image_key=image_key, ax=ax, colours=colours, alpha=alpha,
        coordinate_system=coordinate_system, cropped=crop is not None,
    )  # fmt: skip
    colour_bar([ax], colours, values, label=layer_unit(table, layer), alpha=alpha)
    frame_map(ax, view, title=gene)
    return ax
