"""What EGN adds to a vision transformer: exemplars projected, bridged to its tokens, and the pooling of these."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Projector(nn.Module):
    """The first views: of the window, of its exemplars with what they express, and of the expression alone.

    h = m(linear(e)), r = m(linear([e_j, y_j])), s = linear(y_j), with m the residual MLPs that h and r share.
    Source: EGN, the projector; two residual MLPs as in the released runs.
    """

    def __init__(self, n_features: int, n_genes: int, width: int, *, depth: int, dropout: float) -> None:
        super().__init__()
        self.window = nn.Linear(n_features, width)
        self.exemplar = nn.Linear(n_features + n_genes, width)
        self.expression = nn.Linear(n_genes, width)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(depth)
        )

    def forward(
        self, window: Float[Tensor, "n f"], exemplars: Float[Tensor, "n k f"], expression: Float[Tensor, "n k g"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k d"], Float[Tensor, "n k d"]]:
        """Views h (n, d), r (n, k, d) and s (n, k, d)."""
        views = [self.window(window), self.exemplar(torch.cat([exemplars, expression], dim=2))]
        for mlp in self.refine:
            views = [x + mlp(x) for x in views]
        return views[0], views[1], self.expression(expression)


class ExemplarBridge(nn.Module):
    """Exemplars speak to the view of the window, the view to its tokens, and the tokens back.

    Gates (m, m') = sigmoid(mlp([h, h - r_j])) decide what of an exemplar's expression the window and the exemplar take:
    h += mean_j m * v(s_j), r_j += m' * v(s_j). A mask, one number in (0, 1) for every head and place, is then made from
    h and laid over the projected tokens: o = mask(h) * p(z); z += linear(o), h += linear(mean of o over places).

    Source: EGN, the exemplar bridging block. Ours: layer norm before the gates' MLP, the mask and p, none after the
    updates; absent exemplars are left out of the mean. From the code: SiLU, hidden width heads x head_width, linear v
    and p, no bias on the way back.
    """

    def __init__(self, width: int, *, n_tokens: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.value = nn.Linear(width, width)
        self.gates = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, inner), nn.SiLU(), nn.Linear(inner, 2 * width)
        )
        self.mask = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * n_tokens))
        self.tokens = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.to_tokens = nn.Linear(inner, width, bias=False)
        self.to_window = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        z: Float[Tensor, "n t d"],
        h: Float[Tensor, "n d"],
        r: Float[Tensor, "n k d"],
        s: Float[Tensor, "n k d"],
        there: Bool[Tensor, "n k"],
    ) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n d"], Float[Tensor, "n k d"]]:
        """Tokens, view of the window and views of its exemplars after the exchange."""
        value = self.value(s)
        pair = torch.cat([h[:, None].expand_as(r), h[:, None] - r], dim=2)
        of_window, of_exemplar = torch.sigmoid(self.gates(pair)).chunk(2, dim=2)
        told = (of_window * value * there[..., None]).sum(1)
        h = h + told / there.sum(1, keepdim=True).clamp_min(1)
        mask = torch.sigmoid(self.mask(h)).unflatten(1, (-1, self.heads))  # (n, t, heads)
        o = (self.tokens(z).unflatten(2, (self.heads, -1)) * mask[..., None]).flatten(2)
        return z + self.to_tokens(o), h + self.to_window(o.mean(1)), r + of_exemplar * value


class ResidualPool(nn.Module):
    """Mean over places of a linear score of the tokens + `weight` x their mean under a softmax over places.

    temperature
        Multiplies the score in the softmax: 0 is the plain mean once more, infinity the maximum.

    Source: "Residual Attention: A Simple but Effective Method for Multi-Label Recognition" (CSRA, ICCV 2021), here with
    `width` scores instead of classes, as in EGN's code (weight .5, temperature .1).
    """

    def __init__(self, width: int, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.scores = nn.Linear(width, width)
        self.weight, self.temperature = weight, temperature

    def forward(self, z: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """(n, d) of (n, t, d) tokens."""
        score = self.scores(z)
        if math.isinf(self.temperature):
            return score.mean(1) + self.weight * score.amax(1)
        return score.mean(1) + self.weight * (score * torch.softmax(self.temperature * score, dim=1)).sum(1)
