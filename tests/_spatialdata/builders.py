"""Small SpatialData objects whose every part is known."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

HEIGHT, WIDTH = 200, 240


def systems(mpp=0.5):
    return {"global": Identity()} | ({} if mpp is None else {"micrometers": Scale([mpp, mpp], axes=("x", "y"))})


def rgb(height=HEIGHT, width=WIDTH, *, transformations=None, scale_factors=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=scale_factors,
        transformations=transformations or systems(),
    )  # fmt: skip


def circles(xy, radius, *, ids=None, transformations=None):
    ids = [f"s{i}" for i in range(len(xy))] if ids is None else ids
    return ShapesModel.parse(
        np.asarray(xy, float),
        geometry=0,
        radius=radius,
        index=pd.Index(ids),
        transformations=transformations or systems(),
    )


def polygons(geometry, *, ids=None, transformations=None):
    frame = gpd.GeoDataFrame(geometry=list(geometry), index=None if ids is None else pd.Index(ids))
    return ShapesModel.parse(frame, transformations=transformations or systems())


def square_grid(n_y=4, n_x=5, *, pitch=40.0, first=30.0):
    y, x = np.mgrid[:n_y, :n_x] * pitch + first
    return np.stack([x.ravel(), y.ravel()], axis=1)


def counts_table(ids, *, region="spots", counts=None, genes=None, seed=0, **obs):
    """Raw counts of 12 genes, about 200 each: every spot has enough."""
    counts = np.random.default_rng(seed).poisson(200, (len(ids), 12)) if counts is None else np.asarray(counts)
    genes = [f"G{i}" for i in range(counts.shape[1])] if genes is None else genes
    region = [region] * len(ids) if isinstance(region, str) else list(region)
    frame = pd.DataFrame(
        {"region": pd.Categorical(region), "instance_id": ids} | obs, index=[f"row{i}" for i in range(len(ids))]
    )
    table = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=frame, var=pd.DataFrame(index=genes))
    return TableModel.parse(table, region=sorted(set(region)), region_key="region", instance_key="instance_id")


def mask_labels(mask, *, transformations=None, scale_factors=None):
    return Labels2DModel.parse(
        np.asarray(mask).astype(np.int32), dims=("y", "x"), scale_factors=scale_factors,
        transformations=transformations or systems(),
    )  # fmt: skip


def matrix(angle=0.3, scale=(1.0, 1.0), shear=0.0, flip=False, shift=(0.0, 0.0)):
    """A 3x3 affine on (x, y, 1): shear, then scale, then flip of x, then turn, then shift."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out = np.eye(3)
    out[:2, :2] = turn @ np.diag([-1.0 if flip else 1.0, 1.0]) @ np.diag(scale) @ np.array([[1.0, shear], [0.0, 1.0]])
    out[:2, 2] = shift
    return out


def boxes(*bounds):
    return [shapely.box(*each) for each in bounds]


def make_spots(**elements):
    """20 circles of radius 10 at a pitch of 40 px, wholly on a 200 x 240 px image of 0.5 um per pixel, 12 genes."""
    shapes = circles(square_grid(), 10.0)
    parts = {"images": {"image": rgb()}, "shapes": {"spots": shapes}, "tables": {"table": counts_table(shapes.index)}}
    return SpatialData(**{kind: part | elements.get(kind, {}) for kind, part in ({"labels": {}} | parts).items()})
