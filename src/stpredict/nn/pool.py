"""Differentiable pooling of a map inside shapes, weighted by covered area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Pooling(NamedTuple):
    """Which cells of a batch of maps weigh how much in which shape: a sparse (n, b * cells) matrix, entry by entry.

    Entries in place of a sparse tensor: sums by index have a gradient on every device and need no sorted columns.

    Parameters
    ----------
    shape : Int[Tensor, " entries"]
        Row of each entry: a shape of the batch.
    cell : Int[Tensor, " entries"]
        Column of each entry: a cell of the batch's maps, one map after the other.
    weight : Float[Tensor, " entries"]
        Its weight.
    n_shapes : int
        Number of rows n.
    """

    shape: Int[Tensor, " entries"]
    cell: Int[Tensor, " entries"]
    weight: Float[Tensor, " entries"]
    n_shapes: int

    def to(self, device: torch.device | str) -> "Pooling":  # noqa: UP037 (checked at run time, before the class is there)
        """The same entries on another device.

        Parameters
        ----------
        device : torch.device | str
            The device.

        Returns
        -------
        Pooling
            The entries there.
        """
        return self._replace(**{key: getattr(self, key).to(device) for key in ("shape", "cell", "weight")})


def pooling(covered: Sequence[sp.csr_array], *, reduction: Literal["mean", "sum"], mpp: float = 1.0) -> Pooling:
    """The weights that pool the maps of a batch inside their shapes.

    Parameters
    ----------
    covered : Sequence[sp.csr_array]
        For each map of the batch the (n_i, cells) covered areas in square pixels.
    reduction : {"mean", "sum"}
        "mean": the weights of a shape sum to one, the area-weighted mean. "sum": areas in square micrometres.
    mpp : float, default 1.0
        Micrometres per pixel, for "sum".

    Returns
    -------
    Pooling
        The weights, shapes in the order of the maps.
    """
    stacked = sp.csr_array(sp.block_diag(covered, format="csr"))
    total = np.asarray(stacked.sum(axis=1)).ravel()
    row = np.repeat(np.arange(stacked.shape[0]), np.diff(stacked.indptr))
    weight = stacked.data / total[row] if reduction == "mean" else stacked.data * mpp**2
    return Pooling(
        torch.from_numpy(row.astype(np.int64)),
        torch.from_numpy(stacked.indices.astype(np.int64)),
        torch.from_numpy(weight.astype(np.float32)),
        stacked.shape[0],
    )


def pool(maps: Float[Tensor, "b d h w"], into: Pooling) -> Float[Tensor, "n d"]:
    """The maps of a batch pooled inside shapes, in float32.

    Parameters
    ----------
    maps : Float[Tensor, "b d h w"]
        The maps of a batch.
    into : Pooling
        What `pooling` returned.

    Returns
    -------
    Float[Tensor, "n d"]
        A row a shape; 0 for a shape without any covered cell.
    """
    rows = maps.movedim(1, -1).reshape(-1, maps.shape[1]).float()  # (b h w, d)
    out = rows.new_zeros(into.n_shapes, rows.shape[1])
    return out.index_add(0, into.shape, rows[into.cell] * into.weight[:, None])
