"""Vendor slides (.svs, .ndpi, .mrxs, ...) through wsidata, the `wsi` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from stpredict._window import Window
from stpredict.io._lazy import Reader, lazy_array

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".qptiff", ".isyntax", ".czi", ".dcm")


def open_slide(path: Path) -> tuple[tuple[da.Array, ...], tuple[float, float] | None]:
    """Pyramid levels, (3, y, x) uint8 each, finest first, and the slide's micrometres per pixel, if it states them."""
    properties = _reader(path).properties
    levels = [
        lazy_array(_open_level, path, level, shape=(int(height), int(width)))
        for level, (height, width) in enumerate(properties.level_shape)
    ]
    return tuple(levels), None if properties.mpp is None else (float(properties.mpp), float(properties.mpp))


def _reader(path: Path) -> Any:
    try:
        from wsidata import open_wsi
    except ImportError as error:
        raise ImportError(
            f"{path.name} is a vendor slide, which is read through wsidata: pip install 'stpredict[wsi]' and a reader "
            "for the format, e.g. pip install openslide-python openslide-bin. Or convert it to OME-TIFF."
        ) from error
    return open_wsi(str(path), store=None).reader


def _open_level(path: Path, level: int) -> Reader:
    reader = _reader(path)
    full, shape = (reader.properties.level_shape[k] for k in (0, level))
    step_y, step_x = full[0] / shape[0], full[1] / shape[1]

    def read(window: Window) -> NDArray[np.uint8]:
        corner = round(window.x0 * step_x), round(window.y0 * step_y)  # wsidata wants it in pixels of level 0
        pixels = reader.get_region(*corner, window.width, window.height, level=level)
        return np.moveaxis(np.asarray(pixels, dtype=np.uint8)[..., :3], 2, 0)

    return read
