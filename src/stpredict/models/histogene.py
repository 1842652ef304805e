"""HisToGene: vision transformer over all spots of a section.

Source: "Leveraging information in spatial transcriptomics to predict super-resolution gene expression from histology
images in tumors" (Pang et al., bioRxiv 2021) and its released code. As published: a token is a patch's embedding plus
learned embeddings of its column and its row on the array; pre-norm blocks over all spots of a section; layer norm and
a linear layer to the genes; the mean squared error; one section a step. We differ in these points:

- AdamW with warm-up and a cosine (the code: Adam at a constant rate). The sizes are those of its tutorial, 8 layers at
  1e-5 for 100 epochs (the class's own defaults: 4 layers at 1e-4);
- the final layer starts at each gene's mean, in its standard units on the training sections; at a rate of 1e-5 a bias
  would else not reach the mean within the training;
- labels by the protocol: the denominator is all genes of a spot (the code: the 785 genes of the panel), natural
  logarithm (the code: log10), patients kept apart (the code leaves out one section, its patient's others stay in);
- a place is counted from the section's own corner, and where no array is known, on a grid laid over the shapes. A place
  beyond the table is an error with the way out (the code: an index error);
- the small configuration embeds features of a frozen encoder, since three sections are too few for 38 million weights
  on raw pixels; a share of the features is dropped in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder, array_grid
from stpredict.models._samples import Batch, PatchSamples, Samples, SectionSamples
from stpredict.models._scale import fit_scale, measured_expression, register_scale
from stpredict.nn.device import free_bytes
from stpredict.nn.transformer import TransformerBlock

FLOAT_BYTES = 4


@dataclass(frozen=True)
class _EmbeddedPatch(PatchConfig):
    """What stands before the encoder: the patch, and what of it is embedded."""

    patch: Literal["features", "pixels"] = "features"


@dataclass(frozen=True)
class HisToGeneConfig(EncoderConfig, _EmbeddedPatch):
    """Every choice of a HisToGene. Each value that the paper does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each shape in pixels.
    patch : {"features", "pixels"}, default "features"
        What is embedded: "features" of an encoder, or the "pixels", flattened, 0 to 255.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; None with pixels.
    frozen : bool, default True
        Whether the encoder stays as it is; its features are then computed once for every patch.
    n_places : int, default 64
        Rows and columns of the array that have an embedding.
    place_sd : float, default 0.02
        Standard deviation of these embeddings before training.
    width, depth, heads, head_width, mlp_width : int, optional
        Sizes of the transformer.
    dropout : float, default 0.1
        Within the transformer, and of its input.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.HisToGeneConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.HisToGene(config=config).mpp
    2.0
    """

    mpp: float = 2.0  # the paper: 112 px at full resolution; 256 um are better than 128 (benchmarks/README.md)
    encoder: str | None = "mobilenetv2_100"  # type: ignore[assignment]  # None with pixels
    frozen: bool = True
    n_places: int = 64  # the paper
    place_sd: float = 0.02  # ViT's: a place that training never saw then says next to nothing
    width: int = 256
    depth: int = 2
    heads: int = 4
    head_width: int = 64
    mlp_width: int = 512
    dropout: float = 0.1  # the paper
    feature_dropout: float = 0.5  # as in GeneQuery: hundreds of spots, a thousand features
    recipe: Recipe = field(
        # a step is a section; 15, 30, 60, 120, 200 on her2st C4, trained on C2 and C3: .274, .309, .318, .290, .280
        default_factory=lambda: Recipe(max_epochs=60, batch_size=1, lr=5e-4, encoder_lr=0.0, weight_decay=1e-2)
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.69,  # full resolution of her2st, which it was made for
    "patch_px": 112,
    "patch": "pixels",
    "encoder": None,
    "place_sd": 1.0,  # torch's default, which the code leaves; pixels up to 255 drown it
    "width": 1024,
    "depth": 8,
    "heads": 16,
    "mlp_width": 2048,
    "feature_dropout": 0.0,
    "recipe": Recipe(max_epochs=100, batch_size=1, lr=1e-5, encoder_lr=0.0, weight_decay=0.0),
}


class HisToGene(Model):
    """Expression inside shapes, from the patches and the places of all shapes of a section.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of a frozen encoder are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | HisToGeneConfig, default "small"
        "small" (features of a frozen MobileNetV2), "published" (raw pixels, 8 layers, for a GPU), or a
        `HisToGeneConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an unknown configuration, and settings that contradict each other; in use, for
        sections with more rows or columns than `n_places`, or too large for the memory.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.HisToGene(genes, mpp=2.0).context
    'section'
    """

    output: ClassVar = "spots"
    context = "section"
    config_class: ClassVar = HisToGeneConfig
    config: HisToGeneConfig
    info: ClassVar = ModelInfo(
        name="HisToGene",
        task="transformer over the spots of a section, with learned places",
        title=(
            "Leveraging information in spatial transcriptomics to predict super-resolution gene expression from "
            "histology images in tumors"
        ),
        authors="Pang et al.",
        venue="bioRxiv",
        year=2021,
        code="https://github.com/maxpmx/HisToGene",
    )

    blocks: Any  # a ModuleList of TransformerBlock
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
        config: str | HisToGeneConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp))
        c = self.config
        self.encoder = _encoder(c, encoder_weights, feature_cache)
        self.embedding = nn.Linear(3 * c.patch_px**2 if self.encoder is None else self.encoder.width, c.width)
        self.row_place = nn.Embedding(c.n_places, c.width)
        self.column_place = nn.Embedding(c.n_places, c.width)
        for table in (self.row_place, self.column_place):
            nn.init.normal_(table.weight, std=c.place_sd)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(c.width, heads=c.heads, head_width=c.head_width, mlp_width=c.mlp_width, dropout=c.dropout)
            for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.width)
        self.linear = nn.Linear(c.width, len(c.genes))
        register_scale(self, len(c.genes), "mean", "spread")

    def prepare(self, sections: Sequence[Section]) -> None:
        """Mean and spread of every gene, and of the features, on the training sections."""
        fit_scale(self, measured_expression(sections))
        if self.encoder is not None:
            self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape with its place; in training all those of a section together.

        Raises
        ------
        ValueError
            For a section with more rows or columns than `n_places`.
        """
        place = np.concatenate([_places(section, self.config.n_places) for section in sections])
        patches = PatchSamples(sections, patch_px=self.config.patch_px, extra={"place": torch.from_numpy(place)})
        if not train:
            return patches
        return SectionSamples(patches, n_spots=len(patches), n_genes=len(self.genes), seed=seed)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of the final layer for these genes, in target units, the bias last."""
        at = self.gene_index(genes)
        weight, bias = self.linear.weight[at], self.linear.bias[at]
        spread = self.spread[at]
        return torch.cat([spread[:, None] * weight, (self.mean[at] + spread * bias)[:, None]], dim=1)

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The token of every shape: its embedded patch and its place."""
        if self.encoder is None:
            patch = batch.image.flatten(1).float()
        else:
            patch = F.dropout(self.encoder(batch.image), self.config.feature_dropout, self.training)
        row, column = batch.extra["place"].T
        return self.dropout(self.embedding(patch) + self.row_place(row) + self.column_place(column))

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The transformer over all shapes of one section, and the final layer.

        Raises
        ------
        ValueError
            For a section whose keys do not fit into memory.
        """
        self._check_memory(len(latent))
        x = latent[None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[0]) @ query[:, :-1].T + query[:, -1]

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error over all (shape, gene) pairs, section by section through the transformer."""
        return F.mse_loss(predict_batch(self, batch, query), batch.measured)

    def _check_memory(self, n: int) -> None:
        c = self.config
        # of every token: two states and what is added up; queries, keys, values
        token_bytes = 3 * (c.width + c.heads * c.head_width) * FLOAT_BYTES
        need, free = n * token_bytes, free_bytes(self.mean.device)
        if need > free:
            raise ValueError(
                f"a section of {n} shapes needs {need / 1e9:.1f} GB for its keys and states, and {free / 1e9:.1f} GB "
                f"are free: at most {free // token_bytes} shapes fit. Queries are split, keys never, so it is not cut: "
                "use larger bins (stp.pp.tile_grid)."
            )


def _places(section: Section, n_places: int) -> NDArray[np.int64]:
    places = array_grid(section)
    rows, columns = places.max(axis=0, initial=0) + 1
    if max(rows, columns) > n_places:
        raise ValueError(
            f"section {section.name!r} lies on a grid of {rows} rows and {columns} columns; this HisToGene has "
            f"embeddings for {n_places} of either. Train one with config=HisToGeneConfig(..., "
            f"n_places={max(rows, columns)}), or predict on larger bins (stp.pp.tile_grid)."
        )
    return places


def _encoder(c: HisToGeneConfig, weights: str | Path | None, folder: str | Path | None) -> PatchEncoder | None:
    if c.encoder is None:
        if weights is not None:
            raise ValueError("patch='pixels' has no encoder; leave out encoder_weights=.")
        return None
    return PatchEncoder(
        c.encoder_spec, weights=weights, kind="pooled", frozen=c.frozen, folder=folder, patch_px=c.patch_px
    )


def _config(config: str | HisToGeneConfig, genes: Sequence[str], mpp: float | None) -> HisToGeneConfig:
    made = resolve_config(config, HisToGeneConfig, PUBLISHED, genes, mpp=mpp)
    if (made.patch, made.encoder is None) not in (("features", False), ("pixels", True)):
        raise ValueError(
            f"patch={made.patch!r} with encoder={made.encoder!r}: use 'features' with the name of an encoder, or "
            "'pixels' with encoder=None."
        )
    return made
