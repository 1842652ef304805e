"""SGN: graph network over the shapes of a section; each gene's output weights come from its text.

Source: "Spatial Transcriptomics Analysis of Zero-shot Gene Expression Prediction" (MICCAI 2024) and its released code
(Yan98/SGN: the graph, the text transformer, the loss). Where we differ, or do not follow the released code:

- the correlation term compares the genes of the step with their own columns (its first release compared them with the
  first 64 columns of all genes);
- minima and maxima of the targets come from training sections (the code: from all slides, test slides too), the epoch
  is never chosen on a test section (the code: it is), and a fold holds the sections that it names (the code matches
  files by the end of their names, so that "1.pt" also takes "11.pt");
- a gene's text is one vector (`stp.tl.embed_genes`), not the token sequences of a 7-billion-parameter language model:
  "small" makes the weights by two linear layers; "published" runs the text transformer (two blocks of 4 heads,
  LayerScale .1, class token, register) on a sequence of one text token, so that it needs no segment embedding and no
  mask; queries, keys and values have no bias;
- near shapes are neighbours on the array's grid (the code: on pixels divided by 256); of more than five within a
  distance of sqrt(2) those at distance 1 come first, then by row and column (the code: whichever it finds);
- features are standardised on the training spots and cut at 5, for the graph's edges, too, of which 93 % are then the
  same (the code: as they come);
- it trains on the panel it is given (the code: on every gene but the 250 of the highest mean, on which it is tested);
  an epoch has so many steps a section that every gene is expected once (the code: one step, 64 genes);
- AdamW warms up and falls along a cosine (the code: a constant rate); no patch is augmented, as there.

Ours: the answer is in standard units of the gene on the training sections, so that it starts near the gene's mean (the
loss stays in min-max units); "small" sees means and standard deviations over 256 um at every stage of the encoder, with
dropout, since four sections are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn

from stpredict._embeddings import GeneEmbeddings
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import Config, EncoderConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder, array_grid
from stpredict.models._samples import Batch, PatchSamples, Samples, SectionSamples, sections_of
from stpredict.models._scale import fit_scale, measured_expression, of_panel_or_mean, register_scale
from stpredict.models._texts import Vocabulary, as_embeddings
from stpredict.nn.losses import mse_pcc
from stpredict.nn.transformer import TransformerBlock

DISTANCE_ROWS = 512  # shapes whose distances to all others are held at once
KINDS = 2  # of edges: near on the grid, alike in their features
TIES = 8  # features by which shapes of one place are told apart


@dataclass(frozen=True)
class _TextPatchConfig(Config):
    """What stands before the encoder: the genes and their texts, and the patch."""

    genes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    text: Mapping[str, Any]
    mpp: float = 2.0
    patch_px: int = 128


@dataclass(frozen=True)
class SGNConfig(EncoderConfig, _TextPatchConfig):
    """Every choice of an SGN. Each value that the source does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered training panel.
    vocabulary : tuple[str, ...]
        All genes whose embeddings are saved with the model.
    text : Mapping[str, Any]
        How those embeddings were made.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each shape in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`.
    frozen : bool, default True
        Whether the encoder stays as it is.
    features : {"pooled", "averaged"}, default "pooled"
        Which features of the encoder, see `PatchEncoder`.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    n_near : int, default 5
        Most neighbours of a shape on the grid.
    n_alike : int, default 5
        How many neighbours it has among the features.
    width, depth : int, optional
        Of the graph's layers.
    out_width : int, default 256
        Length of a gene's row of weights.
    text_network : {"mlp", "transformer"}, default "mlp"
        What makes rows of weights from embeddings.
    text_hidden : int, default 128
        Hidden width of the "mlp".
    text_depth, text_heads : int, optional
        Of the "transformer".
    text_dropout : float, default 0.1
        Within either.
    norm_eps : float, default 1e-5
        Of the layer norms of the "transformer".
    pretransform : bool, default False
        Whether a linear map without bias, as wide as the features, stands before the graph's layers.
    pcc_weight : float, default 0.5
        Weight of the Pearson term of the loss.
    train_genes : int, default 64
        Genes a training step.
    recipe : Recipe, optional
        See `Recipe`.
    """

    mpp: float = 2.0  # 256 um around a spot, as for GeneQuery (benchmarks/README.md)
    frozen: bool = True
    features: Literal["pooled", "averaged"] = "pooled"
    feature_dropout: float = 0.5  # not given; hundreds of spots, a thousand features
    n_near: int = 5
    n_alike: int = 5
    width: int = 256  # the source: 512, that of its features
    depth: int = 4
    out_width: int = 256
    text_network: Literal["mlp", "transformer"] = "mlp"
    text_hidden: int = 128  # as the text head of PixNet
    text_depth: int = 2
    text_heads: int = 4
    text_dropout: float = 0.1
    norm_eps: float = 1e-5  # the source: 1e-6
    pretransform: bool = False  # the source has one: the same functions, other steps of the optimiser
    pcc_weight: float = 0.5
    train_genes: int = 64
    recipe: Recipe = field(
        # the source: 5e-4, which is for 300 epochs
        default_factory=lambda: Recipe(max_epochs=20, batch_size=1, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2)
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # not given: pixels of the slides' full resolution
    "patch_px": 224,  # its features are of the middle 224 px of 256
    "encoder": "resnet18", "taps": (4,), "features": "averaged", "feature_dropout": 0.0, "width": 512,
    "text_network": "transformer", "text_dropout": 0.0, "norm_eps": 1e-6, "pretransform": True,
    "recipe": Recipe(max_epochs=300, batch_size=1, lr=5e-4, encoder_lr=0.0, weight_decay=1e-4),
}  # fmt: skip


class _Columns(NamedTuple):
    """The columns of a query: weights (g, d) and bias of the head, training mean, spread and span (g,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor
    span: Tensor

    @classmethod
    def of(cls, query: Tensor) -> _Columns:
        """By name, in the order of `SGN.query`."""
        return cls(query[:, :-4], *query[:, -4:].T)


class SGN(Model):
    """Expression inside shapes for any gene that has a text, from a graph over all shapes of a section.

    The latent of a shape is its image features and its place (row, column) on the section's grid: the graph is part of
    the head, which sees all rows of a section.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel to train on.
    embeddings : GeneEmbeddings | str | Path, optional
        Embeddings of the panel and of any further genes (`stp.tl.embed_genes`), all saved.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where image features are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | SGNConfig, default "small"
        "small" (frozen features of a small CNN), "published" (ResNet18, for a GPU), or an `SGNConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel and for genes without an embedding.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> vectors = np.eye(4, dtype=np.float32)
    >>> texts = stp.tl.GeneEmbeddings(genes=tuple(genes), vectors=vectors, encoder="one-hot")
    >>> stp.models.SGN(genes, embeddings=texts).context
    'section'
    """

    output: ClassVar = "spots"
    n_auxiliary: ClassVar = 2
    context = "section"
    config_class: ClassVar = SGNConfig
    config: SGNConfig
    info: ClassVar = ModelInfo(
        name="SGN",
        task="graph over the section; a gene's weights from its text",
        text_queried="yes",
        title="Spatial Transcriptomics Analysis of Zero-shot Gene Expression Prediction",
        authors="Yang et al.",
        venue="MICCAI",
        year=2024,
        code="https://github.com/Yan98/SGN",
        encoder="resnet18",
    )

    layers: Any  # a ModuleList of GraphLayer
    mean: Tensor
    spread: Tensor
    span: Tensor

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        embeddings: GeneEmbeddings | str | Path | None = None,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        config: str | SGNConfig = "small",
        seed: int | None = None,
    ) -> None:
        embeddings = as_embeddings(embeddings)
        super().__init__(_config(config, genes, embeddings, mpp))
        c = self.config
        self.texts = Vocabulary(c.vocabulary, c.text, embeddings)
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind=c.features, frozen=c.frozen, folder=feature_cache,
            patch_px=c.patch_px,
        )  # fmt: skip
        wide = self.encoder.width
        self.pretransform = nn.Linear(wide, wide, bias=False) if c.pretransform else nn.Identity()
        widths = [wide] + [c.width] * c.depth
        self.layers = nn.ModuleList(GraphLayer(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = nn.Linear(c.width, c.out_width)
        self.text_network = _text_network(c)
        register_scale(self, len(c.genes), "mean", "spread", "span")

    @property
    def gene_texts(self) -> Vocabulary:
        """The genes that can be asked for, with their embeddings."""
        return self.texts

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene, and of features and texts, on the training sections."""
        fit_scale(self, measured_expression(sections))
        self.texts.fit(self.genes)
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """In training whole sections and some genes; else the patch around every shape."""
        c = self.config
        extra = {"place": torch.from_numpy(np.concatenate([array_grid(section) for section in sections]))}
        if not train:
            return PatchSamples(sections, patch_px=c.patch_px, extra=extra)
        if c.frozen:  # a section is read in every step of training
            extra["features"] = self.encoder.encode_sections(sections, patch_px=c.patch_px).cpu()
        patches = PatchSamples(
            sections, patch_px=c.patch_px, n_genes=c.train_genes, seed=seed, extra=extra, images=not c.frozen
        )
        most = max(section.n_shapes for section in sections)
        return SectionSamples(patches, n_spots=most, n_genes=c.train_genes, seed=seed)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """Weights of length 1 and bias of each gene, from its text; its training mean, spread and span.

        An unseen gene has no scale of its own: it gets the panel's, so its values have no unit to be scored by.
        """
        made = self.text_network(self.texts.rows(genes))
        at = self.gene_index_or_unseen(genes, made.device)
        scale = [of_panel_or_mean(each, at) for each in (self.mean, self.spread, self.span)]
        return torch.cat([F.normalize(made[:, :-1], dim=1), made[:, -1:], torch.stack(scale, dim=1)], dim=1)

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The image features of every shape, and its place on the grid (row, column)."""
        known = batch.extra.get("features")
        features = self.encoder(batch.image) if known is None else known
        return torch.cat([features, batch.extra["place"].to(features)], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The graph over these rows, which are all of one section, and every gene's weights on what comes out."""
        c, features = self.config, latent[:, :-2]
        both = edges(
            features.detach().cpu().numpy(),
            latent[:, -2:].detach().round().long().cpu().numpy(),
            n_near=c.n_near,
            n_alike=c.n_alike,
        )
        near, alike = (torch.from_numpy(each).to(latent.device) for each in both)
        x = F.dropout(features, c.feature_dropout, self.training)
        x = self.pretransform(x)
        for layer in self.layers:
            x = layer(x, near, alike)
        gene = _Columns.of(query)
        return gene.mean + gene.spread * (self.out(x) @ gene.weight.T + gene.bias)

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE + 0.5 (1 - Pearson over the shapes of a section), in min-max units (the minimum cancels)."""
        pred, span = predict_batch(self, batch, query), _Columns.of(query).span.float()
        parts = [
            mse_pcc(pred[rows] / span, batch.measured[rows] / span, pcc_weight=self.config.pcc_weight)
            for rows in sections_of(batch)
        ]
        return torch.stack(parts).mean()


class GraphLayer(nn.Module):
    """LeakyReLU of the mean over the kinds of edges of: own weights x a shape + others' weights x its neighbours' mean.

    A shape without neighbours of a kind sees zeros there. Source: a HeteroConv of two SAGEConv, mean over both.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(n_in, n_out, bias=False) for _ in range(KINDS))
        self.others = nn.ModuleList(nn.Linear(n_in, n_out) for _ in range(KINDS))

    def forward(self, x: Float[Tensor, "n a"], near: Int[Tensor, "2 e"], alike: Int[Tensor, "2 k"]) -> Tensor:
        """(n, n_out); an edge is (source, target), and its message goes to the target."""
        kinds = zip(self.own, self.others, (near, alike), strict=True)
        parts = [own(x) + others(neighbour_mean(x, among)) for own, others, among in kinds]
        return F.leaky_relu(torch.stack(parts).mean(dim=0), 0.2)


def neighbour_mean(x: Float[Tensor, "n a"], among: Int[Tensor, "2 e"]) -> Float[Tensor, "n a"]:
    """The mean of the sources of every target's edges; 0 where there are none."""
    source, target = among
    total = torch.zeros_like(x).index_add(0, target, x[source])
    count = torch.bincount(target, minlength=len(x)).clamp_min(1)
    return total / count[:, None].to(x)


def edges(
    features: NDArray[np.floating], places: NDArray[np.int64], *, n_near: int, n_alike: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges (2, e) of source and target: from the near shapes on the grid, and from those with the most alike features.

    Parameters
    ----------
    features, places
        (n, f) and (n, 2) row and column of the shapes of one section.
    n_near, n_alike : int
        Most neighbours within a distance of sqrt(2), nearest first; and how many by Euclidean distance of features.
        Ties go by row, column and features, so that the order of the shapes does not matter.
    """
    order = np.lexsort((*features.T[:TIES], places[:, 1], places[:, 0]))
    x, at = features[order].astype(np.float64), places[order]
    pairs = KDTree(at).query_pairs(1.5, output_type="ndarray")
    target, source = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64).T
    near = _first(target, source, np.square(at[source] - at[target]).sum(axis=1).astype(np.float64), n_near)
    alike = np.concatenate([_alike(x, k, n_alike) for k in range(0, len(x), DISTANCE_ROWS)], axis=1)
    return order[near], order[alike]


def _alike(x: NDArray[np.float64], start: int, n: int) -> NDArray[np.int64]:
    """Edges to the rows `start`, ... from the `n` rows of the least distance each."""
    some, n = x[start : start + DISTANCE_ROWS], min(n, len(x) - 1)
    squares = np.square(x).sum(axis=1)
    # rounded, so that distances that are equal but for the order of sums are ties
    apart = np.round(squares[start : start + DISTANCE_ROWS, None] + squares - 2 * some @ x.T, 6)
    apart[np.arange(len(some)), start + np.arange(len(some))] = np.inf
    if n < 1:
        return np.empty((2, 0), dtype=np.int64)
    target, source = np.nonzero(apart <= np.partition(apart, n - 1, axis=1)[:, n - 1 : n])
    return _first(target + start, source, apart[target, source], n)


def _first(
    target: NDArray[np.int64], source: NDArray[np.int64], distance: NDArray[np.float64], n: int
) -> NDArray[np.int64]:
    """The `n` edges of the least distance to every target, ties by source: (2, e), source and target."""
    order = np.lexsort((source, distance, target))
    target, source = target[order], source[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    return np.stack([source, target])[:, rank < n]


class TextTransformer(nn.Module):
    """A class token, a register and the text's one token through blocks whose branches start small (LayerScale .1)."""

    def __init__(self, n_in: int, width: int, *, depth: int, heads: int, dropout: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.first = nn.Parameter(torch.randn(2, width) * 0.02)  # class token and register
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block: Any = TransformerBlock(
                width, heads=heads, head_width=width // heads, mlp_width=4 * width, dropout=dropout, eps=eps
            )
            block.out, block.mlp = nn.Sequential(block.out, _Scale(width)), block.mlp.append(_Scale(width))
            self.blocks.append(block)
        self.out = nn.Sequential(nn.LayerNorm(width, eps=eps), nn.Linear(width, width + 1))

    def forward(self, rows: Float[Tensor, "g w"]) -> Float[Tensor, "g d"]:
        """Weights and a bias for every text."""
        x = torch.cat([self.first.expand(len(rows), -1, -1), self.embed(rows)[:, None]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.out(x[:, 0])


class _Scale(nn.Module):
    """A factor for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _text_network(c: SGNConfig) -> nn.Module:
    n_in = int(c.text["width"])
    if c.text_network == "transformer":
        sizes = {"depth": c.text_depth, "heads": c.text_heads}
        return TextTransformer(n_in, c.out_width, **sizes, dropout=c.text_dropout, eps=c.norm_eps)
    return nn.Sequential(
        nn.Linear(n_in, c.text_hidden),
        nn.GELU(),
        nn.Dropout(c.text_dropout),
        nn.Linear(c.text_hidden, c.out_width + 1),
    )


def _config(
    config: str | SGNConfig, genes: Sequence[str], embeddings: GeneEmbeddings | None, mpp: float | None
) -> SGNConfig:
    made = resolve_config(config, SGNConfig, PUBLISHED, genes, embeddings, mpp=mpp)
    if embeddings is not None:
        embeddings.take(made.genes)  # raises for genes that have none
    return made
