"""Affine transformations between elements, and which level of a pyramid is read at a resolution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.transformations import get_transformation

from stpredict._messages import warn
from stpredict._spatialdata._elements import raster_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


MICROMETRES = frozenset(
    {"um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}
)  # both the micro sign and the Greek letter are in use
AGREE_PX = 0.1  # two coordinate systems may place an element apart by this much, in pixels of the target


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
        warn(f"{message}. The image is enlarged; expect less than the model's scores.")


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
