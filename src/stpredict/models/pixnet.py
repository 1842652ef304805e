"""PixNet: dense expression map from an H&E image, supervised by its sums or means inside measured shapes.

Source: "From Spots to Pixels: Dense Spatial Gene Expression Prediction from Histology Images", arXiv 2503.01347
(CVPR 2026), Figure 2 and its caption; decoder details from two long third-party notes on its v4, and where both are
silent the order of operations of MCADS-Decoder, which the authors credit. The official repository holds no code.

Where we differ, or had to choose:

- the encoder pyramid: three skips and a bottom. A ViT's tokens all have one stride: the bottom is the last tap averaged
  down by 8, the skips are taps averaged by 4, 2, 1. A CNN brings its own strides. A ViT sees squares of its native
  side (224 px), one by one, with no context across them.
- the learning rate rises over a tenth of the steps and falls along a cosine, gradients are clipped at 1, and a batch
  has 8 windows (the paper gives AdamW, rate, decay and epochs); windows, tiles, halo and augmentation are ours.
- with six filters the rules give three depth-to-space and two bilinear steps; the two finest levels have no skip. The
  small configuration has bilinear steps alone: spots hardly tell the cells of a depth-to-space step apart, and those
  that were trained on them left a woven pattern in the map.
- self-attention of the skip fusion is in fixed windows laid from pixel (0, 0) of the section (MCADS: image rows), so an
  answer does not depend on the tile; in the small configuration of two such grids, blended, so that squares hardly
  show. The residual adds the upsampled tensor U (Figure 2; the notes' formula is not channel-consistent).
- the map is pooled as an area-weighted mean by default (the paper: a sum; see `PixNetConfig.reduction`).
- the small configuration has a second branch, the context: a closed-form kernel ridge regression, of reduced rank, on
  statistics over 128 and 512 um of colours and of the same CNN with its pretrained weights, as some more linear
  channels of the map. Fine-tuning on a few hundred spots forgets part of what the pretrained maps know; the average of
  both is better than either, and than several seeds (benchmarks/tried.md). It needs a CNN, a panel head,
  `reduction="mean"` and `link="identity"`: the average of two maps in log units is no map of rates.
- shapes of few counts, whose log expression is mostly noise, weigh less in the loss and in the context (ours).
- with `link="counts"` the map holds rates and the loss is the likelihood of raw counts (`_counts.py`); ours.
- the last features are pooled first and the 1x1 head is applied after: the same algebra, without 250 full maps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stpredict._card import WEIGHTS, read_card
from stpredict._embeddings import GeneEmbeddings
from stpredict._link import TOTAL, Link
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, Tiling, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._counts import GAIN, CountRates, log_share
from stpredict.models._fields import EncoderConfig, PanelConfig
from stpredict.models._folder import checked
from stpredict.models._hub import find
from stpredict.models._info import ModelInfo
from stpredict.models._pixnet import (
    FEWEST_TO_CHOOSE,
    SHARE_SLACK,
    ContextBranch,
    Decoder,
    PanelHead,
    TextHead,
    default_share,
    fit_context,
)
from stpredict.models._samples import Batch, Samples
from stpredict.models._scale import depth_weight
from stpredict.models._texts import Vocabulary, as_embeddings
from stpredict.models._windows import WindowSamples
from stpredict.nn.architecture import IMAGENET
from stpredict.nn.encoders import Encoder, EncoderSpec, rgb
from stpredict.nn.losses import mse_pcc
from stpredict.nn.pool import pool
from stpredict.nn.state import read_tensors

logger = logging.getLogger("stpredict")


@dataclass(frozen=True)
class PixNetConfig(EncoderConfig, PanelConfig):
    """Every choice of a PixNet. Each value that the sources do not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; four taps, finest first: three skips and the bottom.
    filters : tuple[int, ...], default (32, 48, 64, 96)
        Decoder widths, finest level first.
    n_bilinear : int, optional
        How many of the finest upsampling steps are bilinear; the deeper ones are depth-to-space. None: all of them.
    attention_window : int, default 8
        Side, in cells of its level, of the squares within which the skip fusion attends.
    attention_grids : {1, 2}, default 2
        How many grids of such squares there are; the second lies half a square further on along both axes.
    reduction : {"mean", "sum"}, default "mean"
        How the map is pooled inside a shape: the area-weighted mean, or the sum.
    link : {"identity", "log1p", "counts"}, default "identity"
        "identity": the map is in log units; "log1p": it is the rate per 10,000 counts; "counts": it holds the rate of
        each gene and, last, of all RNA (`__total__`), which add up over area and are fitted to raw counts: a shape has
        log1p of 10,000 times the one over the other.
    pcc_weight : float, default 0.5
        Weight of the Pearson term of the loss; "counts" has none.
    window_px : int, default 384
        Side of a training window in pixels.
    stain_jitter : float, default 0.12
        How much stain strength and hue vary in training.
    core_px : int, default 1024
        Side of the core of an inference tile in pixels.
    halo_px : int, default 384
        Width of the halo around it in pixels; wider by itself where the context's wider square looks farther.
    head : {"panel", "text"}, default "panel"
        "panel": a free row of weights for every gene; "text": rows made from the embeddings of the genes' texts.
    vocabulary : tuple[str, ...], default ()
        With a text head: all genes whose embeddings are saved with the model.
    text : Mapping[str, Any], optional
        How those embeddings were made.
    text_hidden : int, default 128
        Hidden width of the network that makes rows of the head from embeddings.
    text_dropout : float, default 0.1
        Within that network.
    train_genes : int, default 64
        How many genes a text head is asked for in a training step.
    context_rank : int, default 32
        Channels of the context (0: none).
    context_cells : int, default 2
        Side of its square in cells of the coarsest stage, even.
    context_zoom : int, default 1
        How many times the image is enlarged for its encoder. 2 sees tissue as at half the mpp (with `context_cells=4`
        and `context_wide_cells=16` over the same squares), and costs four times as much; no better on left-out sections
        (benchmarks/tried.md).
    context_levels : int, default 5
        Levels of each colour that it looks at, beside its encoder (0: none).
    context_wide_cells : int, default 8
        Side of a wider square that it looks at as well, in cells of the coarsest stage, even (0: none).
    context_landmarks : int, default 512
        Training shapes, at most, that it compares tissue with, as a kernel regression (0: a linear one).
    context_share : float, optional
        The context's share of the map. None: .7 where the training shapes are spots, and .3 where they are bins or
        cells (a median of less than 1,000 square um), for the context sees nothing finer than its cells of 64 um. Where
        at least 50 shapes are held out (`val=` of `stp.tl.train`), of the shares 0, .1, ..., 1 whose mean correlation
        there is within .005 of the best the one nearest to that is taken.
    half_weight_counts : float, default 5000
        Raw counts at which a training shape weighs half as much as at endless depth, n / (n + this), in a step beside
        the other shapes of its batch, where all sections have counts and the link is not "counts" (0: all alike).
    turns : int, default 1
        4 or 8: the mean over quarter turns (and flips) at prediction, at that many times the cost; 1: none.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.PixNetConfig(genes=tuple(genes), mpp=2.0, link="counts")
    >>> stp.models.PixNet(config=config).config.link
    'counts'
    """

    mpp: float = 2.0  # not given; of 1 and 2 um the better on a held-out training section (benchmarks/tried.md)
    taps: tuple[int, ...] = (1, 2, 3, 4)
    filters: tuple[int, ...] = (32, 48, 64, 96)  # narrow: 2 cores; chosen before any score was seen
    # all that a CNN pyramid needs (the paper has 2 of 5): spots hardly tell the cells of a depth-to-space step apart,
    # which left a woven pattern in maps (benchmarks/README.md)
    n_bilinear: int | None = None
    attention_window: int = 8  # not given; 64 tokens cost little, and the window of a level stays below a 100 um spot
    attention_grids: Literal[1, 2] = 2  # ours: the squares of a single one show in the map
    reduction: Literal["mean", "sum"] = "mean"  # the paper sums; log expression is intensive (docs: concepts)
    link: Link = "identity"  # the paper: the map is in log units
    pcc_weight: float = 0.5  # the paper
    window_px: int = 384  # training window, not given: about ten 100 um spots, and a step of 8 windows fits a laptop
    stain_jitter: float = 0.12  # not given: stain strength and hue vary by +- 24 % each
    core_px: int = 1024  # inference tile; a multiple of every attention window and stride
    halo_px: int = 384  # measured with trained weights: benchmarks/README.md, seams
    head: Literal["panel", "text"] = "panel"
    vocabulary: tuple[str, ...] = ()
    text: Mapping[str, Any] = field(default_factory=dict)
    text_hidden: int = 128  # not given by anyone for this size
    text_dropout: float = 0.1
    train_genes: int = 64  # SGN: genes a step
    context_rank: int = 32  # ours, see the module's head; 250 genes lie in fewer dimensions than this
    # 128 um at 2 um per pixel and stride 32: as good as 256 um on left-out sections, and better on half a section of
    # another patient (benchmarks/tried.md)
    context_cells: int = 2
    context_zoom: int = 1
    context_levels: int = 5  # 5 to 95 % of the training tissue; as good as nine on left-out sections
    # 512 um at 2 um per pixel: the map knows what kind of region a cell lies in (benchmarks/tried.md)
    context_wide_cells: int = 8
    context_landmarks: int = 512
    context_share: float | None = None
    half_weight_counts: float = 5000.0  # ours; 1,000 to 20,000 were alike
    turns: int = 1
    recipe: Recipe = field(
        # not given for this size; the paper's 5e-4 with 1e-4 decay is the published configuration
        default_factory=lambda: Recipe(
            max_epochs=20, batch_size=8, lr=3e-3, encoder_lr=1e-3, weight_decay=1e-2, patience=10, min_steps=200
        )
    )

    @classmethod
    def older(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The context was linear, of one square, and looked at no colours; shapes weighed alike; one grid."""
        return {
            "context_levels": 0,
            "context_wide_cells": 0,
            "context_landmarks": 0,
            "half_weight_counts": 0.0,
            "attention_grids": 1,
        }


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # UNI2-h was trained at 0.5 um / px
    "encoder": "hf-hub:MahmoodLab/UNI2-h",
    # groups 2, 4 and 6 of six groups of blocks: three maps for three fusions, the last also the bottom. Another reading
    # of "e.g. 2/4/6" is (6, 12, 18, 24), four maps of groups of equal depth
    "taps": (8, 16, 24, 24),
    "encoder_kwargs": {
        "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU", "dynamic_img_size": True,
    },
    "encoder_mean": IMAGENET[0],
    "encoder_std": IMAGENET[1],
    "filters": (64, 128, 256, 512, 512, 512),
    "n_bilinear": 2,
    "attention_grids": 1,
    "context_rank": 0,
    "half_weight_counts": 0.0,
    "window_px": 896,  # not given; a multiple of 224 and of every attention window
    "core_px": 1792,
    "halo_px": 896,  # one attention window of the deepest fusion
    "recipe": Recipe(max_epochs=200, lr=5e-4, encoder_lr=0.0, weight_decay=1e-4),
}  # fmt: skip


class PixNet(Model):
    """A continuous map of expression, read out inside any shape.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder : str, optional
        Overrides the configuration's.
    mpp : float, optional
        Overrides the configuration's.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; name (of a hub, too) or folder of a saved PixNet, whose encoder and
        decoder are taken over; "timm" for the weights timm fetches for the name; None: random.
    head : {"panel", "text"}, optional
        "panel": a free row of weights for every gene; "text": rows made from the embeddings of the genes' texts, so
        that any gene with a text can be asked for. None: as the configuration says.
    embeddings : GeneEmbeddings | str | Path, optional
        Embeddings of the genes' texts (`stp.tl.embed_genes`), for a text head.
    config : str | PixNetConfig, default "small"
        "small" (a CNN pyramid, trained and shipped here), "published" (UNI2-h, for a GPU), or a `PixNetConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, or sizes that do not divide (with what they must divide by).

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> model = stp.models.PixNet(genes, mpp=1.0)
    >>> model.output, model.cell_um
    ('raster', 4.0)
    """

    output: ClassVar = "raster"
    n_auxiliary: ClassVar = 1
    context = "shape"
    config_class: ClassVar = PixNetConfig
    config: PixNetConfig
    info: ClassVar = ModelInfo(
        name="PixNet",
        task="a continuous map from an encoder's pyramid, averaged inside the shape",
        text_queried="optional",
        title="From Spots to Pixels: Dense Spatial Gene Expression Prediction from Histology Images",
        venue="CVPR",
        year=2026,
        arxiv="2503.01347",
        encoder="hf-hub:MahmoodLab/UNI2-h",
        encoder_licence="gated: its licence has to be accepted on the hub",
    )

    stride: float

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder: str | None = None,
        mpp: float | None = None,
        encoder_weights: str | Path | None = None,
        head: Literal["panel", "text"] | None = None,
        embeddings: GeneEmbeddings | str | Path | None = None,
        config: str | PixNetConfig = "small",
        seed: int | None = None,
    ) -> None:
        embeddings = as_embeddings(embeddings)
        home = _home_of(encoder_weights)
        donor = {} if home is None else _donor(home, encoder)
        weights = encoder_weights if home is None else None  # those of a saved PixNet are read below
        made = _config(config, genes, encoder=encoder, mpp=mpp, head=head, embeddings=embeddings)
        super().__init__(replace(made, **donor))
        c, spec = self.config, self.config.encoder_spec
        self.encoder = Encoder(spec, weights=weights)
        self.decoder = Decoder(
            self.encoder.channels,
            c.filters,
            n_bilinear=c.n_bilinear,
            window=c.attention_window,
            n_grids=c.attention_grids,
        )
        self.genes_head = _genes_head(c, embeddings)
        self.count_rates = CountRates(len(c.genes), c.filters[0]) if c.link == "counts" else None
        if self.count_rates is not None and isinstance(self.genes_head, PanelHead):
            self.genes_head.weight.data /= GAIN  # `CountRates.rows` multiplies free rows by it
        self.context_map = None if self.encoder.is_vit else _context(c, spec, weights)
        self.stride = self.encoder.strides[0] / 2 ** (len(c.filters) - len(c.taps))
        self._unit_px = _check_sizes(c, self.encoder)
        if home is not None:
            bodies = ("encoder.", "decoder.", "context_map.encoder.")
            names = [key for key in self.state_dict() if key.startswith(bodies)]
            self.load_state_dict(read_tensors(home / WEIGHTS, names), strict=False)

    @property
    def tiling(self) -> Tiling:
        """The configuration's tiles, with a halo in which the context's wider square has room."""
        found = super().tiling
        assert found is not None
        if self.context_map is None or self.context_map.wide_box is None:
            return found
        needed = -(-self.context_map.reach_px // self._unit_px) * self._unit_px
        return replace(found, halo_px=max(found.halo_px, needed))

    @property
    def gene_texts(self) -> Vocabulary | None:
        """With a text head the genes that can be asked for, with their embeddings; None with a panel head."""
        return self.genes_head.texts if isinstance(self.genes_head, TextHead) else None

    def prepare(self, sections: Sequence[Section]) -> None:
        """Start the head at the mean (and spread) of the training target, each section weighing the same."""
        if self.count_rates is not None:
            self.genes_head.start(*self.count_rates.start(sections))
            return
        measured = [s.expression for s in sections if s.expression is not None]
        means = np.mean([rows.mean(axis=0) for rows in measured], axis=0)
        spread = np.maximum(np.mean([rows.std(axis=0) for rows in measured], axis=0), 1e-3)
        if self.config.link == "log1p":
            rates = np.maximum(np.expm1(means), 1e-3)
            means = rates + np.log(-np.expm1(-rates))  # softplus of it is the rate, also of one that exp cannot hold
            spread = np.ones_like(spread)  # in units before the softplus
        if self.context_map is not None:
            self.context_map.share.zero_()
        self.genes_head.start(means.astype(np.float32), spread.astype(np.float32))

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """Square windows with the shapes wholly inside; flips, quarter turns and stain jitter in training."""
        return WindowSamples(
            sections,
            window_px=self.config.window_px,
            stride=self.stride,
            reduction=self.config.reduction,
            stain_jitter=self.config.stain_jitter if train else 0.0,
            train=train,
            seed=seed,
            n_genes=self.config.train_genes if train and self.config.head == "text" else None,
        )

    def channels(self, genes: Sequence[str]) -> list[str]:
        """These genes and, with `link="counts"`, all RNA."""
        return [*genes, TOTAL] if self.config.link == "counts" else list(genes)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "c d"]:
        """The rows of the 1x1 head for these genes (and, of counts, for all RNA), the bias last."""
        rows = self.genes_head(genes)
        if self.count_rates is not None:
            return self.count_rates.rows(rows, self.gene_index_or_unseen(genes, rows.device))
        if self.context_map is not None and isinstance(self.genes_head, PanelHead):
            rows = self.context_map.mixed(rows, self.genes_head.positions(genes))
        return F.softplus(rows) if self.config.link == "log1p" else rows

    def latent(self, batch: Batch) -> Float[Tensor, "b d r c"]:
        """The last feature map and a constant 1, at `stride` pixels a cell."""
        pyramid = self.encoder(rgb(batch.image))
        if self.encoder.is_vit:
            pyramid = [F.avg_pool2d(x, 2**i) if i else x for i, x in enumerate(pyramid)]
        x = self.decoder(pyramid)
        one = torch.ones_like(x[:, :1])
        if self.count_rates is not None:
            x = self.count_rates.amounts(x)
        elif self.config.link == "log1p":
            x = F.softplus(x)  # with non-negative weights the map is a non-negative rate
        parts = [x] if self.context_map is None else [x, self.context_map(rgb(batch.image), size=x.shape[2:])]
        return torch.cat([*parts, one], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """The 1x1 convolution, on rows."""
        return latent @ query.T

    def link(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "n g"]:
        """Log units: as they are, log1p of a rate per 10,000 counts, or that of a gene's rate in that of all RNA."""
        if self.config.link == "counts":
            return log_share(values)
        return torch.log1p(values) if self.config.link == "log1p" else values

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE + `pcc_weight` x (1 - Pearson in the batch), or the likelihood of counts; inside measured shapes only."""
        if self.count_rates is not None:
            return self._counts_loss(self.count_rates, batch, query)
        values = predict_batch(self, batch, query)
        total, half = batch.extra.get("total"), self.config.half_weight_counts
        weight = depth_weight(total, half) if half and total is not None else None
        return mse_pcc(values, batch.measured, pcc_weight=self.config.pcc_weight, weight=weight)

    def _counts_loss(self, rates: CountRates, batch: Batch, query: Tensor) -> Tensor:
        assert batch.pooling is not None
        latent, query = self.latent(batch).float(), query.float()
        at = self.gene_index_or_unseen(batch.genes, query.device)
        with torch.autocast(query.device.type, enabled=False):
            values = self.head(pool(latent, batch.pooling), query)
            return rates.loss(values, self._rna(latent, query[-1], batch), batch, at)

    def _rna(self, latent: Tensor, row: Tensor, batch: Batch) -> Tensor:
        """Mean rate of all RNA (n,) inside the shapes of a batch."""
        assert batch.pooling is not None and self.count_rates is not None
        pooled = pool(self.count_rates.rna(latent, row), batch.pooling)[:, 0]
        return pooled if self.config.reduction == "mean" else pooled / batch.extra["area"]

    def finish(self, sections: Sequence[Section]) -> None:
        """Fit the context, if there is one; or set the level of all RNA."""
        if self.count_rates is not None:
            self.eval()
            row = self.query(self.genes[:1])[-1].detach()
            self.count_rates.set_level(
                lambda batch: self._rna(self.latent(batch).float(), row, batch), self.samples(sections, train=False)
            )
        if self.context_map is not None:
            c = self.config
            fitted = fit_context(
                self.context_map, sections, window_px=self.context_map.window_px(c.window_px), stride=self.stride,
                half_weight_counts=c.half_weight_counts,
            )  # fmt: skip
            share = default_share(sections, self.mpp) if c.context_share is None else c.context_share
            self.context_map.fitted(*fitted, share=share)

    def choose(self, predict: Callable[[], NDArray[np.float32]], score: Callable[[NDArray[np.float32]], float]) -> None:
        """The context's share, where the configuration leaves it open and enough shapes are held out.

        Of the shares 0, .1, ..., 1 whose score is within .005 of the best, the one nearest to the default.
        """
        if self.context_map is None or self.config.context_share is not None:
            return
        usual, ends = float(self.context_map.share), []
        try:
            for share in (0.0, 1.0):
                self.context_map.share.fill_(share)
                ends.append(predict())
                if len(ends[0]) < FEWEST_TO_CHOOSE:
                    return
        finally:
            self.context_map.share.fill_(usual)
        shares = (usual, *(k / 10 for k in range(11)))
        scores = {share: score((1 - share) * ends[0] + share * ends[1]) for share in shares}
        good = [share for share in scores if scores[share] >= np.nanmax([*scores.values(), -1.0]) - SHARE_SLACK]
        if good:
            chosen = min(good, key=lambda share: abs(share - usual))
            self.context_map.share.fill_(chosen)
            said = "context_share: %.1f by %d held-out shapes (PCC@M %.3f there; %.3f with the usual %.1f)"
            logger.info(said, chosen, len(ends[0]), scores[chosen], scores[usual], usual)


def _home_of(encoder_weights: str | Path | None) -> Path | None:
    """The folder of the saved PixNet that gives its weights; None for a file, for timm's weights and for none."""
    if encoder_weights is None or encoder_weights == "timm" or Path(encoder_weights).is_file():
        return None
    if Path(encoder_weights).suffix == ".safetensors":
        raise FileNotFoundError(
            f"encoder_weights={str(encoder_weights)!r}: there is no such file (a relative path begins at {Path.cwd()})."
        )
    return find(encoder_weights)[0]


def _donor(home: Path, encoder: str | None) -> dict[str, Any]:
    """The fields of a saved PixNet's config that decide the shapes of its encoder, decoder and context."""
    card = read_card(home)
    if card.model != "PixNet":
        raise ValueError(f"encoder_weights={str(home)!r} is a {card.model}; name a PixNet.")
    if encoder not in (None, card.encoder):
        raise ValueError(f"encoder={encoder!r}, but encoder_weights={str(home)!r} has {card.encoder!r}; leave one out.")
    saved = checked(home, PixNet)
    shape = ("encoder", "taps", "encoder_kwargs", "encoder_mean", "encoder_std", "filters", "n_bilinear")
    fields = {key: getattr(saved.config, key) for key in (*shape, "attention_window", "attention_grids")}
    if not any(key.startswith("context_map.encoder.") for key in saved.header):
        fields["context_rank"] = 0  # a context without pretrained weights would be noise
    return fields


def _config(
    config: str | PixNetConfig,
    genes: Sequence[str],
    *,
    encoder: str | None,
    mpp: float | None,
    head: Literal["panel", "text"] | None,
    embeddings: GeneEmbeddings | None,
) -> PixNetConfig:
    """The configuration that the arguments of `PixNet` make, checked as far as that needs no encoder."""
    made = resolve_config(config, PixNetConfig, PUBLISHED, genes, embeddings, encoder=encoder, mpp=mpp, head=head)
    if made.n_bilinear is not None and made.n_bilinear >= len(made.filters):
        raise ValueError(f"n_bilinear={made.n_bilinear}: a decoder of {len(made.filters)} filters has one step less.")
    if made.head == "text" and not made.text:
        raise ValueError("head='text' answers by text: pass embeddings=stp.tl.embed_genes(texts, encoder=...).")
    if made.head == "panel" and embeddings is not None:
        raise ValueError("embeddings= are for head='text'; a panel head does not look at them.")
    if TOTAL in made.genes:
        raise ValueError(f"no gene can be called {TOTAL!r}: it is the channel of all RNA in a map of rates.")
    return made


def _context(c: PixNetConfig, spec: EncoderSpec, weights: str | Path | None) -> ContextBranch | None:
    fits = c.head == "panel" and c.reduction == "mean" and c.link == "identity"
    if not (c.context_rank and fits):
        return None
    for name in ("context_cells", "context_wide_cells"):
        if (cells := getattr(c, name)) % 2:
            raise ValueError(f"{name}={cells} must be even: a square is centred on its cell.")
    stages = replace(spec, taps=tuple(range(max(spec.taps) + 1)))
    return ContextBranch(
        stages, weights=weights, cells=c.context_cells, rank=c.context_rank, n_genes=len(c.genes), zoom=c.context_zoom,
        levels=c.context_levels, wide_cells=c.context_wide_cells, n_landmarks=c.context_landmarks,
    )  # fmt: skip


def _genes_head(c: PixNetConfig, embeddings: GeneEmbeddings | None) -> PanelHead | TextHead:
    if c.head == "panel":
        return PanelHead(c.genes, c.filters[0])
    if embeddings is not None:
        embeddings.take(c.genes)  # raises for genes that have none
    return TextHead(
        c.genes, c.filters[0], vocabulary=c.vocabulary, text=c.text, embeddings=embeddings, hidden=c.text_hidden,
        dropout=c.text_dropout,
    )  # fmt: skip


def _check_sizes(c: PixNetConfig, encoder: Encoder) -> int:
    """The number of pixels that windows, cores and halos are multiples of; raises ValueError where they are not."""
    if c.turns not in (1, 4, 8):
        raise ValueError(f"turns={c.turns} must be 1, 4 (quarter turns) or 8 (with flips).")
    strides = encoder.strides
    if not encoder.is_vit and any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"taps={c.taps} of {c.encoder!r} give maps with strides of {strides} px; each must be twice as coarse as "
            "the one before, since a step of the decoder doubles the resolution. Choose taps of consecutive stages."
        )
    n_bare = len(c.filters) - len(c.taps)
    coarsest = strides[0] / 2**n_bare * 2 ** (len(c.filters) - 2)  # stride of the deepest fusion
    attended_px = int(coarsest) * c.attention_window
    unit = int(np.lcm(encoder.block_px, attended_px))
    for name in ("window_px", "core_px", "halo_px"):
        if (px := getattr(c, name)) % unit:
            raise ValueError(
                f"{name}={px} must be a multiple of {unit} px: the encoder's unit is {encoder.block_px} px, an "
                f"attention window of the deepest fusion is {attended_px} px."
            )
    return unit
