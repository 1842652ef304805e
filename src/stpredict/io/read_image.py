"""Read an H&E image file without expression data: a slide to predict on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict._messages import warn
from stpredict._spatialdata import BY_HAND, MAX_CONTRADICTION
from stpredict.io._image import image_element
from stpredict.io._pixels import Pixels, open_pixels

logger = logging.getLogger("stpredict")


def read_image(path: str | Path, *, mpp: float | None = None, name: str = "slide") -> SpatialData:
    """An H&E image as SpatialData, read lazily.

    Parameters
    ----------
    path : str | Path
        8-bit RGB as TIFF or OME-TIFF (tiles and pyramid levels of the file are used as they are; of several images the
        largest is taken), JPG or PNG (no tiles: decoded whole when a pixel is first needed, and kept), or a vendor
        slide (.svs, .ndpi, .mrxs, ...; needs the `wsi` extra). An alpha channel is laid over white,
        tiles that the file lacks are white, and an orientation tag is followed.
    mpp : float, optional
        Micrometres per pixel. None: what the file states, which is the OME metadata (PhysicalSizeX with its unit),
        ImageJ's unit, the vendor's property, or the TIFF resolution tags where they give 0.08 to 5 um and are no
        printer's or screen's (which write into them, too). The log says which. One that differs from them by more than
        15 % is used with a warning; where the file states none, whoever uses the slide checks it against its nuclei.
    name : str, default "slide"
        Name of the slide, kept in `sdata.attrs["name"]`.

    Returns
    -------
    SpatialData
        images["image"], multiscale, in chunks of 3 x 1024 x 1024. The coordinate system "global" is pixels of the
        finest level, "micrometers" their size; the latter is left out where no mpp is known, and whoever needs one then
        asks for it.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ImportError
        Where the extra is missing.
    ValueError
        For an unknown format, pixels that are not 8-bit RGB or not square, a file too large to be decoded whole, and an
        mpp that is not positive.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "pink").save("slide.png")
    >>> sdata = stp.io.read_image("slide.png", mpp=0.5)
    >>> sorted(sdata.coordinate_systems)
    ['global', 'micrometers']
    """
    check_arguments(read_image, locals())
    pixels = open_pixels(Path(path))
    known = mpp if mpp is not None else pixels.mpp
    if known is None:
        logger.info("%s: no micrometres per pixel are known; give mpp= here or where the slide is used", path)
    attrs: dict[str, Any] = {"name": name}
    if mpp is not None and pixels.sides_um is None:
        attrs[BY_HAND] = True
    elif mpp is not None:
        _warn_of_tags(pixels, mpp)
    return SpatialData(images={"image": image_element(pixels.levels, mpp=known)}, attrs=attrs)


def _warn_of_tags(pixels: Pixels, mpp: float) -> None:
    sides = pixels.sides_um or (mpp, mpp)
    if all(max(mpp, side) > MAX_CONTRADICTION * min(mpp, side) for side in sides):
        warn(
            f"mpp={mpp:.4g} was given for {pixels.path.name}, but the file states {sides[0]:.4g} um per pixel. It is "
            "used as given; leave mpp= out to use what the file states.",
        )
