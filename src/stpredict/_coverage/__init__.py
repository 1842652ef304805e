"""Shapes on a pixel grid: the one judge of what is inside a shape, and by how much.

Pixel (i, j) covers [j, j + 1) x [i, i + 1). An empty geometry is a shape of which nothing is left: it covers nothing,
has no bounds and is nowhere inside.
"""

from __future__ import annotations

from stpredict._coverage._grid import Weights, coverage
from stpredict._coverage._shapes import Shapes, areas, bounds, clip, in_cells, inside, transform

__all__ = ["Shapes", "Weights", "areas", "bounds", "clip", "coverage", "in_cells", "inside", "transform"]
