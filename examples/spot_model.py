"""A model of spots in a file of your own: a small convolutional network on the patch around each shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stpredict as stp
from stpredict.models import Batch, Config, Model, ModelInfo, PatchSamples, Recipe, Samples, predict_batch, register


@dataclass(frozen=True)
class PatchCNNConfig(Config):
    """Every choice of a PatchCNN: a card keeps them, and `load` builds the network from them.

    Parameters
    ----------
    genes, mpp, recipe
        Ordered panel, micrometres per pixel, and how it is trained; every config has these.
    patch_px
        Side of the patch around a shape.
    width
        Channels of the network.
    """

    genes: tuple[str, ...]
    mpp: float = 1.0
    patch_px: int = 64
    width: int = 32
    recipe: Recipe = field(default_factory=lambda: Recipe(max_epochs=30, batch_size=16, lr=1e-2))


@register
class PatchCNN(Model):
    """Expression inside a shape, from the patch around it."""

    output = "spots"
    context = "shape"
    config_class = PatchCNNConfig
    info = ModelInfo(name="PatchCNN", task="a small convolutional network on the patch")

    def __init__(self, genes: Sequence[str] = (), *, config: PatchCNNConfig | None = None) -> None:
        super().__init__(config or PatchCNNConfig(genes=tuple(genes)))
        width = self.config.width
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.out = nn.Linear(width, len(self.genes))

    def prepare(self, sections: Sequence[stp.Section]) -> None:
        """Start at the mean of the training sections."""
        mean = np.concatenate([section.expression for section in sections]).mean(axis=0)
        with torch.no_grad():
            self.out.bias.copy_(torch.from_numpy(mean))

    def samples(self, sections: Sequence[stp.Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape."""
        return PatchSamples(sections, patch_px=self.config.patch_px, seed=seed)

    def query(self, genes: Sequence[str]) -> Tensor:
        """The rows of the last layer for these genes, the bias last: (g, width + 1)."""
        return torch.cat([self.out.weight, self.out.bias[:, None]], dim=1)[self.gene_index(genes)]

    def latent(self, batch: Batch) -> Tensor:
        """Features of every patch: (n, width)."""
        return self.network(batch.image.float() / 255)

    def head(self, latent: Tensor, query: Tensor) -> Tensor:
        """Values of every shape and gene, (n, g); linear in the latent."""
        return latent @ query[:, :-1].T + query[:, -1]

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(predict_batch(self, batch, query), batch.measured)
