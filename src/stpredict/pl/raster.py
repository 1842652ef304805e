"""One gene's channel of an expression raster, over the H&E."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.transforms import Affine2D

from stpredict._arguments import check_arguments
from stpredict._spatialdata import missing_key
from stpredict.pl._axes import colour_bar, colour_scale, frame_map, new_axes
from stpredict.pl._map import (
    affine_to,
    background,
    box_of,
    cropped,
    display_px,
    draw,
    micrometres_per_unit,
    only_in_view,
    read_image,
    read_view,
    with_margin,
)
from stpredict.pl._values import gene_position, raster_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

    Box = tuple[float, float, float, float]

COARSE_PX = 512  # enough to find where the tissue is


def raster(
    sdata: SpatialData,
    raster_key: str,
    *,
    gene: str,
    image_key: str | None = None,
    ax: Axes | None = None,
    alpha: float = 0.6,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    coordinate_system: str = "global",
    crop: Sequence[float] | None = None,
) -> Axes:
    """The continuous map of one gene, over the H&E.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object.
    raster_key : str
        Image of predicted expression, gene names on `c`; only the channel of `gene` is read, at display scale. Pixels
        that are NaN (off the tissue) stay transparent.
    gene : str
        Name of the gene.
    image_key : str, optional
        The H&E beneath; None: the object's only one, or none where it has none.
    ax : Axes, optional
        Where to draw; None makes a figure.
    alpha : float, default 0.6
        Opacity of the map in [0, 1]; 1 hides the H&E.
    cmap : str, default "viridis"
        Name of a colour map of matplotlib.
    vmin, vmax : float, optional
        Ends of the colour scale in the raster's unit; None: the range of what is shown.
    coordinate_system : str, default "global"
        In which raster and H&E are laid over each other; both must have a transformation to it.
    crop : Sequence[float], optional
        Show, and read, only what lies in x0, y0, x1, y1 of the coordinate system; None: all that has a value.

    Returns
    -------
    Axes
        The axes. The colour bar names the transform of the values as the raster's provenance gives it.

    Raises
    ------
    ValueError
        For a raster, gene, image or coordinate system that is not there (with the closest names), for several images
        and no key, for a raster that is NaN throughout, and for a crop with nothing in it.

    Examples
    --------
    >>> ax = stp.pl.raster(slide, "pixnet", gene=genes[0], image_key="image")
    >>> ax.get_title() == genes[0]
    True
    """
    check_arguments(raster, locals())
    if raster_key not in sdata.images:
        raise missing_key(raster_key, sdata.images, what="raster", argument="raster_key")
    levels = _channel(sdata, raster_key, gene)
    affine = affine_to(sdata, raster_key, coordinate_system)
    whole = box_of((0, 0, levels[0].sizes["x"], levels[0].sizes["y"]), affine)
    view = cropped(whole, crop)
    found = _with_values(levels, affine, view, raster_key=raster_key)
    view = found if crop is None else view
    image_key = background(sdata, image_key, coordinate_system=coordinate_system, view=view, cropped=crop is not None)
    ax = new_axes(view)[0] if ax is None else ax
    pixels, matrix = read_view(levels, affine, view, n_px=display_px(ax))
    pixels = only_in_view(pixels, matrix, view)
    colours = colour_scale(pixels, cmap=cmap, vmin=vmin, vmax=vmax)
    draw(
        ax, coordinate_system=coordinate_system,
        image=read_image(sdata, image_key, coordinate_system=coordinate_system, view=view, n_px=display_px(ax)),
        um=micrometres_per_unit(sdata, image_key or raster_key, coordinate_system),
    )  # fmt: skip
    # by hand: spatialdata-plot refuses images with NaN, and 0 in their place would be a measurement
    (_, height, width), (low, high) = pixels.shape, colours.get_clim()
    ax.imshow(
        np.ma.masked_invalid(pixels[0]), extent=(0, width, height, 0), transform=Affine2D(matrix) + ax.transData,
        vmin=low, vmax=high, cmap=colours.cmap, alpha=alpha, interpolation="nearest", zorder=1,
    )  # fmt: skip
    colour_bar([ax], colours, pixels, label=raster_unit(sdata, raster_key), alpha=alpha)
    frame_map(ax, view, title=gene)
    return ax


def _channel(sdata: SpatialData, raster_key: str, gene: str) -> list[DataArray]:
    """The raster's levels, (1, y, x) each, of one gene: no other channel is touched."""
    element = sdata.images[raster_key]
    nodes = (
        [next(iter(node.data_vars.values())) for node in element.values()]
        if hasattr(element, "children")
        else [element]
    )
    names = [str(name) for name in nodes[0].coords["c"].to_numpy()]
    position = gene_position(gene, names, what=f"raster {raster_key!r}")
    return [level.isel(c=[position]) for level in nodes]


def _with_values(levels: list[DataArray], affine: NDArray[np.float64], view: Box, *, raster_key: str) -> Box:
    """The box around all in a view that has a value, to a few hundred pixels; the view where nothing is missing.

    Raises ValueError where there is no value in it.
    """
    pixels, matrix = read_view(levels, affine, view, n_px=COARSE_PX)
    finite = np.isfinite(only_in_view(pixels, matrix, view)[0])
    if not finite.any():
        raise ValueError(
            f"there is nothing to draw: every value is NaN in raster {raster_key!r} at x {view[0]:.6g} to "
            f"{view[2]:.6g}, y {view[1]:.6g} to {view[3]:.6g}, as off the tissue."
        )
    if finite.all():
        return view
    rows, columns = np.flatnonzero(finite.any(axis=1)), np.flatnonzero(finite.any(axis=0))
    return with_margin(box_of((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), matrix))
