"""Open an image file: its pyramid levels as lazy arrays, and the scale that it states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import dask.array as da

from stpredict._messages import UnreadableFile
from stpredict.io._files import reading
from stpredict.io._jpg_png import OPENERS, open_jpg_png
from stpredict.io._slide import SLIDE_SUFFIXES, open_slide
from stpredict.io._tiff import open_tiff

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
SUFFIXES = (*OPENERS, *TIFF_SUFFIXES, *SLIDE_SUFFIXES)

MAX_ANISOTROPY = 1.01


@dataclass(frozen=True)
class Pixels:
    """An image file, opened but not read.

    Parameters
    ----------
    levels : tuple[da.Array, ...]
        (3, y, x) uint8 dask arrays, finest first; at least one.
    sides_um : tuple[float, float] | None
        Width and height of a pixel of the finest level as the file states them, else None.
    """

    path: Path
    levels: tuple[da.Array, ...]
    sides_um: tuple[float, float] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the finest level."""
        return self.levels[0].shape[1:]

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of the finest level as the file states it, else None; ValueError if not square."""
        if self.sides_um is None:
            return None
        if max(self.sides_um) > MAX_ANISOTROPY * min(self.sides_um):
            raise ValueError(
                f"{self.path}: pixels are not square, {self.sides_um[0]:g} x {self.sides_um[1]:g} um by what the file "
                "states. Resample the image, or give mpp= where that is wrong."
            )
        return self.sides_um[0]


def open_pixels(path: Path) -> Pixels:
    """Open a JPG, PNG, TIFF, OME-TIFF or vendor slide without reading its pixels.

    Raises FileNotFoundError, and ValueError for an unknown format or pixels that are not 8-bit RGB.
    """
    if not path.exists():
        raise FileNotFoundError(f"no image at {path}")
    if path.suffix.lower() in (*OPENERS, *TIFF_SUFFIXES) and path.is_file() and not path.stat().st_size:
        raise UnreadableFile(f"{path} is empty: it has 0 bytes. Copy it anew.")
    suffix = path.suffix.lower()
    with reading(path):
        if suffix in OPENERS:
            return Pixels(path, (open_jpg_png(path),), None)
        if suffix in TIFF_SUFFIXES:
            return Pixels(path, *open_tiff(path))
        if suffix in SLIDE_SUFFIXES:
            return Pixels(path, *open_slide(path))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the image file in it.")
    raise ValueError(f"image of unknown format: {path.name!r}. Known are {list(SUFFIXES)}; convert others to OME-TIFF.")
