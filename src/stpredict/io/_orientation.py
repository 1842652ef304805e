"""Rotation or mirroring by the EXIF or TIFF orientation tag, applied to lazy pixels of JPEG, PNG and TIFF files."""

from __future__ import annotations

import logging
from pathlib import Path

import dask.array as da

logger = logging.getLogger("stpredict")

TAG = 274  # of EXIF and of TIFF
SIDEWAYS = (5, 6, 7, 8)  # height and width change places


def upright(pixels: da.Array, orientation: int, path: Path) -> da.Array:
    """Pixels as viewers show them; that they were turned is logged.

    Parameters
    ----------
    pixels : da.Array
        (3, y, x), as stored.
    orientation : int
        Value of the tag, 1 to 8; 1, and any other value, leaves them as they are.
    path : Path
        The file, for the log.

    References
    ----------
    TIFF 6.0, section 8, Orientation: where row 0 and column 0 of the stored picture belong.
    """
    if orientation not in range(2, 9):
        return pixels
    logger.warning("%s is turned as its orientation tag (%d) says, as viewers show it", path, orientation)
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(0, 2, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:, :: -1 if rows else 1, :: -1 if columns else 1]
