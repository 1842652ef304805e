"""Section: an image that is read window by window, with shapes and expression; all that models see of a sample."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from scipy import sparse

from stpredict._coverage import Shapes
from stpredict._messages import UnreadableFile
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHITE = 255  # what lies outside the image: empty glass
ENLARGED = 1 / 1.001  # level pixels per working pixel; from here on a level is as fine, for sizes of levels are rounded
HASHED = 2**16  # shapes that are hashed together


@dataclass(frozen=True)
class ImageView:
    """An RGB image seen at a working resolution, read lazily: averaged by exact area, or enlarged by cubic convolution.

    Parameters
    ----------
    pixels : Any
        One pyramid level, (3, y, x) uint8; numpy, dask or zarr: only the slices that a window needs are taken.
    scale : tuple[float, float]
        Pixels of that level per working pixel, along (y, x).
    mpp : float
        Micrometres per working pixel.
    """

    pixels: Any
    scale: tuple[float, float]
    mpp: float

    @property
    def height(self) -> int:
        """Rows of the working grid; the last may be covered by the image only in part."""
        return _n_working(self.pixels.shape[1], self.scale[0])

    @property
    def width(self) -> int:
        """Columns of the working grid; the last may be covered by the image only in part."""
        return _n_working(self.pixels.shape[2], self.scale[1])

    @property
    def window(self) -> Window:
        """The whole image as a window of the working grid."""
        return Window(0, 0, self.height, self.width)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The pixels of a window.

        Every working pixel is the mean of the level's pixels under it, weighted by covered area. Along an axis on which
        the level is coarser than the working pixel, it is the level's cubic interpolation (Keys 1981, eq. 15) at the
        pixel's centre. Weights depend on absolute positions alone, so two windows agree to the bit where they overlap.

        Parameters
        ----------
        window : Window
            Which pixels of the working grid.

        Returns
        -------
        ndarray of uint8
            (height, width, 3) uint8 RGB; white outside the image.

        Raises
        ------
        OSError
            Where a chunk of the image cannot be read.
        """
        return self.read_all([window])[0]

    def read_all(self, windows: Sequence[Window]) -> list[NDArray[np.uint8]]:
        """The pixels of several windows; a chunk of the image that they share is read once.

        Parameters
        ----------
        windows : Sequence[Window]
            Which pixels of the working grid.

        Returns
        -------
        list[ndarray]
            For each window what `read` returns.

        Raises
        ------
        OSError
            Where a chunk of the image cannot be read.
        """
        parts = [window.intersect(self.window) for window in windows]
        seen = [None if part is None else self._seen(part) for part in parts]
        levels = iter(self._levels([each[:2] for each in seen if each is not None]))
        made = [np.full((*window.shape, 3), WHITE, dtype=np.uint8) for window in windows]
        for out, window, part, each in zip(made, windows, parts, seen, strict=True):
            if part is not None and each is not None:
                weights, level = each[2], next(levels)
                planes = level if weights is None else np.moveaxis(_average(level, *weights), -1, 0)
                for channel in range(3):  # twice as fast as one assignment of all
                    out[part.slices(window)][..., channel] = planes[channel]
        return made

    def _seen(self, part: Window) -> tuple[slice, slice, tuple[sparse.csr_array, sparse.csr_array] | None]:
        """Rows and columns of the level under a window, and their weights; None: every pixel is one of the level."""
        if self.scale == (1.0, 1.0):
            return slice(part.y0, part.y1), slice(part.x0, part.x1), None
        y, rows = _weights(part.y0, part.y1, self.scale[0], self.pixels.shape[1])
        x, columns = _weights(part.x0, part.x1, self.scale[1], self.pixels.shape[2])
        return y, x, (rows, columns)

    def _levels(self, where: Sequence[tuple[slice, slice]]) -> list[NDArray[np.uint8]]:
        if not where:
            return []
        y0, y1 = min(y.start for y, _ in where), max(y.stop for y, _ in where)
        x0, x1 = min(x.start for _, x in where), max(x.stop for _, x in where)
        what = f"the image, rows {y0} to {y1} and columns {x0} to {x1} of its level,"
        return arrays_of([self.pixels[:, y, x] for y, x in where], what)


def array_of(pixels: Any, what: str) -> NDArray[Any]:
    """The values of a lazy array; see `arrays_of`."""
    return arrays_of([pixels], what)[0]


def arrays_of(pixels: Sequence[Any], what: str) -> list[NDArray[Any]]:
    """The values of lazy arrays of one kind; read here and not by a cluster of the user's, where a task would wait.

    Raises OSError, which names `what`, for a chunk that cannot be read.
    """
    try:
        return _computed(pixels) if hasattr(pixels[0], "compute") else [np.asarray(each) for each in pixels]
    except (MemoryError, UnreadableFile):
        raise
    except Exception as error:  # codecs raise whatever they like
        raise OSError(
            f"{what} cannot be read ({type(error).__name__}: {error}): a chunk of the store is damaged, or its files "
            "were moved or changed after the object was opened. Read the object again, or restore it from a copy."
        ) from error


def _computed(pixels: Sequence[Any]) -> list[NDArray[Any]]:
    """The values of dask arrays; one chunk is read by the caller, several by threads that all callers share."""
    import dask

    if sum(each.npartitions for each in pixels) == 1:
        return list(dask.compute(*pixels, scheduler="sync"))
    return list(dask.compute(*pixels, scheduler="threads", pool=_readers(os.getpid())))


@cache
def _readers(pid: int) -> ThreadPoolExecutor:
    """The threads of a process; in one that was forked, its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"stpredict-read-{pid}")


def _renew_pool() -> None:
    """In a forked process, give dask threads: those of the parent, for which it would wait, are not copied."""
    if "dask.threaded" in sys.modules:
        # nothing is imported in a child: its parent may have held the lock of an import
        sys.modules["dask"].config.set(pool=ThreadPoolExecutor(sys.modules["dask.system"].CPU_COUNT))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


def _n_working(n_level: int, scale: float) -> int:
    return max(1, int(np.ceil(n_level / scale - 1e-6)))  # a hair less: 6400.000001 px, from rounding, are not 6401


def _weights(start: int, stop: int, scale: float, n_level: int) -> tuple[slice, sparse.csr_array]:
    """Which level pixels make up working pixels start..stop, and their weights, (stop - start, n) float32."""
    index, weight = (_shares if scale >= ENLARGED else _cubic)(np.arange(start, stop), scale, n_level)
    index = np.clip(index, 0, n_level - 1)
    used = index[weight != 0]
    part = slice(int(used.min()), int(used.max()) + 1)
    index = np.clip(index - part.start, 0, part.stop - part.start - 1)  # beyond these are only weights of 0
    rows = (weight.astype(np.float32).ravel(), index.ravel(), np.arange(0, index.size + 1, index.shape[1]))
    return part, sparse.csr_array(rows, shape=(stop - start, part.stop - part.start))


def _shares(pixel: NDArray[np.int64], scale: float, n_level: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The level pixels under each working pixel, and their shares of it."""
    low, high = pixel * scale, np.minimum((pixel + 1) * scale, n_level)
    index = np.floor(low + 1e-9).astype(np.int64)[:, None] + np.arange(int(np.ceil(scale)) + 1)
    share = np.clip(np.minimum(high[:, None], index + 1) - np.maximum(low[:, None], index), 0.0, None)
    return index, share / share.sum(axis=1, keepdims=True)


def _cubic(pixel: NDArray[np.int64], scale: float, n_level: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The four level pixels around the centre of each working pixel, and their weights in cubic convolution."""
    at = (pixel + 0.5) * scale - 0.5
    index = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    d = np.abs(at[:, None] - index)
    return index, np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2)


def _average(level: NDArray[np.uint8], rows: sparse.csr_array, columns: sparse.csr_array) -> NDArray[np.uint8]:
    """The weighted means of a (3, y, x) array under `rows` (h, y) and `columns` (w, x): (h, w, 3) uint8."""
    (height, n_y), (width, n_x) = rows.shape, columns.shape
    if (height, width) == (n_y, n_x) and rows.max() == columns.max() == rows.min() == columns.min() == 1.0:
        return np.moveaxis(level, 0, -1)
    level = level.transpose(1, 0, 2).reshape(n_y, 3 * n_x).astype(np.float32)
    level = (rows @ level).reshape(height, 3, n_x).transpose(2, 0, 1).reshape(n_x, height * 3)
    level = (columns @ level).reshape(width, height, 3).transpose(1, 0, 2)
    return np.rint(level.clip(0, 255)).astype(np.uint8)  # cubic weights may overshoot


@dataclass(frozen=True)
class Section:
    """One section as models see it: an image view, shapes in its pixel frame, and what was measured in them.

    Parameters
    ----------
    name : str
        What messages and tables call it.
    image : ImageView
        The image at working resolution; all coordinates below are its pixels.
    geometry : ndarray of object
        (n,) shapely Points (circles), or Polygons / MultiPolygons, in shapely's (x, y) order; pixel (i, j) covers [j, j
        + 1) x [i, i + 1). An empty geometry has nothing on tissue.
    radius : ndarray of float64
        (n,) radius in pixels of circles, NaN of polygons.
    ids : ndarray[Any]
        (n,) instance ids of the rows.
    area : ndarray of float64
        (n,) area in square pixels of the whole shape, before clipping to tissue or image.
    expression : ndarray, optional
        (n, g) float32 in target units; None where nothing was measured.
    genes : tuple[str, ...], optional
        Names of the columns of `expression`; None where nothing was measured.
    grid : ndarray, optional
        (n, 2) integer array coordinates (row, column) of legacy arrays, or None.
    dropped : Mapping[str, int], optional
        Why shapes were left out, and how many.
    tissue : shapely.Geometry, optional
        Polygon or MultiPolygon of the tissue, to which the geometry is clipped; None: the whole image.
    min_counts : float, optional
        Total counts that a shape needed to be among the rows; None where counts decided nothing.
    group : str, optional
        The patient, where one is known: sections of one group are no independent samples.
    total : ndarray of float64, optional
        (n,) raw counts of each shape over all genes of its table, where `expression` is log1p of counts per 10,000 of
        them: the counts of a gene follow from both. None where no counts are known.

    Raises
    ------
    ValueError
        Where arrays have another number of rows than there are shapes.
    """

    name: str
    image: ImageView
    geometry: NDArray[np.object_]
    radius: NDArray[np.float64]
    ids: NDArray[Any]
    area: NDArray[np.float64]
    expression: NDArray[np.float32] | None = None
    genes: tuple[str, ...] | None = None
    grid: NDArray[np.int64] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    tissue: shapely.Geometry | None = None
    min_counts: float | None = None
    group: str | None = None
    total: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n = len(self.geometry)
        rows = {name: getattr(self, name) for name in ("radius", "ids", "area", "expression", "total")}
        wrong = {key: len(value) for key, value in rows.items() if value is not None and len(value) != n}
        if wrong:
            raise ValueError(f"section {self.name!r} has {n} shapes, but rows of another number: {wrong}.")

    @property
    def shapes(self) -> Shapes:
        """Geometry and radius as one."""
        return Shapes(self.geometry, self.radius)

    @property
    def mpp(self) -> float:
        """Micrometres per working pixel."""
        return self.image.mpp

    @property
    def n_shapes(self) -> int:
        """How many shapes it has."""
        return len(self.geometry)


def take(section: Section, keep: NDArray) -> Section:
    """The section with only some of its shapes: `keep` is an index or a mask of rows."""
    rows = {
        key: value[keep]
        for key in ("geometry", "radius", "ids", "area", "expression", "grid", "total")
        if (value := getattr(section, key)) is not None
    }
    return replace(section, **rows)


def image_digest(image: ImageView, *, n_side: int = 4, side_px: int = 64) -> bytes:
    """A hash of the size of an image and of 4 x 4 squares of it: parts of one section share it.

    Saved models know their sections by it, so it must never change (of enlarged images it did, see CHANGELOG).
    """
    height, width = image.height, image.width
    digest = hashlib.sha256(f"{height} {width}".encode())
    centres = [[(2 * at + 1) * size // (2 * n_side) for at in range(n_side)] for size in (height, width)]
    corners = [(y - side_px // 2, x - side_px // 2) for y in centres[0] for x in centres[1]]
    for square in image.read_all([Window(*corner, side_px, side_px) for corner in corners]):
        digest.update(square.tobytes())
    return digest.digest()


class Fingerprint(NamedTuple):
    """Short hashes of what a prediction sees: image (see `image_digest`) with resolution and tissue, and shapes."""

    image: str
    shapes: str


def fingerprint(section: Section, image: bytes | None = None) -> Fingerprint:
    """What tells this section from others; `image` is its `image_digest`, if that is known."""
    seen = hashlib.sha256(image_digest(section.image) if image is None else image)
    seen.update(np.float64(section.mpp).tobytes())
    if section.tissue is not None:
        seen.update(shapely.to_wkb(section.tissue))
    return Fingerprint(seen.hexdigest()[:16], shapes_digest(section.shapes)[:16])


def shapes_digest(shapes: Shapes) -> str:
    """A hash of shapes, in their order and in the plane."""
    digest = hashlib.sha256(np.ascontiguousarray(shapes.radius))
    for k in range(0, len(shapes), HASHED):
        digest.update(b"".join(shapely.to_wkb(shapes.geometry[k : k + HASHED], output_dimension=2)))
    return digest.hexdigest()
