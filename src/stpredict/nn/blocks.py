"""Transformers made of `TransformerBlock`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stpredict.nn.transformer import TransformerBlock


class TextTransformer(nn.Module):
    """A class token, a register and the text's one token through blocks whose branches start small (LayerScale .1)."""

    def __init__(self, n_in: int, width: int, *, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.first = nn.Parameter(torch.randn(2, width) * 0.02)  # class token and register
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block: Any = TransformerBlock(
                width, heads=heads, head_width=width // heads, mlp_width=4 * width, dropout=dropout
            )
            block.out, block.mlp = nn.Sequential(block.out, _Scale(width)), block.mlp.append(_Scale(width))
            self.blocks.append(block)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width + 1))

    def forward(self, rows: Float[Tensor, "g w"]) -> Float[Tensor, "g d"]:
        """Weights and a bias for every text."""
        x = torch.cat([self.first.expand(len(rows), -1, -1), self.embed(rows)[:, None]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.out(x[:, 0])


class _Scale(nn.Module):
    """A factor for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
