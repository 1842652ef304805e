"""JPG and PNG: formats without tiles, decoded whole by Pillow when a pixel is first asked for."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from stpredict._window import Window
from stpredict.io._lazy import Reader, lazy_array
from stpredict.io._rgb import TAG, check_decodable, not_rgb, over_white, upright

OPENERS: dict[str, type[ImageFile]] = {".jpg": JpegImageFile, ".jpeg": JpegImageFile, ".png": PngImageFile}


def open_jpg_png(path: Path) -> da.Array:
    """The pixels, (3, y, x) uint8; the header is read now, the rest on first use, and then kept with the array.

    Pillow's plugins are opened directly, not through `PIL.Image.open`: its decompression-bomb limit (89 million pixels,
    less than one her2st section) is a process-wide setting that belongs to the user. Ours is `MAX_DECODED_PX`, checked
    on the header.
    """
    with _open(path) as image:
        shape = image.height, image.width
        mode, raw_mode = image.mode, str(image.tile[0][3])
        orientation = int(image.getexif().get(TAG, 1))
    if mode not in ("RGB", "RGBA"):
        raise not_rgb(path, f"its mode is {mode!r}")
    if "16" in raw_mode:  # Pillow would drop the lower byte in silence
        raise not_rgb(path, "it has 16 bits per channel")
    check_decodable(path, shape)
    return upright(lazy_array(_decode, path, shape=shape), orientation, path)


def _open(path: Path) -> ImageFile:
    try:
        return OPENERS[path.suffix.lower()](path)
    except SyntaxError as error:  # what a Pillow plugin raises for a file of another format
        raise ValueError(
            f"{path} is not a {path.suffix.lower()} file ({error}). Give it the suffix of its format."
        ) from None


def _decode(path: Path) -> Reader:
    with _open(path) as image:
        pixels = over_white(np.moveaxis(np.asarray(image), 2, 0))

    def read(window: Window) -> NDArray[np.uint8]:
        return pixels[:, *window.slices()]

    return read
