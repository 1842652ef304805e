"""Projection head of image and expression embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """norm(p + dropout(linear(gelu(p)))), with p the linear projection of the input.

    Source: the projection heads of BLEEP (modules.py), which GeneQuery's code has taken over for images.
    """

    def __init__(self, n_inputs: int, width: int, *, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Linear(n_inputs, width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Rows in the joint space."""
        projected = self.projection(x)
        return self.norm(projected + self.dropout(self.second(F.gelu(projected))))
