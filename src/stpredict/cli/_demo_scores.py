"""The demo's table: a predicted section against its measured spots, and against its truth at every scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from stpredict import datasets, metrics, pp, tl
from stpredict._spatialdata import SectionSpec, usable_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict.models import Model

SCALES_UM = (8.0, 16.0, 55.0, 110.0)
SQUARE_BELOW_UM = 50.0  # pixels are square, spots are round
PITCH_UM = 50.0  # of the shapes that are scored: some 1,700 of a whole section
ORACLE, ORACLE_MAP, NEAREST = "oracle", "oracle's map", "nearest spot"
SPOT_SCORES = {"pcc_f": "PCC@F", "pcc_s": "PCC@S", "pcc_m": "PCC@M", "mse": "MSE"}


def scores(
    test: SpatialData,
    *,
    raster_key: str,
    patch_models: Mapping[str, Model],
    genes: Sequence[str],
    scales_um: Sequence[float] = SCALES_UM,
) -> pd.DataFrame:
    """The demo's one table, a row a predictor.

    Parameters
    ----------
    test : SpatialData
        A toy section with a predicted raster, and a layer of the same name and of the name of every patch model.
    raster_key : str
        The image of gene maps that is read at every scale.
    patch_models : Mapping[str, Model]
        Trained models without a map, by name: they predict once, as a patch does not depend on the size of the shape.
    genes : Sequence[str]
        Which genes, all of them predicted.

    Notes
    -----
    Columns: PCC@F, PCC@S, PCC@M, MSE over the measured spots, then PCC@M over pixels or shapes of each scale. Beside
    the models stand `oracle`, the true rate pooled in each shape; `oracle's map`, the true log rate at the raster's own
    pixels, read as the raster is; and `nearest spot`, where each pixel copies its nearest measured spot.
    """
    layers = [raster_key, *patch_models]
    rows = {key: tl.evaluate(test, key, shapes_key="spots").attrs["summary"].iloc[0] for key in layers}
    rows[ORACLE] = datasets.toy_oracle(test, genes=genes)
    spots = pd.DataFrame({name: row[list(SPOT_SCORES)] for name, row in rows.items()}).T.rename(columns=SPOT_SCORES)
    truth = truth_scores(test, raster_key=raster_key, patch_models=patch_models, genes=genes, scales_um=scales_um)
    columns = {"55 um spots, as measured": spots, "truth: PCC@M at": truth}
    return pd.concat(columns, axis=1).reindex([*layers, NEAREST, ORACLE_MAP, ORACLE])


def truth_scores(
    test: SpatialData,
    *,
    raster_key: str,
    patch_models: Mapping[str, Model],
    genes: Sequence[str],
    scales_um: Sequence[float] = SCALES_UM,
    pitch_um: float = PITCH_UM,
) -> pd.DataFrame:
    """PCC@M against the truth inside shapes of several sizes, a column a size; `test` is not changed.

    Squares (below 50 um) and circles around the same centres, every `pitch_um`, where the largest lies on tissue.
    A patch model is asked once: its patch is the same around a centre, whatever the size of the shape.
    """
    probe = _probe(test, raster_key, genes)
    maps = {raster_key: raster_key, NEAREST: "nearest", ORACLE_MAP: "log_rate"}
    keys = {size: _add_shapes(probe, size, largest=max(scales_um), pitch_um=pitch_um) for size in scales_um}
    asked = {name: _ask(probe, model, keys[min(scales_um)], name, genes) for name, model in patch_models.items()}
    columns = {}
    for size, key in keys.items():
        true = datasets.toy_truth_shapes(probe, key, genes=genes).to_numpy()
        values = {name: _read(probe, map_key, key, genes) for name, map_key in maps.items()} | asked | {ORACLE: true}
        columns[f"{size:g} um"] = {name: metrics.summary(pred, true)["pcc_m"] for name, pred in values.items()}
    return pd.DataFrame(columns)


def nearest_spot_map(test: SpatialData, raster_key: str, genes: Sequence[str]) -> NDArray[np.float32]:
    """(g, y, x) log1p cp10k on the raster's grid: each pixel has the value of its nearest usable spot."""
    rows, _ = usable_rows(test, SectionSpec(image_key="image", shapes_key="spots", table_name="table"))
    table = test.tables["table"][rows]
    totals = np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()
    measured = metrics.log1p_cp10k(table[:, list(genes)].X.toarray(), totals)
    raster = test.images[raster_key]
    matrix = get_transformation(raster, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    y, x = np.indices((raster.sizes["y"], raster.sizes["x"])) + 0.5
    xy = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)]) @ matrix.T
    _, nearest = cKDTree(table.obsm["spatial"]).query(xy[:, :2])
    return measured[nearest].T.reshape(len(genes), *x.shape).astype(np.float32)


def _probe(test: SpatialData, raster_key: str, genes: Sequence[str]) -> SpatialData:
    """The section with two more maps on the raster's grid, as an object of its own."""
    probe = SpatialData(images=dict(test.images), shapes=dict(test.shapes), tables=dict(test.tables))
    raster = test.images[raster_key]
    systems = get_transformation(raster, get_all=True)
    step = systems["micrometers"].to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    log_rate = datasets.toy_truth(test, genes=genes, mpp=step).to_numpy()
    for key, values in (("nearest", nearest_spot_map(test, raster_key, genes)), ("log_rate", log_rate)):
        values = values[:, : raster.sizes["y"], : raster.sizes["x"]]
        probe.images[key] = Image2DModel.parse(
            values, dims=("c", "y", "x"), c_coords=list(genes), transformations=dict(systems)
        )
    return probe


def _add_shapes(probe: SpatialData, size_um: float, *, largest: float, pitch_um: float) -> str:
    """Write shapes of one size and return their key; the centres are the same for every size."""
    key = f"at{size_um:g}um"
    pp.tile_grid(probe, diameter_um=largest, pitch_um=pitch_um, image_key="image", key_added=key)
    grid = probe.shapes.pop(key)
    whole = shapely.buffer(grid.geometry.to_numpy(), grid["radius"].to_numpy())
    grid = grid[shapely.within(whole, probe.shapes["tissue"].geometry.union_all())][["radius", "geometry"]]
    grid["radius"] *= size_um / largest
    if size_um < SQUARE_BELOW_UM:
        grid.geometry = shapely.buffer(grid.geometry.to_numpy(), grid["radius"].to_numpy(), cap_style="square")
        grid = grid.drop(columns="radius")
    probe.shapes[key] = grid
    return key


def _read(probe: SpatialData, raster_key: str, shapes_key: str, genes: Sequence[str]) -> NDArray[np.float32]:
    added = f"{shapes_key}_{raster_key}"
    tl.aggregate(probe, raster_key, shapes_key=shapes_key, genes=genes, table_added=added)
    return np.asarray(probe.tables.pop(added).X)


def _ask(probe: SpatialData, model: Model, shapes_key: str, name: str, genes: Sequence[str]) -> NDArray[np.float32]:
    added = f"{shapes_key}_{name}"
    tl.predict(
        probe, model, image_key="image", shapes_key=shapes_key, genes=genes, table_added=added, device="cpu",
        precision="32", progress=False,
    )  # fmt: skip
    return np.asarray(probe.tables.pop(added).X)
