"""A small SpatialData object, results to put into it, and what is then in memory and on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from stpredict._spatialdata import table_rows
from stpredict._spatialdata._store import _raster, _results, _transaction

GENES = ["g4", "g1", "g3"]
RECORD: dict[str, Any] = {"model": "PixNet", "mpp": 1.0, "genes": GENES, "tiling": {"core_px": 512, "halo_px": 256},
                          "seed": 0, "amp": False, "encoder": None}  # fmt: skip
TURN = Affine([[0, -2, 5], [2, 0, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
RASTER = np.random.default_rng(1).normal(size=(3, 10, 16)).astype(np.float16)


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
        {"region": pd.Categorical(["spots"] * 10), "instance_id": np.array(ids)[order]},
        index=[f"row{i}" for i in order],
    )
    counts = ad.AnnData(
        rng.poisson(2.0, (10, 6)).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)])
    )
    parsed = TableModel.parse(counts, region="spots", region_key="region", instance_key="instance_id")
    return SpatialData(
        images={"image": he} if image else {}, shapes={"spots": spots}, tables={"table": parsed} if table else {}
    )


def backed(tmp_path: Path, **parts: bool) -> SpatialData:
    """The object read from a store ``slide.zarr``, copied from one that is written once beside `tmp_path`."""
    ready = tmp_path.parent / f"ready-{parts}.zarr"
    if not ready.exists():
        make_sdata(**parts).write(ready)
    shutil.copytree(ready, tmp_path / "slide.zarr")
    return read_zarr(tmp_path / "slide.zarr")


def make_layer(sdata: SpatialData, key: str = "pixnet", *, plus: float = 0.0) -> _results.TableEntry:
    """A layer whose value is 100 times the circle's number plus the gene's, with one circle off the tissue."""
    values = 100.0 * np.arange(10)[:, None] + np.array([4, 1, 3]) + plus
    values[7] = np.nan
    coverage = np.linspace(0, 1, 10)
    return _results.layer(
        sdata, "table", key, values=values, join=table_rows(sdata, "table", "spots"), columns=np.array([4, 1, 3]),
        coverage=coverage, val_pcc=np.array([0.4, 0.1, 0.3]), record=RECORD,
    )  # fmt: skip


def make_table(sdata: SpatialData, *, plus: float = 0.0) -> _results.TableElement:
    """A new table of the panel."""
    spots = sdata.shapes["spots"]
    xy = np.c_[spots.geometry.x, spots.geometry.y]
    table = _results.new_table(
        np.arange(30.0).reshape(10, 3) + plus, key="pixnet", genes=GENES, region="spots",
        instance_ids=spots.index.to_numpy(), centroids=xy, coverage=np.ones(10), val_pcc=np.zeros(3), record=RECORD,
    )  # fmt: skip
    return _results.TableElement("spots_pixnet", "pixnet", table, record=RECORD)


def fill(target: _raster.RasterTarget, values: np.ndarray, *, side: int = 8) -> None:
    """Write a raster region by region."""
    height, width = target.shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            rows, columns = slice(y, min(y + side, height)), slice(x, min(x + side, width))
            target.write(rows, columns, values[:, rows, columns])


def make_target(sdata: SpatialData, key: str = "pixnet", **options: Any) -> _raster.RasterTarget:
    """A raster of 3 genes, a quarter of the image's rows and columns: 10 x 16 px, or what is asked for."""
    places = _raster.raster_transformations(sdata.images["image"], scale=(4.0, 4.0))
    options = {"genes": GENES, "shape": (10, 16), "chunk_px": 4, **options}
    return _raster.RasterTarget(_transaction.open_store(sdata), key, transformations=places, **options)


def run_changes(sdata: SpatialData, target: _raster.RasterTarget, *, plus: float) -> list[_results.Change]:
    """What a run writes."""
    return [make_layer(sdata, plus=plus), make_table(sdata, plus=plus), target.image({"run": plus})]


def disk(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def memory(sdata: SpatialData) -> dict[str, Any]:
    """What an object holds: elements by identity, tables by content."""
    held: dict[str, Any] = {f"{kind}/{name}": id(element) for kind, name, element in sdata.gen_elements()}
    held["attrs"] = (id(sdata.attrs), repr(sdata.attrs))
    for name, table in sdata.tables.items():
        held[f"{name}/frames"] = table.obs.to_csv(), table.var.to_csv(), repr(table.uns)
        for place in ("layers", "obsm"):
            members = getattr(table, place)
            held[f"{name}/{place}"] = {key: np.asarray(members[key]).tobytes() for key in members if key is not None}
    return held


def predict(sdata: SpatialData, *, plus: float = 0.0, overwrite: bool = False) -> None:
    """A layer, a new table and a raster in one change; `plus` tells one run from another."""
    with make_target(sdata) as target:
        fill(target, RASTER + np.float16(plus))
        _results.commit(sdata, run_changes(sdata, target, plus=plus), overwrite=overwrite)


def holds(sdata: SpatialData, plus: float) -> tuple[bool, bool, bool]:
    """Whether layer, table and raster are whole and of that run."""
    expected = make_layer(sdata, plus=plus).values
    layer = sdata.tables["table"].layers.get("pixnet")
    panel, raster = sdata.tables.get("spots_pixnet"), sdata.images.get("pixnet")
    return (
        layer is not None and np.array_equal(layer, expected, equal_nan=True),
        panel is not None and np.array_equal(panel.X, make_table(sdata, plus=plus).table.X),
        raster is not None and np.array_equal(raster.to_numpy(), RASTER + np.float16(plus)),
    )
