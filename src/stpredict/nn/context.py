"""The wider surroundings of every place: statistics of a frozen encoder's maps, as a map of a few linear features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stpredict.nn.encoders import Encoder, EncoderSpec


class Context(nn.Module):
    """Mean and standard deviation of a frozen CNN's maps in a square around each cell, projected to a few channels.

    spec
        Which encoder; all its stages are used, whatever taps the spec names.
    cells
        Side of the square in cells of the coarsest stage, even.
    rank
        Channels of the projection.

    The square is centred on its cell: the outermost of `cells` + 1 cells count by half. Mean and standard deviation are
    standardised by buffers that training fills, as the projection is.
    """

    centre: Tensor
    spread: Tensor
    projection: Tensor
    box: Tensor

    def __init__(self, spec: EncoderSpec, *, weights: str | Path | None, cells: int, rank: int) -> None:
        super().__init__()
        self.encoder = Encoder(spec, weights=weights).requires_grad_(False)
        self.cell_px = max(self.encoder.strides)
        n = 2 * sum(self.encoder.channels)
        weight = torch.ones(cells + 1)
        weight[[0, -1]] = 0.5
        self.register_buffer("box", weight / cells, persistent=False)
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("spread", torch.ones(n))
        self.register_buffer("projection", torch.zeros(rank, n))

    def train(self, mode: bool = True) -> Context:
        """Always in eval mode: nothing here is trained by gradient."""
        return super().train(False)

    def statistics(self, image: Float[Tensor, "b 3 h w"], encoder: Encoder | None = None) -> Float[Tensor, "b f r c"]:
        """Means, then standard deviations, of every channel around every coarse cell; RGB in [0, 1].

        encoder
            The same one with its batch norms folded; None: the module's own.
        """
        maps = (encoder or self.encoder)(image)
        sides = [self.cell_px // stride for stride in self.encoder.strides]
        mean = torch.cat([_pooled(x.float(), k) for x, k in zip(maps, sides, strict=True)], dim=1)
        square = torch.cat([_pooled(x.float().square(), k) for x, k in zip(maps, sides, strict=True)], dim=1)
        mean, square = self._around(mean), self._around(square)
        return torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], dim=1)

    def forward(self, image: Float[Tensor, "b 3 h w"], *, size: Sequence[int]) -> Float[Tensor, "b k r c"]:
        """The projected statistics, interpolated to a map of this size."""
        standard = (self.statistics(image) - self.centre[:, None, None]) / self.spread[:, None, None]
        return self.fine(torch.einsum("kf,bfrc->bkrc", self.projection, standard), size=size)

    @staticmethod
    def fine(coarse: Tensor, *, size: Sequence[int]) -> Tensor:
        """A coarse map interpolated bilinearly."""
        return F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)

    def _around(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        half = len(self.box) // 2
        x = F.pad(x, (half, half, half, half), mode="replicate")
        x = F.conv2d(x, self.box.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
        return F.conv2d(x, self.box.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)


def _pooled(x: Tensor, k: int) -> Tensor:
    return F.avg_pool2d(x, k) if k > 1 else x
