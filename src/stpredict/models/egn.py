"""EGN: vision transformer over one window, guided by its nearest training windows (exemplars).

Source: "Exemplar Guided Deep Neural Network for Spatial Transcriptomics Analysis of Gene Expression Prediction" (EGN),
arXiv 2210.16721 (WACV 2023), its formulas by a third-party note on the paper; compared with the official repository
(Yan98/EGN, v1). Its successor on graphs, EGGN, is another model. Where paper and code differ, the published
configuration follows the paper:

- 9 exemplars (the code: 6); squared error + Pearson term with weight 1 (the code: .5, as our small configuration);
- bridging blocks follow whole transformer blocks (the code: between attention and MLP) and do not normalise the
  exemplars (the code: layer norm after every update); positions are added once (the code: before every attention);
- 8 heads of 64 in the bridging block: the paper's text has 16, but its ablation gives the score of its main table to 8,
  as does the script; the hidden layer of its gates is 256 wide, as in the code, whose gates have 4 heads whatever else;
- the gates see the window and its difference from the exemplar (the code: that difference and the exemplar, which is
  the same up to a linear map); value and gate share one projection, as in the code (the paper: two halves of one);
- what exemplars give to the window is kept (the code throws the new window away and adds its old state once more, so
  that exemplars reach the window by the mask alone: a slip, since it computes the new state first);
- exemplars are searched on features that are standardised and cut at 5, normalised as the encoder was trained (both:
  plain features; 92 % of the exemplars are the same).

Exemplars are found in the features of a frozen ImageNet network, as in the code (the paper trains a StyleGAN encoder on
the windows first). Otherwise than both: target and panel are the caller's (theirs: log10(x + 1), 250 genes by mean
over all slides); nothing is chosen on a test fold and no window left out (the code validates on the test fold, without
its last batch); AdamW with one warm-up and one cosine, gradients clipped (theirs: warm restarts).

Ours: in the small configuration, for want of data, the tokens are the last stage of the same frozen network, with
dropout; the head starts at the mean of every gene, nearly flat.

Exemplars are of other patients (paper, 3.1), in training, validation and prediction alike, where sections carry a group
(`sdata.attrs["patient"]`, or `groups=` of `stp.tl.benchmark`): all training sections do, or none. Where the whole bank
is of the window's group, or no section carries one, they are never of its own section. A section is known by its
pixels, so this holds for parts of one too. Where the whole bank is of that one section (one training section), a window
never has an exemplar that overlaps it. Where fewer are left than wanted there are fewer; none: a plain transformer.
Models of versions before groups keep to the rule of sections.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict import _coverage
from stpredict._section import Section, image_digest
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch, PatchSamples, Samples
from stpredict.models._scale import fit_scale, measured_expression, register_scale
from stpredict.nn.encoders import rgb
from stpredict.nn.losses import mse_pcc
from stpredict.nn.transformer import TransformerBlock

logger = logging.getLogger("stpredict")

EXACT = "donot_use_mm_for_euclid_dist"  # a distance must not depend on the other windows of its batch


@dataclass(frozen=True)
class EGNConfig(EncoderConfig, PatchConfig):
    """Every choice of an EGN. Each value that the paper does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered panel; exemplars are described by the expression of all of it.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the window around each spot in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        The frozen network of the exemplar space, see `stpredict.nn.EncoderSpec`.
    tokens : {"encoder", "pixels"}, default "encoder"
        "encoder": a token for every place of its last stage; "pixels": one for every square of `token_px` px.
    token_px : int, default 32
        Side of such a square in pixels.
    width, depth, heads, head_width, mlp_width : int, optional
        Sizes of the transformer.
    dropout : float, default 0.1
        Within the transformer and the projector.
    feature_dropout : float, default 0.5
        On features of the frozen network.
    bridge_every : int, default 2
        A bridging block after every so many blocks.
    bridge_heads, bridge_head_width : int, optional
        Sizes of a bridging block.
    gate_width : int, default 256
        Hidden width of its gates.
    projector_depth : int, default 2
        Residual MLPs before the first bridging block.
    exemplars : int, default 6
        Exemplars a window.
    exemplars_of : {"groups", "sections"}, default "groups"
        "groups": of other groups than the window's, where sections carry one; "sections": of other sections.
    pool_weight, pool_temperature : float, optional
        See `ResidualPool`.
    pcc_weight : float, default 0.5
        Weight of the Pearson term of the loss.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.EGNConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.EGN(config=config).mpp
    2.0
    """

    mpp: float = 2.0  # 256 um are better than 128 for GeneQuery (benchmarks/README.md); not tuned for this model
    tokens: Literal["encoder", "pixels"] = "encoder"
    token_px: int = 32
    width: int = 256
    depth: int = 4
    heads: int = 4
    head_width: int = 64
    mlp_width: int = 512
    dropout: float = 0.1  # not given; the code has 0 and a hundred times the windows
    feature_dropout: float = 0.5  # ours, as in GeneQuery
    bridge_every: int = 2
    bridge_heads: int = 4
    bridge_head_width: int = 64
    gate_width: int = 256  # the code: 4 heads of 64, whatever the block has
    projector_depth: int = 2
    exemplars: int = 6
    exemplars_of: Literal["groups", "sections"] = "groups"
    pool_weight: float = 0.5  # the code
    pool_temperature: float = 0.1  # the code
    pcc_weight: float = 0.5
    recipe: Recipe = field(
        # of 4, 8, 20 and 40 on her2st C4, trained on C2 and C3: .273, .259, .236, .234; fewer were not tried
        default_factory=lambda: Recipe(max_epochs=4, batch_size=32, lr=5e-4, encoder_lr=0.0, weight_decay=1e-2)
    )

    @classmethod
    def older(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Gates were as wide as the heads together, and groups were not known."""
        gates = int(content.get("bridge_heads", 4)) * int(content.get("bridge_head_width", 64))
        return {"gate_width": gates, "exemplars_of": "sections"}


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.67,  # full resolution of the ST-Net slides, recalled: 224 px are about 150 um
    "patch_px": 256, "encoder": "resnet50", "taps": (4,), "tokens": "pixels", "width": 1024, "depth": 8, "heads": 16,
    "mlp_width": 4096, "dropout": 0.0, "feature_dropout": 0.0, "bridge_heads": 8, "exemplars": 9, "pcc_weight": 1.0,
    "recipe": Recipe(max_epochs=50, batch_size=32, lr=5e-4, encoder_lr=0.0, weight_decay=1e-4),
}  # fmt: skip


class _Columns(NamedTuple):
    """The columns of a query: weights (g, d) and bias of the head, minimum and span in training (g,)."""

    weight: Tensor
    bias: Tensor
    low: Tensor
    span: Tensor

    @classmethod
    def of(cls, query: Tensor) -> _Columns:
        """By name, in the order of `EGN.query`."""
        return cls(query[:, :-3], *query[:, -3:].T)


class EGN(Model):
    """Expression of a window from its tokens and from its nearest training windows.

    The bank of training windows (features, expression, section and place) is part of the checkpoint.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of the frozen network are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | EGNConfig, default "small"
        "small", "published" (tokens from pixels, ResNet50 exemplars; for a GPU), or an `EGNConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an unknown configuration, and windows that tokens do not fill.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.EGN(genes, mpp=2.0).output
    'spots'
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = EGNConfig
    config: EGNConfig
    info: ClassVar = ModelInfo(
        name="EGN",
        task="transformer over the patch, corrected by its nearest training patches",
        title=(
            "Exemplar Guided Deep Neural Network for Spatial Transcriptomics Analysis of Gene Expression Prediction"
        ),
        authors="Yang et al.",
        venue="WACV",
        year=2023,
        arxiv="2210.16721",
        code="https://github.com/Yan98/EGN",
        encoder="resnet50",
    )

    position: nn.Parameter
    bank_features: Tensor
    bank_expression: Tensor
    bank_section: Tensor
    bank_group: Tensor
    bank_corner: Tensor
    low: Tensor
    span: Tensor

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        config: str | EGNConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp))
        c = self.config
        kind: Literal["tokens", "averaged"] = "tokens" if c.tokens == "encoder" else "averaged"
        self.encoder = PatchEncoder(c.encoder_spec, weights=encoder_weights, kind=kind, folder=feature_cache)
        n_features, n_genes = self.encoder.width, len(c.genes)
        side = _tokens_a_side(c, self.encoder)
        on_pixels = c.tokens == "pixels"
        self.embed_tokens = (
            nn.Conv2d(3, c.width, c.token_px, stride=c.token_px) if on_pixels else nn.Linear(n_features, c.width)
        )
        self.position = nn.Parameter(0.02 * torch.randn(side**2, c.width))
        self.projector = Projector(n_features, n_genes, c.width, depth=c.projector_depth, dropout=c.dropout)
        sizes = {"heads": c.heads, "head_width": c.head_width, "mlp_width": c.mlp_width}
        self.blocks = nn.ModuleList(TransformerBlock(c.width, **sizes, dropout=c.dropout) for _ in range(c.depth))
        bridge = {"n_tokens": side**2, "heads": c.bridge_heads, "head_width": c.bridge_head_width}
        bridge |= {"gate_width": c.gate_width}
        self.bridges = nn.ModuleList(ExemplarBridge(c.width, **bridge) for _ in range(c.depth // c.bridge_every))
        self.pool = ResidualPool(c.width, weight=c.pool_weight, temperature=c.pool_temperature)
        self.norm = nn.LayerNorm(2 * c.width)
        self.genes_head = nn.Linear(2 * c.width, n_genes)
        nn.init.normal_(self.genes_head.weight, std=0.005)
        self._register_bank(n_features)

    def _register_bank(self, n_features: int) -> None:
        self.register_buffer("bank_features", torch.zeros(0, n_features))
        self.register_buffer("bank_expression", torch.zeros(0, len(self.genes)))
        self.register_buffer("bank_section", torch.zeros(0, dtype=torch.int64))
        if self.config.exemplars_of == "groups":
            self.register_buffer("bank_group", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("bank_corner", torch.zeros(0, 2, dtype=torch.int64))
        register_scale(self, len(self.genes), "low", "span")

    @torch.no_grad()
    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of features and genes on the training sections, and the bank of their windows.

        Raises
        ------
        ValueError
            For a group that only some of the sections carry.
        """
        if self.config.exemplars_of == "groups":
            _check_groups(sections)
        c, device = self.config, self.low.device
        self.encoder.fit(sections, patch_px=c.patch_px)
        self.bank_features = _whole(self.encoder.encode_sections(sections, patch_px=c.patch_px)).contiguous()
        expression = measured_expression(sections).astype(np.float32)
        scale = fit_scale(self, expression)
        self.bank_expression = torch.from_numpy((expression - scale["low"]) / scale["span"]).to(device)
        where = _whereabouts(sections, c.patch_px)
        self.bank_section, self.bank_corner = where["section"].to(device), where["corner"].to(device)
        if c.exemplars_of == "groups":
            self.bank_group = where["group"].to(device)
        self.genes_head.bias.copy_(self.bank_expression.mean(0))

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The window around every shape, with its place."""
        patch_px = self.config.patch_px
        return PatchSamples(sections, patch_px=patch_px, extra=_whereabouts(sections, patch_px))

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """The rows of the linear head for these genes, its bias, and their training minimum and span."""
        at = self.gene_index(genes)
        rest = torch.stack([self.genes_head.bias, self.low, self.span], dim=1)
        return torch.cat([self.genes_head.weight, rest], dim=1)[at]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The refined view of the whole window beside its pooled tokens, normalised."""
        c = self.config
        features = self.encoder(batch.image)
        whole = _whole(features)
        index = self.nearest(whole, batch.extra["section"], batch.extra["corner"], batch.extra["group"])
        present = index >= 0
        views = (self.bank_features[index.clamp_min(0)], self.bank_expression[index.clamp_min(0)])
        h, r, s = self.projector(F.dropout(whole, c.feature_dropout, self.training), *views)
        z = self._tokens(batch.image, features) + self.position
        for i, block in enumerate(self.blocks, start=1):
            z = block(z)
            if i % c.bridge_every == 0:
                z, h, r = self.bridges[i // c.bridge_every - 1](z, h, r, s, present)
        return self.norm(torch.cat([h, self.pool(z)], dim=1))

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The linear head, in units of the target."""
        gene = _Columns.of(query)
        return gene.low + gene.span * (latent @ gene.weight.T + gene.bias)

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Squared error in min-max units + `pcc_weight` x (1 - mean over genes of Pearson over the batch's shapes)."""
        gene = _Columns.of(query)
        pred, true = ((v - gene.low) / gene.span for v in (predict_batch(self, batch, query), batch.measured))
        return mse_pcc(pred, true, pcc_weight=self.config.pcc_weight)

    @torch.no_grad()
    def nearest(
        self,
        features: Float[Tensor, "n f"],
        section: Int[Tensor, " n"],
        corner: Int[Tensor, "n 2"],
        group: Int[Tensor, " n"] | None = None,
    ) -> Int[Tensor, "n k"]:
        """Bank rows of the exemplars of windows, the nearest first; -1 where there are no more.

        Parameters
        ----------
        features, section, corner, group
            Of the windows; without `group` the rule of sections holds.

        Raises
        ------
        ValueError
            For a model without a bank.
        """
        if not len(self.bank_features):
            raise ValueError("this EGN has no bank of training windows: call tl.train, or load a trained one.")
        distance = torch.cdist(features.float(), self.bank_features, compute_mode=EXACT)
        own = section[:, None] == self.bank_section
        related = own
        if group is not None and self.config.exemplars_of == "groups":
            related = own | (group[:, None] == self.bank_group)
            related = torch.where(related.all(dim=1, keepdim=True), own, related)  # the bank is of this group alone
        overlaps = ((corner[:, None] - self.bank_corner).abs() < self.config.patch_px).all(dim=2)
        alone = own.all(dim=1, keepdim=True)  # the bank is of this section alone
        distance = distance.masked_fill(torch.where(alone, own & overlaps, related), math.inf)
        k = min(self.config.exemplars, len(self.bank_features))
        found, index = distance.topk(k, dim=1, largest=False)
        return index.masked_fill(found.isinf(), -1)

    def _tokens(self, image: Tensor, features: Tensor) -> Float[Tensor, "n t d"]:
        if self.config.tokens == "pixels":
            encoder = self.encoder.encoder
            return self.embed_tokens((rgb(image) - encoder.mean) / encoder.std).flatten(2).transpose(1, 2)
        return self.embed_tokens(F.dropout(features, self.config.feature_dropout, self.training))


class Projector(nn.Module):
    """First embeddings: of the window, of its exemplars with their expression, and of that expression alone.

    h = m(linear(e)), r = m(linear([e_j, y_j])), s = linear(y_j), with m the residual MLPs that h and r share.
    Source: EGN, the projector; two residual MLPs as in the released runs.
    """

    def __init__(self, n_features: int, n_genes: int, width: int, *, depth: int, dropout: float) -> None:
        super().__init__()
        self.window = nn.Linear(n_features, width)
        self.exemplar = nn.Linear(n_features + n_genes, width)
        self.expression = nn.Linear(n_genes, width)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(depth)
        )

    def forward(
        self, window: Float[Tensor, "n f"], exemplars: Float[Tensor, "n k f"], expression: Float[Tensor, "n k g"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k d"], Float[Tensor, "n k d"]]:
        """Embeddings h (n, d), r (n, k, d) and s (n, k, d)."""
        views = [self.window(window), self.exemplar(torch.cat([exemplars, expression], dim=2))]
        for mlp in self.refine:
            views = [x + mlp(x) for x in views]
        return views[0], views[1], self.expression(expression)


class ExemplarBridge(nn.Module):
    """Exchange of information between exemplars, window embedding and tokens.

    Gates (m, m') = sigmoid(mlp([h, h - r_j])) decide what of an exemplar's expression the window and the exemplar take:
    h += mean_j m * v(s_j), r_j += m' * v(s_j). A mask, one number in (0, 1) for every head and place, is then made from
    h and laid over the projected tokens: o = mask(h) * p(z); z += linear(o), h += linear(mean of o over places).

    Source: EGN, the exemplar bridging block. Ours: layer norm before the gates' MLP, the mask and p, none after the
    updates; absent exemplars are left out of the mean. From the code: SiLU, hidden width of the gates, linear v and p,
    no bias on the way back.
    """

    def __init__(self, width: int, *, n_tokens: int, heads: int, head_width: int, gate_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.value = nn.Linear(width, width)
        self.gates = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, gate_width), nn.SiLU(), nn.Linear(gate_width, 2 * width)
        )
        self.mask = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * n_tokens))
        self.tokens = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.to_tokens = nn.Linear(inner, width, bias=False)
        self.to_window = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        z: Float[Tensor, "n t d"],
        h: Float[Tensor, "n d"],
        r: Float[Tensor, "n k d"],
        s: Float[Tensor, "n k d"],
        present: Bool[Tensor, "n k"],
    ) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n d"], Float[Tensor, "n k d"]]:
        """Tokens, window embedding and exemplar embeddings after the exchange."""
        value = self.value(s)
        pair = torch.cat([h[:, None].expand_as(r), h[:, None] - r], dim=2)
        of_window, of_exemplar = torch.sigmoid(self.gates(pair)).chunk(2, dim=2)
        message = (of_window * value * present[..., None]).sum(1)
        h = h + message / present.sum(1, keepdim=True).clamp_min(1)
        mask = torch.sigmoid(self.mask(h)).unflatten(1, (-1, self.heads))  # (n, t, heads)
        o = (self.tokens(z).unflatten(2, (self.heads, -1)) * mask[..., None]).flatten(2)
        return z + self.to_tokens(o), h + self.to_window(o.mean(1)), r + of_exemplar * value


class ResidualPool(nn.Module):
    """Mean over places of a linear score of the tokens + `weight` x their mean under a softmax over places.

    Source: "Residual Attention: A Simple but Effective Method for Multi-Label Recognition" (CSRA, ICCV 2021), here with
    `width` scores instead of classes, as in EGN's code (weight .5, temperature .1).

    Parameters
    ----------
    temperature : float
        Multiplies the score in the softmax: 0 is the plain mean once more, infinity the maximum.
    """

    def __init__(self, width: int, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.scores = nn.Linear(width, width)
        self.weight, self.temperature = weight, temperature

    def forward(self, z: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """(n, d) of (n, t, d) tokens."""
        score = self.scores(z)
        if math.isinf(self.temperature):
            return score.mean(1) + self.weight * score.amax(1)
        return score.mean(1) + self.weight * (score * torch.softmax(self.temperature * score, dim=1)).sum(1)


def _whereabouts(sections: Sequence[Section], patch_px: int) -> dict[str, Tensor]:
    """Of the window of every shape its section (`identity`), group (`group_of`) and upper left corner, int64."""
    known, lengths = [identity(section) for section in sections], [section.n_shapes for section in sections]
    groups = [group_of(section, own) for section, own in zip(sections, known, strict=True)]
    corner = np.concatenate([corners(section, patch_px) for section in sections])
    rows = {"section": np.repeat(known, lengths), "group": np.repeat(groups, lengths), "corner": corner}
    return {name: torch.from_numpy(each.astype(np.int64)) for name, each in rows.items()}


def group_of(section: Section, identity: int) -> int:
    """A number in [0, 2^63) that sections of one group share; that of the section itself, where it carries none.

    Saved models know their groups by it, so it must never change.
    """
    if section.group is None:
        return identity
    return int.from_bytes(hashlib.sha256(f"group {section.group}".encode()).digest()[:8]) >> 1


def _check_groups(sections: Sequence[Section]) -> None:
    """Raise ValueError for a group that only some sections carry; log where all carry one and the same."""
    groups = {section.name: section.group for section in sections}
    bare = [section.name for section in sections if section.group is None]
    if bare and len(bare) < len(sections):
        some = next(section for section in sections if section.group is not None)
        raise ValueError(
            f"EGN takes exemplars from other patients, and section {some.name!r} is of {some.group!r}, but of {bare} "
            'none is known. Give all of them one, sdata.attrs["patient"] = "...", or none; or pass a config with '
            'exemplars_of="sections".'
        )
    if not bare and len(sections) > 1 and len(set(groups.values())) == 1:
        logger.info("EGN: all sections are of %s, so exemplars come from other sections", sections[0].group)


def identity(section: Section) -> int:
    """A number in [0, 2^63) that parts of one section share and other sections do not: names are often the same."""
    return int.from_bytes(image_digest(section.image)[:8]) >> 1


def corners(section: Section, patch_px: int) -> NDArray[np.int64]:
    """(n, 2) upper left corners of the windows that `PatchSamples` cuts; 0 for empty shapes."""
    bounds = np.nan_to_num(_coverage.bounds(section.shapes))
    return np.floor((bounds[:, :2] + bounds[:, 2:] - patch_px) / 2 + 0.5).astype(np.int64)


def _whole(features: Tensor) -> Float[Tensor, "n f"]:
    """Features of the window as a whole: the mean of its tokens, where it has them."""
    return features.mean(1) if features.ndim == 3 else features


def _tokens_a_side(c: EGNConfig, encoder: PatchEncoder) -> int:
    step = c.token_px if c.tokens == "pixels" else encoder.encoder.strides[-1]
    unit = math.lcm(step, encoder.encoder.block_px)
    if c.patch_px % unit:
        raise ValueError(
            f"patch_px={c.patch_px} must be a multiple of {unit} px: a token is {step} px, and {c.encoder} takes "
            f"multiples of {encoder.encoder.block_px} px."
        )
    return c.patch_px // step


def _config(config: str | EGNConfig, genes: Sequence[str], mpp: float | None) -> EGNConfig:
    made = resolve_config(config, EGNConfig, PUBLISHED, genes, mpp=mpp)
    if made.depth < made.bridge_every:
        raise ValueError(f"depth={made.depth} leaves no place for a bridge after every {made.bridge_every} blocks.")
    return made
