"""Pre-norm transformer block with exact attention, masked on the key axis, linear in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

QUERY_ROWS = 8192  # tokens whose queries and hidden layers are held at once at inference; keys are always whole
ASKED_ROWS = 256  # asked tokens a step: their own keys make a (rows x rows) corner of the attention


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Source: GeneQuery (arXiv 2411.18391), two pre-norm blocks; projections without bias, GELU, as in ViT.

    Parameters
    ----------
    width, heads, head_width, mlp_width : int
        Width of a token; heads x head_width is the inner width of attention; hidden width of the two-layer MLP.
    dropout : float
        After the attention's output and after both layers of the MLP.
    eps : float, default 1e-5
        Of its layer norms.
    """

    def __init__(
        self, width: int, *, heads: int, head_width: int, mlp_width: int, dropout: float, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=eps),
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Every token attends to all tokens that `keep` marks; None: to all.

        Without gradient, more than `QUERY_ROWS` tokens go through in parts: the queries are split, the keys never.
        """
        mask = None if keep is None else keep[:, None, None, :]
        if torch.is_grad_enabled() or x.shape[1] <= QUERY_ROWS:
            q, k, v = self._project(x)
            return self._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        pieces = x.split(QUERY_ROWS, dim=1)
        k, v = (torch.cat(parts, dim=2) for parts in zip(*(self._project(p)[1:] for p in pieces), strict=True))
        done = [
            self._finish(p, F.scaled_dot_product_attention(self._project(p)[0], k, v, attn_mask=mask)) for p in pieces
        ]
        return torch.cat(done, dim=1)

    def asked(self, asked: Float[Tensor, "b m d"], context: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Tokens that each attend to the whole context and to themselves, and to no other asked token.

        Parameters
        ----------
        context : Float[Tensor, "b n d"]
            The context's tokens as they go into this block.
        """
        _, k, v = self._project(context)
        done = []
        for part in asked.split(ASKED_ROWS, dim=1):
            q, own_k, own_v = self._project(part)
            m = part.shape[1]
            own = torch.eye(m, dtype=torch.bool, device=q.device)
            mask = torch.cat([own.new_ones(m, context.shape[1]), own], dim=1)
            keys, values = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
            done.append(self._finish(part, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)))
        return torch.cat(done, dim=1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (b, heads, n, head_width)."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.mlp(x)
