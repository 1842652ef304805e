"""Bare glass and tissue in a thumbnail of a slide, by brightness and texture.

squidpy's `detect_tissue` (Otsu) is not used: on eight real pictures its mask has 2 to 95 % of the measured spots, which
lie on tissue, and this outline 89 to 100 % (benchmarks/tissue.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy import ndimage

from stpredict import _coverage
from stpredict._messages import warn
from stpredict._section import array_of
from stpredict._spatialdata._elements import image_levels
from stpredict._spatialdata._outline import outline
from stpredict._spatialdata._scale import image_mpp
from stpredict._spatialdata._transformations import level_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from stpredict._section import Section
    from stpredict._spatialdata._spec import SectionSpec

THUMBNAIL_UM = 8.0  # side of a pixel: half a nucleus to a nucleus, so that tissue has texture and glass none
DARKEST_GLASS = 150  # glass of a scanner is brighter, whatever its white balance
SHARE_OF_WHITE = 0.85  # of the white of the slide; haze around stained tissue lies above, pale tissue below
TEXTURE = 0.04  # standard deviation on glass, of the white of the slide; JPEG artefacts lie below
TEXTURE_PX = 5
PAD_PX = 8
SMALLEST_MM2, SMALLEST_SHARE = 0.04, 0.02  # of a part of the tissue; the second of the largest part
MOST_BARE_MAP = 0.25  # of a picture: most have a rim of glass
MOST_BARE = 0.1  # of shapes; measured spots of published sections with 20 % were shifted
SMALLEST_PX = 25
HOLE_MM2 = 0.01  # smaller holes, such as lumina and fat cells, are tissue


def thumbnail(sdata: SpatialData, image_key: str, mpp: float) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The image at about `THUMBNAIL_UM`, from the coarsest level that is fine enough.

    Parameters
    ----------
    mpp : float
        Micrometres per pixel of the full-resolution image.

    Returns
    -------
    tuple[ndarray, tuple[float, float]]
        (h, w, 3) uint8, and how many pixels of the full-resolution image one of it is high and wide.
    """
    levels = image_levels(sdata, image_key)
    sizes = [(level.sizes["y"], level.sizes["x"]) for level in levels]
    best, (down, right) = level_scale(sizes, max(1.0, THUMBNAIL_UM / mpp))
    # pixels are left out, and the rest averaged two by two, as all of a level would be many
    every = max(1, int(min(down, right) / 2 + 1e-6))
    pixels = levels[best].data[:, ::every, ::every]
    seen = np.moveaxis(array_of(pixels, f"image {image_key!r}"), 0, -1)
    side = 2 if min(down, right) >= 2 * every and min(seen.shape[:2]) > 1 else 1
    h, w = (size // side * side for size in seen.shape[:2])
    parts = [seen[y:h:side, x:w:side].astype(np.float32) for y in range(side) for x in range(side)]
    mean: NDArray[np.float32] = sum(parts[1:], parts[0]) / np.float32(len(parts))
    factor = tuple(full / size * every * side for full, size in zip(sizes[0], sizes[best], strict=True))
    return np.rint(mean).astype(np.uint8), (factor[0], factor[1])


def bare_glass(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a thumbnail show nothing but glass: as bright as the white of the slide, and without texture.

    Parameters
    ----------
    rgb : ndarray of uint8
        (h, w, 3) at about `THUMBNAIL_UM`.

    Returns
    -------
    ndarray of bool
        (h, w).

    Notes
    -----
    The white of the slide is the 99th percentile of the darkest channel. Where tissue fills the picture these are its
    lightest pixels, which have the texture of tissue.
    """
    dark = rgb.min(axis=-1).astype(np.float32)
    white = float(np.percentile(dark, 99))
    mean = ndimage.uniform_filter(dark, TEXTURE_PX)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(dark * dark, TEXTURE_PX) - mean * mean, 0.0))
    return (mean > max(SHARE_OF_WHITE * white, DARKEST_GLASS)) & (spread < max(TEXTURE * white, 1.0))


def tissue_mask(rgb: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Which pixels (h, w) of a thumbnail are tissue: no glass, hair, dust or fiducial marks; small holes are filled."""
    half = TEXTURE_PX // 2  # the texture of a border reaches so far on to the glass
    mask = np.pad(~bare_glass(rgb), PAD_PX, mode="edge")  # a picture may end within tissue
    mask = ndimage.binary_opening(ndimage.binary_erosion(mask, iterations=half, border_value=1), iterations=2)
    mask = ndimage.binary_closing(mask, iterations=2)[PAD_PX:-PAD_PX, PAD_PX:-PAD_PX]
    labels, n = ndimage.label(mask)
    if n == 0:
        return np.zeros(mask.shape, bool)
    size = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(n + 1))
    size[0] = 0
    pixel_mm2 = (pixel_um / 1000) ** 2
    large = (size * pixel_mm2 >= min(SMALLEST_MM2, 0.25 * labels.size * pixel_mm2)) & (
        size >= SMALLEST_SHARE * size.max()
    )
    mask = large[labels]
    holes, n = ndimage.label(~mask)
    area = ndimage.sum_labels(np.ones_like(holes), holes, np.arange(n + 1)) * pixel_mm2
    small = area < HOLE_MM2
    small[0] = False
    return mask | small[holes]


def tissue_outline(sdata: SpatialData, image_key: str, mpp: float) -> BaseGeometry:
    """The tissue in an image, in pixels of the full-resolution image: a MultiPolygon, empty where there is none."""
    rgb, (down, right) = thumbnail(sdata, image_key, mpp)
    shape = outline(tissue_mask(rgb, mpp * float(np.sqrt(down * right))).astype(np.uint8))
    if shape.is_empty:
        return shape
    whole = shapely.box(0, 0, rgb.shape[1], rgb.shape[0])
    smooth = shapely.intersection(shapely.make_valid(shapely.simplify(shape, 1.0)), whole)
    parts = [part for part in shapely.get_parts(smooth) if part.geom_type == "Polygon" and part.area > 0]
    frame = np.diag([right, down, 1.0])
    return shapely.multipolygons([shapely.transform(part, lambda xy: xy @ frame[:2, :2]) for part in parts])


def warn_of_background(
    sdata: SpatialData, spec: SectionSpec, section: Section, shapes: _coverage.Shapes | None = None, *,
    measured: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_] | None:  # fmt: skip
    """Warn where more than `MOST_BARE` of the shapes, or `MOST_BARE_MAP` of an image without shapes, is glass.

    Parameters
    ----------
    spec
        With a resolved image, and without a tissue.
    section
        What `section` or `image_section` made of it.
    shapes
        (m,) what the answer is about, where the section has no shapes of its own; None: these.
    measured
        (n,) which shapes have counts: these lie on tissue, unless picture and shapes are shifted. None: none.

    Returns
    -------
    ndarray of bool, optional
        (n,) which shapes (or (m,) of those given) lie on bare glass; None where that was not looked at.

    Notes
    -----
    Pictures of less than `SMALLEST_PX` pixels at `THUMBNAIL_UM` are not looked at: they show no glass to compare with.
    """
    mpp = image_mpp(sdata, spec.image, spec.shapes_key, spec.mpp)
    levels = image_levels(sdata, spec.image)
    if min(levels[0].sizes["y"], levels[0].sizes["x"]) * mpp < SMALLEST_PX * THUMBNAIL_UM:
        return None
    rgb, (down, right) = thumbnail(sdata, spec.image, mpp)
    glass, zoom = bare_glass(rgb), mpp / section.mpp
    bare = on_glass(glass, (down * zoom, right * zoom), section.shapes if shapes is None else shapes)
    if not section.n_shapes:
        share, what = float(glass.mean()), f"image {spec.image!r}"
    else:
        share, what = float(np.nanmean(bare)), f"{len(bare)} shapes of {spec.shapes_key!r}"
        known = np.isfinite(bare) if measured is None else np.isfinite(bare) & measured
        shifted = float(bare[known].mean()) if measured is not None and known.any() else 0.0
        if measured is not None and shifted > MOST_BARE:
            warn(
                f"section {section.name!r}: {shifted:.0%} of the {int(measured.sum())} measured spots in "
                f"{spec.shapes_key!r} lie on bare glass, so picture and spots seem to be shifted, turned or mirrored "
                "against each other, or of another scale. Look at them with stp.pl.expression, and correct the "
                "transformations.",
            )
            return bare == 1
    if share > (MOST_BARE if section.n_shapes else MOST_BARE_MAP):
        warn(
            f"section {section.name!r}: {share:.0%} of the {what} is background: bare glass, for which a model has no "
            "answer. Outline the tissue with stp.pp.tissue(sdata), and pass tissue_key='tissue' here and to "
            "stp.pp.tile_grid.",
        )
    return bare == 1


def on_glass(glass: NDArray[np.bool_], scale: tuple[float, float], shapes: _coverage.Shapes) -> NDArray[np.float64]:
    """1 for each shape whose centre lies on bare glass, 0 for others, NaN for empty ones.

    Parameters
    ----------
    glass, scale
        (h, w) of a thumbnail, and pixels of the frame of the shapes in one of it, along (y, x).
    shapes
        (n,) on the image.
    """
    y0, x0, y1, x1 = _coverage.bounds(shapes).T
    centres = np.stack([(y0 + y1) / 2 / scale[0], (x0 + x1) / 2 / scale[1]], axis=1)
    out = np.full(len(centres), np.nan)
    finite = np.isfinite(centres).all(axis=1)
    y, x = np.clip(centres[finite].astype(np.int64), 0, np.array(glass.shape) - 1).T
    out[finite] = glass[y, x]
    return out
