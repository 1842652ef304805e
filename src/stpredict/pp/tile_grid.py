"""A regular grid of shapes over an image on which nothing was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from geopandas import GeoDataFrame
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from stpredict import _coverage
from stpredict._arguments import check_arguments
from stpredict._coverage import Shapes
from stpredict._spatialdata import (
    DIAMETER_COLUMN,
    NewNames,
    add_shapes,
    clip_locally,
    image_mpp,
    raster_size,
    resolve_image,
    warn_of_mpp,
)
from stpredict._spatialdata import tissue as outline_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MOST_SHAPES = 10**8  # the bins of Visium HD at 2 um are a tenth of it


def tile_grid(
    sdata: SpatialData,
    *,
    diameter_um: float,
    pitch_um: float | None = None,
    shape: Literal["circle", "square"] = "circle",
    image_key: str | None = None,
    mpp: float | None = None,
    tissue_key: str | None = None,
    key_added: str = "tiles",
) -> None:
    """Write shapes in a square grid over an image, for prediction where nothing was measured.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object with an image.
    diameter_um : float
        Diameter of a circle, or side of a square, in micrometres.
    pitch_um : float, optional
        Distance of neighbouring centres along x and y; None: the diameter, so that neighbours touch.
    shape : {"circle", "square"}, default "circle"
        Circles or squares.
    image_key : str, optional
        Which image; None: the only one.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image; None: found as in `tl.predict`.
    tissue_key : str, optional
        Shapes or labels that outline the tissue, such as those of `stp.pp.tissue`: shapes of which less than half lies
        on it are left out. None: the whole image. Pass it to `stp.tl.predict` as well, so that of the others only what
        lies on the tissue is read out.
    key_added : str, default "tiles"
        Name of the new shapes; it must not be taken.

    Raises
    ------
    ValueError
        For sizes that are not positive, a name that is taken or not allowed, an image or a tissue that holds no shape
        of that size or too many, and where no mpp is found.

    Notes
    -----
    The first shape touches the upper left corner of the image; only shapes that lie wholly on it are written, row by
    row, numbered from 0 without gaps. They carry the image's transformation to every one of its coordinate systems. A
    backed object is changed in its store as well.

    Examples
    --------
    >>> stp.pp.tile_grid(slide, diameter_um=50, shape="square", image_key="image")
    >>> len(slide.shapes["tiles"])
    256
    """
    check_arguments(tile_grid, locals())
    pitch_um = diameter_um if pitch_um is None else pitch_um
    names = NewNames(sdata, overwrite=False)
    names.element("shapes", key_added)
    names.check()
    image_key = resolve_image(sdata, image_key)
    own = image_mpp(sdata, image_key, mpp=mpp)
    warn_of_mpp(sdata, image_key, None, mpp)
    height, width = raster_size(sdata, image_key)
    n_rows, n_columns = (_n_along(size, diameter_um / own, pitch_um / own) for size in (height, width))
    if n_rows * n_columns > MOST_SHAPES:
        raise ValueError(
            f"a grid every {pitch_um:g} um over image {image_key!r}, {height * own:.0f} x {width * own:.0f} um, has "
            f"{n_rows} x {n_columns} shapes, more than {MOST_SHAPES}. Raise pitch_um= or diameter_um=, or correct mpp= "
            f"({own:.4g} was used)."
        )
    xy = _centres((n_rows, n_columns), diameter_um / own, pitch_um / own)
    if len(xy) == 0:
        raise ValueError(
            f"no {shape} of {diameter_um:g} um fits on image {image_key!r}, which is {height * own:.0f} x "
            f"{width * own:.0f} um. Lower diameter_um=, or correct mpp= ({own:.4g} was used)."
        )
    xy = _on_tissue(xy, diameter_um / own, shape, sdata, image_key, tissue_key)
    element = _element(xy, diameter_um / own, shape, sdata, image_key)
    element[DIAMETER_COLUMN] = float(diameter_um)
    add_shapes(sdata, key_added, element)


def _n_along(size: int, diameter: float, pitch: float) -> int:
    """How many shapes of a diameter lie wholly within `size` pixels, one every `pitch`."""
    return max(0, int(np.floor((size - diameter) / pitch + 1e-9)) + 1)


def _centres(shape: tuple[int, int], diameter: float, pitch: float) -> NDArray[np.float64]:
    """(n, 2) centres (x, y) in pixels of rows x columns of shapes, row by row."""
    y, x = (diameter / 2 + pitch * np.arange(n) for n in shape)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _on_tissue(
    xy: NDArray[np.float64], diameter: float, shape: str, sdata: SpatialData, image_key: str, tissue_key: str | None
) -> NDArray[np.float64]:
    """The centres of shapes of which at least half lies on the tissue."""
    region = outline_of(sdata, tissue_key, image_key)
    if region is None:
        return xy
    geometry = shapely.points(xy) if shape == "circle" else _squares(xy, diameter / 2)
    shapes = Shapes(geometry, np.full(len(xy), diameter / 2 if shape == "circle" else np.nan))
    on = _coverage.areas(clip_locally(shapes, region)) >= 0.5 * _coverage.areas(shapes) * (1 - 1e-9)
    if not on.any():
        raise ValueError(
            f"not one of the {len(xy)} {shape}s lies on the tissue {tissue_key!r} by half or more. Lower diameter_um= "
            "or pitch_um=, or check the transformations of image and tissue."
        )
    return xy[on]


def _squares(xy: NDArray[np.float64], half: float) -> NDArray[np.object_]:
    return shapely.box(xy[:, 0] - half, xy[:, 1] - half, xy[:, 0] + half, xy[:, 1] + half)


def _element(xy: NDArray[np.float64], diameter: float, shape: str, sdata: SpatialData, image_key: str) -> GeoDataFrame:
    transformations = dict(get_transformation(sdata.images[image_key], get_all=True))
    if shape == "circle":
        return ShapesModel.parse(xy, geometry=0, radius=diameter / 2, transformations=transformations)
    return ShapesModel.parse(GeoDataFrame(geometry=_squares(xy, diameter / 2)), transformations=transformations)
