"""Pooling of a map inside shapes: the differentiable side of `stpredict._coverage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor


def pooling_matrix(
    covered: Sequence[sp.csr_array], *, reduction: Literal["mean", "sum"], mpp: float = 1.0
) -> Tensor:
    """One sparse (n, b * cells) float32 tensor that pools the maps of a batch inside their shapes.

    covered
        For each map of the batch the (n_i, cells) covered areas in square pixels.
    reduction
        "mean": rows sum to one, the area-weighted mean. "sum": areas in square micrometres.
    """
    stacked = sp.block_diag(covered, format="csr")
    if reduction == "mean":
        total = np.asarray(stacked.sum(axis=1)).ravel()
        weight = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    else:
        weight = np.full(stacked.shape[0], mpp**2)
    stacked = sp.csr_array(sp.diags_array(weight) @ stacked)
    return torch.sparse_csr_tensor(
        torch.from_numpy(stacked.indptr.astype(np.int64)),
        torch.from_numpy(stacked.indices.astype(np.int64)),
        torch.from_numpy(stacked.data.astype(np.float32)),
        size=stacked.shape,
    )


def pool(maps: Float[Tensor, "b d h w"], matrix: Tensor) -> Float[Tensor, "n d"]:
    """The maps of a batch pooled inside shapes by a matrix of `pooling_matrix`, in float32 whatever autocast says."""
    with torch.autocast(maps.device.type, enabled=False):
        rows = maps.movedim(1, -1).reshape(-1, maps.shape[1])  # (b h w, d)
        return matrix @ rows.float()
