"""Shapes in the pixel frame of an image, clipped to image and tissue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from stpredict import _caches, _coverage
from stpredict._coverage import Shapes
from stpredict._spatialdata._elements import finest, missing_key, raster_size
from stpredict._spatialdata._outline import outline, outlines
from stpredict._spatialdata._transformations import relative_affine, scaling

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

POINT, POLYGON, MULTIPOLYGON = 0, 3, 6  # shapely's type ids
LOCAL_CORNERS, LOCAL_SHAPES = 512, 32  # below these a region is used whole
BORDER_PX = 1e-6  # rounding of an affine does not push a shape off the image


_last: tuple[Any, GeoDataFrame] | None = None  # the labels that were outlined last, and their frame


def shapes_element(sdata: SpatialData, shapes_key: str) -> GeoDataFrame:
    """The shapes of an element: its rows, or the exact outlines of labels, indexed by label (0 is no shape).

    Raises ValueError for labels without any.
    """
    if shapes_key in sdata.shapes:
        return sdata.shapes[shapes_key]
    from geopandas import GeoDataFrame

    global _last
    labels, known = sdata.labels[shapes_key], _last
    if known is None or known[0] is not labels:
        ids, geometry = outlines(finest(labels).data)
        if len(ids) == 0:
            raise ValueError(f"labels {shapes_key!r} hold no instance: every pixel is 0.")
        known = _last = labels, GeoDataFrame(geometry=geometry, index=pd.Index(ids))
    return known[1]


def geometry_of(sdata: SpatialData, shapes_key: str) -> Shapes:
    """The shapes (n,) of an element, in its own frame and order.

    Polygons that cross themselves are repaired, and that is logged.

    Circles whose centre is not finite become empty points, which cover nothing.

    Raises ValueError for an element that is empty, has an index that is not unique, missing geometries, other
    geometries than circles and polygons, circles without a positive radius, or polygons with corners that are not
    finite.
    """
    shapes = shapes_element(sdata, shapes_key)
    _check_index(shapes, shapes_key)
    geometry = shapes.geometry.to_numpy()
    if (shapely.get_coordinate_dimension(geometry) > 2).any():
        geometry = shapely.force_2d(geometry)
    kinds = shapely.get_type_id(geometry)
    wrong = ~np.isin(kinds, (POINT, POLYGON, MULTIPOLYGON))
    if wrong.any():
        raise ValueError(
            f"shapes {shapes_key!r}: {int(wrong.sum())} of {len(shapes)} rows are neither circles nor "
            f"polygons, for example {_examples(shapes.index[wrong])}. Drop or replace them."
        )
    radius = np.full(len(shapes), np.nan)
    circles = kinds == POINT
    if circles.any():
        radius[circles] = _radius(shapes, shapes_key)[circles]
        finite = np.isfinite(shapely.get_x(geometry)) & np.isfinite(shapely.get_y(geometry))
        nowhere = circles & ~finite & ~shapely.is_empty(geometry)
        if nowhere.any():  # a spot that has no position covers nothing, as an empty point does
            logger.info("shapes %r: %d spots have no finite position", shapes_key, nowhere.sum())
            geometry = np.where(nowhere, shapely.Point(), geometry)
    return Shapes(_valid(geometry, shapes_key, shapes.index), radius)


def tissue(sdata: SpatialData, tissue_key: str | None, image_key: str, *, step: float = 1.0) -> BaseGeometry | None:
    """The tissue as one polygon or multipolygon in the pixel frame of the image; None without a key.

    Parameters
    ----------
    tissue_key : str | None
        Polygons or circles in `shapes`, or labels, of which every pixel that is not 0 is tissue.
    step : float, default 1.0
        Pixels of the full-resolution image per pixel of the frame that is wanted.

    Raises
    ------
    ValueError
        For a key that is neither, and for labels without any tissue.
    """
    if tissue_key is None:
        return None
    maskable = [*sdata.shapes, *sdata.labels]
    if tissue_key not in maskable:
        raise missing_key(tissue_key, maskable, what="tissue shapes or labels", argument="tissue_key")
    if tissue_key in sdata.shapes:
        shapes = geometry_of(sdata, tissue_key)
    else:
        shapes = _one(outline(finest(sdata.labels[tissue_key]).data))
        if shapes.geometry[0].is_empty:
            raise ValueError(f"labels {tissue_key!r} hold no tissue: every pixel is 0.")
    frame = scaling(1.0 / step) @ relative_affine(sdata, tissue_key, image_key)
    shapes = _coverage.transform(shapes, frame)
    geometry, circles = shapes.geometry.copy(), np.isfinite(shapes.radius)
    geometry[circles] = shapely.buffer(geometry[circles], shapes.radius[circles], quad_segs=64)
    return shapely.union_all(geometry) if len(geometry) > 1 else geometry[0]


def shapes_in_pixels(
    sdata: SpatialData, image_key: str, shapes_key: str, *, region: BaseGeometry | None = None, step: float = 1.0
) -> tuple[Shapes, NDArray[np.float64], NDArray[np.bool_]]:
    """The shapes of an element in the image's pixels, clipped to the image and to a region of that frame.

    Parameters
    ----------
    step : float, default 1.0
        Pixels of the full-resolution image per pixel of the frame that is wanted.

    Returns
    -------
    tuple[Shapes, ndarray, ndarray]
        The shapes (n,) after the clip, area (n,) in square pixels of the whole shapes, and whether each lies wholly on
        the image (n,), in element order.
    """
    frame = scaling(1.0 / step) @ relative_affine(sdata, shapes_key, image_key)
    shapes = _coverage.transform(geometry_of(sdata, shapes_key), frame)
    area = _coverage.areas(shapes)
    height, width = (size / step for size in raster_size(sdata, image_key))
    y0, x0, y1, x1 = _coverage.bounds(shapes).T
    low, high = -BORDER_PX, BORDER_PX
    on_image = (y0 >= low) & (x0 >= low) & (y1 <= height + high) & (x1 <= width + high)
    shapes = _coverage.clip(shapes, shapely.box(0.0, 0.0, width, height))
    return shapes if region is None else clip_locally(shapes, region), area, on_image


def clip_locally(shapes: Shapes, region: BaseGeometry) -> Shapes:
    """As `_coverage.clip`, but every shape meets only the part of the region around it.

    A mask of many corners would else be walked once for every shape on its border: shapes are halved by place, and the
    region with them, until few corners are left.
    """
    y0, x0, y1, x1 = _coverage.bounds(shapes).T
    finite = np.isfinite(x0)
    if shapely.get_num_coordinates(region) <= LOCAL_CORNERS or finite.sum() < LOCAL_SHAPES:
        return _coverage.clip(shapes, region)
    # one pixel more, so that no side of the box touches a shape
    box = shapely.box(x0[finite].min() - 1, y0[finite].min() - 1, x1[finite].max() + 1, y1[finite].max() + 1)
    region = _coverage.clip(_one(region), box).geometry[0]
    wide = np.ptp(x0[finite]) > np.ptp(y0[finite])
    order = np.argsort(x0 + x1 if wide else y0 + y1)  # empty shapes last
    geometry, radius = shapes.geometry.copy(), shapes.radius.copy()
    for half in np.array_split(order, 2):
        clipped = clip_locally(shapes.rows(half), region)
        geometry[half], radius[half] = clipped.geometry, clipped.radius
    return Shapes(geometry, radius)


def _one(polygon: BaseGeometry) -> Shapes:
    return Shapes(np.array([polygon], dtype=object), np.array([np.nan]))


def check_some_inside(shapes: Shapes, *, shapes_key: str, image_key: str, tissue_key: str | None = None) -> None:
    """Raise ValueError where not one of the clipped shapes has anything left on the image and the tissue."""
    if shapely.is_empty(shapes.geometry).all():
        where = f"image {image_key!r}" + (f" and the tissue {tissue_key!r}" if tissue_key is not None else "")
        raise ValueError(
            f"all {len(shapes)} shapes of {shapes_key!r} lie outside {where}. Check the "
            "transformations of both with spatialdata.transformations.get_transformation, and the keys."
        )


def _check_index(shapes: GeoDataFrame, shapes_key: str) -> None:
    if len(shapes) == 0:
        raise ValueError(f"shapes {shapes_key!r} are empty.")
    if not shapes.index.is_unique:
        duplicates = shapes.index[shapes.index.duplicated()].unique()
        raise ValueError(
            f"shapes {shapes_key!r} have instance ids that are not unique: {_examples(duplicates)} "
            f"({len(duplicates)} ids occur more than once). Give every shape its own index."
        )


def _radius(shapes: GeoDataFrame, shapes_key: str) -> NDArray[np.float64]:
    if "radius" not in shapes:
        raise ValueError(f"shapes {shapes_key!r} are points without a column 'radius'. Add the radius of the circles.")
    radius = shapes["radius"].to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(radius) & (radius > 0))
    if wrong.any():
        raise ValueError(
            f"shapes {shapes_key!r}: {int(wrong.sum())} radii are not positive, "
            f"for example of {_examples(shapes.index[wrong])}."
        )
    return radius


def _valid(geometry: NDArray[np.object_], key: str, index: pd.Index) -> NDArray[np.object_]:
    """Polygons that GEOS can compute with; of a repaired one only what has an area.

    Raises ValueError for corners that are not finite, with the ids of the rows (`index`).
    """
    broken = ~shapely.is_valid(geometry)
    if not broken.any():
        return geometry
    torn = [row for row in np.flatnonzero(broken) if not np.isfinite(shapely.get_coordinates(geometry[row])).all()]
    if torn:
        raise ValueError(
            f"shapes {key!r}: {len(torn)} of {len(geometry)} rows have corners that are not finite (NaN or infinite), "
            f"for example {_examples(index[torn])}. Drop or replace them."
        )
    logger.warning("%r: %d of %d polygons cross themselves and are repaired.", key, int(broken.sum()), len(geometry))
    out = geometry.copy()
    for row in np.flatnonzero(broken):
        parts = shapely.get_parts(shapely.make_valid(geometry[row]))
        parts = shapely.get_parts(parts)  # of a multipolygon inside a collection
        out[row] = shapely.union_all(parts[shapely.get_type_id(parts) == POLYGON])
    return out


def _examples(index: pd.Index) -> list:
    return index[:5].tolist()


def _forget() -> None:
    global _last
    _last = None


_caches.register("outlines of labels", _forget)
