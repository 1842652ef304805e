"""A dense model in a file of your own: a small fully convolutional network whose map is read inside shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stpredict as stp
from stpredict.models import Batch, Config, Model, ModelInfo, Recipe, Samples, WindowSamples, predict_batch, register


@dataclass(frozen=True)
class SmallMapConfig(Config):
    """Every choice of a SmallMap: beside those of any model, the fields that inference reads of a dense one.

    Parameters
    ----------
    core_px, halo_px
        Side of an inference tile, and what is read around it: at least as far as the network sees, here 3 px.
    window_px
        Side of a training window.
    reduction, turns
        How the map is pooled inside a shape; how many symmetries of the square a prediction is averaged over.
    """

    genes: tuple[str, ...]
    mpp: float = 1.0
    core_px: int = 512
    halo_px: int = 16
    window_px: int = 256
    reduction: Literal["mean", "sum"] = "mean"
    turns: int = 1
    width: int = 32
    recipe: Recipe = field(default_factory=lambda: Recipe(max_epochs=30, batch_size=4, lr=1e-2))


@register
class SmallMap(Model):
    """A map of expression, at 4 pixels a cell."""

    output = "raster"
    context = "shape"
    config_class = SmallMapConfig
    n_auxiliary = 1  # the constant
    info = ModelInfo(name="SmallMap", task="a small fully convolutional network, averaged inside the shape")

    stride: float = 4.0

    def __init__(self, genes: Sequence[str] = (), *, config: SmallMapConfig | None = None) -> None:
        super().__init__(config or SmallMapConfig(genes=tuple(genes)))
        width = self.config.width
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 2, stride=2), nn.ReLU()
        )
        self.out = nn.Linear(width, len(self.genes))

    def prepare(self, sections: Sequence[stp.Section]) -> None:
        """Start at the mean of the training sections."""
        mean = np.concatenate([section.expression for section in sections]).mean(axis=0)
        with torch.no_grad():
            self.out.bias.copy_(torch.from_numpy(mean))

    def samples(self, sections: Sequence[stp.Section], *, train: bool, seed: int = 0) -> Samples:
        """Square windows, with the shapes that lie wholly inside."""
        c = self.config
        return WindowSamples(
            sections, window_px=c.window_px, stride=self.stride, reduction=c.reduction, train=train, seed=seed
        )

    def query(self, genes: Sequence[str]) -> Tensor:
        """The rows of the last layer for these genes, the bias last: (g, width + 1)."""
        return torch.cat([self.out.weight, self.out.bias[:, None]], dim=1)[self.gene_index(genes)]

    def latent(self, batch: Batch) -> Tensor:
        """The feature map and a constant 1, whose sum inside a shape is the area it covers: (b, width + 1, h, w)."""
        x = self.network(batch.image.float() / 255)
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    def head(self, latent: Tensor, query: Tensor) -> Tensor:
        """Values of every row and gene, (n, g); linear in the latent, so that pooling may come first."""
        return latent @ query.T

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error inside the measured shapes."""
        return F.mse_loss(predict_batch(self, batch, query), batch.measured)
