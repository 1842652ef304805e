"""GeneQuery: text-queried transformer whose sequence is all spots of a section or all genes of a panel.

Source: "GeneQuery: A General QA-based Framework for Spatial Gene Expression Predictions from Histology Images", arXiv
2411.18391 (BIBM 2025), sections 3 and 4. The paper says "two projection layers", "a simple fusion layer" and "a
regressor": "published" has those of the released code (xy-always/GeneQuery at 7d61d38): for the image a projection head
of two layers, a residual and a layer norm, for the text one linear layer; the sum of both through ReLU (spots as
context), or through dropout and GELU (genes as context), then dropout; a linear layer to the scalar. "small" has one
linear layer for the image, no activation, and a layer norm before the scalar, which neither has. In both the released
code does otherwise in these points:

- padding is masked on the key axis (the code adds its mask along the query axis, where a softmax does not see it), and
  padded positions are no part of the loss;
- 4 heads of 64 values at width 256 (the code: 64 heads);
- images are RGB, normalised as the encoder was trained, batch norm in eval mode, no augmentation at test time (the
  code: BGR in 0..255, batch statistics, flips on test sections);
- minima and maxima per gene come from training sections alone (the code: per gene and per slide, test slides too);
- the text model is frozen and its attention mask honoured (the code trains it with spots as context, and attends to
  padding);
- embeddings of texts are centred and scaled on the panel, and features of a frozen encoder standardised on the training
  spots and cut at 5 (the code: both as they come);
- no patch is turned or flipped, in training neither (the code: once, when it is read);
- AdamW warms up and falls along a cosine, gradients are clipped (the code: linearly with spots as context, else a
  constant rate);
- image and text are added (the code also offers to lay them side by side, and forms without a transformer).

Ours: the scalar is in standard units of the gene on the training sections, so that it starts at the gene's mean (the
loss stays in min-max units); in "small" image features are means and standard deviations at every stage of a frozen
encoder, with dropout, since four sections are too few for 25 million weights; a gene beyond the context panel sees the
panel and itself, and no gene sees it, so that an answer does not depend on what else is asked (protocol: Unseen genes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stpredict._embeddings import GeneEmbeddings
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor
from stpredict.models._config import resolve_config
from stpredict.models._fields import Config, EncoderConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch, PatchSamples, Samples, SectionSamples, sections_of
from stpredict.models._scale import fit_scale, measured_expression, of_panel_or_mean, register_scale
from stpredict.models._texts import Vocabulary, as_embeddings, text_spec
from stpredict.nn.device import free_bytes
from stpredict.nn.projection import ProjectionHead
from stpredict.nn.transformer import TransformerBlock

TOKENS = 2**15  # tokens that go through the blocks together at inference
TOKEN_BYTES = 6 * 256 * 4  # held for every token of one sequence: two states, keys, values and what is added up


@dataclass(frozen=True)
class _Question(Config):
    """What stands before the encoder: the genes and their texts, what is a sequence, and the patch."""

    genes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    text: Mapping[str, Any]
    context: Literal["spot", "gene"] = "spot"
    mpp: float = 2.0
    patch_px: int = 128


@dataclass(frozen=True)
class GeneQueryConfig(EncoderConfig, _Question):
    """Every choice of a GeneQuery. Each value that the paper does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered training panel.
    vocabulary : tuple[str, ...]
        All genes whose embeddings are saved with the model.
    text : Mapping[str, Any]
        How those embeddings were made.
    context : {"spot", "gene"}, default "spot"
        "spot": the sequence is all spots of a section, for one gene; "gene": the panel and the asked genes, for one
        spot.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each spot in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`.
    frozen : bool, default True
        Whether the encoder stays as it is (its features are then computed once for every patch).
    features : {"pooled", "averaged"}, default "pooled"
        Which features of the encoder, see `PatchEncoder`.
    names : Mapping[str, Any], optional
        For the name-and-definition form: how the embeddings of names were made.
    width, depth, heads, head_width, mlp_width : int, optional
        Sizes of the transformer.
    dropout : float, default 0.1
        Within the transformer and the projection head.
    image_projection : {"linear", "head"}, default "linear"
        What brings image features to `width`: a linear layer, or `ProjectionHead`.
    fused_activation : {"none", "relu", "gelu"}, default "none"
        Of the sum of image and text.
    fused_dropout, token_dropout : float, optional
        On that sum before the activation, and on what comes of it.
    scalar_norm : bool, default True
        Whether a layer norm stands before the scalar.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    train_spots, train_genes : int, optional
        Most spots and genes of a training sequence; there is no limit at prediction.
    recipe : Recipe, optional
        See `Recipe`.
    """

    mpp: float = 2.0  # the paper: 224 px at full resolution; 256 um are better than 128 (benchmarks/README.md)
    frozen: bool = True
    features: Literal["pooled", "averaged"] = "pooled"
    names: Mapping[str, Any] | None = None  # the name-and-definition form: how the embeddings of names were made
    width: int = 256
    depth: int = 2
    heads: int = 4
    head_width: int = 64
    mlp_width: int = 512
    dropout: float = 0.1
    image_projection: Literal["linear", "head"] = "linear"
    fused_activation: Literal["none", "relu", "gelu"] = "none"
    fused_dropout: float = 0.0
    token_dropout: float = 0.0
    scalar_norm: bool = True  # it steadies few steps on few spots
    feature_dropout: float = 0.5  # not given; hundreds of spots, a thousand features
    train_spots: int = 1024
    train_genes: int = 24
    recipe: Recipe = field(
        default_factory=lambda: Recipe(max_epochs=10, batch_size=1, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2)
    )


_GENE_AWARE = Recipe(max_epochs=10, batch_size=16, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2)
SMALL: Mapping[str, Mapping[str, Any]] = {"spot": {}, "gene": {"train_genes": 256, "recipe": _GENE_AWARE}}
# Sizes, 100 epochs and 100 (spot, gene) sequences a batch: the paper. Rates: the code's scripts (lr 1e-4, decay 1e-3).
# The code computes the image features of the spot-aware form once and trains the encoder of the gene-aware one.
_RESNET: Mapping[str, Any] = {
    "mpp": 0.69,  # full resolution of her2st, where its patches are 224 px
    "patch_px": 224, "encoder": "resnet50", "taps": (4,), "features": "averaged", "feature_dropout": 0.0,
    "image_projection": "head", "scalar_norm": False, "token_dropout": 0.1,
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "spot": {
        **_RESNET, "fused_activation": "relu", "train_spots": 2400, "train_genes": 100,
        "recipe": Recipe(max_epochs=100, batch_size=1, lr=1e-4, encoder_lr=0.0, weight_decay=1e-3),
    },
    "gene": {
        **_RESNET, "fused_activation": "gelu", "fused_dropout": 0.1, "frozen": False, "train_genes": 3467,
        "recipe": Recipe(max_epochs=100, batch_size=100, lr=1e-4, encoder_lr=1e-4, weight_decay=1e-3),
    },
}  # fmt: skip


class _Columns(NamedTuple):
    """The columns of a query: embeddings (g, w); place in the panel or -1, training mean, spread and span (g,)."""

    texts: Tensor
    place: Tensor
    mean: Tensor
    spread: Tensor
    span: Tensor

    @classmethod
    def of(cls, query: Tensor) -> _Columns:
        """By name, in the order of `GeneQuery.query`."""
        return cls(query[:, :-4], *query[:, -4:].T)


class GeneQuery(Model):
    """Expression inside shapes for any gene that has a text.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel to train on.
    embeddings : GeneEmbeddings | str | Path, optional
        Embeddings of the panel and of any further genes (`stp.tl.embed_genes`), all saved.
    names : GeneEmbeddings | str | Path, optional
        Embeddings of the bare names beside those of definitions, for the name-and-definition form; or None.
    context : {"spot", "gene"}, optional
        "spot" or "gene", see `GeneQueryConfig`; None: the configuration's, "spot" for a named one.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of a frozen encoder are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | GeneQueryConfig, default "small"
        "small", "published" (ResNet50; for a GPU), or a `GeneQueryConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, genes without an embedding, an unknown configuration, and a context that
        contradicts it.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> vectors = np.eye(4, dtype=np.float32)
    >>> texts = stp.tl.GeneEmbeddings(genes=tuple(genes), vectors=vectors, encoder="one-hot")
    >>> stp.models.GeneQuery(genes, embeddings=texts).context
    'section'
    """

    output: ClassVar = "spots"
    context: Literal["shape", "section"] = (
        "section"  # with spots as context; a model with genes as context is one of shapes
    )
    config_class: ClassVar = GeneQueryConfig
    config: GeneQueryConfig
    info: ClassVar = ModelInfo(
        name="GeneQuery",
        task="transformer over spots or over genes; a gene's token from its text",
        text_queried="yes",
        title=("GeneQuery: A General QA-based Framework for Spatial Gene Expression Predictions from Histology Images"),
        authors="Xiong et al.",
        venue="BIBM",
        year=2025,
        arxiv="2411.18391",
        code="https://github.com/xy-always/GeneQuery",
        encoder="resnet50",
    )

    blocks: Any  # a ModuleList of TransformerBlock
    mean: Tensor
    spread: Tensor
    low: Tensor
    span: Tensor

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        embeddings: GeneEmbeddings | str | Path | None = None,
        names: GeneEmbeddings | str | Path | None = None,
        context: Literal["spot", "gene"] | None = None,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        config: str | GeneQueryConfig = "small",
        seed: int | None = None,
    ) -> None:
        embeddings, names = as_embeddings(embeddings), as_embeddings(names)
        super().__init__(_config(config, genes, embeddings, names, context, mpp))
        c = self.config
        self.context = "section" if c.context == "spot" else "shape"
        self.texts = Vocabulary(c.vocabulary, c.text, embeddings)
        self.names = None if c.names is None else Vocabulary(c.vocabulary, c.names, names)
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind=c.features, frozen=c.frozen, folder=feature_cache,
            patch_px=c.patch_px,
        )  # fmt: skip
        self.image_projection = (
            nn.Linear(self.encoder.width, c.width)
            if c.image_projection == "linear"
            else ProjectionHead(self.encoder.width, c.width, dropout=c.dropout)
        )
        self.gene_projection = nn.Linear(int(c.text["width"]), c.width)
        self.name_projection = None if c.names is None else nn.Linear(int(c.names["width"]), c.width)
        sizes = {"heads": c.heads, "head_width": c.head_width, "mlp_width": c.mlp_width}
        self.blocks = nn.ModuleList(TransformerBlock(c.width, **sizes, dropout=c.dropout) for _ in range(c.depth))
        last = nn.Linear(c.width, 1)
        self.scalar = nn.Sequential(nn.LayerNorm(c.width), last) if c.scalar_norm else nn.Sequential(last)
        register_scale(self, len(c.genes), "mean", "spread", "low", "span")

    @property
    def gene_texts(self) -> Vocabulary:
        """The genes that can be asked for, with their embeddings."""
        return self.texts

    def add_embeddings(self, embeddings: GeneEmbeddings) -> None:
        """Take in the texts of further genes, for this process; see `Vocabulary.add_embeddings`."""
        if self.names is not None:
            raise ValueError("a model of names and definitions takes all its texts when it is built.")
        super().add_embeddings(embeddings)

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene, and of features and texts, on the training sections."""
        fit_scale(self, measured_expression(sections))
        for vocabulary in (self.texts, self.names):
            if vocabulary is not None:
                vocabulary.fit(self.genes)
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """In training with spots as context: whole sections and some genes; else the patch around every shape."""
        c = self.config
        patches = PatchSamples(sections, patch_px=c.patch_px, n_genes=c.train_genes if train else None, seed=seed)
        if not train or c.context == "gene":
            return patches
        return SectionSamples(patches, n_spots=c.train_spots, n_genes=c.train_genes, seed=seed)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """Embedding(s) of each gene; its position in the panel or -1; its training mean, spread and span.

        An unseen gene has no scale of its own: it gets the panel's, so its values have no unit to be scored by.
        """
        rows = [vocabulary.rows(genes) for vocabulary in (self.texts, self.names) if vocabulary is not None]
        at = self.gene_index_or_unseen(genes, self.low.device)
        scale = [of_panel_or_mean(each, at) for each in (self.mean, self.spread, self.span)]
        return torch.cat([*rows, torch.stack([at.float(), *scale], dim=1)], dim=1)

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The projected image features of every shape."""
        features = self.encoder(batch.image)
        return self.image_projection(F.dropout(features, self.config.feature_dropout, self.training))

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The transformer, for all spots of one section (context "spot") or spot by spot (context "gene").

        Raises
        ------
        ValueError
            For a section whose keys do not fit into memory.
        """
        scaled = self._spot_aware([latent], query) if self.context == "section" else self._gene_aware(latent, query)
        gene = _Columns.of(query)
        return gene.mean + gene.spread * scaled

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE over all (spot, gene) pairs, in min-max units (the minimum cancels)."""
        latent = self.latent(batch)
        if self.context == "section":
            scaled = self._spot_aware([latent[rows] for rows in sections_of(batch)], query)
        else:
            scaled = self._among_themselves(latent, query)
        gene = _Columns.of(query)
        return ((gene.mean + gene.spread * scaled - batch.measured) / gene.span).square().mean()

    def _genes(self, query: Tensor) -> Float[Tensor, "g d"]:
        """Projected embeddings."""
        width, texts = int(self.config.text["width"]), _Columns.of(query).texts
        out = self.gene_projection(texts[:, :width])
        return out if self.name_projection is None else out + self.name_projection(texts[:, width:])

    def _fused(self, image: Tensor, gene: Tensor) -> Tensor:
        """Tokens: the sum of both, as the configuration has it activated and dropped out."""
        c = self.config
        x = F.dropout(image + gene, c.fused_dropout, self.training and c.fused_dropout > 0)
        if c.fused_activation != "none":
            x = F.relu(x) if c.fused_activation == "relu" else F.gelu(x)
        return F.dropout(x, c.token_dropout, self.training and c.token_dropout > 0)

    def _spot_aware(self, sections: Sequence[Tensor], query: Tensor) -> Float[Tensor, "n g"]:
        """(all spots, g): a sequence for every section and gene; shorter sections are padded, the padding masked."""
        images = pad_sequence(list(sections), batch_first=True)  # (s, n, d)
        lengths = torch.tensor([len(rows) for rows in sections], device=images.device)
        n_sections, n = images.shape[:2]
        self._check_memory(n)
        inside = torch.arange(n, device=images.device) < lengths[:, None]
        genes = self._genes(query)
        at_once = len(genes) if torch.is_grad_enabled() else max(1, TOKENS // (n_sections * n))
        parts = []
        for some in genes.split(at_once):
            x = self._fused(images[:, None], some[:, None]).flatten(0, 1)  # (s k, n, d)
            keep = None if bool(inside.all()) else inside.repeat_interleave(len(some), dim=0)
            for block in self.blocks:
                x = block(x, keep)
            parts.append(self.scalar(x)[..., 0].unflatten(0, (n_sections, -1)))
        return torch.cat(parts, dim=1).transpose(1, 2)[inside]

    def _among_themselves(self, latent: Tensor, query: Tensor) -> Float[Tensor, "n g"]:
        """The sequence of these genes for every spot, each seeing all of them."""
        x = self._fused(latent[:, None], self._genes(query))
        for block in self.blocks:
            x = block(x)
        return self.scalar(x)[..., 0]

    def _gene_aware(self, latent: Tensor, query: Tensor) -> Float[Tensor, "n g"]:
        """The panel as the sequence for every spot; other genes see the panel and themselves."""
        panel = self.query(self.genes).to(query)
        place = _Columns.of(query).place.round().long()
        context, asked = self._genes(panel), self._genes(query[place < 0])
        parts = []
        for some in latent.split(max(1, TOKENS // (len(context) + len(asked)))):
            x, y = self._fused(some[:, None], context), self._fused(some[:, None], asked)
            for block in self.blocks:
                y = block.asked(y, x) if len(asked) else y
                x = block(x)
            out = x.new_empty(len(some), len(query))
            out[:, place >= 0] = self.scalar(x)[..., 0][:, place[place >= 0]]
            out[:, place < 0] = self.scalar(y)[..., 0]
            parts.append(out)
        return torch.cat(parts)

    def _check_memory(self, n: int) -> None:
        need, free = n * TOKEN_BYTES, free_bytes(self.low.device)
        if need > free:
            raise ValueError(
                f"a section of {n} shapes needs {need / 1e9:.1f} GB for its keys and states, and {free / 1e9:.1f} GB "
                f"are free: at most {free // TOKEN_BYTES} shapes fit. Queries are split, keys never, so it is not cut: "
                "use a model with context='gene', or larger bins (stp.pp.tile_grid)."
            )


def _config(
    config: str | GeneQueryConfig,
    genes: Sequence[str],
    embeddings: GeneEmbeddings | None,
    names: GeneEmbeddings | None,
    context: Literal["spot", "gene"] | None,
    mpp: float | None,
) -> GeneQueryConfig:
    if context not in (None, "spot", "gene"):
        raise ValueError(f"context={context!r} is unknown: use 'spot' or 'gene'.")
    if isinstance(config, GeneQueryConfig) and context not in (None, config.context):
        raise ValueError(f"context={context!r} contradicts the config, whose context is {config.context!r}.")
    form = context or "spot"
    given = {"context": context, "names": None if names is None else text_spec(names), "mpp": mpp}
    made = resolve_config(config, GeneQueryConfig, PUBLISHED[form], genes, embeddings, small=SMALL[form], **given)
    if embeddings is not None:
        embeddings.take(made.genes)  # raises for genes that have none
    if embeddings is not None and names is not None:
        names.take(embeddings.genes)
    return made
