"""The outlines of a mask or of labels as exact polygons: every pixel a unit square, holes kept.

spatialdata.to_polygons is not used: it cuts pixel corners off, is half a pixel off, and fills holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from stpredict._section import array_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    Integers = NDArray[np.int64]
    Steps = tuple[Integers, Integers, Integers, Integers]

ROWS = 1024  # read at a time


def outline(labels: Any) -> BaseGeometry:
    """The area of all pixels that are not 0, as one MultiPolygon in (x, y); empty where there are none.

    Parameters
    ----------
    labels : Any
        (y, x) integers, numpy or dask: read in bands of rows. Pixel (i, j) covers [j, j + 1) x [i, i + 1).
    """
    _, faces = _faces(labels, mask=True)
    return shapely.multipolygons(faces)


def outlines(labels: Any) -> tuple[Integers, NDArray[np.object_]]:
    """The area of every label but 0: ids (n,), rising, and (n,) Polygons or MultiPolygons; arguments as `outline`."""
    value, faces = _faces(labels, mask=False)
    order = np.argsort(value, kind="stable")
    ids, first, count = np.unique(value[order], return_index=True, return_counts=True)
    geometry = faces[order[first]]
    for i in np.flatnonzero(count > 1):
        geometry[i] = shapely.multipolygons(faces[order[first[i] : first[i] + count[i]]])
    return ids, geometry


def _faces(labels: Any, *, mask: bool) -> tuple[Integers, NDArray[np.object_]]:
    """Connected pieces of one label each, but 0: value (k,) and Polygon (k,). With `mask` all labels are one."""
    flat, upright = (_runs(*steps) for steps in _steps(labels, mask=mask))
    if len(flat[0]) == 0:
        return np.empty(0, np.int64), np.empty(0, dtype=object)
    y, x0, x1, above, below = flat
    x, y0, y1, _, _ = upright
    corners = [np.stack([x0, y, x1, y], axis=1), np.stack([x, y0, x, y1], axis=1)]
    borders = shapely.linestrings(np.concatenate(corners).reshape(-1, 2, 2).astype(np.float64))
    faces = shapely.get_parts(shapely.polygonize(borders))
    at_y, at_x, inside_down = _first_flat_sides(faces)
    # runs are sorted by y and x, so each face finds the run that it was made of
    width = labels.shape[1] + 1
    run = np.searchsorted(y * width + x0, at_y * width + at_x)
    value = np.where(inside_down, below[run], above[run])
    return value[value != 0], faces[value != 0]


def _steps(labels: Any, *, mask: bool) -> tuple[Steps, Steps]:
    """Where the label changes: along y, as (y, x, above, below), and along x, as (x, y, left, right)."""
    flat: list[Steps] = []
    upright: list[Steps] = []
    above = np.zeros((1, labels.shape[1]), dtype=np.int64)
    for first in range(0, labels.shape[0] + 1, ROWS):
        read = array_of(labels[first : first + ROWS], f"the labels, rows {first} and after,")
        if read.dtype.kind != "u" and read.size and read.min() < 0:
            raise ValueError(
                f"{int((read < 0).sum())} pixels of labels are below 0, such as {int(read.min())}, in rows {first} and "
                "after. Instances are numbers above 0, and 0 is none: set the others to 0."
            )
        band = (read != 0).astype(np.int64) if mask else read.astype(np.int64)
        if first + ROWS > labels.shape[0]:
            band = np.concatenate([band, np.zeros_like(above)])  # glass below the last row
        before = np.concatenate([above, band[:-1]])
        y, x = np.nonzero(band != before)
        flat.append((y + first, x, before[y, x], band[y, x]))
        wide = np.pad(band, ((0, 0), (1, 1)))
        y, x = np.nonzero(wide[:, 1:] != wide[:, :-1])
        upright.append((x, y + first, wide[y, x], wide[y, x + 1]))
        above = band[-1:]
    return _joined(flat), _joined(upright)


def _joined(parts: list[Steps]) -> Steps:
    line, place, before, after = (np.concatenate(column) for column in zip(*parts, strict=True))
    return line, place, before, after


def _runs(
    line: Integers, place: Integers, before: Integers, after: Integers
) -> tuple[Integers, Integers, Integers, Integers, Integers]:
    """Unit steps that follow each other on a line between the same labels, as one: line, first, end, before, after."""
    if len(line) == 0:
        return line, place, place, before, after
    order = np.lexsort((place, line))
    line, place, before, after = line[order], place[order], before[order], after[order]
    new = (np.diff(line) != 0) | (np.diff(place) != 1) | (np.diff(before) != 0) | (np.diff(after) != 0)
    first = np.flatnonzero(np.concatenate([[True], new]))
    last = np.append(first[1:], len(line)) - 1
    return line[first], place[first], place[last] + 1, before[first], after[first]


def _first_flat_sides(faces: NDArray[np.object_]) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Of each polygon one side along x: its y, its smaller x, and whether the inside lies at larger y."""
    rings = shapely.get_exterior_ring(faces)
    one, two, three = (shapely.get_coordinates(shapely.get_point(rings, i)) for i in range(3))
    flat = (one[:, 1] == two[:, 1])[:, None]  # sides along x and along y take turns
    start, stop = np.where(flat, one, two), np.where(flat, two, three)
    rightwards = stop[:, 0] > start[:, 0]
    at = np.minimum(start, stop).astype(np.int64)
    return at[:, 1], at[:, 0], rightwards == shapely.is_ccw(rings)
