"""Rasters of predicted genes: how large they may be, where they lie, and how they are written region by region."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
import psutil
import zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import BaseTransformation, Scale, get_transformation
from spatialdata.transformations import Sequence as Chain

from stpredict._sdata._store import check_element_key, open_store, remove
from stpredict._sdata._store_element import Image, write_aside

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from spatialdata import SpatialData
    from xarray import DataArray, DataTree

_CHUNK_BYTES = 2**20  # a chunk holds few genes, so that a map of one gene reads little of the others


def check_raster_size(
    sdata: SpatialData, n_genes: int, shape: tuple[int, int], *, dtype: DTypeLike = "float16"
) -> None:
    """Raise ValueError if a raster does not fit into memory or, for a backed object, onto the disk of its store.

    n_genes, shape
        Channels, and (height, width) in raster pixels.
    """
    need = n_genes * shape[0] * shape[1] * np.dtype(dtype).itemsize
    store = open_store(sdata)
    free = psutil.virtual_memory().available if store is None else shutil.disk_usage(store.path).free
    if need > free:
        where = "memory" if store is None else f"the disk of {store.path}"
        way = "" if store is not None else ", or write the object to a store first (sdata.write)"
        raise ValueError(
            f"the raster of {n_genes} genes x {shape[0]} x {shape[1]} pixels takes {need / 1e9:.1f} GB, and "
            f"{where} has {free / 1e9:.1f} GB free. Pass fewer genes=, a larger raster_mpp=, or output='latent'{way}."
        )


def raster_transformations(image: DataArray | DataTree, *, scale: tuple[float, float]) -> dict[str, BaseTransformation]:
    """For every coordinate system of `image`, the transformation of a raster on top of it.

    scale
        Height and width (y, x) of a raster pixel in intrinsic pixels of the image (of its largest scale).
    """
    zoom = Scale([float(scale[1]), float(scale[0])], axes=("x", "y"))
    known = get_transformation(image, get_all=True)
    return {name: Chain([zoom, transformation]) for name, transformation in known.items()}


class RasterTarget:
    """A raster that is written region by region, in memory or, for a backed object, beside its store.

    A context manager: `write` every region, take `image` to `commit`, then leave. What was built and not committed is
    gone afterwards. Pixels that are never written are NaN.

    genes
        Unique names, the channels in order.
    shape
        (height, width) in raster pixels.
    transformations
        From `raster_transformations`.
    dtype
        A float type; NaN must have a place.
    chunk_px
        Side of a stored chunk. Regions consist of whole chunks (smaller at the lower and right border alone), so that
        each chunk is written once.

    Raises ValueError for a key that cannot be written, duplicate genes, and a size that does not fit.
    """

    def __init__(
        self, sdata: SpatialData, key: str, *, genes: Sequence[str], shape: tuple[int, int],
        transformations: Mapping[str, BaseTransformation], dtype: DTypeLike = "float16", chunk_px: int = 128,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        check_element_key(sdata, key, kind="images", overwrite=overwrite)
        twins = sorted({gene for gene in genes if list(genes).count(gene) > 1}) if len(set(genes)) < len(genes) else []
        if twins or not len(genes):
            raise ValueError(f"the genes of a raster must be unique and at least one; twice there: {twins[:5]}.")
        if np.dtype(dtype).kind != "f" or chunk_px < 1 or min(shape) < 1:
            raise ValueError(f"a raster has a float dtype, chunks and pixels; got {dtype}, {chunk_px} and {shape}.")
        check_raster_size(sdata, len(genes), shape, dtype=dtype)
        self.key, self.genes, self.shape, self.chunk_px = key, [str(gene) for gene in genes], shape, chunk_px
        self.dtype, self._transformations = np.dtype(dtype), dict(transformations)
        self._store = open_store(sdata)
        self._folder: Path | None = None
        self._values: Any = None
        self._written = np.zeros([-(-size // chunk_px) for size in shape], bool)

    def __enter__(self) -> Self:
        form = (len(self.genes), *self.shape)
        if self._store is None:
            self._values = np.full(form, np.nan, self.dtype)
            return self
        self._folder = self._store.scratch()
        try:
            self._values = self._empty(self._folder / "raster", form)
        except BaseException:
            remove(self._folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values = None
        if self._folder is not None:
            remove(self._folder)

    def write(self, y: slice, x: slice, values: NDArray[Any]) -> None:
        """Write the region of rows `y` and columns `x` (raster pixels), (g, height, width)."""
        chunks = self._chunks(y, 0), self._chunks(x, 1)
        form = (len(self.genes), y.stop - y.start, x.stop - x.start)
        if values.shape != form:
            raise ValueError(f"the region needs values of shape {form}, got {values.shape}.")
        if self._written[chunks].any():
            raise ValueError(f"the region {y.start}:{y.stop}, {x.start}:{x.stop} was written before, at least in part.")
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(self.dtype)
        if np.isinf(cast).any() and np.isfinite(values[np.isinf(cast)]).any():
            raise ValueError(
                f"values up to {np.nanmax(np.abs(values)):.4g} do not fit {self.dtype} (at most "
                f"{np.finfo(self.dtype).max:.4g}). Use float32."
            )
        self._values[:, y, x] = cast
        self._written[chunks] = True

    def image(self, record: Mapping[str, Any]) -> Image:
        """The finished raster for `commit`, inside the ``with`` block."""
        if self._folder is not None:
            return Image(self.key, built=self._folder / "raster", record=record)
        # a name of its own: by default dask would hash all values
        lazy = da.from_array(self._values, chunks=self._chunk_shape, name=False)
        return Image(self.key, element=self._parse(lazy), record=record)

    @property
    def _chunk_shape(self) -> tuple[int, int, int]:
        side = (min(self.chunk_px, self.shape[0]), min(self.chunk_px, self.shape[1]))
        n_genes = _CHUNK_BYTES // (side[0] * side[1] * self.dtype.itemsize)
        return (min(max(1, n_genes), len(self.genes)), *side)

    def _chunks(self, pixels: slice, axis: int) -> slice:
        size, side = self.shape[axis], self.chunk_px
        whole = pixels.start % side == 0 and (pixels.stop % side == 0 or pixels.stop == size)
        if not whole or pixels.step not in (None, 1) or not 0 <= pixels.start < pixels.stop <= size:
            raise ValueError(
                f"{'rows columns'.split()[axis]} {pixels.start}:{pixels.stop} are not whole chunks of {side} pixels "
                f"inside 0:{size}. Crop regions to the raster, and choose chunk_px so that it divides their size."
            )
        return slice(pixels.start // side, -(-pixels.stop // side))

    def _parse(self, lazy: da.Array) -> DataArray:
        return Image2DModel.parse(
            lazy, dims=("c", "y", "x"), c_coords=self.genes, transformations=dict(self._transformations)
        )

    def _empty(self, path: Path, form: tuple[int, int, int]) -> zarr.Array:
        """An element of NaN, written by spatialdata as one chunk of space and then stretched to its size."""
        corner = da.zeros((form[0], *self._chunk_shape[1:]), dtype=self.dtype, chunks=self._chunk_shape)
        write_aside(path, images={self.key: self._parse(corner)})
        element = path / "images" / self.key
        level = json.loads((element / "zarr.json").read_bytes())["attributes"]["ome"]["multiscales"][0]["datasets"][0]
        meta_path = element / level["path"] / "zarr.json"
        meta = json.loads(meta_path.read_bytes())
        # absent chunks read as the fill value, and what was never predicted must not read as zero
        meta |= {"shape": list(form), "fill_value": "NaN"}
        meta_path.write_text(json.dumps(meta), encoding="utf-8")
        return zarr.open_array(element / level["path"], mode="r+")
