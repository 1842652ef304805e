"""HE2RNA: scores of tiles that are trained by the profile of their bag alone.

Source: "A deep learning model to predict RNA-Seq expression of tumours from whole slide images" (HE2RNA), Nature
Communications 2020, methods: one network for every tile of a slide, a score a gene; the slide's profile is the mean of
the k highest scores of each gene, k drawn anew in every step of training and averaged over at prediction; the scores
are the map. Sizes and the list of k were compared with the official repository (owkin/HE2RNA_code: model.py,
configs/config_all_genes.ini). Where we differ, or do not follow the released code:

- a bag is no slide with its bulk profile: `bag` makes pseudo-bulks of whole sections or of their spatial blocks. The
  profile of a bag is the mean of the target over its shapes. Nothing else of the measurements is used, neither in
  training nor for the scale of a gene, and in validation a bag is what one batch holds of a section;
- the tiles of a bag are the patches around its shapes, each by itself (the paper: 8,000 tiles of a slide, or 100
  "supertiles" from k-means of their places and features for its all-gene model);
- a bag of fewer tiles than k gives the mean of all of them (the code: of tiles that are padding, too);
- predictions are not cut at 0 (the code: so for scores and output, since its target is a log of FPKM);
- images are normalised as the encoder was trained and features standardised on the training tiles, cut at 5 (the code:
  colour-corrected slides, raw features);
- AdamW warms up and falls along a cosine, gradients are clipped; the epoch is that of the least loss on a validation
  part (the code: Adam at a constant rate; the best correlation there);
- the scalar is in standard units of the gene over the bags, so that it starts at the gene's mean (the code: at zero, or
  at a mean that is given).

Ours: "small" sees means and standard deviations at every stage of a frozen MobileNetV2, with dropout on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._places import blocks
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch, Patch, PatchSamples, Samples, sections_of
from stpredict.models._scale import fit_scale, register_scale


@dataclass(frozen=True)
class HE2RNAConfig(EncoderConfig, PatchConfig):
    """Every choice of an HE2RNA. Each value that the paper does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of a tile, the patch around a shape, in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; the encoder is frozen.
    features : {"pooled", "averaged"}, default "pooled"
        Which features of the encoder, see `PatchEncoder`.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    bag : {"blocks", "section"}, default "blocks"
        What has a profile: the spatial blocks of a section, or all of it.
    side : int, default 4
        A section has so many blocks along each side, cut at quantiles of its shapes.
    layers : tuple[int, ...], default (256,)
        Widths of the hidden layers.
    dropout : float, default 0.25
        After every hidden layer.
    ks : tuple[int, ...], default (1, 2, 5, 10, 20, 50, 100)
        The numbers of highest scores that are averaged.
    recipe : Recipe, optional
        See `Recipe`; a batch is one of bags.

    Raises
    ------
    ValueError
        For no k.

    Examples
    --------
    >>> config = stp.models.HE2RNAConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.HE2RNA(config=config).mpp
    2.0
    """

    features: Literal["pooled", "averaged"] = "pooled"
    feature_dropout: float = 0.5  # ours, as in GeneQuery
    bag: Literal["blocks", "section"] = "blocks"
    side: int = 4
    layers: tuple[int, ...] = (256,)
    dropout: float = 0.25  # the code
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)  # the code, for 100 supertiles
    recipe: Recipe = field(
        default_factory=lambda: Recipe(max_epochs=60, batch_size=8, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ks:
            raise ValueError("ks is empty; name at least one number of tiles whose scores are averaged.")


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # tiles of 112 um in 224 px
    "patch_px": 224, "encoder": "resnet50", "taps": (4,), "features": "averaged", "feature_dropout": 0.0,
    "layers": (1024, 1024),
    "recipe": Recipe(
        max_epochs=200, batch_size=16, lr=3e-4, encoder_lr=0.0, weight_decay=0.0, patience=50
    ),
}  # fmt: skip


class HE2RNA(Model):
    """Expression inside shapes from the patch around each, trained by the mean profiles of bags of shapes.

    What it is told of the measurements is one profile a bag: a weak supervision, as by bulk RNA-seq of slides. Its
    answer for a shape is the score of that one tile; `bulk` makes the profile of a bag from scores.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of the encoder are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | HE2RNAConfig, default "small"
        "small" (MobileNetV2), "published" (ResNet50, two layers of 1,024), or an `HE2RNAConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an unknown configuration, and a patch that the encoder does not take.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.HE2RNA(genes, mpp=2.0).output
    'spots'
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = HE2RNAConfig
    config: HE2RNAConfig
    info: ClassVar = ModelInfo(
        name="HE2RNA",
        task="scores of tiles, trained by the profiles of bags: the mean of the k highest",
        title="A deep learning model to predict RNA-Seq expression of tumours from whole slide images",
        authors="Schmauch et al.",
        venue="Nature Communications",
        year=2020,
        doi="10.1038/s41467-020-17678-4",
        code="https://github.com/owkin/HE2RNA_code",
        code_licence="GPL-3.0",
        encoder="resnet50",
    )

    mean: Tensor
    spread: Tensor

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        config: str | HE2RNAConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(resolve_config(config, HE2RNAConfig, PUBLISHED, genes, mpp=mpp))
        c = self.config
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind=c.features, folder=feature_cache, patch_px=c.patch_px
        )
        widths = (self.encoder.width, *c.layers)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = nn.Linear(widths[-1], len(c.genes))
        register_scale(self, len(c.genes), "mean", "spread")

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene over the bags' profiles, and that of the features."""
        fit_scale(self, np.stack([_measured(s)[rows].mean(axis=0) for s in sections for rows in self.bags(s)]))
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def bags(self, section: Section) -> list[NDArray[np.int64]]:
        """The shapes of every bag of a section.

        Parameters
        ----------
        section : Section
            The section.

        Returns
        -------
        list[ndarray of int64]
            Rows of the section's shapes, each in one bag.
        """
        if self.config.bag == "section":
            return [np.arange(section.n_shapes)]
        of = blocks(section, self.config.side)
        return [np.flatnonzero(of == block) for block in np.unique(of)]

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """In training whole bags; else the patch around every shape."""
        patch_px = self.config.patch_px
        if not train:
            return PatchSamples(sections, patch_px=patch_px)
        known = {"features": self.encoder.encode_sections(sections, patch_px=patch_px).cpu()}
        patches = PatchSamples(sections, patch_px=patch_px, extra=known, images=False)
        return BagSamples(patches, [self.bags(section) for section in sections])

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """Weights and bias of each gene on the last hidden layer; its mean and spread over the bags."""
        at = self.gene_index(genes)
        columns = torch.stack([self.out.bias, self.mean, self.spread], dim=1)
        return torch.cat([self.out.weight, columns], dim=1)[at]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The last hidden layer of every tile."""
        known = batch.extra.get("features")
        x = self.encoder(batch.image) if known is None else known
        x = F.dropout(x, self.config.feature_dropout, self.training)
        for layer in self.hidden:
            x = F.dropout(F.relu(layer(x)), self.config.dropout, self.training)
        return x

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The scores of every tile, in units of the target."""
        return query[:, -2] + query[:, -1] * (latent @ query[:, :-3].T + query[:, -3])

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE between the profiles of the bags and those of their tiles; k is drawn in training.

        Outside training the shapes that a batch has of one section are one bag.
        """
        scores, ks = predict_batch(self, batch, query), self.config.ks
        if self.training:
            ks = (ks[int(torch.randint(len(ks), ()))],)
        bag = batch.extra.get("bag")
        parts = sections_of(batch) if bag is None else [bag == i for i in range(int(bag.max()) + 1)]
        made = torch.stack([top_mean(scores[rows], ks) for rows in parts])
        return F.mse_loss(made, torch.stack([batch.measured[rows].mean(dim=0) for rows in parts]))

    def bulk(self, scores: Float[Tensor, "n g"]) -> Float[Tensor, " g"]:
        """The profile of a bag: of each gene the mean of the k highest scores of its tiles, averaged over all k.

        Parameters
        ----------
        scores : Float[Tensor, "n g"]
            Predictions for the tiles of one bag, such as the rows of a layer that `stp.tl.predict` wrote.

        Returns
        -------
        Float[Tensor, " g"]
            In units of the target.

        Raises
        ------
        ValueError
            For a bag without tiles.
        """
        if not len(scores):
            raise ValueError("a bag without tiles has no profile; pass the scores of at least one.")
        return top_mean(scores, self.config.ks)


def top_mean(scores: Float[Tensor, "n g"], ks: Sequence[int]) -> Float[Tensor, " g"]:
    """Of each column the mean of its k largest values, averaged over `ks`; of fewer than k values, the mean of all."""
    ranked = scores.topk(min(max(ks), len(scores)), dim=0).values
    return torch.stack([ranked[:k].mean(dim=0) for k in ks]).mean(dim=0)


class BagSamples(Samples):
    """Bags of patches; a batch says in `extra["bag"]` which of its bags each row is of.

    Parameters
    ----------
    patches : PatchSamples
        The tiles.
    bags : Sequence[Sequence[NDArray]]
        Of every section the shapes of each bag.
    """

    def __init__(self, patches: PatchSamples, bags: Sequence[Sequence[NDArray[np.int64]]]) -> None:
        self.patches = patches
        self.bags = [rows + first for first, some in zip(patches.first[:-1], bags, strict=True) for rows in some]

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> list[Patch]:
        """The patches of one bag."""
        return self.patches.__getitems__(self.bags[index % len(self.bags)].tolist())

    def collate(self, samples: Sequence[list[Patch]]) -> Batch:
        """The batch of all patches, bag after bag."""
        batch = self.patches.collate([patch for bag in samples for patch in bag])
        lengths = torch.tensor([len(bag) for bag in samples])
        return replace(batch, extra={**batch.extra, "bag": torch.arange(len(samples)).repeat_interleave(lengths)})


def _measured(section: Section) -> NDArray[np.float32]:
    if section.expression is None:
        raise ValueError(f"section {section.name!r} has no measurements to make bags' profiles of.")
    return section.expression
