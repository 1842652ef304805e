"""A plain image encoder, untrained on any section, with the interface that embedding asks of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from stpredict._card import Card
from stpredict._section import Section
from stpredict.models import Batch, Config, Model, PatchSamples, Recipe, Samples
from stpredict.nn.architecture import described, timm_name
from stpredict.nn.encoders import Encoder, EncoderSpec, last_tap, rgb
from stpredict.nn.features import averaged

NO_GENE = ("no gene",)  # a model has a panel


@dataclass(frozen=True)
class PlainEncoderConfig(Config):
    """The encoder, and the patch that it sees around every shape."""

    genes: tuple[str, ...]
    mpp: float
    patch_px: int
    encoder: str
    taps: tuple[int, ...]
    encoder_kwargs: Mapping[str, Any]
    encoder_mean: tuple[float, ...] | None
    encoder_std: tuple[float, ...] | None
    recipe: Recipe = field(default_factory=Recipe)


class PlainEncoder(Model):
    """The mean of an encoder's last map over the patch around each shape; it predicts nothing.

    Parameters
    ----------
    name : str
        A network of timm, or one of a hub.
    weights : str | Path | None
        See `stpredict.nn.Encoder`.
    mpp : float
        Micrometres per pixel.
    patch_px : int
        Side of the patch in pixels.

    Raises
    ------
    ValueError
        For a name that is none, and a patch that the encoder does not take.
    ConnectionError
        For weights, or a description, that are neither here nor to be had.
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = PlainEncoderConfig
    config: PlainEncoderConfig

    def __init__(self, name: str, *, weights: str | Path | None, mpp: float, patch_px: int) -> None:
        found = described(name, {}, None, None)
        taps = (last_tap(timm_name(name, found["encoder_kwargs"]), found["encoder_kwargs"]),)
        config = PlainEncoderConfig(genes=NO_GENE, mpp=mpp, patch_px=patch_px, encoder=name, taps=taps, **found)
        super().__init__(config)
        spec = EncoderSpec(name, taps, config.encoder_kwargs, config.encoder_mean, config.encoder_std)
        self.encoder = Encoder(spec, weights=weights).requires_grad_(False)
        if patch_px % self.encoder.block_px:
            raise ValueError(
                f"patch_px={patch_px} must be a multiple of {self.encoder.block_px} px, which {name!r} takes."
            )
        self.card = Card(model="PlainEncoder", config=asdict(config), genes=NO_GENE, mpp=mpp, encoder=name)
        self.eval()

    def prepare(self, sections: Sequence[Section]) -> None:
        """Nothing."""

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape."""
        return PatchSamples(sections, patch_px=self.config.patch_px)

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The mean of the last map of every patch."""
        return averaged(self.encoder, rgb(batch.image))

    def query(self, genes: Sequence[str]) -> Tensor:
        """Nothing: it knows no gene."""
        return torch.zeros(len(genes), 0)

    def head(self, latent: Tensor, query: Tensor) -> NoReturn:
        """It predicts nothing."""
        raise NotImplementedError("a plain encoder predicts nothing; train a model on it, such as EncoderRidge.")

    def loss(self, batch: Batch, query: Tensor) -> NoReturn:
        """It is not trained."""
        raise NotImplementedError("a plain encoder is not trained; train a model on it, such as EncoderRidge.")
