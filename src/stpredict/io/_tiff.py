"""TIFF and OME-TIFF: tiles and pyramid levels are read as they lie in the file."""

from __future__ import annotations

import weakref
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPageSeries, memmap

from stpredict._window import Window
from stpredict.io._lazy import MAX_CHUNK_PX, Reader, lazy_array
from stpredict.io._rgb import SIDEWAYS, TAG, check_decodable, not_rgb, over_white, rgb_of_ycbcr, upright
from stpredict.io._tiff_scale import channel_names, stated_mpp

RGB_CHANNELS = ("r", "g", "b")
SPATIAL = "YX"
APERIO_JPEG2000 = 33003  # YCbCr; 33005 is RGB
JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY)
GLASS = 255  # tiles that an export has left out, where nothing was scanned


def open_tiff(path: Path) -> tuple[tuple[da.Array, ...], tuple[float, float] | None]:
    """Pyramid levels, (3, y, x) uint8 each, finest first, and the micrometres per pixel (x, y) that the file states.

    Of several images in the file (slide, label, macro) the one with the most pixels is taken.

    Raises ValueError for pixels that are not 8-bit RGB.
    """
    with TiffFile(path) as file:
        index, series = max(enumerate(file.series), key=lambda item: (_n_px(item[1]), -item[0]))
        _check_rgb(path, file, index, series)
        orientation = _orientation(series)
        levels = [
            upright(_level(path, index, k, series.levels[k]), orientation, path)
            for k in range(len(series.levels))
            if _same_view(series, series.levels[k])
        ]
        sides_um = stated_mpp(file, index, series)
        return tuple(levels), sides_um if sides_um is None or orientation not in SIDEWAYS else sides_um[::-1]


def _orientation(series: TiffPageSeries) -> int:
    tag = series.keyframe.tags.get(TAG)
    return 1 if tag is None else int(tag.value)


def _is_ycbcr(series: TiffPageSeries) -> bool:
    """Whether decoded samples are YCbCr: JPEG decoders give RGB, all others what is stored."""
    page = series.keyframe
    if page.compression == APERIO_JPEG2000:  # whatever the photometric tag says
        return True
    return page.photometric == PHOTOMETRIC.YCBCR and page.compression not in JPEG


def _n_px(series: TiffPageSeries) -> int:
    return prod(_height_width(series)) if set(SPATIAL) <= set(series.axes) else 0


def _height_width(series: TiffPageSeries) -> tuple[int, int]:
    return series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]


def _same_view(full: TiffPageSeries, level: TiffPageSeries) -> bool:
    """Whether a level shows the whole of the finest one: its sides shrink by one factor, up to the last pixel."""
    (height, width), (h, w) = _height_width(full), _height_width(level)
    return abs(h - height * w / width) <= 1 + height / width


def _check_rgb(path: Path, file: TiffFile, index: int, series: TiffPageSeries) -> None:
    page = series.keyframe
    sizes = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 and axis not in SPATIAL}
    if series.dtype != np.uint8:
        raise not_rgb(path, f"its pixels are {series.dtype}")
    if sizes == {"S": 3} and page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        if _is_ycbcr(series) and page.compression != APERIO_JPEG2000 and page.subsampling not in (None, (1, 1)):
            raise not_rgb(path, f"its YCbCr samples are subsampled {page.subsampling} without JPEG")
        return
    if sizes == {"S": 4} and page.photometric == PHOTOMETRIC.RGB and "UNASSALPHA" in str(page.extrasamples):
        return
    if sizes == {"C": 3} and tuple(name[:1] for name in channel_names(file, index)) == RGB_CHANNELS:
        return
    raise not_rgb(
        path,
        f"axes {series.axes} of {series.shape}, photometric {PHOTOMETRIC(page.photometric).name}. Three separate "
        "channels count as RGB only where the file says so (photometric RGB, or OME channels named Red, Green, Blue)",
    )


def _level(path: Path, index: int, level: int, series: TiffPageSeries) -> da.Array:
    shape = _height_width(series)
    page = series.keyframe
    if _whole(series):
        check_decodable(path, shape)
    block = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, shape[1])
    if _whole(series) or _mappable(series):
        block = (1, 1)
    return lazy_array(_open_level, path, index, level, shape=shape, block=block)


def _mappable(series: TiffPageSeries) -> bool:
    return series.dataoffset is not None and bool(series.keyframe.is_memmappable)


def _whole(series: TiffPageSeries) -> bool:
    """Whether tiles or strips are so large that each window would decode most of the image again."""
    page = series.keyframe
    n_px = page.tilelength * page.tilewidth if page.is_tiled else page.rowsperstrip * page.imagewidth
    return not _mappable(series) and n_px > MAX_CHUNK_PX


def _open_level(path: Path, index: int, level: int) -> Reader:
    with TiffFile(path) as file:
        series = file.series[index].levels[level]
        axes, ycbcr = series.axes, _is_ycbcr(series)
        source: Any
        close = None
        if _mappable(series):
            source = memmap(path, series=index, level=level, mode="r")
        elif _whole(series) and 0 not in series.keyframe.databytecounts:
            source = series.asarray()
        else:
            # the store opens the file again by itself
            store = file.aszarr(series=index, level=level, fillvalue=GLASS)
            source, close = zarr.open_array(store, mode="r"), store.close
            if _whole(series):
                source, close = np.asarray(source[:]), store.close()

    def read(window: Window) -> NDArray[np.uint8]:
        rows, columns = window.slices()
        key = tuple({"Y": rows, "X": columns, "S": slice(None), "C": slice(None)}.get(axis, 0) for axis in axes)
        pixels = np.asarray(source[key])  # the store has its own lock
        kept = [axis for axis in axes if axis in "YXSC"]
        channels = "S" if "S" in kept else "C"
        pixels = pixels.transpose([kept.index(axis) for axis in (channels, "Y", "X")])
        return rgb_of_ycbcr(pixels) if ycbcr else over_white(pixels)

    if close is not None:
        weakref.finalize(read, close)
    return read
