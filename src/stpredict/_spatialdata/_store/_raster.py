"""Rasters of predicted genes: size check, transformation, and writing region by region with coarser levels."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from stpredict._spatialdata._store._element import ImageElement, write_aside
from stpredict._spatialdata._store._transaction import Store, remove

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from spatialdata.transformations import BaseTransformation
    from xarray import DataArray, DataTree


BUILT = "raster"  # the store within the folder
COARSEST_PX = 1024  # the largest side of the last level, where chunks allow
SMALLEST_CHUNK_PX = 16
_CHUNK_VALUES = 2**19  # a chunk holds few genes, so that a map of one gene reads little of the others
_DROPPED_BITS = 13  # of the 23 that a float32 has behind the leading one: float16 has 10
_STORED_BYTES = {"float16": 2.0, "float32": 2.5}  # a value on the disk, at most: of float32 13 bits are zero
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def check_raster_size(
    store: Store | None,
    n_genes: int,
    shape: tuple[int, int],
    *,
    dtype: DTypeLike = "float32",
    chunk_px: int = 128,
    done: int = 0,
) -> None:
    """Raise ValueError if a raster does not fit into memory (`store` is None), or onto the disk of the store.

    Parameters
    ----------
    n_genes, shape, chunk_px
        Channels, (height, width) in raster pixels, and the side of a chunk, on which depends how many coarser levels a
        raster in a store has.
    dtype : DTypeLike, default "float32"
        Of the raster. What compression saves on the disk is not reckoned, but for the bits that rounding sets to zero.
    done : int, default 0
        Bytes of it that an interrupted run has written.
    """
    levels = 1 if store is None else n_levels(shape, chunk_px)
    kind = np.dtype(dtype)
    a_value = kind.itemsize if store is None else _STORED_BYTES.get(kind.name, kind.itemsize)
    need = n_genes * sum((shape[0] >> k) * (shape[1] >> k) for k in range(levels)) * a_value - done
    free = psutil.virtual_memory().available if store is None else shutil.disk_usage(store.path).free
    if need > free:
        where = "memory" if store is None else f"the disk of {store.path}"
        half = ", dtype='float16'" if store is None and kind.itemsize > 2 else ""
        way = "" if store is not None else ", or write the object to a store first (sdata.write)"
        raise ValueError(
            f"the raster of {n_genes} genes x {shape[0]} x {shape[1]} pixels takes {_size(need)}, and "
            f"{where} has {_size(free)} free. Pass fewer genes=, a larger raster_mpp={half}, or output='latent'{way}."
        )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2g} MB"


def raster_transformations(image: DataArray | DataTree, *, scale: tuple[float, float]) -> dict[str, BaseTransformation]:
    """For every coordinate system of `image`, the transformation of a raster on top of it.

    Parameters
    ----------
    scale : tuple[float, float]
        Height and width (y, x) of a raster pixel in intrinsic pixels of the image (of its largest scale).
    """
    zoom = Scale([float(scale[1]), float(scale[0])], axes=("x", "y"))
    known = get_transformation(image, get_all=True)
    return {name: Chain([zoom, transformation]) for name, transformation in known.items()}


class RasterTarget:
    """A raster that is written region by region, in memory or, for a backed object, beside its store.

    A context manager: `write` every region, take `image` to `commit`, then leave. What was built and not committed is
    gone afterwards. Pixels that are never written are NaN.

    Parameters
    ----------
    store : Store | None
        Of a backed object; None: the raster is built in memory.
    genes : Sequence[str]
        Unique names, the channels in order.
    shape : tuple[int, int]
        (height, width) in raster pixels.
    transformations : Mapping[str, BaseTransformation]
        From `raster_transformations`.
    dtype : DTypeLike, default "float32"
        A float type; NaN must have a place. float32 is rounded to 11 significant bits (see `stored_values`).
    chunk_px : int, default 128
        Side of a stored chunk. Regions consist of whole chunks (smaller at the lower and right border alone), so that
        each chunk is written once, on every level of the pyramid that a large raster of a backed object has.
    folder : Path, optional
        An existing folder on the store's file system, whose owner keeps it: what an earlier target built there is gone
        on with. None: a scratch folder that is deleted in the end.

    Raises
    ------
    ValueError
        For duplicate genes, and a size that does not fit. `NewNames` judges the key.
    """

    def __init__(
        self, store: Store | None, key: str, *, genes: Sequence[str], shape: tuple[int, int],
        transformations: Mapping[str, BaseTransformation], dtype: DTypeLike = "float32", chunk_px: int = 128,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        twins = sorted({gene for gene in genes if list(genes).count(gene) > 1}) if len(set(genes)) < len(genes) else []
        if twins or not len(genes):
            raise ValueError(f"the genes of a raster must be unique and at least one; twice there: {twins[:5]}.")
        if np.dtype(dtype).kind != "f" or chunk_px < 1 or min(shape) < 1:
            raise ValueError(f"a raster has a float dtype, chunks and pixels; got {dtype}, {chunk_px} and {shape}.")
        built = [] if folder is None else (folder / BUILT).rglob("*")
        done = sum(path.stat().st_size for path in built if path.is_file())
        check_raster_size(store, len(genes), shape, dtype=dtype, chunk_px=chunk_px, done=done)
        self.key, self.genes, self.shape, self.chunk_px = key, [str(gene) for gene in genes], shape, chunk_px
        self.dtype, self._transformations = np.dtype(dtype), dict(transformations)
        self._store = store
        self._home, self._scratch = folder, folder
        self._values: Any = None
        self._levels: Levels | None = None
        self._written = np.zeros([-(-size // chunk_px) for size in shape], bool)

    def __enter__(self) -> Self:
        if self._store is None:
            self._values = np.full((len(self.genes), *self.shape), np.nan, self.dtype)
            return self
        self._scratch = self._home or self._store.scratch()
        try:
            self._levels = self._open(self._scratch / BUILT)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values = self._levels = None
        self._leave()

    def write(self, y: slice, x: slice, values: NDArray[Any]) -> None:
        """Write the region of rows `y` and columns `x` (raster pixels), (g, height, width)."""
        chunks = self._chunks(y, 0), self._chunks(x, 1)
        form = (len(self.genes), y.stop - y.start, x.stop - x.start)
        if values.shape != form:
            raise ValueError(f"the region needs values of shape {form}, got {values.shape}.")
        if self._written[chunks].any():
            raise ValueError(f"the region {y.start}:{y.stop}, {x.start}:{x.stop} was written before, at least in part.")
        cast = stored_values(values, self.dtype)
        if np.isinf(cast).any() and np.isfinite(values[np.isinf(cast)]).any():
            way = ' Pass dtype="float32".' if self.dtype.itemsize < 4 else ""
            raise ValueError(
                f"values up to {np.nanmax(np.abs(values)):.4g} do not fit {self.dtype} (at most "
                f"{np.finfo(self.dtype).max:.4g}).{way}"
            )
        if self._levels is not None:
            self._levels.write(y, x, values, cast)
        else:
            self._values[:, y, x] = cast
        self._written[chunks] = True

    def image(self, record: Mapping[str, Any]) -> ImageElement:
        """The finished raster for `commit`, inside the ``with`` block."""
        if self._store is not None and self._scratch is not None:
            return ImageElement(self.key, built=self._scratch / BUILT, record=record)
        # a name of its own: by default dask would hash all values
        chunks = chunk_shape(len(self.genes), self.shape, self.chunk_px)
        element = Image2DModel.parse(
            da.from_array(self._values, chunks=chunks, name=False), dims=("c", "y", "x"), c_coords=self.genes,
            transformations=dict(self._transformations),
        )  # fmt: skip
        return ImageElement(self.key, element=element, record=record)

    def _open(self, built: Path) -> Levels:
        if (built / "zarr.json").is_file():
            return Levels.open(built, self.key)
        new = built.with_suffix(".new")
        remove(new)  # an earlier one that was killed before it was whole
        create_levels(
            new, self.key, genes=self.genes, shape=self.shape, chunk_px=self.chunk_px, dtype=self.dtype,
            transformations=self._transformations,
        )  # fmt: skip
        os.rename(new, built)
        return Levels.open(built, self.key)

    def _leave(self) -> None:
        if self._home is None and self._scratch is not None:
            remove(self._scratch)

    def _chunks(self, pixels: slice, axis: int) -> slice:
        size, side = self.shape[axis], self.chunk_px
        whole = pixels.start % side == 0 and (pixels.stop % side == 0 or pixels.stop == size)
        if not whole or pixels.step not in (None, 1) or not 0 <= pixels.start < pixels.stop <= size:
            raise ValueError(
                f"{'rows columns'.split()[axis]} {pixels.start}:{pixels.stop} are not whole chunks of {side} pixels "
                f"inside 0:{size}. Crop regions to the raster, and choose chunk_px so that it divides their size."
            )
        return slice(pixels.start // side, -(-pixels.stop // side))


def _blosc(typesize: int) -> dict[str, Any]:
    """Zarr's codec for numbers: each bit beside the same bit of others, which repeats, then Zstandard."""
    how = {"typesize": typesize, "cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
    return {"name": "blosc", "configuration": how}


def n_levels(shape: tuple[int, int], chunk_px: int) -> int:
    """How many levels, each half as fine as the one before, a raster of this (height, width) has.

    A chunk of a level comes from one chunk of the level before, so that each is written once.
    """
    n, side = 1, max(shape)
    while side > COARSEST_PX and chunk_px % 2 == 0 and chunk_px // 2 >= SMALLEST_CHUNK_PX:
        n, side, chunk_px = n + 1, side // 2, chunk_px // 2
    return n


def chunk_shape(n_genes: int, shape: tuple[int, int], chunk_px: int) -> tuple[int, int, int]:
    """(genes, height, width) of a stored chunk."""
    side = (min(chunk_px, shape[0]), min(chunk_px, shape[1]))
    genes = _CHUNK_VALUES // (side[0] * side[1])
    return (min(max(1, genes), n_genes), *side)


def stored_values(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as a raster of this type keeps them: infinite where they do not fit.

    float32, which all of scverse reads, is rounded to 11 significant bits, half to even. These are the values that
    float16 has within its range, and take as much room once they are compressed: the other bits are zero.
    """
    with np.errstate(over="ignore"):
        cast = np.asarray(values).astype(dtype, copy=False)
    if cast.dtype != np.float32:
        return cast
    bits = cast.view(np.uint32)
    rounded = bits >> _DROPPED_BITS
    rounded &= 1
    rounded += 2 ** (_DROPPED_BITS - 1) - 1
    rounded += bits
    rounded &= 2**32 - 2**_DROPPED_BITS
    out: NDArray[Any] = rounded.view(np.float32)
    np.copyto(out, np.float32(np.nan), where=np.isnan(cast))  # some of its many forms would be rounded to a number
    return out


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """(g, h // 2, w // 2) means of 2 x 2 pixels; an odd last row or column is left out, as SpatialData does.

    Of pixels that are NaN in part, the mean of the others: where at least two of four have a value.
    """
    _, h, w = values.shape
    values = values[:, : h // 2 * 2, : w // 2 * 2].astype(np.float32, copy=False)
    pairs = values[:, :, ::2] + values[:, :, 1::2]
    out = pairs[:, ::2] + pairs[:, 1::2]
    out *= np.float32(0.25)
    if np.isnan(out[0]).any():  # of a pixel all channels are NaN, or none
        four = values.reshape(len(values), h // 2, 2, w // 2, 2)
        n = np.isfinite(four[0]).sum(axis=(1, 3))
        part = (n >= 2) & (n < 4)
        out[:, part] = np.nansum(four, axis=(2, 4))[:, part] / n[part]
    return out


def create_levels(
    path: Path, key: str, *, genes: Sequence[str], shape: tuple[int, int], chunk_px: int, dtype: DTypeLike,
    transformations: Mapping[str, BaseTransformation],
) -> None:  # fmt: skip
    """Write the arrays, all NaN, into a new store at `path`; spatialdata writes one chunk which is then stretched."""
    n = n_levels(shape, chunk_px)
    chunks = chunk_shape(len(genes), shape, chunk_px)
    corner = da.zeros((len(genes), *chunks[1:]), dtype=dtype, chunks=chunks)
    element = Image2DModel.parse(
        corner, dims=("c", "y", "x"), c_coords=list(genes), transformations=dict(transformations),
        scale_factors=[2] * (n - 1) or None,
    )  # fmt: skip
    write_aside(path, images={key: element})
    for k, folder in enumerate(_folders(path, key)):
        side = (chunks[1] >> k, chunks[2] >> k)
        form = [len(genes), shape[0] >> k, shape[1] >> k]
        stored = chunks if k == 0 else chunk_shape(len(genes), side, chunk_px >> k)
        _stretch(folder, form, [min(a, b) for a, b in zip(stored, form, strict=True)])


@dataclass(frozen=True)
class Levels:
    """The Zarr arrays (g, h, w) of a raster, the finest first."""

    arrays: tuple[zarr.Array, ...]

    @classmethod
    def open(cls, path: Path, key: str) -> Self:
        """The arrays that `create_levels` made."""
        return cls(tuple(zarr.open_array(folder, mode="r+") for folder in _folders(path, key)))

    def write(self, y: slice, x: slice, values: NDArray[Any], cast: NDArray[Any]) -> None:
        """Write a region of whole chunks (g, height, width) into every level: as they are stored, and before that."""
        for k, array in enumerate(self.arrays):
            if k > 0:
                values = halved(values)
                cast = stored_values(values, array.dtype)
            y0, x0 = y.start >> k, x.start >> k
            if cast.size:
                array[:, y0 : y0 + cast.shape[1], x0 : x0 + cast.shape[2]] = cast


def _folders(path: Path, key: str) -> list[Path]:
    element = path / "images" / key
    ome = json.loads((element / "zarr.json").read_bytes())["attributes"]["ome"]
    return [element / level["path"] for level in ome["multiscales"][0]["datasets"]]


def _stretch(folder: Path, shape: list[int], chunks: list[int]) -> None:
    meta = json.loads((folder / "zarr.json").read_bytes())
    # absent chunks read as the fill value, and what was never predicted must not read as zero
    meta |= {"shape": shape, "fill_value": "NaN"}
    meta["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    meta["codecs"] = [_BYTES, _blosc(np.dtype(meta["data_type"]).itemsize)]
    (folder / "zarr.json").write_text(json.dumps(meta), encoding="utf-8")
    shutil.rmtree(folder / "c", ignore_errors=True)  # of the corner's other chunks, were there any
