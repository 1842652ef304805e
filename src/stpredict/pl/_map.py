"""Maps in a coordinate system: images read at display scale, shapes and H&E drawn by spatialdata-plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import shapely
import spatialdata_plot  # noqa: F401  registers SpatialData.pl
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine

from stpredict import _coverage
from stpredict._spatialdata import affines, geometry_of, image_levels, is_micrometres, pixel_size, resolve_image
from stpredict.pl._axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from numpy.typing import NDArray
    from xarray import DataArray

    Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in the coordinate system

DPI = 300  # what a figure is printed at, even where the screen shows less
MARGIN = 0.03  # of the longer side, around what has values
VALUE = "expression"  # the column of shapes that is drawn
SAME_SCALE = 1.02  # micrometres per unit along x and y may differ by this factor under one scale bar


def only_image(sdata: SpatialData, image_key: str | None) -> str | None:
    """The image given, else the only H&E image; None for an object that has none."""
    written = sdata.attrs.get("stpredict", {})
    if image_key is None and all(f"images/{key}" in written for key in sdata.images):
        return None
    return resolve_image(sdata, image_key)


def background(
    sdata: SpatialData, image_key: str | None, *, coordinate_system: str, view: Box, cropped: bool = False
) -> str | None:
    """The image to draw on, as `only_image` finds it; None where a view that was cropped has nothing of it.

    Raises ValueError for several images and no key, and for an image that is not RGB, that does not map to the
    coordinate system, or of which nothing lies in a whole view: before anything is drawn.
    """
    key = only_image(sdata, image_key)
    if key is None:
        return None
    level = image_levels(sdata, key)[0]
    x0, y0, x1, y1 = _window(level, affine_to(sdata, key, coordinate_system), view)
    if x1 <= x0 or y1 <= y0:
        if cropped:
            return None
        raise ValueError(
            f"nothing of image {key!r} lies in what is drawn: x {view[0]:.6g} to {view[2]:.6g}, y {view[1]:.6g} to "
            f"{view[3]:.6g} in {coordinate_system!r}. Check the transformations of both, or pass another image_key=."
        )
    return key


def affine_to(sdata: SpatialData, key: str, coordinate_system: str) -> NDArray[np.float64]:
    """The 3x3 matrix that takes (x, y, 1) of an element into the coordinate system; an error lists its systems."""
    known = affines(sdata, key)
    if coordinate_system not in known:
        raise ValueError(
            f"{key!r} has no transformation to coordinate system {coordinate_system!r}; it maps to {sorted(known)}. "
            "Pass coordinate_system= one that all drawn elements share."
        )
    return known[coordinate_system]


def box_of(corners: Box, affine: NDArray[np.float64]) -> Box:
    """The box that holds another box after an affine."""
    x0, y0, x1, y1 = corners
    points = affine @ np.array([[x0, x1, x1, x0], [y0, y0, y1, y1], [1, 1, 1, 1]], dtype=np.float64)
    (left, top), (right, bottom) = points[:2].min(axis=1), points[:2].max(axis=1)
    return float(left), float(top), float(right), float(bottom)


def with_margin(box: Box) -> Box:
    """The box, a little larger on each side."""
    x0, y0, x1, y1 = map(float, box)
    margin = MARGIN * max(y1 - y0, x1 - x0)
    return x0 - margin, y0 - margin, x1 + margin, y1 + margin


def cropped(view: Box, crop: Sequence[float] | None) -> Box:
    """What a map shows: what a caller asks for, else all there is (`view`).

    Raises ValueError for a crop that is no box, or has nothing of the view.
    """
    if crop is None:
        return view
    box = tuple(map(float, crop))
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"crop={box} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1.")
    x0, y0, x1, y1 = box
    if x1 <= view[0] or view[2] <= x0 or y1 <= view[1] or view[3] <= y0:
        raise ValueError(
            f"crop={box} has nothing of what is drawn, which lies at x {view[0]:.6g} to {view[2]:.6g}, y {view[1]:.6g} "
            f"to {view[3]:.6g}. Give it in units of coordinate_system=."
        )
    return x0, y0, x1, y1


def shapes_view(sdata: SpatialData, shapes_key: str, coordinate_system: str) -> Box:
    """The box around all shapes of an element, with a margin."""
    bounds = _coverage.bounds(_shapes_in(sdata, shapes_key, coordinate_system))
    y0, x0 = np.nanmin(bounds[:, :2], axis=0)
    y1, x1 = np.nanmax(bounds[:, 2:], axis=0)
    return with_margin((x0, y0, x1, y1))


def in_view(
    sdata: SpatialData, shapes_key: str, values: NDArray[np.float64], *, coordinate_system: str, view: Box
) -> NDArray[np.float64]:
    """Values of shapes (n_shapes,), NaN where nothing of a shape is in the view; ValueError where that is so of all."""
    shapes = _shapes_in(sdata, shapes_key, coordinate_system)
    reach = np.where(np.isfinite(shapes.radius), shapes.radius, 0.0)  # of polygons 0
    seen = shapely.distance(shapes.geometry, shapely.box(*view)) <= reach  # NaN of empty ones
    if not seen.any():
        raise ValueError(f"no shape of {shapes_key!r} lies in crop={view}. Make it larger.")
    return np.where(seen, values, np.nan)


def _shapes_in(sdata: SpatialData, shapes_key: str, coordinate_system: str) -> _coverage.Shapes:
    return _coverage.transform(geometry_of(sdata, shapes_key), affine_to(sdata, shapes_key, coordinate_system))


def micrometres_per_unit(sdata: SpatialData, key: str, coordinate_system: str) -> float | None:
    """Micrometres per unit of the coordinate system, by an element's transformations; None where they do not tell."""
    if is_micrometres(coordinate_system):
        return 1.0
    known = affines(sdata, key)
    for system in sorted(filter(is_micrometres, known)):
        between = known[system] @ np.linalg.inv(known[coordinate_system])
        large, small = np.linalg.svd(between[:2, :2], compute_uv=False)
        if large <= SAME_SCALE * small:
            return pixel_size(between)
    return None


def read_view(
    levels: Sequence[DataArray], affine: NDArray[np.float64], view: Box, *, n_px: int
) -> tuple[NDArray, NDArray[np.float64]]:
    """What of an image lies in the view, materialised at display scale.

    Parameters
    ----------
    levels : Sequence[DataArray]
        Pyramid levels (c, y, x), the finest first: only the window that is seen is read, from the coarsest level that
        still has about `n_px` pixels along the longer side of it, and averaged down by a whole factor (NaN left out).
    affine : ndarray of float64
        3x3 from the finest level's pixels to the coordinate system.

    Returns
    -------
    tuple[ndarray, ndarray]
        Pixels (c, h, w) and the 3x3 matrix from these pixels to the coordinate system.
    """
    height, width = levels[0].sizes["y"], levels[0].sizes["x"]
    x0, y0, x1, y1 = _window(levels[0], affine, view)
    step = max(x1 - x0, y1 - y0) / n_px
    scales = [(width / level.sizes["x"], height / level.sizes["y"]) for level in levels]
    best = max(k for k, scale in enumerate(scales) if k == 0 or max(scale) <= step)
    sx, sy = scales[best]
    rows, columns = slice(int(y0 / sy), int(np.ceil(y1 / sy))), slice(int(x0 / sx), int(np.ceil(x1 / sx)))
    part = levels[best].isel(y=rows, x=columns)
    k = int(np.clip(step / max(sx, sy), 1, min(part.sizes["y"], part.sizes["x"])))
    window = np.array([[sx * k, 0, columns.start * sx], [0, sy * k, rows.start * sy], [0, 0, 1.0]])
    return _averaged(part, k), affine @ window


def only_in_view(pixels: NDArray, matrix: NDArray[np.float64], view: Box) -> NDArray:
    """Pixels (c, h, w) in float32, NaN where nothing of one is in the view: windows of turned images reach beyond it.

    `matrix` is 3x3, from these pixels to the coordinate system, as of `read_view`.
    """
    (_, h, w), (across, down) = pixels.shape, np.abs(matrix[:2, :2]).sum(axis=1) / 2
    x, y = np.einsum(
        "ij,jyx->iyx", matrix[:2], np.stack([*np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), np.ones((h, w))])
    )
    seen = (x + across > view[0]) & (x - across < view[2]) & (y + down > view[1]) & (y - down < view[3])
    return np.where(seen, pixels, np.nan).astype(np.float32)


def display_px(ax: Axes) -> int:
    """Pixels along the longer side of the axes when printed."""
    extent = ax.get_window_extent()
    return max(64, int(max(extent.width, extent.height) / ax.figure.dpi * max(ax.figure.dpi, DPI)))


def read_image(
    sdata: SpatialData, image_key: str | None, *, coordinate_system: str, view: Box, n_px: int
) -> DataArray | None:
    """What of the H&E lies in the view, as an element at display scale that maps to the coordinate system."""
    if image_key is None:
        return None
    affine = affine_to(sdata, image_key, coordinate_system)
    pixels, matrix = read_view(image_levels(sdata, image_key), affine, view, n_px=n_px)
    return Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={coordinate_system: _affine(matrix)}
    )


def with_values(
    sdata: SpatialData, shapes_key: str, values: NDArray[np.float64], *, coordinate_system: str
) -> gpd.GeoDataFrame | None:
    """Shapes and their values (n_shapes,), in element order, as an element without those whose value is NaN.

    None where no value is left.

    The value travels as a column of the element: by gene name, "C3" is a colour to spatialdata-plot, and the measured
    target is in no layer.
    """
    shapes = geometry_of(sdata, shapes_key)
    shown = np.isfinite(values) & ~shapely.is_empty(shapes.geometry)
    if not shown.any():
        return None
    frame = gpd.GeoDataFrame({VALUE: values[shown]}, geometry=shapes.geometry[shown])
    if np.isfinite(shapes.radius).any():
        frame["radius"] = shapes.radius[shown]
    matrix = affine_to(sdata, shapes_key, coordinate_system)
    return ShapesModel.parse(frame, transformations={coordinate_system: _affine(matrix)})


def draw(
    ax: Axes,
    *,
    coordinate_system: str,
    image: DataArray | None,
    shapes: gpd.GeoDataFrame | None = None,
    colours: ScalarMappable | None = None,
    alpha: float = 1.0,
    um: float | None = None,
) -> None:
    """Draw the H&E, then shapes by their values, by spatialdata-plot; a scale bar where `um` per unit are known."""
    elements = {name: one for name, one in (("image", image), ("shapes", shapes)) if one is not None}
    if not elements:
        return
    chain = SpatialData.init_from_elements(elements)
    if image is not None:
        # scale="full": spatialdata-plot would resample a rotated image into a box with black corners
        chain = chain.pl.render_images("image", scale="full")
    if shapes is not None and colours is not None:
        chain = chain.pl.render_shapes(
            "shapes", color=VALUE, norm=colours.norm, cmap=colours.cmap, fill_alpha=alpha, colorbar=False
        )
    chain.pl.show(
        ax=ax, coordinate_systems=coordinate_system, title="", colorbar=False,
        scalebar_dx=um, scalebar_units="um",
        scalebar_params={"location": "lower right", "box_alpha": 0.8, "length_fraction": 0.25},
    )  # fmt: skip


def draw_values(
    sdata: SpatialData,
    shapes_key: str,
    values: NDArray[np.float64],
    *,
    view: Box,
    image_key: str | None,
    ax: Axes | None,
    colours: ScalarMappable,
    alpha: float,
    coordinate_system: str,
    cropped: bool = False,
) -> Axes:
    """Shapes in the colours of their values (n_shapes,), over the H&E behind them."""
    image_key = background(sdata, image_key, coordinate_system=coordinate_system, view=view, cropped=cropped)
    ax = new_axes(view)[0] if ax is None else ax
    draw(
        ax, coordinate_system=coordinate_system, colours=colours, alpha=alpha,
        image=read_image(sdata, image_key, coordinate_system=coordinate_system, view=view, n_px=display_px(ax)),
        shapes=with_values(sdata, shapes_key, values, coordinate_system=coordinate_system),
        um=micrometres_per_unit(sdata, image_key or shapes_key, coordinate_system),
    )  # fmt: skip
    return ax


def _window(level: DataArray, affine: NDArray[np.float64], view: Box) -> NDArray[np.float64]:
    """x0, y0, x1, y1 of the view in an image's own pixels, clipped to it."""
    height, width = level.sizes["y"], level.sizes["x"]
    return np.clip(box_of(view, np.linalg.inv(affine)), 0, [width, height, width, height])


def _averaged(part: DataArray, k: int) -> NDArray:
    dtype = part.dtype
    if k > 1:
        part = part.astype(np.float32).coarsen(y=k, x=k, boundary="trim").mean()
    pixels = part.to_numpy()
    return np.rint(pixels).astype(dtype) if dtype == np.uint8 else pixels.astype(np.float32)


def _affine(matrix: NDArray[np.float64]) -> Affine:
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
