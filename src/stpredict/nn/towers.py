"""The transformers of TRIPLEX, over the patches around a spot, the spots of a section, and across both; and its loss.

Sizes of a transformer: (depth, heads, width of the feed-forward layer / width, dropout).
Source: TRIPLEX (CVPR 2024) and its released code; see the module of the model for where we differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stpredict.nn.transformer import TransformerBlock


class NeighbourBlock(TransformerBlock):
    """A block over the places of a square, with a learned bias of attention for every (|rows|, |columns|) apart."""

    offsets: Tensor

    def __init__(self, width: int, *, side: int, heads: int, head_width: int, mlp_width: int, dropout: float) -> None:
        super().__init__(width, heads=heads, head_width=head_width, mlp_width=mlp_width, dropout=dropout)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        y, x = y.flatten(), x.flatten()
        offsets = side * (y[:, None] - y).abs() + (x[:, None] - x).abs()
        self.register_buffer("offsets", offsets, persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.heads, side * side))

    def among(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Every place attends to the places that `keep` marks."""
        q, k, v = self._project(x)
        bias = self.bias[:, self.offsets].masked_fill(~keep[:, None, None, :], -torch.inf)
        return self._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q)))


class FusionBlock(TransformerBlock):
    """A block whose queries come from one sequence and whose keys and values come from another; one norm for both."""

    def across(
        self, x: Float[Tensor, "b n d"], tokens: Float[Tensor, "b m d"], keep: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Every row of `x` attends to the tokens that `keep` marks; None: to all."""
        q, (_, k, v) = self._project(x)[0], self._project(tokens)
        mask = None if keep is None else keep[:, None, None, :]
        return self._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class NeighbourTower(nn.Module):
    """Tokens of the side x side patches around a spot."""

    blocks: Any  # a ModuleList of NeighbourBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float], *, side: int) -> None:
        super().__init__()
        depth, inner = _inner(width, sizes)
        self.blocks = nn.ModuleList(NeighbourBlock(width, side=side, **inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "n s d"], there: Bool[Tensor, "n s"]) -> Float[Tensor, "n s d"]:
        """Each patch with the others that are there."""
        for block in self.blocks:
            x = block.among(x, there)
        return self.norm(x)


class SectionTower(nn.Module):
    """Tokens of all spots of one section: a block, their places by a convolution, and the other blocks."""

    blocks: Any  # a ModuleList of TransformerBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float]) -> None:
        super().__init__()
        depth, inner = _inner(width, sizes)
        self.blocks = nn.ModuleList(TransformerBlock(width, **inner) for _ in range(depth))
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "m d"], place: Int[Tensor, "m 2"]) -> Float[Tensor, "m d"]:
        """Each spot with all others; `place` is its row and column."""
        first, *others = self.blocks
        x = first(x[None])[0]
        x = (x + self._around(x, place))[None]
        for block in others:
            x = block(x)
        return self.norm(x[0])

    def _around(self, x: Tensor, place: Tensor) -> Tensor:
        """The depth-wise convolution of the grid at every spot; empty places are 0, shared ones hold a mean."""
        place = place - place.min(dim=0).values
        height, breadth = (place.max(dim=0).values + 1).tolist()
        at = place[:, 0] * breadth + place[:, 1]
        count = torch.bincount(at, minlength=height * breadth).clamp_min(1)
        grid = x.new_zeros(height * breadth, x.shape[1]).index_add(0, at, x) / count[:, None].to(x)
        return self.position(grid.T.unflatten(1, (height, breadth))[None])[0].flatten(1).T[at]


class FusionTower(nn.Module):
    """The section's token of a spot asks the tokens of its patch and those of its neighbours, with the same blocks."""

    blocks: Any  # a ModuleList of FusionBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float]) -> None:
        super().__init__()
        depth, inner = _inner(width, sizes)
        self.blocks = nn.ModuleList(FusionBlock(width, **inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        section: Float[Tensor, "n d"],
        own: Float[Tensor, "n t d"],
        around: Float[Tensor, "n s d"],
        there: Bool[Tensor, "n s"],
    ) -> Float[Tensor, "n d"]:
        """One token a spot: the norm of the sum of what it is told by both."""
        told = [section[:, None], section[:, None]]
        for block in self.blocks:
            told = [block.across(told[0], own), block.across(told[1], around, there)]
        return self.norm((told[0] + told[1])[:, 0])


def fusion_loss(
    fused: Float[Tensor, "n g"], branches: Sequence[Tensor], true: Float[Tensor, "n g"], *, share: float = 0.3
) -> Float[Tensor, ""]:
    """MSE(fused, true) + sum over branches of (1 - share) MSE(branch, true) + share MSE(branch, fused).

    The gradient of the last term reaches both of its sides.
    """
    loss = F.mse_loss(fused, true)
    for branch in branches:
        loss = loss + (1 - share) * F.mse_loss(branch, true) + share * F.mse_loss(branch, fused)
    return loss


def _inner(width: int, sizes: tuple[int, int, int, float]) -> tuple[int, dict[str, Any]]:
    """The depth, and the sizes of a block. Raises ValueError for heads that do not divide the width."""
    depth, heads, ratio, dropout = sizes
    if depth < 1 or width % heads:
        raise ValueError(
            f"a transformer of width {width} cannot have depth {depth} and {heads} heads: the depth is at "
            "least 1 and the heads divide the width."
        )
    return depth, {"heads": heads, "head_width": width // heads, "mlp_width": ratio * width, "dropout": dropout}
