"""Boundaries of polygons and circles, cut at grid lines, and the area that each piece adds to grid squares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from stpredict._coverage._shapes import Shapes
from stpredict._window import Window

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
BLOCK_CELLS = 2**18  # cells held dense at a time: what stays in a processor's cache


@dataclass(frozen=True)
class Edges(ABC):
    """Pieces of boundary that run in one direction of y and one of x, in cells from the corner of their box.

    Parameters
    ----------
    box, sign
        (e,) box of the piece; +1 where the shape lies to its right (larger x), -1 where it lies to its left.
    ends : Floats
        (2, 2, e): (y, x) of the two ends, the one of smaller y first.
    """

    box: Integers
    sign: Floats
    ends: Floats

    @abstractmethod
    def cross(self, i: Integers, at: Floats, axis: int) -> Floats:
        """Where edges `i` cross lines: x on horizontals y = `at` (axis 0), or y on verticals x = `at` (axis 1)."""

    @abstractmethod
    def bulge(self, i: Integers, ends: Floats) -> Floats:
        """Area between edges `i` and their chords from ends[:, 0] to ends[:, 1], which the shape has beside them."""


@dataclass(frozen=True)
class Lines(Edges):
    """Sides of polygons."""

    def cross(self, i: Integers, at: Floats, axis: int) -> Floats:
        along, other = self.ends[axis][:, i], self.ends[1 - axis][:, i]
        return other[0] + (at - along[0]) / (along[1] - along[0]) * (other[1] - other[0])

    def bulge(self, i: Integers, ends: Floats) -> Floats:
        return np.zeros(len(i))


@dataclass(frozen=True)
class Arcs(Edges):
    """Quarters of circles.

    Parameters
    ----------
    centre, side : Floats
        (2, e) centre, and the side of it on which the quarter lies (-1 or 1), along (y, x).
    radius : Floats
        (e,) in cells.
    """

    centre: Floats
    side: Floats
    radius: Floats

    def cross(self, i: Integers, at: Floats, axis: int) -> Floats:
        away, radius = np.abs(at - self.centre[axis, i]), self.radius[i]
        # the product keeps its digits near the pole, where r^2 - d^2 loses them
        reach = np.sqrt(np.maximum(radius - away, 0.0) * (radius + away))
        return self.centre[1 - axis, i] + self.side[1 - axis, i] * reach

    def bulge(self, i: Integers, ends: Floats) -> Floats:
        radius = self.radius[i]
        half = np.hypot(*(ends[:, 1] - ends[:, 0])) / (2 * radius)  # sine of half the angle
        half = np.minimum(half, 1.0)
        return radius**2 * (np.arcsin(half) - half * np.sqrt(1.0 - half**2))


def arcs(shapes: Shapes, boxes: Boxes) -> Arcs:
    """The quarters of the circles among some shapes, one box per shape."""
    box = np.tile(np.flatnonzero(shapes.circle), 4)
    around = np.array([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])
    side = np.repeat(around, shapes.circle.sum(), axis=1)
    centre = (shapely.get_coordinates(shapes.geometry[box])[:, ::-1].T - boxes.origin[:, box]) / boxes.cell_px
    reach = shapes.radius[box] / boxes.cell_px
    pole = np.stack([centre[0] + side[0] * reach, centre[1]])
    flank = np.stack([centre[0], centre[1] + side[1] * reach])
    upper = side[0] < 0
    ends = np.stack([np.where(upper, pole, flank), np.where(upper, flank, pole)], axis=1)
    return Arcs(box, -side[1], ends, centre, side, reach)


def lines(shapes: Shapes, boxes: Boxes) -> Lines:
    """The sides of the polygons among some shapes, one box per shape; horizontal ones bound nothing to their right."""
    polygon = np.flatnonzero(~shapes.circle)
    parts, part_of = shapes.geometry[polygon], np.arange(len(polygon))
    if (shapely.get_type_id(parts) == shapely.GeometryType.MULTIPOLYGON).any():
        parts, part_of = shapely.get_parts(parts, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    xy, owner = shapely.get_coordinates(rings, return_index=True)
    shell = np.diff(ring_of, prepend=-1) != 0  # of a part's rings the first is its shell, the others are holes
    # a shell that runs from x to y (counter-clockwise) has the shape to the left of its sides, a hole to the right
    turn = np.where(shapely.is_ccw(rings) == shell, -1.0, 1.0)
    box = polygon[part_of[ring_of[owner]]]
    yx = (xy.T[::-1] - boxes.origin[:, box]) / boxes.cell_px
    side = np.flatnonzero((owner[1:] == owner[:-1]) & (yx[0, 1:] != yx[0, :-1]))
    ends = np.stack([yx[:, side], yx[:, side + 1]], axis=1)
    down = ends[0, 0] < ends[0, 1]
    sign = turn[owner[side]] * np.where(down, 1.0, -1.0)
    return Lines(box[side], sign, np.where(down, ends, ends[:, ::-1]))


def _split(edges: Edges, i: Integers, ends: Floats, axis: int, size: Integers) -> tuple[Integers, Floats, Integers]:
    """Pieces of edges cut where y (axis 0) or x (axis 1) is one of the whole numbers 0 .. size.

    Parameters
    ----------
    i, ends, size
        (p,) edge of each piece; (2, 2, p) its ends (y, x), in rising order along `axis`; (p,) cells of its box.

    Notes
    -----
    Returns, for the q >= p pieces of the pieces: (q,) which it was cut from; (2, 2, q) ends; (q,) the cell along the
    axis, -1 before the box and `size` after it.
    """
    low, high = ends[axis]
    first = np.clip(np.floor(low), -1, size).astype(np.int64)
    last = np.clip(np.ceil(high) - 1, first, size).astype(np.int64)
    count = last - first + 1
    piece = np.repeat(np.arange(len(count)), count)
    cell = np.arange(len(piece)) - np.repeat(np.cumsum(count) - count - first, count)
    out = ends[:, :, piece]
    for end, is_cut in enumerate([cell > first[piece], cell < last[piece]]):
        cut = np.flatnonzero(is_cut)
        whole = piece[cut]
        at = (cell[cut] + end).astype(np.float64)
        one, two = ends[1 - axis][:, whole]
        out[axis, end, cut] = at
        out[1 - axis, end, cut] = np.clip(edges.cross(i[whole], at, axis), np.minimum(one, two), np.maximum(one, two))
    return piece, out, cell


def deposit(edges: Edges, boxes: Boxes, start: Integers) -> tuple[Integers, Floats]:
    """What each piece of boundary adds, in cells, to the running sum along x: position and value.

    Parameters
    ----------
    start : Integers
        (m,) position of the first cell of each box. A row of a box takes its width and one position more.

    Notes
    -----
    A piece of height dy adds dy to every cell right of it, and to its own cell the part to its right. Pieces left of
    the box count at its left border, and those right of it in the position more: so the values of a row sum to 0.
    """
    height, width = boxes.size
    i = np.arange(len(edges.box))
    piece, ends, row = _split(edges, i, edges.ends, 0, height[edges.box])
    within = np.flatnonzero((row >= 0) & (row < height[edges.box[piece]]))
    i, ends, row = piece[within], ends[:, :, within], row[within]
    ends = np.where(ends[1, 0] <= ends[1, 1], ends, ends[:, ::-1])
    piece, ends, column = _split(edges, i, ends, 1, width[edges.box[i]])
    i, row = i[piece], row[piece]
    box = edges.box[i]
    outside = (column < 0) | (column >= width[box])
    cover = edges.sign[i] * np.abs(ends[0, 1] - ends[0, 0])
    left = np.where(outside, 0.0, cover * ((ends[1, 0] + ends[1, 1]) / 2 - column) - edges.bulge(i, ends))
    at = start[box] + row * (width[box] + 1) + np.maximum(column, 0)
    return np.concatenate([at, at + 1]), np.concatenate([cover - left, left])


@dataclass(frozen=True)
class Boxes:
    """The part of the grid that each shape can reach; one box for each shape that meets the window.

    Parameters
    ----------
    row : Integers
        (m,) rows of the shapes, ascending.
    first, size : Integers
        (2, m) first cell and number of cells, along (y, x).
    origin : Integers
        (2, m) pixel coordinates (y, x) of the corner of the first cell.
    cell_px : int
        Side of a cell.
    """

    row: Integers
    first: Integers
    size: Integers
    origin: Integers
    cell_px: int

    def take(self, part: Integers) -> Boxes:
        """Some of the boxes."""
        return Boxes(self.row[part], self.first[:, part], self.size[:, part], self.origin[:, part], self.cell_px)


def boxes_of(around: Floats, window: Window, cell_px: int, shape: tuple[int, int]) -> Boxes:
    """The boxes of shapes from their bounds, (n, 4)."""
    corner, n_cells = np.array([[window.y0], [window.x0]]), np.array(shape)[:, None]
    low, high = (around[:, :2].T - corner) / cell_px, (around[:, 2:].T - corner) / cell_px
    meets = ((high > 0) & (low < n_cells) & (n_cells > 0)).all(axis=0)  # NaN, an empty shape, meets nothing
    first = np.clip(np.floor(low[:, meets]), 0, n_cells - 1).astype(np.int64)
    last = np.clip(np.ceil(high[:, meets]), first + 1, n_cells).astype(np.int64)
    return Boxes(np.flatnonzero(meets), first, last - first, corner + first * cell_px, cell_px)


def blocks(size: Integers) -> Iterator[slice]:
    """Runs of boxes of these sizes (2, m) that have about BLOCK_CELLS cells together."""
    block = np.cumsum(size.prod(axis=0)) // BLOCK_CELLS
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    for start, stop in zip(starts, np.append(starts, len(block))[1:], strict=True):
        yield slice(int(start), int(stop))
