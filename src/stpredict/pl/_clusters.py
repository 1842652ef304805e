"""Neighbours, Leiden clusters and UMAP of an embedding, by scanpy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray


def neighbour_graph(values: NDArray[np.float32], *, n_neighbors: int, seed: int) -> AnnData:
    """The nearest neighbours of (n, d) rows by Euclidean distance, exactly, in an object of their own.

    Raises ValueError for fewer rows than a neighbourhood has, ImportError without scanpy.
    """
    if not 2 <= n_neighbors < len(values):
        raise ValueError(
            f"n_neighbors={n_neighbors} must be at least 2 and below the number of rows that have values, "
            f"{len(values)}. Lower it, or embed more shapes."
        )
    graph = AnnData(np.array(values, dtype=np.float32))
    # by name: from 4,096 rows on, scanpy 1.12 would ask pynndescent 0.7, whose answer it cannot read
    _scanpy().pp.neighbors(graph, n_neighbors=n_neighbors, use_rep="X", transformer="sklearn", random_state=seed)
    return graph


def leiden(graph: AnnData, *, resolution: float, seed: int) -> NDArray[np.int64]:
    """(n,) cluster of each row, numbered from 0, the largest first."""
    if not resolution > 0:
        raise ValueError(f"resolution={resolution} must be above 0: the larger, the more clusters.")
    _scanpy().tl.leiden(
        graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed
    )
    codes = graph.obs["leiden"].astype(int).to_numpy()
    by_size = np.argsort(-np.bincount(codes), kind="stable")
    return np.argsort(by_size)[codes]


def umap(graph: AnnData, *, seed: int) -> NDArray[np.float64]:
    """(n, 2) UMAP coordinates of the rows."""
    _scanpy().tl.umap(graph, random_state=seed)
    return np.asarray(graph.obsm["X_umap"], dtype=np.float64)


def _scanpy() -> ModuleType:
    try:
        importlib.import_module("igraph")  # what leiden runs on
        return importlib.import_module("scanpy")
    except ImportError as error:
        raise ImportError(
            f"clusters and UMAP are made by scanpy and igraph, and {error.name!r} is not installed. "
            "Run: pip install 'stpredict[analysis]'"
        ) from error
