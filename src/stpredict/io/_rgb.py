"""Pixels as viewers show them: RGB or refused, over white, upright by the EXIF or TIFF orientation tag."""

from __future__ import annotations

import logging
from pathlib import Path

import dask.array as da
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("stpredict")

TAG = 274  # of EXIF and of TIFF
SIDEWAYS = (5, 6, 7, 8)  # height and width change places
MAX_DECODED_PX = 1_000_000_000  # 3 GB of RGB: beyond it a file without tiles is the wrong one


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(c, y, x) RGB unchanged, RGBA laid over white, as empty glass; opaque pixels keep their colour exactly."""
    if pixels.shape[0] == 3:
        return pixels
    alpha = pixels[3].astype(np.uint16)
    blend = pixels[:3] * alpha + 255 * (255 - alpha)
    return ((blend + 127) // 255).astype(np.uint8)


def rgb_of_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, y, x) RGB of full-range YCbCr samples; a pixel of three times 255, as of a missing tile, is white.

    References
    ----------
    ITU-R BT.601, with the full range of JFIF, which is the default of TIFF 6.0, section 21.
    """
    y, cb, cr = pixels.astype(np.float32)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    rgb[:, (pixels == 255).all(axis=0)] = 255
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def not_rgb(path: Path, found: str) -> ValueError:
    """The error for an image that is not 8-bit RGB; `found` says what it is."""
    return ValueError(
        f"{path} is not an 8-bit RGB image: {found}. stpredict reads brightfield H&E as three 8-bit channels. Save it "
        "so first (16 bit: divide by 257; greyscale and fluorescence are no H&E)."
    )


def check_decodable(path: Path, shape: tuple[int, int]) -> None:
    """Raise ValueError where a file that can only be decoded whole is too large for that; shape is (height, width)."""
    if shape[0] * shape[1] > MAX_DECODED_PX:
        raise ValueError(
            f"{path} has {shape[1]:,} x {shape[0]:,} px and no tiles, so it would have to be decoded whole; the limit "
            f"for that is {MAX_DECODED_PX:,} px. Convert it to a tiled, pyramidal TIFF or OME-TIFF."
        )


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
