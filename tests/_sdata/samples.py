"""A small SpatialData object, and results to put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from stpredict._sdata import _results, _store_raster, table_rows

GENES = ["g4", "g1", "g3"]
RECORD: dict[str, Any] = {"model": "PixNet", "mpp": 1.0, "genes": GENES, "tiling": {"core_px": 512, "halo_px": 256},
                          "seed": 0, "amp": False, "encoder": None}  # fmt: skip
TURN = Affine([[0, -2, 5], [2, 0, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def make_sdata(*, image: bool = True, table: bool = True) -> SpatialData:
    """An image of 40 x 64 px, ten circles, and a table whose rows are in another order than the circles."""
    rng = np.random.default_rng(0)
    ids = [f"spot{i}" for i in range(10)]
    pixels = rng.integers(0, 255, (3, 40, 64), dtype=np.uint8)
    systems = {"global": Identity(), "micrometers": Scale([0.5, 0.25], axes=("x", "y")), "turned": TURN}
    he = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2], transformations=systems
    )
    xy = np.c_[rng.uniform(4, 60, 10), rng.uniform(4, 36, 10)]
    spots = ShapesModel.parse(xy, geometry=0, radius=3.0, index=pd.Index(ids), transformations={"global": Identity()})
    order = rng.permutation(10)
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * 10), "instance_id": np.array(ids)[order]}, index=[f"row{i}" for i in order]
    )
    counts = ad.AnnData(
        rng.poisson(2.0, (10, 6)).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)])
    )
    parsed = TableModel.parse(counts, region="spots", region_key="region", instance_key="instance_id")
    return SpatialData(
        images={"image": he} if image else {}, shapes={"spots": spots}, tables={"table": parsed} if table else {}
    )


def backed(tmp_path: Path, **parts: bool) -> SpatialData:
    """The object read from a store."""
    make_sdata(**parts).write(tmp_path / "slide.zarr")
    return read_zarr(tmp_path / "slide.zarr")


def make_layer(sdata: SpatialData, key: str = "pixnet", *, plus: float = 0.0) -> _results.Entry:
    """A layer whose value is 100 times the circle's number plus the gene's, with one circle off the tissue."""
    values = 100.0 * np.arange(10)[:, None] + np.array([4, 1, 3]) + plus
    values[7] = np.nan
    coverage = np.linspace(0, 1, 10)
    return _results.layer(
        sdata, "table", key, values=values, join=table_rows(sdata, "table", "spots"), columns=np.array([4, 1, 3]),
        coverage=coverage, val_pcc=np.array([0.4, 0.1, 0.3]), record=RECORD,
    )  # fmt: skip


def make_table(sdata: SpatialData, *, plus: float = 0.0) -> _results.Table:
    """A new table of the panel."""
    spots = sdata.shapes["spots"]
    xy = np.c_[spots.geometry.x, spots.geometry.y]
    table = _results.new_table(
        np.arange(30.0).reshape(10, 3) + plus, key="pixnet", genes=GENES, region="spots", instance_ids=spots.index.to_numpy(),
        centroids=xy, coverage=np.ones(10), val_pcc=np.zeros(3), record=RECORD,
    )  # fmt: skip
    return _results.Table("spots_pixnet", "pixnet", table, record=RECORD)


def fill(target: _store_raster.RasterTarget, values: np.ndarray, *, side: int = 8) -> None:
    """Write a raster region by region."""
    height, width = target.shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            rows, columns = slice(y, min(y + side, height)), slice(x, min(x + side, width))
            target.write(rows, columns, values[:, rows, columns])


def make_target(sdata: SpatialData, key: str = "pixnet", **options: Any) -> _store_raster.RasterTarget:
    """A raster of 3 genes, a quarter of the image's rows and columns: 10 x 16 px, or what is asked for."""
    places = _store_raster.raster_transformations(sdata.images["image"], scale=(4.0, 4.0))
    options = {"genes": GENES, "shape": (10, 16), "chunk_px": 4, **options}
    return _store_raster.RasterTarget(sdata, key, transformations=places, **options)
