"""Micrometres per coordinate unit, from shapes of known size: spot arrays, Visium HD bins, Xenium cells, tile grids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

# Arrays that are known by their geometry: what they are called, neighbours of an inner spot, spot diameter and pitch in
# um. Space Ranger draws its circles for a theoretical 65-um spot (spot_diameter_fullres), not for the printed 55 um.
ARRAYS = (
    ("Visium", 6, 55.0, 100.0),
    ("Visium with Space Ranger's 65-um circles", 6, 65.0, 100.0),
    ("legacy Spatial Transcriptomics", 4, 100.0, 200.0),
)
DIAMETER_COLUMN = "diameter_um"  # pp.tile_grid says here how large its shapes are: they are no measured array
BIN_NAME = re.compile(r"square_(\d{3})um")  # as Space Ranger and spatialdata-io call the bins of Visium HD
MIN_SPOTS = 10  # fewer show no grid
NEAR = 1.25  # neighbours lie within this many nearest-neighbour distances; the diagonal of a square is at 1.41
RATIO_TOLERANCE = 0.05  # Visium's two diameters differ by 17 %
SQUARE_RATIO_TOLERANCE = 0.07  # legacy arrays are printed with jitter
# what Xenium's own table of cells has, and no other that we know
XENIUM_COLUMNS = frozenset({"cell_id", "cell_area", "transcript_counts", "control_probe_counts", "total_counts"})
XENIUM_UNITS = (1.0, 0.2125)  # um: Xenium's outlines are in micrometres, its images in pixels of this size
XENIUM_TOLERANCE = 0.06  # outlines have few corners: by them a cell is some per cent smaller than it is
MIN_CELLS = 5


def unit_of_shapes(sdata: SpatialData, key: str) -> tuple[str, float] | None:
    """What some shapes are, and micrometres per unit of their own frame; None where they do not show it."""
    shapes = sdata.shapes[key]
    geometry = shapes.geometry.to_numpy()
    if not len(geometry):
        return None
    circles = "radius" in shapes and bool((shapely.get_type_id(geometry) == shapely.GeometryType.POINT).all())
    radius = shapes["radius"].to_numpy(dtype=np.float64) if circles else np.sqrt(shapely.area(geometry)) / 2
    bin_um = BIN_NAME.search(key)
    if bin_um and (_touch(shapely.get_coordinates(geometry), radius) if circles else _are_squares(geometry)):
        return "bins of Visium HD, by their name", float(bin_um.group(1)) / float(np.median(radius)) / 2
    if DIAMETER_COLUMN in shapes:
        return "shapes of a stated size", float(np.median(shapes[DIAMETER_COLUMN] / radius / 2))
    if (unit_um := xenium_unit(sdata, shapes)) is not None:
        return "cells of Xenium, by the areas in their table", unit_um
    return spot_array(shapely.get_coordinates(geometry), radius) if circles else None


def spot_array(xy: NDArray[np.float64], radius: NDArray[np.float64]) -> tuple[str, float] | None:
    """Which known array some circles are: its name, and um per unit of `xy`; None where they are none.

    Parameters
    ----------
    xy, radius : ndarray of float64
        (n, 2) centres and (n,) radii in one unit. The diameter gives the scale; pitch and neighbours only tell which
        array it is.
    """
    if len(xy) < MIN_SPOTS or np.ptp(radius) > 1e-3 * radius.mean():
        return None
    pitch, n_neighbours = _grid(xy)
    diameter = 2.0 * float(np.median(radius))
    for name, expected, diameter_um, pitch_um in ARRAYS:
        tolerance = RATIO_TOLERANCE if expected == 6 else SQUARE_RATIO_TOLERANCE
        off = pitch / diameter / (pitch_um / diameter_um)
        if n_neighbours == expected and abs(off - 1.0) < tolerance:
            return name, diameter_um / diameter
    return None


def xenium_unit(sdata: SpatialData, shapes: GeoDataFrame) -> float | None:
    """Micrometres per unit of the frame of cells that Xenium segmented; None for other shapes.

    The object says it by itself: a table with Xenium's columns states the area of each cell in square micrometres, and
    the shapes of the same ids have an area in their own unit. Where the two are those of micrometres or of Xenium's
    pixels, up to what outlines of few corners lose, the unit is exactly that.
    """
    for table in sdata.tables.values():
        if not XENIUM_COLUMNS <= set(table.obs):
            continue
        ratios = _area_ratios(table, shapes)
        if len(ratios) < MIN_CELLS:
            continue
        unit = float(np.sqrt(np.median(ratios)))
        near = [known for known in XENIUM_UNITS if abs(unit / known - 1.0) < XENIUM_TOLERANCE]
        return near[0] if near else unit
    return None


def _area_ratios(table: AnnData, shapes: GeoDataFrame) -> NDArray[np.float64]:
    """Stated area in square micrometres over the area of the shape in its own unit, of every cell that has both."""
    obs: pd.DataFrame = table.obs
    stated = obs.set_index(obs["cell_id"].astype(str))["cell_area"]
    names = shapes.index.astype(str)
    if not (names.is_unique and stated.index.is_unique):
        return np.empty(0)
    rows = stated.index.get_indexer(names)
    geometry = shapes.geometry.to_numpy()
    radius = shapes["radius"].to_numpy(dtype=np.float64) if "radius" in shapes else np.zeros(len(shapes))
    own = np.where(shapely.get_dimensions(geometry) == 2, shapely.area(geometry), np.pi * radius**2)
    known = (rows >= 0) & (own > 0)
    ratios = stated.to_numpy(dtype=np.float64)[rows[known]] / own[known]
    return ratios[np.isfinite(ratios) & (ratios > 0)]


def _are_squares(geometry: NDArray[np.object_]) -> bool:
    """Whether all shapes are squares of one size, upright or turned."""
    areas, lengths = shapely.area(geometry), shapely.length(geometry)
    same = np.ptp(areas) < 1e-3 * areas.mean()
    return bool(same and np.allclose(lengths, 4 * np.sqrt(areas), rtol=1e-3))


def _touch(xy: NDArray[np.float64], radius: NDArray[np.float64]) -> bool:
    """Whether circles of one size stand a diameter apart, as those that are drawn into square bins do."""
    if len(xy) < MIN_SPOTS or np.ptp(radius) > 1e-3 * radius.mean():
        return False
    pitch, n_neighbours = _grid(xy)
    return n_neighbours == 4 and abs(pitch / (2 * radius[0]) - 1.0) < RATIO_TOLERANCE


def _grid(xy: NDArray[np.float64]) -> tuple[float, int]:
    """Distance between neighbours, and how many of them an inner spot has."""
    distance, _ = cKDTree(xy).query(xy, k=min(9, len(xy)))
    near = distance[:, 1:] < NEAR * np.median(distance[:, 1])
    # most spots of a section lie inside; the 80th percentile ignores the border and a few that are too close
    return float(np.median(distance[:, 1:][near])), int(np.percentile(near.sum(axis=1), 80, method="lower"))
