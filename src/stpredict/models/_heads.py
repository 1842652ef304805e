"""Heads of PixNet: rows of the 1x1 convolution, free for each gene of a panel or made from its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._embeddings import GeneEmbeddings
from stpredict.models._scale import of_panel_or_mean
from stpredict.models._texts import Vocabulary


class PanelHead(nn.Module):
    """A free row for every gene of a fixed panel."""

    def __init__(self, genes: Sequence[str], n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(genes), n_features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(genes)))
        self._position = {gene: i for i, gene in enumerate(genes)}

    def start(self, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        """Set the bias to the training mean of each gene; `spread` is not needed."""
        with torch.no_grad():
            self.bias.copy_(torch.from_numpy(mean))

    def forward(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of these genes, the bias last."""
        return torch.cat([self.weight, self.bias[:, None]], dim=1)[self.positions(genes)]

    def positions(self, genes: Sequence[str]) -> list[int]:
        """Where these genes are in the panel."""
        return [self._position[gene] for gene in genes]


class TextHead(nn.Module):
    """Rows made from the embedding of a gene's text by a small network, so that a gene never seen has one too.

    The network answers in standard units: a seen gene's row is scaled by its training spread and shifted by its
    training mean, an unseen gene's by the means of both over the panel, since nothing of its counts is known.

    Source: SGN's weights from text (256 L2-normalised weights and a bias from a text transformer; 64 genes a step),
    here two linear layers on a frozen embedding; and the 1x1 head of PixNet, whose rows they replace.
    """

    network: Any  # layers share no interface that a type checker could see
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        genes: Sequence[str],
        n_features: int,
        *,
        vocabulary: Sequence[str],
        text: Mapping[str, Any],
        embeddings: GeneEmbeddings | None,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.texts = Vocabulary(vocabulary, text, embeddings)
        self.network = nn.Sequential(
            nn.Linear(int(text["width"]), hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_features + 1),
        )
        with torch.no_grad():
            self.network[-1].weight.mul_(0.1)
            self.network[-1].bias.zero_()
        self.register_buffer("mean", torch.zeros(len(genes)))
        self.register_buffer("spread", torch.ones(len(genes)))
        self._panel, self._position = tuple(genes), {gene: i for i, gene in enumerate(genes)}

    def start(self, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        """Keep each panel gene's training mean and spread, and fit the scale of the embeddings."""
        self.mean, self.spread = torch.from_numpy(mean).to(self.mean), torch.from_numpy(spread).to(self.mean)
        self.texts.fit(self._panel)

    def forward(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of these genes, the bias last."""
        rows = self.network(self.texts.rows(genes))
        at = torch.tensor([self._position.get(gene, -1) for gene in genes], device=rows.device)
        mean, spread = of_panel_or_mean(self.mean, at), of_panel_or_mean(self.spread, at)
        rows = rows * spread[:, None]
        return torch.cat([rows[:, :-1], rows[:, -1:] + mean[:, None]], dim=1)
