"""The outline of the tissue on a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from geopandas import GeoDataFrame
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from stpredict._arguments import check_arguments
from stpredict._spatialdata import TISSUE_COLUMN, NewNames, add_shapes, image_mpp, resolve_image, tissue_outline

if TYPE_CHECKING:
    from spatialdata import SpatialData


def tissue(
    sdata: SpatialData, *, image_key: str | None = None, mpp: float | None = None, key_added: str = "tissue"
) -> None:
    """Outline the tissue in an H&E image, and write it as polygons for ``tissue_key=`` of the other functions.

    Writes ``shapes[key_added]``: a polygon for each part of the tissue, the largest first, with holes where glass shows
    through, its area in ``tissue_mm2``, and the image's transformation to every one of its coordinate systems. A backed
    object is changed in its store as well. Shapes with that column are never taken for spots.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object with an H&E image.
    image_key : str, optional
        Which image; None: the only one.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image; None: found as in `stp.tl.predict`.
    key_added : str, default "tissue"
        Name of the new shapes; it must not be taken.

    Raises
    ------
    ValueError
        Where no tissue is found, for a name that is taken or not allowed, for an image that is not RGB uint8, and
        where no mpp is found.

    Notes
    -----
    The image is looked at with pixels of 8 um. Glass is as bright as the white of the slide (at least .85 of the 99th
    percentile of the darkest channel) and has no texture (standard deviation over 40 um below .04 of that white). Hair,
    dust and fiducial marks are thinner than 32 um or smaller than .04 mm2, and are left out; holes below .01 mm2
    (lumina, fat cells) are tissue. Where tissue fills the picture, the outline is that of the picture.
    ``docs/tissue.md`` compares it with squidpy's detection.

    Examples
    --------
    >>> stp.pp.tissue(slide, image_key="image", key_added="outline")
    >>> bool(slide.shapes["outline"]["tissue_mm2"].sum() > 0.1)
    True
    """
    check_arguments(tissue, locals())
    names = NewNames(sdata, overwrite=False)
    names.element("shapes", key_added)
    names.check()
    image_key = resolve_image(sdata, image_key)
    mpp = image_mpp(sdata, image_key, mpp=mpp)
    outline = tissue_outline(sdata, image_key, mpp)
    if outline.is_empty:
        raise ValueError(
            f"no tissue was found in image {image_key!r}: all of it is as bright and smooth as glass, but for parts "
            "below .04 mm2. Check the image and its scale (mpp=), or draw the outline and add it to sdata.shapes."
        )
    parts = shapely.get_parts(outline)
    parts = parts[np.argsort(-shapely.area(parts), kind="stable")]
    transformations = dict(get_transformation(sdata.images[image_key], get_all=True))
    frame = GeoDataFrame({TISSUE_COLUMN: shapely.area(parts) * (mpp / 1000) ** 2}, geometry=parts)
    add_shapes(sdata, key_added, ShapesModel.parse(frame, transformations=transformations))
