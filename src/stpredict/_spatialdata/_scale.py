"""Micrometres per pixel of an image: where they are found, and whether those that are given by hand can be right."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from stpredict._messages import warn
from stpredict._spatialdata._arrays import DIAMETER_COLUMN, unit_of_shapes
from stpredict._spatialdata._elements import resolve_shapes
from stpredict._spatialdata._nuclei import picture_mpp
from stpredict._spatialdata._transformations import affines, anisotropy, is_micrometres, pixel_size, relative_affine

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

BY_HAND = "mpp_by_hand"  # in attrs: the micrometre system of the image says what a user gave, and the file nothing
MAX_ANISOTROPY = 1.25
MAX_DISAGREEMENT = 1.02  # two micrometre systems, or two arrays, may differ by this factor
MAX_CONTRADICTION = 1.15  # what is given by hand may differ by this factor from what the object says
# From what nuclei say by this one: right scales are off by up to 1.20 (table in docs/concepts.md), those that are 1.6
# times too large or too small by 1.33 and more.
MAX_OFF_PICTURE = 1.3


def image_mpp(sdata: SpatialData, image_key: str, shapes_key: str | None = None, mpp: float | None = None) -> float:
    """Micrometres per pixel of the full-resolution image.

    Parameters
    ----------
    mpp : float, optional
        Taken where it is given and no micrometre system of the image contradicts it. Else a coordinate system in
        micrometres that the image maps to; else shapes that show their own size (`shapes_key` first, then all others):
        circles that are a known array of spots, by their diameter, checked by their grid; square bins of Visium HD
        ("square_008um" in their name), by their side; cells of Xenium, by the areas in their table.

    Raises
    ------
    ValueError
        For an mpp that is not positive or contradicts a micrometre system by more than 15 %, for sources that disagree,
        and where none of them is there.
    """
    if mpp is not None:
        if not (np.isfinite(mpp) and mpp > 0):
            raise ValueError(f"mpp must be a positive number of micrometres per pixel, got {mpp!r}.")
        _check_systems(sdata, image_key, float(mpp))
        return float(mpp)
    found = _from_system(sdata, image_key)
    if found is None:
        found = _from_shapes(sdata, image_key, shapes_key)
    if found is None:
        raise ValueError(
            f"no micrometres per pixel can be found for image {image_key!r}. Three ways to say them: pass mpp=; add a "
            "coordinate system named 'micrometers' to the image with spatialdata.transformations.set_transformation; "
            "or have circles of a known array that share a coordinate system with the image (Visium: six neighbours "
            f"at 100 um; legacy ST: four at 200 um). The image maps to {sorted(affines(sdata, image_key))}; "
            f"shapes: {sorted(sdata.shapes)}."
        )
    return found


def warn_of_mpp(sdata: SpatialData, image_key: str, shapes_key: str | None, mpp: float | None) -> None:
    """Warn of a scale that was given by hand, here as `mpp` or to `io.read_image`, and can hardly be right.

    Where a micrometre system of another reader confirms it, nothing more is looked at (`image_mpp` refuses what such a
    system contradicts). Else shapes that show their own size are asked, and where there are none the picture: by the
    size of its nuclei, which shows errors of 1.6 times and more.
    """
    systems = _systems(sdata, image_key)
    by_hand = mpp
    if systems:
        if not sdata.attrs.get(BY_HAND):
            return
        by_hand = min(systems.values()) if mpp is None else mpp
    if by_hand is None:
        return
    sizes = _sizes(sdata, image_key, shapes_key, strict=False)
    agreed = [key for key, size in sizes.items() if _agree(by_hand, size, MAX_CONTRADICTION)]
    if sizes and not agreed:
        key = min(sizes)
        _warn(by_hand, image_key, f"the shapes {key!r} say {sizes[key]:.4g} by their size")
        return
    if any(DIAMETER_COLUMN not in sdata.shapes[key] for key in agreed):  # tiles were made at a scale that was told
        return
    seen = picture_mpp(sdata, image_key, by_hand)
    if seen is not None and not _agree(by_hand, seen, MAX_OFF_PICTURE):
        _warn(by_hand, image_key, f"its nuclei look as they do at about {seen:.2g}")


def _warn(mpp: float, image_key: str, why: str) -> None:
    warn(
        f"mpp={mpp:.4g} um per pixel is hardly right for image {image_key!r}: {why}. It is used as given; what a model "
        "sees at a wrong scale has little to do with the tissue. Correct mpp= unless you know it.",
    )


def _agree(one: float, other: float, factor: float) -> bool:
    return max(one, other) <= factor * min(one, other)


def _systems(sdata: SpatialData, image_key: str) -> dict[str, float]:
    """Side of a pixel in every micrometre system that the image maps to."""
    return {name: pixel_size(affine) for name, affine in affines(sdata, image_key).items() if is_micrometres(name)}


def _check_systems(sdata: SpatialData, image_key: str, mpp: float) -> None:
    sizes = _systems(sdata, image_key)
    if not sizes or any(_agree(mpp, size, MAX_CONTRADICTION) for size in sizes.values()):
        return
    name = min(sizes)
    raise ValueError(
        f"mpp={mpp:.4g} contradicts the coordinate system {name!r} of image {image_key!r}, in which a pixel has "
        f"{sizes[name]:.4g} um ({max(mpp, sizes[name]) / min(mpp, sizes[name]):.2f} times; 1.15 are allowed). Leave "
        "mpp= out; or, if that system is wrong, remove it first: spatialdata.transformations."
        f"remove_transformation(sdata[{image_key!r}], {name!r}), with write_to_sdata=sdata for a store."
    )


def _from_system(sdata: SpatialData, image_key: str) -> float | None:
    sizes = _systems(sdata, image_key)
    if not sizes:
        return None
    _check_agreement(sizes, image_key, "coordinate systems in micrometres")
    name = min(sizes)
    stretch = anisotropy(affines(sdata, image_key)[name])
    if stretch > MAX_ANISOTROPY:
        warn(
            f"the pixels of image {image_key!r} are stretched: one side is {stretch:.2f} times as long as the "
            f"other in {name!r}. Their geometric mean, {sizes[name]:.4g} um, is taken.",
        )
    return sizes[name]


def _from_shapes(sdata: SpatialData, image_key: str, shapes_key: str | None) -> float | None:
    sizes = _sizes(sdata, image_key, shapes_key, strict=True)
    if not sizes:
        return None
    _check_agreement(sizes, image_key, "arrays of spots")
    return sizes[min(sizes)]


def _sizes(sdata: SpatialData, image_key: str, shapes_key: str | None, *, strict: bool) -> dict[str, float]:
    """{key: um per image pixel} by shapes that show their size; by `shapes_key` where it does, else by all others.

    Without `strict`, shapes whose coordinate systems contradict each other say nothing instead of raising.
    """
    sizes: dict[str, float] = {}
    if shapes_key is not None:
        sizes |= _size(sdata, image_key, resolve_shapes(sdata, shapes_key), strict)
    for key in sorted(sdata.shapes) if not sizes else []:
        sizes |= _size(sdata, image_key, key, strict)
    return sizes


def _size(sdata: SpatialData, image_key: str, key: str, strict: bool) -> dict[str, float]:
    """{key: um per image pixel}, or {} where the shapes do not show it or are not placed on the image."""
    if key not in sdata.shapes:
        return {}  # labels
    if not set(affines(sdata, key)) & set(affines(sdata, image_key)):
        return {}
    unit = unit_of_shapes(sdata, key)
    if unit is None:
        return {}
    name, unit_um = unit
    try:
        mpp = unit_um / pixel_size(relative_affine(sdata, key, image_key))
    except ValueError:
        if strict:
            raise
        return {}
    logger.info("image %r has %.4g um per pixel, because %r are %s", image_key, mpp, key, name)
    return {key: mpp}


def _check_agreement(sizes: dict[str, float], image_key: str, what: str) -> None:
    if max(sizes.values()) > MAX_DISAGREEMENT * min(sizes.values()):
        message = ", ".join(f"{name!r}: {size:.4g}" for name, size in sizes.items())
        raise ValueError(f"{what} disagree on the micrometres per pixel of image {image_key!r}: {message}. Pass mpp=.")
