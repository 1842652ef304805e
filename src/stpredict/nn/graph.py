"""A graph over the shapes of a section: who speaks to whom, and layers that listen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn

ROWS = 512  # shapes whose distances to all others are held at once
KINDS = 2  # of edges: near on the grid, alike in their features
TIES = 8  # features by which shapes of one place are told apart


class GraphLayer(nn.Module):
    """LeakyReLU of the mean over the kinds of edges of: own weights x a shape + others' weights x its neighbours' mean.

    A shape without neighbours of a kind sees zeros there. Source: a HeteroConv of two SAGEConv, mean over both.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(n_in, n_out, bias=False) for _ in range(KINDS))
        self.others = nn.ModuleList(nn.Linear(n_in, n_out) for _ in range(KINDS))

    def forward(self, x: Float[Tensor, "n a"], near: Int[Tensor, "2 e"], alike: Int[Tensor, "2 k"]) -> Tensor:
        """(n, n_out); an edge is a source and a target, and speaks to its target."""
        kinds = zip(self.own, self.others, (near, alike), strict=True)
        parts = [own(x) + others(neighbour_mean(x, among)) for own, others, among in kinds]
        return F.leaky_relu(torch.stack(parts).mean(dim=0), 0.2)


def neighbour_mean(x: Float[Tensor, "n a"], among: Int[Tensor, "2 e"]) -> Float[Tensor, "n a"]:
    """The mean of the sources of every target's edges; 0 where there are none."""
    source, target = among
    total = torch.zeros_like(x).index_add(0, target, x[source])
    count = torch.bincount(target, minlength=len(x)).clamp_min(1)
    return total / count[:, None].to(x)


def edges(
    features: NDArray[np.floating], places: NDArray[np.int64], *, n_near: int, n_alike: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges (2, e) of source and target: from the near shapes on the grid, and from those with the most alike features.

    features, places
        (n, f) and (n, 2) row and column of the shapes of one section.
    n_near, n_alike
        Most shapes within a distance of sqrt(2) that speak to one, nearest first; and how many by Euclidean distance of
        features. Ties go by row, column and features, so that the order of the shapes does not matter.
    """
    order = np.lexsort((*features.T[:TIES], places[:, 1], places[:, 0]))
    x, at = features[order].astype(np.float64), places[order]
    pairs = KDTree(at).query_pairs(1.5, output_type="ndarray")
    target, source = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64).T
    near = _first(target, source, np.square(at[source] - at[target]).sum(axis=1).astype(np.float64), n_near)
    alike = np.concatenate([_alike(x, k, n_alike) for k in range(0, len(x), ROWS)], axis=1)
    return order[near], order[alike]


def _alike(x: NDArray[np.float64], start: int, n: int) -> NDArray[np.int64]:
    """Edges to the rows `start`, ... from the `n` rows of the least distance each."""
    some, n = x[start : start + ROWS], min(n, len(x) - 1)
    squares = np.square(x).sum(axis=1)
    # rounded, so that distances that are equal but for the order of sums are ties
    apart = np.round(squares[start : start + ROWS, None] + squares - 2 * some @ x.T, 6)
    apart[np.arange(len(some)), start + np.arange(len(some))] = np.inf
    if n < 1:
        return np.empty((2, 0), dtype=np.int64)
    target, source = np.nonzero(apart <= np.partition(apart, n - 1, axis=1)[:, n - 1 : n])
    return _first(target + start, source, apart[target, source], n)


def _first(
    target: NDArray[np.int64], source: NDArray[np.int64], distance: NDArray[np.float64], n: int
) -> NDArray[np.int64]:
    """The `n` edges of the least distance to every target, ties by source: (2, e), source and target."""
    order = np.lexsort((source, distance, target))
    target, source = target[order], source[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    return np.stack([source, target])[:, rank < n]
