"""A small SpatialData whose colour is its expression, and models that were trained on such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

GENES = ("red", "green", "blue", "other")


def colour_sdata(
    seed: int = 0, *, size: int = 512, n: int = 30, mpp: float = 1.0, shuffle: bool = False
) -> SpatialData:
    """Image "image", circles "spots", counts in "table"; its rows may come in another order than the shapes."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 230, (3, size // 32, size // 32))
    pixels = np.rint(np.kron(coarse, np.ones((1, 32, 32)))).astype(np.uint8)
    centres = rng.uniform(40, size - 40, (n, 2))  # (y, x)
    systems = {"global": Identity(), "micrometers": Scale([mpp, mpp], axes=("x", "y"))}
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=dict(systems))
    frame = GeoDataFrame({"radius": np.full(n, 24.0)}, geometry=[shapely.Point(x, y) for y, x in centres])
    frame.index = [f"s{i}" for i in range(n)]
    shapes = ShapesModel.parse(frame, transformations=dict(systems))
    return SpatialData(
        images={"image": image}, shapes={"spots": shapes}, tables={"table": _table(pixels, centres, rng, shuffle)}
    )


def _table(pixels: np.ndarray, centres: np.ndarray, rng: np.random.Generator, shuffle: bool) -> AnnData:
    y, x = np.ogrid[: pixels.shape[1], : pixels.shape[2]]
    disks = [(y + 0.5 - cy) ** 2 + (x + 0.5 - cx) ** 2 <= 24**2 for cy, cx in centres]
    colour = np.array([pixels[:, disk].mean(axis=1) for disk in disks])
    counts = np.column_stack([np.rint(colour * 20), 20_000 - np.rint(colour * 20).sum(axis=1)]).astype(np.float32)
    obs = pd.DataFrame({"region": "spots", "instance_id": [f"s{i}" for i in range(len(centres))]})
    obs.index = obs["instance_id"].astype(str).to_numpy()
    obs["region"] = obs["region"].astype("category")
    table = AnnData(
        csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)), obsm={"spatial": centres[:, ::-1]}
    )
    if shuffle:
        table = table[rng.permutation(len(centres))].copy()
    return TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


@pytest.fixture(scope="session")
def files_of():
    """A function of a folder: all of its files by their path in it, with their bytes."""

    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return files


@pytest.fixture(scope="session")
def make():
    """`colour_sdata`, a function of (seed, *, size, n, mpp, shuffle)."""
    return colour_sdata


@pytest.fixture
def sdata():
    """An object whose table has its rows in another order than the shapes."""
    return colour_sdata(7, shuffle=True)


@pytest.fixture(scope="session")
def ridge():
    """Ridge on three colour objects."""
    import stpredict as stp

    model = stp.models.Ridge(GENES[:3])
    stp.tl.train([colour_sdata(seed) for seed in range(3)], model, val=0, progress=False)
    return model


@pytest.fixture(scope="session")
def pixnet():
    """A small PixNet after two epochs on colour objects, at 1 um per pixel."""
    import torch

    import stpredict as stp

    torch.manual_seed(0)
    config = stp.models.PixNetConfig(
        genes=GENES[:3],
        mpp=1.0,
        encoder="mobilenetv2_035",
        filters=(8, 8, 12, 16),
        window_px=256,
        core_px=512,
        halo_px=256,
        context_rank=0,
    )  # the context, which doubles the encoder's work, has tests of its own in tests/models
    model = stp.models.PixNet(config=config)
    sections = [colour_sdata(seed) for seed in range(2)]
    stp.tl.train(sections, model, val=0.2, max_epochs=2, batch_size=4, device="cpu", precision="32", progress=False)
    return model


@pytest.fixture(scope="session")
def peeking():
    """A function of a model and a list, into which the model then writes the measured values of every batch it sees."""

    def watched(model, seen):
        latent = model.latent

        def look(batch):
            seen.append(batch.expression)
            return latent(batch)

        model.latent = look
        return model

    return watched
