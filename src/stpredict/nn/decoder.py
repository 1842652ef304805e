"""PixNet's decoder: from an encoder's pyramid to one fine map.

Source: "From Spots to Pixels: Dense Spatial Gene Expression Prediction from Histology Images", arXiv 2503.01347, Figure
2; where it is silent, MCADS-Decoder (see `stpredict.models.pixnet`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Depth-wise 3x3, batch norm, leaky ReLU, then 1x1, batch norm, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            nn.LeakyReLU(),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.LeakyReLU(),
        )


class DepthToSpaceUp(nn.Sequential):
    """Upsampling of a deep level: 3x3 to 4 C, depth-to-space by 2, 3x3, block (K = C 2^d filters, d = 2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, 4 * c_out, 3, padding=1),
            nn.ReLU(),
            nn.PixelShuffle(2),
            nn.Conv2d(c_out, c_out, 3, padding=1),
            nn.ReLU(),
            ConvBlock(c_out, c_out),
        )


class BilinearUp(nn.Sequential):
    """Upsampling of a shallow level: block, bilinear by 2, block."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(ConvBlock(c_in, c_out), nn.Upsample(scale_factor=2, mode="bilinear"), ConvBlock(c_out, c_out))


class SkipFusion(nn.Module):
    """SAFB: an encoder feature is gated, joined with the upsampled map, and both attend to each other.

    a = DWConv3x3(F); m = LN(Conv1x1(SiLU(a))); F' = BN(SiLU(a + m)); Q, K, V = Conv1x1([F', U]);
    out = U + softmax(Q K^T / sqrt(d)) V, within squares of `window` cells.
    """

    def __init__(self, c_skip: int, c_up: int, *, window: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(c_skip, c_skip, 3, padding=1, groups=c_skip)
        self.mix = nn.Conv2d(c_skip, c_skip, 1)
        self.layer_norm = nn.LayerNorm(c_skip)
        self.batch_norm = nn.BatchNorm2d(c_skip)
        self.qkv = nn.Conv2d(c_skip + c_up, 3 * c_up, 1)
        self.window = window

    def forward(self, skip: Float[Tensor, "b s h w"], up: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The upsampled map, with what it attends to added."""
        a = self.spread(skip)
        m = self.layer_norm(self.mix(F.silu(a)).movedim(1, -1)).movedim(-1, 1)
        skip = self.batch_norm(F.silu(a + m))
        q, k, v = self._windows(self.qkv(torch.cat([skip, up], dim=1)))
        return up + self._merge(_attend(q, k, v), up.shape)

    def _windows(self, qkv: Tensor) -> Tensor:
        b, c3, h, w = qkv.shape
        n = self.window
        grid = qkv.reshape(b, 3, c3 // 3, h // n, n, w // n, n).permute(1, 0, 3, 5, 4, 6, 2)
        return grid.reshape(3, -1, n * n, c3 // 3)  # (qkv, windows, cells, c)

    def _merge(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        b, c, h, w = shape
        n = self.window
        grid = rows.reshape(b, h // n, w // n, n, n, c).permute(0, 5, 1, 3, 2, 4)
        return grid.reshape(b, c, h, w)


def _attend(q: Float[Tensor, "w n d"], k: Float[Tensor, "w n d"], v: Float[Tensor, "w n d"]) -> Float[Tensor, "w n d"]:
    """softmax(Q K^T / sqrt(d)) V within every window.

    Written out where the CPU is to give a gradient: windows are small, and torch's fused backward pass is far slower.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


class Decoder(nn.Module):
    """The top-down path: from the bottom of the pyramid to the finest level, with a fusion wherever there is a skip."""

    def __init__(self, channels: Sequence[int], filters: Sequence[int], *, n_bilinear: int, window: int) -> None:
        super().__init__()
        n_bare = len(filters) - len(channels)  # finest levels for which the encoder has no map
        if n_bare < 0:
            raise ValueError(f"{len(filters)} filters for {len(channels)} encoder maps; give one filter a level.")
        self.bottom = ConvBlock(channels[-1], filters[-1])
        self.ups, self.fusions = nn.ModuleList(), nn.ModuleList()
        for level in range(len(filters) - 2, -1, -1):
            up = BilinearUp if level < n_bilinear else DepthToSpaceUp
            self.ups.append(up(filters[level + 1], filters[level]))
            if level >= n_bare:
                self.fusions.append(SkipFusion(channels[level - n_bare], filters[level], window=window))
        self.last = ConvBlock(filters[0], filters[0])

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(b, filters[0], h, w) at the finest level, of encoder maps from fine to coarse."""
        x = self.bottom(pyramid[-1])
        for i, up in enumerate(self.ups):
            x = up(x)
            if i < len(self.fusions):
                x = self.fusions[i](pyramid[-2 - i], x)
        return self.last(x)
