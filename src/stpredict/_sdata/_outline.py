"""The outline of a label mask as exact polygons: every pixel a unit square, holes kept.

spatialdata.to_polygons is not used: it cuts pixel corners off, is half a pixel off, and fills holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    Integers = NDArray[np.int64]
    Steps = tuple[Integers, Integers, NDArray[np.bool_]]

ROWS = 1024  # read at a time


def outline(labels: Any) -> BaseGeometry:
    """The area of all pixels that are not 0, as one MultiPolygon in (x, y); empty where there are none.

    labels
        (y, x) integers, numpy or dask: read in bands of rows. Pixel (i, j) covers [j, j + 1) x [i, i + 1).
    """
    flat, upright = _steps(labels)
    if len(flat[0]) == 0:
        return shapely.MultiPolygon()
    y, x0, x1, down = _runs(*flat)
    x, y0, y1, _ = _runs(*upright)
    corners = [np.stack([x0, y, x1, y], axis=1), np.stack([x, y0, x, y1], axis=1)]
    borders = shapely.linestrings(np.concatenate(corners).reshape(-1, 2, 2).astype(np.float64))
    faces = shapely.get_parts(shapely.polygonize(borders))
    at_y, at_x, inside_down = _first_flat_sides(faces)
    # runs are sorted by y and x, so each face finds the run that it was made of
    width = labels.shape[1] + 1
    run = np.searchsorted(y * width + x0, at_y * width + at_x)
    return shapely.multipolygons(faces[inside_down == down[run]])


def _steps(labels: Any) -> tuple[Steps, Steps]:
    """Where the mask begins or ends: along y, as (y, x, begins), and along x, as (x, y, begins)."""
    flat: list[Steps] = []
    upright: list[Steps] = []
    above = np.zeros((1, labels.shape[1]), dtype=np.int8)
    for first in range(0, labels.shape[0] + 1, ROWS):
        band = (np.asarray(labels[first : first + ROWS]) != 0).astype(np.int8)
        if first + ROWS > labels.shape[0]:
            band = np.concatenate([band, np.zeros_like(above)])  # glass below the last row
        step = np.diff(band, axis=0, prepend=above)
        y, x = np.nonzero(step)
        flat.append((y + first, x, step[y, x] > 0))
        step = np.diff(np.pad(band, ((0, 0), (1, 1))), axis=1)
        y, x = np.nonzero(step)
        upright.append((x, y + first, step[y, x] > 0))
        above = band[-1:]
    return _joined(flat), _joined(upright)


def _joined(parts: list[Steps]) -> Steps:
    line, place, begins = (np.concatenate(column) for column in zip(*parts, strict=True))
    return line, place, begins


def _runs(
    line: Integers, place: Integers, begins: NDArray[np.bool_]
) -> tuple[Integers, Integers, Integers, NDArray[np.bool_]]:
    """Unit steps that follow each other on a line and go the same way, as one: line, first, end, begins; sorted."""
    order = np.lexsort((place, line))
    line, place, begins = line[order], place[order], begins[order]
    new = (np.diff(line) != 0) | (np.diff(place) != 1) | (begins[1:] != begins[:-1])
    first = np.flatnonzero(np.concatenate([[True], new]))
    last = np.append(first[1:], len(line)) - 1
    return line[first], place[first], place[last] + 1, begins[first]


def _first_flat_sides(faces: NDArray[np.object_]) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Of each polygon one side along x: its y, its smaller x, and whether the inside lies at larger y."""
    rings = shapely.get_exterior_ring(faces)
    one, two, three = (shapely.get_coordinates(shapely.get_point(rings, i)) for i in range(3))
    flat = (one[:, 1] == two[:, 1])[:, None]  # sides along x and along y take turns
    start, stop = np.where(flat, one, two), np.where(flat, two, three)
    rightwards = stop[:, 0] > start[:, 0]
    at = np.minimum(start, stop).astype(np.int64)
    return at[:, 1], at[:, 0], rightwards == shapely.is_ccw(rings)
