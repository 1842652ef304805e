"""The arrays of a stored raster: its full resolution, and the coarser levels of its pyramid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
import zarr
from spatialdata.models import Image2DModel

from stpredict._sdata._store_element import write_aside

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from spatialdata.transformations import BaseTransformation

COARSEST_PX = 1024  # the largest side of the last level, where chunks allow
SMALLEST_CHUNK_PX = 16
_CHUNK_BYTES = 2**20  # a chunk holds few genes, so that a map of one gene reads little of the others
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def _blosc(typesize: int) -> dict[str, Any]:
    """Zarr's codec for numbers: their high bytes, which repeat, beside each other, then Zstandard."""
    how = {"typesize": typesize, "cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
    return {"name": "blosc", "configuration": how}


def n_levels(shape: tuple[int, int], chunk_px: int) -> int:
    """How many levels, each half as fine as the one before, a raster of this (height, width) has.

    A chunk of a level comes from one chunk of the level before, so that each is written once.
    """
    n, side = 1, max(shape)
    while side > COARSEST_PX and chunk_px % 2 == 0 and chunk_px // 2 >= SMALLEST_CHUNK_PX:
        n, side, chunk_px = n + 1, side // 2, chunk_px // 2
    return n


def chunk_shape(n_genes: int, shape: tuple[int, int], chunk_px: int, dtype: DTypeLike) -> tuple[int, int, int]:
    """(genes, height, width) of a stored chunk."""
    side = (min(chunk_px, shape[0]), min(chunk_px, shape[1]))
    genes = _CHUNK_BYTES // (side[0] * side[1] * np.dtype(dtype).itemsize)
    return (min(max(1, genes), n_genes), *side)


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """(g, h // 2, w // 2) means of 2 x 2 pixels; an odd last row or column is left out, as SpatialData does."""
    _, h, w = values.shape
    values = values[:, : h // 2 * 2, : w // 2 * 2].astype(np.float32, copy=False)
    pairs = values[:, :, ::2] + values[:, :, 1::2]
    out = pairs[:, ::2] + pairs[:, 1::2]
    out *= np.float32(0.25)
    return out


def create_levels(
    path: Path, key: str, *, genes: Sequence[str], shape: tuple[int, int], chunk_px: int, dtype: DTypeLike,
    transformations: Mapping[str, BaseTransformation],
) -> None:  # fmt: skip
    """Write the arrays, all NaN, into a new store at `path`; spatialdata writes one chunk which is then stretched."""
    n = n_levels(shape, chunk_px)
    chunks = chunk_shape(len(genes), shape, chunk_px, dtype)
    corner = da.zeros((len(genes), *chunks[1:]), dtype=dtype, chunks=chunks)
    element = Image2DModel.parse(
        corner, dims=("c", "y", "x"), c_coords=list(genes), transformations=dict(transformations),
        scale_factors=[2] * (n - 1) or None,
    )  # fmt: skip
    write_aside(path, images={key: element})
    for k, folder in enumerate(_folders(path, key)):
        side = (chunks[1] >> k, chunks[2] >> k)
        form = [len(genes), shape[0] >> k, shape[1] >> k]
        stored = chunks if k == 0 else chunk_shape(len(genes), side, chunk_px >> k, dtype)
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
                cast = values.astype(array.dtype)
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
