"""Shapes, circles and polygons row by row: what they are, their areas and bounds, affine maps, clipping."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from stpredict._window import Window

Geometries = NDArray[np.object_]
Floats = NDArray[np.float64]

RUN = 2**13  # geometries that a thread looks at
POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)

MOST = 16  # threads; more only wait for memory


@dataclass(frozen=True, eq=False)
class Shapes:
    """Circles and polygons in one frame, row by row.

    Parameters
    ----------
    geometry : array_like
        (n,) shapely Points, Polygons and MultiPolygons in (x, y) order; an empty one is a shape of which nothing is
        left.
    radius : array_like
        (n,) radius in pixels of the circle around a Point, NaN elsewhere.

    Attributes
    ----------
    circle
        (n,) bool: the rows that are circles.

    Raises
    ------
    ValueError
        For the first row that is no shape. Whether a polygon is valid is checked by what needs it.
    """

    geometry: Geometries
    radius: Floats
    circle: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        geometry, radius = np.asarray(self.geometry, dtype=object), np.asarray(self.radius, dtype=np.float64)
        for name, value in (("geometry", geometry), ("radius", radius), ("circle", _circles(geometry, radius))):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.geometry)

    def rows(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Shapes:
        """Some of them: an index or a mask of rows."""
        return Shapes(self.geometry[which], self.radius[which])


def areas(shapes: Shapes) -> Floats:
    """Area of each shape.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes.

    Returns
    -------
    Floats
        (n,) in square pixels; 0 for an empty geometry.

    Raises
    ------
    ValueError
        For a polygon that is not valid.
    """
    check_valid(shapes.geometry)
    return areas_of(shapes)


def bounds(shapes: Shapes) -> Floats:
    """Smallest upright box around each shape.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes.

    Returns
    -------
    Floats
        (n, 4) rows (y0, x0, y1, x1) in pixels; NaN for an empty geometry.
    """
    x0, y0, x1, y1 = shapely.bounds(shapes.geometry).reshape(-1, 4).T
    reach = np.where(shapes.circle, shapes.radius, 0.0)
    return np.stack([y0 - reach, x0 - reach, y1 + reach, x1 + reach], axis=1)


def inside(shapes: Shapes, window: Window) -> NDArray[np.bool_]:
    """Whether each shape lies wholly inside the window, whose border counts as inside.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes.

    Returns
    -------
    ndarray of bool
        (n,) bool; False for an empty geometry.
    """
    y0, x0, y1, x1 = bounds(shapes).T
    return (y0 >= window.y0) & (x0 >= window.x0) & (y1 <= window.y1) & (x1 <= window.x1)


def transform(shapes: Shapes, affine: ArrayLike) -> Shapes:
    """Shapes moved by an affine map.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes.
    affine : array_like
        (3, 3), acting on columns (x, y, 1); not singular.

    Returns
    -------
    Shapes
        (n,) shapes. Under a similarity (turn, flip, uniform scale) circles stay circles; under any
        other map they become polygons of 128 to 512 corners with exactly the ellipse's area, corner by corner, which
        strays from the ellipse so little that coverage is right to 1e-5 of the area (see `_as_polygons`).

    Raises
    ------
    ValueError
        For a polygon that is not valid and for a matrix that is no invertible affine map.
    """
    check_valid(shapes.geometry)
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.array_equal(matrix[2], [0, 0, 1]):
        raise ValueError(
            f"an affine map on (x, y, 1) is a finite (3, 3) matrix with last row 0 0 1, got {matrix.tolist()}."
        )
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    widest, narrowest = np.linalg.svd(linear, compute_uv=False)
    if narrowest <= 1e-12 * widest:
        raise ValueError(f"the affine map is singular: it flattens every shape, got {matrix.tolist()}.")
    geometry, radius, circle = shapes.geometry, shapes.radius.copy(), shapes.circle
    if widest - narrowest <= 1e-9 * widest:
        radius[circle] *= np.sqrt(widest * narrowest)
    else:
        geometry = geometry.copy()
        geometry[circle] = _as_polygons(geometry[circle], radius[circle], seen=radius[circle] * widest)
        radius[circle] = np.nan
    return Shapes(shapely.transform(geometry, lambda xy: xy @ linear.T + shift), radius)


def in_cells(shapes: Shapes, cell_px: float) -> Shapes:
    """Shapes in cells of a map, from the corner of its pixel (0, 0), that are `cell_px` pixels wide."""
    return transform(shapes, np.diag([1 / cell_px, 1 / cell_px, 1.0]))


def clip(shapes: Shapes, region: shapely.Geometry) -> Shapes:
    """What of each shape lies in a region.

    Parameters
    ----------
    shapes : Shapes
        (n,) shapes.
    region : shapely.Geometry
        A valid shapely Polygon or MultiPolygon, in the frame of the shapes.

    Returns
    -------
    Shapes
        (n,) shapes. Those wholly inside come back as they are, circles as circles; shapes outside,
        or that touch the region in a line or a point only, come back empty; a circle that the border
        cuts becomes a polygon, as fine as in `transform`.

    Raises
    ------
    ValueError
        For a polygon that is not valid and for a region that is none.
    """
    check_valid(shapes.geometry)
    if not isinstance(region, shapely.Polygon | shapely.MultiPolygon) or not region.is_valid:
        raise ValueError(
            f"a region is a valid Polygon or MultiPolygon, got {_describe(region)}. "
            "shapely.make_valid mends crossing borders; shapely.union_all joins several shapes."
        )
    geometry, radius, circle = shapes.geometry.copy(), shapes.radius.copy(), shapes.circle
    shapely.prepare(region)
    whole = shapely.covers(region, geometry)
    cut = ~circle & ~whole & shapely.intersects(region, geometry)
    crossed = _crossed(geometry[circle], radius[circle], region)
    cut[circle] = crossed
    whole[circle] &= ~crossed
    mixed = cut & circle
    geometry[mixed] = _as_polygons(geometry[mixed], radius[mixed], seen=radius[mixed])
    geometry[cut] = _polygonal(shapely.intersection(geometry[cut], region))
    geometry[~cut & ~whole] = shapely.Polygon()
    radius[~whole] = np.nan
    return Shapes(geometry, radius)


def areas_of(shapes: Shapes) -> Floats:
    """Areas of shapes whose polygons are valid."""
    return np.where(shapes.circle, np.pi * np.square(shapes.radius), shapely.area(shapes.geometry))


def check_valid(geometry: Geometries, rows: NDArray[np.int64] | None = None) -> None:
    """ValueError for the first geometry that is not valid; `rows` are the names of the rows if not 0, 1, 2, ..."""
    runs = [geometry[i : i + RUN] for i in range(0, len(geometry), RUN)]
    broken = np.flatnonzero(~np.concatenate([np.empty(0, bool), *in_threads(shapely.is_valid, runs)]))
    if len(broken):
        row = broken[0] if rows is None else rows[broken[0]]
        raise ValueError(
            f"geometry of row {row} is not valid: {shapely.is_valid_reason(geometry[broken[0]])} ({len(broken)} such "
            "rows). Its inside is not defined; mend it with shapely.make_valid and keep the polygons."
        )


def _circles(geometry: Geometries, radius: Floats) -> NDArray[np.bool_]:
    """Which rows are circles; ValueError for the first row that is no shape."""
    if geometry.ndim != 1 or radius.shape != geometry.shape:
        raise ValueError(
            f"geometry and radius must have one row per shape, got shapes {geometry.shape} and {radius.shape}. "
            "Polygons have radius NaN."
        )
    kind = shapely.get_type_id(geometry)
    empty = shapely.is_empty(geometry)
    circle = (kind == shapely.GeometryType.POINT) & ~empty
    strange = np.flatnonzero(~circle & ~empty & ~np.isin(kind, POLYGONAL))
    if len(strange):
        raise ValueError(
            f"geometry of row {strange[0]} is {_describe(geometry[strange[0]])} ({len(strange)} of {len(kind)} rows "
            "are no shape). Shapes are Points with a radius, Polygons, MultiPolygons: buffer lines, drop missing rows."
        )
    sized = np.isfinite(radius) & (radius > 0)
    sized[circle] &= np.isfinite(shapely.get_coordinates(geometry[circle])).all(axis=1)
    unsized = np.flatnonzero(circle & ~sized)
    if len(unsized):
        row = unsized[0]
        raise ValueError(
            f"row {row} is {geometry[row]} with radius {radius[row]} ({len(unsized)} of {circle.sum()} Points are no "
            "circle). A Point needs finite coordinates and a radius above 0, in pixels."
        )
    return circle


def _crossed(geometry: Geometries, radius: Floats, region: shapely.Geometry) -> NDArray[np.bool_]:
    """Whether the border of the region passes through each circle; touching it does not count."""
    border = shapely.boundary(region)
    shapely.prepare(border)
    crossed = shapely.dwithin(border, geometry, radius)
    # dwithin is fast but counts circles that only touch
    crossed[crossed] = shapely.distance(border, geometry[crossed]) < radius[crossed]
    return crossed


def _as_polygons(geometry: Geometries, radius: Floats, *, seen: Floats) -> Geometries:
    """Circles as regular polygons of the same area.

    Parameters
    ----------
    radius, seen : Floats
        (n,) radius, and the largest half-axis in pixels after the map that follows.

    Notes
    -----
    Each side bounds the same area as its arc, so an error arises only where the grid cuts a side: at most 2.6 / k^3 of
    the area for k corners at each of about 8 * seen cuts, and never above 2.5 / k^2 in all. Both are 1e-5 here.
    """
    corners = np.clip(np.ceil(128 * np.cbrt(seen)), 128, 512).astype(np.int64)
    owner = np.repeat(np.arange(len(corners)), corners)
    corner = np.arange(len(owner)) - np.repeat(np.cumsum(corners) - corners, corners)
    angle = corner * (2 * np.pi / corners)[owner]
    reach = (radius * np.sqrt(2 * np.pi / corners / np.sin(2 * np.pi / corners)))[owner]
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
    rings = shapely.linearrings(shapely.get_coordinates(geometry)[owner] + around, indices=owner)
    return shapely.polygons(rings)


def _polygonal(geometry: Geometries) -> Geometries:
    """The geometries without the lines and points that an intersection leaves where borders touch."""
    geometry = geometry.copy()
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(geometry), POLYGONAL)):
        parts = shapely.get_parts(geometry[i])
        geometry[i] = shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
    return geometry


def _describe(geometry: object) -> str:
    """A geometry in a few words."""
    if not isinstance(geometry, shapely.Geometry):
        return repr(geometry)
    return f"a {geometry.geom_type}" + ("" if geometry.is_valid else f" ({shapely.is_valid_reason(geometry)})")


def n_threads() -> int:
    """As many as the process may use processors, or as OMP_NUM_THREADS says, as for torch and BLAS."""
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if limit.isdigit() and int(limit) > 0:
        return min(int(limit), MOST)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(available or 1, MOST)


def in_threads[Item, Result](do: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, some of them made at once."""
    items = list(items)
    n = min(n_threads(), len(items))
    if n < 2:
        yield from map(do, items)
        return
    with ThreadPoolExecutor(n) as pool:
        yield from pool.map(do, items)
