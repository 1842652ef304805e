"""Writing a raster: ours, with its pyramid, against SpatialData's write with two more scales."""

from __future__ import annotations

import tempfile
import timeit
from functools import cache
from pathlib import Path

import dask.array as da
import numpy as np
from _speed_predict import MODEL, runtime, section, slide
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from stpredict import _inference, _spatialdata
from stpredict.models import load

SIDE, N_GENES, CHUNK = 2560, 100, 256


@cache
def predicted() -> np.ndarray:
    """(genes, height, width) float32 of 11 bits: whole chunks of the map that `pixnet-her2st` makes of a section."""
    model = load(MODEL)
    found = np.empty((N_GENES, 2 * CHUNK, 2 * CHUNK), np.float32)

    def keep(y: slice, x: slice, part: np.ndarray) -> None:
        found[:, y, x] = part.astype(np.float16)

    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", round(2 * CHUNK * model.stride))
        where = section(Path(folder) / "s.zarr", model.mpp)
        _inference.predict(model, where, model.genes[:N_GENES], runtime=runtime("32", model), raster=keep)
    return found


def values(y: int, x: int) -> np.ndarray:
    """One chunk, the same for both sides."""
    y, x = y % 2 * CHUNK, x % 2 * CHUNK
    return predicted()[:, y : y + CHUNK, x : x + CHUNK]


def ours(folder: Path) -> None:
    sdata = SpatialData()
    sdata.write(folder / "ours.zarr")
    target = _spatialdata.RasterTarget(
        _spatialdata.open_store(sdata), "maps", genes=[f"g{i}" for i in range(N_GENES)], shape=(SIDE, SIDE),
        transformations={"global": Identity()}, chunk_px=CHUNK,
    )  # fmt: skip
    with target:
        for y in range(0, SIDE, CHUNK):
            for x in range(0, SIDE, CHUNK):
                target.write(slice(y, y + CHUNK), slice(x, x + CHUNK), values(y // CHUNK, x // CHUNK))
        _spatialdata.commit(sdata, [target.image({})], overwrite=False)


def theirs(folder: Path) -> None:
    def block(block_info: dict) -> np.ndarray:
        _, y, x = block_info[None]["chunk-location"]
        return values(y, x)

    chunks = ((N_GENES,), (CHUNK,) * (SIDE // CHUNK), (CHUNK,) * (SIDE // CHUNK))
    lazy = da.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    image = Image2DModel.parse(lazy, dims=("c", "y", "x"), scale_factors=[2, 2])
    SpatialData(images={"maps": image}).write(folder / "theirs.zarr")


def table(rounds: int) -> str:
    seconds, sizes = [], []
    predicted()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            seconds.append([timeit.timeit(lambda f=folder, w=write: w(f), number=1) for write in (ours, theirs)])
            stored = [sum(p.stat().st_size for p in (folder / f"{w}.zarr").rglob("*")) for w in ("ours", "theirs")]
            sizes.append(stored)
    one, other = np.median(seconds, axis=0)
    size = np.median(sizes, axis=0) / 2**20
    return (
        f"- {N_GENES} genes x {SIDE} x {SIDE} float32 of 11 bits, made before, two more levels: SpatialData's write / "
        f"ours {other / one:.2f}x; on disk {size[0]:.0f} against {size[1]:.0f} MB"
    )
