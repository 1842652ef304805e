"""Affine transformations between elements, and micrometres per pixel of an image."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from scipy.spatial import cKDTree
from spatialdata.transformations import get_transformation

from stpredict._spatialdata._elements import raster_size, resolve_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


MICROMETRES = frozenset(
    {"um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}
)  # both the micro sign and the Greek letter are in use
AGREE_PX = 0.1  # two coordinate systems may place an element apart by this much, in pixels of the target


logger = logging.getLogger("stpredict")
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
MAX_ANISOTROPY = 1.25
MAX_DISAGREEMENT = 1.02  # two micrometre systems, or two arrays, may differ by this factor


def is_micrometres(system: str) -> bool:
    """Whether a coordinate system's name says that its unit is the micrometre.

    A suffix is allowed, as `spatialdata.concatenate` gives one to the systems of each object: "micrometers-sample1".
    """
    name = system.strip().lower()
    return name in MICROMETRES or any(len(unit) > 2 and re.match(rf"{unit}[-_ .]", name) for unit in MICROMETRES)


def affines(sdata: SpatialData, key: str) -> dict[str, NDArray[np.float64]]:
    """The affine of an element to each of its coordinate systems that is a plane: system -> 3x3 on (x, y, 1).

    A multiscale image is taken at its finest level. Systems that need a third axis, or onto which the element is
    mapped flat, are left out.
    """
    transformations: dict[str, Any] = get_transformation(sdata[key], get_all=True)
    out = {}
    for system, transformation in transformations.items():
        try:
            matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
        except ValueError:  # spatialdata's answer where x and y alone do not determine x and y
            continue
        if np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:2, :2])) > 0:
            out[system] = matrix
    return out


def relative_affine(sdata: SpatialData, source: str, target: str) -> NDArray[np.float64]:
    """The 3x3 matrix that takes (x, y, 1) of the element `source` to the intrinsic frame of the element `target`.

    Where the two share several coordinate systems, all must lead to the same place within 0.1 px of the target,
    anywhere on `source`; "global" is used, then micrometres, then the first by name.

    Raises ValueError where they share no coordinate system, or where those that they share disagree.
    """
    if source == target:
        return np.eye(3)
    of_source, of_target = affines(sdata, source), affines(sdata, target)
    shared = sorted(set(of_source) & set(of_target), key=_preference)
    if not shared:
        raise ValueError(
            f"{source!r} and {target!r} share no coordinate system in the plane: {source!r} maps to "
            f"{sorted(of_source)}, {target!r} to {sorted(of_target)}. Add the missing transformation with "
            "spatialdata.transformations.set_transformation."
        )
    paths = {system: np.linalg.solve(of_target[system], of_source[system]) for system in shared}
    for path in paths.values():
        path[2] = 0.0, 0.0, 1.0  # exact, whatever the rounding
    _check_same_frame(paths, _corners(sdata, source), source, target)
    return paths[shared[0]]


def pixel_size(affine: NDArray[np.float64]) -> float:
    """The length of a unit square's side under the affine: sqrt|det|."""
    return float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))


def anisotropy(affine: NDArray[np.float64]) -> float:
    """The larger singular value over the smaller: 1 for a similarity."""
    large, small = np.linalg.svd(affine[:2, :2], compute_uv=False)
    return float(large / small)


def scaling(factor: float) -> NDArray[np.float64]:
    """The 3x3 matrix that multiplies x and y by `factor`."""
    return np.diag([factor, factor, 1.0])


def _preference(system: str) -> tuple[int, str]:
    return (0 if system == "global" else 1 if is_micrometres(system) else 2), system


def _check_same_frame(
    paths: dict[str, NDArray[np.float64]], corners: NDArray[np.float64], source: str, target: str
) -> None:
    first, *others = paths
    places = {system: (corners @ path.T)[:, :2] for system, path in paths.items()}
    apart = {system: float(np.abs(places[system] - places[first]).max()) for system in others}
    wrong = {system: distance for system, distance in apart.items() if not distance <= AGREE_PX}
    if wrong:
        message = ", ".join(f"{system!r} by {distance:.3g} px" for system, distance in wrong.items())
        raise ValueError(
            f"the coordinate systems that {source!r} and {target!r} share place {source!r} differently: "
            f"against {first!r}, {message} of {target!r} (allowed: {AGREE_PX} px). Correct or remove a "
            "transformation with spatialdata.transformations."
        )


def _corners(sdata: SpatialData, key: str) -> NDArray[np.float64]:
    """(4, 3) corners (x, y, 1) of the box that holds an element, in its own frame."""
    if key in sdata.shapes:
        bounds = sdata.shapes[key].bounds.to_numpy()
        bounds = bounds[np.isfinite(bounds).all(axis=1)]  # a spot may have no position
        bounds = bounds if len(bounds) else np.zeros((1, 4))
        (x0, y0), (x1, y1) = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    else:
        x0, y0 = 0.0, 0.0
        y1, x1 = raster_size(sdata, key)
    return np.array([[x, y, 1.0] for x in (x0, x1) for y in (y0, y1)], dtype=np.float64)


def image_mpp(sdata: SpatialData, image_key: str, shapes_key: str | None = None, mpp: float | None = None) -> float:
    """Micrometres per pixel of the full-resolution image.

    Parameters
    ----------
    mpp : float, optional
        Trusted where it is given. Else a coordinate system in micrometres that the image maps to; else circles that are
        a known array of spots (`shapes_key` first, then all others), by their diameter, checked by their grid, or
        square bins of Visium HD ("square_008um" in their name), by their side.

    Raises
    ------
    ValueError
        For an mpp that is not positive, for sources that disagree, and where none of the three is there.
    """
    if mpp is not None:
        if not (np.isfinite(mpp) and mpp > 0):
            raise ValueError(f"mpp must be a positive number of micrometres per pixel, got {mpp!r}.")
        return float(mpp)
    found = _from_system(sdata, image_key)
    if found is None:
        found = _from_spots(sdata, image_key, shapes_key)
    if found is None:
        raise ValueError(
            f"no micrometres per pixel can be found for image {image_key!r}. Three ways to say them: pass mpp=; add a "
            "coordinate system named 'micrometers' to the image with spatialdata.transformations.set_transformation; "
            "or have circles of a known array that share a coordinate system with the image (Visium: six neighbours "
            f"at 100 um; legacy ST: four at 200 um). The image maps to {sorted(affines(sdata, image_key))}; "
            f"shapes: {sorted(sdata.shapes)}."
        )
    return found


def _from_system(sdata: SpatialData, image_key: str) -> float | None:
    systems = {name: affine for name, affine in affines(sdata, image_key).items() if is_micrometres(name)}
    if not systems:
        return None
    sizes = {name: pixel_size(affine) for name, affine in systems.items()}
    _check_agreement(sizes, image_key, "coordinate systems in micrometres")
    name = min(sizes)
    stretch = anisotropy(systems[name])
    if stretch > MAX_ANISOTROPY:
        warnings.warn(
            f"the pixels of image {image_key!r} are stretched: one side is {stretch:.2f} times as long as the "
            f"other in {name!r}. Their geometric mean, {sizes[name]:.4g} um, is taken.",
            UserWarning,
            stacklevel=3,
        )
    return sizes[name]


def _from_spots(sdata: SpatialData, image_key: str, shapes_key: str | None) -> float | None:
    """The mpp from circles that are a known array; from `shapes_key` where that is one, else from all others."""
    sizes: dict[str, float] = {}
    if shapes_key is not None:
        sizes |= _array_mpp(sdata, image_key, resolve_shapes(sdata, shapes_key))
    for key in sorted(sdata.shapes) if not sizes else []:
        sizes |= _array_mpp(sdata, image_key, key)
    if not sizes:
        return None
    _check_agreement(sizes, image_key, "arrays of spots")
    return sizes[min(sizes)]


def _array_mpp(sdata: SpatialData, image_key: str, key: str) -> dict[str, float]:
    """{key: um per image pixel}, or {} where the shapes are no known array or not placed on the image."""
    if key not in sdata.shapes:
        return {}  # labels
    shapes = sdata.shapes[key]
    if not set(affines(sdata, key)) & set(affines(sdata, image_key)):
        return {}
    geometry = shapes.geometry.to_numpy()
    circles = "radius" in shapes and bool((shapely.get_type_id(geometry) == shapely.GeometryType.POINT).all())
    radius = shapes["radius"].to_numpy(dtype=np.float64) if circles else np.sqrt(shapely.area(geometry)) / 2
    bin_um = BIN_NAME.search(key)
    if bin_um and not circles and _are_squares(geometry):
        name, unit_um = "bins of Visium HD, by their name", float(bin_um.group(1)) / float(np.median(radius)) / 2
    elif DIAMETER_COLUMN in shapes:
        name, unit_um = "shapes of a stated size", float(np.median(shapes[DIAMETER_COLUMN] / radius / 2))
    else:
        array = spot_array(shapely.get_coordinates(geometry), radius) if circles else None
        if array is None:
            return {}
        name, unit_um = array
    mpp = unit_um / pixel_size(relative_affine(sdata, key, image_key))
    logger.info("image %r has %.4g um per pixel, because %r are %s", image_key, mpp, key, name)
    return {key: mpp}


def _are_squares(geometry: NDArray[np.object_]) -> bool:
    """Whether all shapes are squares of one size, upright or turned."""
    areas, lengths = shapely.area(geometry), shapely.length(geometry)
    same = np.ptp(areas) < 1e-3 * areas.mean()
    return bool(same and np.allclose(lengths, 4 * np.sqrt(areas), rtol=1e-3))


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


def _grid(xy: NDArray[np.float64]) -> tuple[float, int]:
    """Distance between neighbours, and how many of them an inner spot has."""
    distance, _ = cKDTree(xy).query(xy, k=min(9, len(xy)))
    near = distance[:, 1:] < NEAR * np.median(distance[:, 1])
    # most spots of a section lie inside; the 80th percentile ignores the border and a few that are too close
    return float(np.median(distance[:, 1:][near])), int(np.percentile(near.sum(axis=1), 80, method="lower"))


def _check_agreement(sizes: dict[str, float], image_key: str, what: str) -> None:
    if max(sizes.values()) > MAX_DISAGREEMENT * min(sizes.values()):
        message = ", ".join(f"{name!r}: {size:.4g}" for name, size in sizes.items())
        raise ValueError(f"{what} disagree on the micrometres per pixel of image {image_key!r}: {message}. Pass mpp=.")


def check_resolution(image: float, at_mpp: float, image_key: str) -> None:
    """Warn where the image is coarser than `at_mpp` by more than 25 %.

    Raises ValueError where it is coarser by more than a factor of 2, or where `at_mpp` is not positive.
    """
    if not (np.isfinite(at_mpp) and at_mpp > 0):
        raise ValueError(f"at_mpp must be a positive number of micrometres per pixel, got {at_mpp!r}.")
    coarser = image / at_mpp
    message = (
        f"image {image_key!r} has {image:.4g} um per pixel, the model sees at {at_mpp:.4g}: {coarser:.2f} times finer"
    )
    if coarser > 2.0 * (1 + 1e-9):
        raise ValueError(
            f"{message}, of which nothing is in the image (allowed: 2). Use a finer image, a model of a coarser "
            "mpp, or correct mpp= if it is wrong."
        )
    if coarser > 1.25 * (1 + 1e-9):
        warnings.warn(
            f"{message}. The image is enlarged; expect less than the model's scores.", UserWarning, stacklevel=3
        )


def level_scale(sizes: Sequence[tuple[int, int]], step: float) -> tuple[int, tuple[float, float]]:
    """Which pyramid level to read, and its pixels per working pixel along (y, x).

    Parameters
    ----------
    sizes : Sequence[tuple[int, int]]
        (height, width) of every level, the finest first. A level's pixel is as large as the ratio of the sizes says
        (spatialdata's own rule: 9273 px over 4636 is 2.0002, not 2).
    step : float
        Pixels of the finest level per working pixel.

    Notes
    -----
    The coarsest level that is still at least as fine as the working pixel is taken (0.1 % of slack for such ratios), or
    the finest where none is.
    """
    factors = [(sizes[0][0] / height, sizes[0][1] / width) for height, width in sizes]
    fine = [i for i, factor in enumerate(factors) if max(factor) <= step * 1.001]
    best = max(fine, key=lambda i: factors[i][0] * factors[i][1], default=0)
    return best, (step / factors[best][0], step / factors[best][1])
