"""Mean: null model that predicts the training mean of each gene everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stpredict._section import Section
from stpredict.models._base import Model, Recipe, as_panel, constructor, predict_batch
from stpredict.models._fields import Config
from stpredict.models._info import ModelInfo
from stpredict.models._samples import Batch, PatchSamples, Samples


@dataclass(frozen=True)
class MeanConfig(Config):
    """Every choice of a Mean.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 1.0
        Micrometres per pixel at which images would be read (none is looked at).
    recipe : Recipe, optional
        See `Recipe`.
    """

    genes: tuple[str, ...]
    mpp: float = 1.0
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=256))


class Mean(Model):
    """The training mean of each gene, whatever the image shows; its correlation is NaN, its MSE is a null.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    mpp : float, default 1.0
        Micrometres per pixel.
    config : MeanConfig, optional
        In place of `genes` and `mpp`.

    Raises
    ------
    ValueError
        For an empty or duplicated panel.

    References
    ----------
    The numeric protocol stp-2, Nulls. Every training section weighs the same.

    Examples
    --------
    >>> model = stp.models.Mean(genes)
    >>> model.output, len(model.genes)
    ('spots', 4)
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = MeanConfig
    config: MeanConfig
    info: ClassVar = ModelInfo(
        name="Mean",
        task="the training mean of each gene, whatever the image shows",
    )

    mean: Tensor

    @constructor
    def __init__(self, genes: Sequence[str] = (), *, mpp: float = 1.0, config: MeanConfig | None = None) -> None:
        super().__init__(config or MeanConfig(genes=as_panel(genes), mpp=mpp))
        self.register_buffer("mean", torch.zeros(len(self.genes)))

    def prepare(self, sections: Sequence[Section]) -> None:
        """The closed form: the mean over sections of the mean over spots."""
        means = [s.expression.mean(axis=0, dtype=np.float64) for s in sections if s.expression is not None]
        self.mean = torch.from_numpy(np.mean(means, axis=0).astype(np.float32))

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """One pixel a shape: the image is not looked at."""
        return PatchSamples(sections, patch_px=1)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g 1"]:
        """The means of these genes."""
        return self.mean[self.gene_index(genes), None]

    def latent(self, batch: Batch) -> Float[Tensor, "n 1"]:
        """A one."""
        return torch.ones(len(batch.image), 1, device=batch.image.device)

    def head(self, latent: Float[Tensor, "n 1"], query: Float[Tensor, "g 1"]) -> Float[Tensor, "n g"]:
        """The mean, for every shape."""
        return latent @ query.T

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error."""
        return torch.nn.functional.mse_loss(predict_batch(self, batch, query), batch.measured)
