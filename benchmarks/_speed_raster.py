"""Writing a raster: ours, with its pyramid, against SpatialData's write with two more scales."""

from __future__ import annotations

import tempfile
import timeit
from pathlib import Path

import dask.array as da
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from stpredict import _sdata

SIDE, N_GENES, CHUNK = 2560, 100, 256


def values(y: int, x: int) -> np.ndarray:
    """A smooth field with the digits of a prediction, the same for both sides."""
    at = np.arange(CHUNK) / 40
    field = np.sin(at[:, None] + y) * np.cos(at + x)
    noise = np.random.default_rng([y, x]).normal(0, 0.05, (N_GENES, CHUNK, CHUNK))
    return (field * np.linspace(0.2, 2, N_GENES)[:, None, None] + noise).astype(np.float16)


def ours(folder: Path) -> None:
    sdata = SpatialData()
    sdata.write(folder / "ours.zarr")
    target = _sdata.RasterTarget(
        sdata, "maps", genes=[f"g{i}" for i in range(N_GENES)], shape=(SIDE, SIDE), chunk_px=CHUNK,
        transformations={"global": Identity()},
    )  # fmt: skip
    with target:
        for y in range(0, SIDE, CHUNK):
            for x in range(0, SIDE, CHUNK):
                target.write(slice(y, y + CHUNK), slice(x, x + CHUNK), values(y // CHUNK, x // CHUNK))
        _sdata.commit(sdata, [target.image({})], overwrite=False)


def theirs(folder: Path) -> None:
    def block(block_info: dict) -> np.ndarray:
        _, y, x = block_info[None]["chunk-location"]
        return values(y, x)

    chunks = ((N_GENES,), (CHUNK,) * (SIDE // CHUNK), (CHUNK,) * (SIDE // CHUNK))
    lazy = da.map_blocks(block, chunks=chunks, dtype=np.float16, meta=np.empty((0, 0, 0), np.float16))
    image = Image2DModel.parse(lazy, dims=("c", "y", "x"), scale_factors=[2, 2])
    SpatialData(images={"maps": image}).write(folder / "theirs.zarr")


def table(rounds: int) -> str:
    seconds, sizes = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            seconds.append([timeit.timeit(lambda f=folder, w=write: w(f), number=1) for write in (ours, theirs)])
            stored = [sum(p.stat().st_size for p in (folder / f"{w}.zarr").rglob("*")) for w in ("ours", "theirs")]
            sizes.append(stored)
    one, other = np.median(seconds, axis=0)
    size = np.median(sizes, axis=0) / 2**20
    making = timeit.timeit(lambda: [values(y, x) for y in range(10) for x in range(10)], number=1)
    return (
        f"- {N_GENES} genes x {SIDE} x {SIDE} float16 and two more levels: SpatialData's write / ours "
        f"{other / one:.2f}x, making the values included in both ({making / one:.0%} of ours); on disk {size[0]:.0f} "
        f"against {size[1]:.0f} MB"
    )
