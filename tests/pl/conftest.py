"""A small section in the format of our readers, and closed figures after every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib

matplotlib.use("Agg")

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, BaseTransformation, Identity, Scale, Sequence

HEIGHT, WIDTH, MPP, STEP = 96, 128, 2.0, 4
GENES = ["GNAS", "SCD", "C3", "ERBB2", "FASN"]
N_SPOTS = 24


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    """No figure outlives its test, nobody shows one, and no verb touches rcParams."""
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def systems(first: BaseTransformation) -> dict[str, BaseTransformation]:
    """The coordinate systems of our readers, after a transformation to image pixels."""
    um = Scale([MPP, MPP], axes=("x", "y"))
    return {"global": first, "micrometers": Sequence([first, um])}


def _table(rng: np.random.Generator, order: np.ndarray, xy: np.ndarray) -> AnnData:
    counts = rng.poisson(np.linspace(20, 400, len(GENES)), (N_SPOTS, len(GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * N_SPOTS), "instance_id": [f"s{i}" for i in order]},
        index=[f"s{i}" for i in order],
    )
    table = AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES), obsm={"spatial": xy[order]})
    layer = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4) + rng.normal(0, 0.2, counts.shape)
    layer[:, 4] = np.nan  # FASN is outside the panel
    table.layers["pixnet"] = layer.astype(np.float32)
    table.var["pixnet"] = [True, True, True, True, False]
    table.uns["stpredict"] = {"pixnet": {"target": "log1p_cp10k"}}
    return TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


@pytest.fixture
def make_sdata() -> Callable[..., SpatialData]:
    """Sections whose table rows are shuffled against the shapes; `turn` is a rotation of all elements in degrees."""

    def make(*, turn: float = 0.0, seed: int = 0) -> SpatialData:
        rng = np.random.default_rng(seed)
        a = np.deg2rad(turn)
        turned: BaseTransformation = Identity()
        if turn:
            matrix = [[np.cos(a), -np.sin(a), 30.0], [np.sin(a), np.cos(a), -7.0], [0, 0, 1]]
            turned = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
        pixels = rng.integers(120, 250, (3, HEIGHT, WIDTH), dtype=np.uint8)
        image = Image2DModel.parse(
            pixels,
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            scale_factors=[2, 2],
            transformations=systems(turned),
        )
        x, y = np.meshgrid(np.arange(6) * 20 + 14, np.arange(4) * 22 + 15)
        xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
        spots = gpd.GeoDataFrame(
            {"radius": 7.0}, geometry=[Point(*p) for p in xy], index=[f"s{i}" for i in range(N_SPOTS)]
        )
        values = rng.normal(2.0, 0.5, (len(GENES), HEIGHT // STEP, WIDTH // STEP)).astype(np.float16)
        values[:, :, :3] = np.nan
        to_image = Sequence([Scale([STEP, STEP], axes=("x", "y")), turned])
        raster = Image2DModel.parse(values, dims=("c", "y", "x"), c_coords=GENES, transformations=systems(to_image))
        sdata = SpatialData(
            images={"image": image, "pixnet": raster},
            shapes={"spots": ShapesModel.parse(spots, transformations=systems(turned))},
            tables={"table": _table(rng, rng.permutation(N_SPOTS), xy)},
        )
        sdata.attrs["stpredict"] = {"images/pixnet": {"target": "log1p_cp10k", "link": "identity"}}
        return sdata

    return make


@pytest.fixture
def bare(make_sdata: Callable[..., SpatialData]) -> SpatialData:
    """The section without its H&E: a map of it takes a tenth of the time."""
    sdata = make_sdata()
    del sdata.images["image"]
    return sdata


@pytest.fixture
def sdata(make_sdata: Callable[..., SpatialData]) -> SpatialData:
    return make_sdata()
