"""Small sections: an image, a row of spots, raw counts of named genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale


def make_image(height=40, width=90, *, mpp=0.5, scale_factors=None):
    systems = {"global": Identity()} | ({} if mpp is None else {"micrometers": Scale([mpp, mpp], axes=("x", "y"))})
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    return Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=systems, scale_factors=scale_factors
    )


def make_section(counts, genes, **obs):
    """One spot for each row of counts, wholly on the image; `obs` are more columns."""
    counts = np.asarray(counts, dtype=np.float32)
    xy = np.stack([10.0 + 20.0 * np.arange(len(counts)), np.full(len(counts), 15.0)], axis=1)
    ids = pd.Index([f"s{i}" for i in range(len(counts))])
    shapes = ShapesModel.parse(xy, geometry=0, radius=4.0, index=ids)
    frame = pd.DataFrame({"region": pd.Categorical(["spots"] * len(ids)), "instance_id": ids} | obs, index=ids)
    table = AnnData(sp.csr_matrix(counts), obs=frame, var=pd.DataFrame(index=list(genes)))
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    image = make_image(width=20 * len(counts) + 20)
    return SpatialData(images={"image": image}, shapes={"spots": shapes}, tables={"table": table})
