"""FEAST: full attention between the spots of a section, with weights that may be negative, and patches between spots.

Source: "FEAST: Fully Connected Expressive Attention for Spatial Transcriptomics" (CVPR 2026, arXiv 2603.25247) and its
released code (starforTJ/FEAST: model/feast.py, sample_off_grid_pseudo_spots.py). Attention is a softmax of scores minus
`beta` times a softmax of their negatives at temperature `tau`, both lowered by the distance on the array times 1/2,
1/4, ... by head; a block attends to the `k` nearest spots and pseudo-spots, then, of spots alone, to all; three blocks,
layer norms after each sum, a network of three layers. Where we differ, or do not follow the released code:

- labels are not smoothed (theirs are means over 3 x 3 spots, in test sections too), all genes of a spot stand in their
  denominator, and no epoch is chosen on the test fold (the code: it is); patients are kept apart by the caller (the
  code: 8 folds over sections, so that a patient is on both sides);
- pseudo-spots lie half a step below, beside, and diagonally below every spot (the code: at all half steps of the array
  whose nearest spot is not farther than spots are from each other); their patches are seen, no label is made for them;
- neighbours at the same distance go by row and column, so that the order of spots does not matter;
- the answer is in standard units of the gene, without the last ReLU, so that it starts at the gene's mean;
- features are standardised on the training spots and cut at 5; of a transformer they are the mean of its patch tokens
  (the code: as they come, the class token);
- AdamW warms up and falls along a cosine, one section a step (the code: cosine to and fro over 100 steps, gradients of
  all sections together); first weights are torch's own (the code: Xavier's).

Ours: "small" has one narrow block on means and standard deviations at every stage of a frozen MobileNetV2, with
dropout, and some genes a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import shapely
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict import _coverage
from stpredict._section import Section, take
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder, array_grid, on_image
from stpredict.models._samples import Batch, PatchSamples, Samples, SectionSamples, sections_of
from stpredict.models._scale import fit_scale, measured_expression, register_scale
from stpredict.nn.architecture import IMAGENET
from stpredict.nn.device import free_bytes

HALVES = ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5))  # steps of the array from a spot to its pseudo-spots
DISTANCE_ROWS = 512  # rows of distances that are sorted at once


@dataclass(frozen=True)
class FEASTConfig(EncoderConfig, PatchConfig):
    """Every choice of a FEAST. Each value that the source does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each spot and pseudo-spot in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; the encoder is frozen.
    features : {"pooled", "averaged"}, default "pooled"
        Which features of the encoder, see `PatchEncoder`.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    width, depth, heads : int, optional
        Of the blocks.
    near : int, default 32
        Nearest spots and pseudo-spots of the first half of a block.
    beta : float, default 1.5
        Weight of the negative attention.
    tau : float, default 0.6
        Its temperature.
    dropout : float, default 0.3
        On attention weights and in feed-forward layers.
    train_genes : int, default 64
        Genes a training step.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.FEASTConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.FEAST(config=config).mpp
    2.0
    """

    features: Literal["pooled", "averaged"] = "pooled"
    feature_dropout: float = 0.5  # not given; hundreds of spots, a thousand features
    width: int = 128  # the source: 768
    depth: int = 1  # the source: 3
    heads: int = 4  # the source: 8
    near: int = 32
    beta: float = 1.5
    tau: float = 0.6
    dropout: float = 0.3
    train_genes: int = 64
    recipe: Recipe = field(
        # the source: 1e-4 for 1,500 epochs
        default_factory=lambda: Recipe(max_epochs=20, batch_size=1, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2)
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # not given: pixels of the slides' full resolution
    "patch_px": 224,
    "encoder": "hf-hub:MahmoodLab/UNI2-h",
    "encoder_kwargs": {
        "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU", "dynamic_img_size": True,
    },
    "encoder_mean": IMAGENET[0], "encoder_std": IMAGENET[1], "taps": (24,), "features": "averaged",
    "feature_dropout": 0.0, "width": 768, "depth": 3, "heads": 8, "train_genes": 4096,
    "recipe": Recipe(max_epochs=1500, batch_size=1, lr=1e-4, encoder_lr=0.0, weight_decay=1e-5),
}  # fmt: skip


class FEAST(Model):
    """Expression inside shapes from attention over all shapes of a section, and over places between them.

    The latent of a shape is its own features, those of its pseudo-spots, and its place (row, column) on the section's
    grid: attention is part of the head, which sees all rows of a section.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where image features are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | FEASTConfig, default "small"
        "small" (MobileNetV2), "published" (UNI2-h, for a GPU), or a `FEASTConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, heads that do not divide the width, and a section too large for memory.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.FEAST(genes, mpp=2.0).context
    'section'
    """

    output: ClassVar = "spots"
    n_auxiliary: ClassVar = len(HALVES) + 2
    context = "section"
    config_class: ClassVar = FEASTConfig
    config: FEASTConfig
    info: ClassVar = ModelInfo(
        name="FEAST",
        task="attention with negative weights over all spots of a section and places between them",
        title="FEAST: Fully Connected Expressive Attention for Spatial Transcriptomics",
        authors="Jeong et al.",
        venue="CVPR",
        year=2026,
        arxiv="2603.25247",
        code="https://github.com/starforTJ/FEAST",
        encoder="hf-hub:MahmoodLab/UNI2-h",
        encoder_licence="gated: its licence has to be accepted on the hub",
    )

    local_blocks: Any  # ModuleLists of NegativeBlock
    global_blocks: Any
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
        config: str | FEASTConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp))
        c = self.config
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind=c.features, folder=feature_cache, patch_px=c.patch_px
        )
        d = c.width
        self.project = nn.Sequential(nn.Linear(self.encoder.width, d), nn.ReLU(), nn.Linear(d, d))
        self.local_blocks, self.global_blocks = (
            nn.ModuleList(
                NegativeBlock(d, heads=c.heads, beta=c.beta, tau=c.tau, dropout=c.dropout) for _ in range(c.depth)
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(d)
        drop = nn.Dropout(c.dropout)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), drop, nn.Linear(2 * d, d), nn.ReLU(), drop)
        self.out = nn.Linear(d, len(c.genes))
        register_scale(self, len(c.genes), "mean", "spread")

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene and feature on the training sections."""
        fit_scale(self, measured_expression(sections))
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """In training whole sections and some genes; else the patch around every shape. Both with what lies between."""
        c = self.config
        extra = _between(sections, self.encoder, patch_px=c.patch_px)
        if not train:
            return PatchSamples(sections, patch_px=c.patch_px, extra=extra)
        extra["features"] = self.encoder.encode_sections(sections, patch_px=c.patch_px).cpu()
        patches = PatchSamples(
            sections, patch_px=c.patch_px, n_genes=c.train_genes, seed=seed, extra=extra, images=False
        )
        most = max(section.n_shapes for section in sections)
        return SectionSamples(patches, n_spots=most, n_genes=c.train_genes, seed=seed)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """The rows of the last layer for these genes, its bias, and their training mean and spread."""
        at = self.gene_index(genes)
        columns = torch.stack([self.out.bias, self.mean, self.spread], dim=1)
        return torch.cat([self.out.weight, columns], dim=1)[at]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """Features of the shape and of its pseudo-spots, which of these are there, and its place."""
        extra = batch.extra
        own = extra["features"] if "features" in extra else self.encoder(batch.image)
        return torch.cat([own, *(extra[name].to(own) for name in ("between", "there", "place"))], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """Attention among these rows, which are all of one section, and the last layers.

        Raises
        ------
        ValueError
            For a section whose attention does not fit into memory.
        """
        n, m, f = len(latent), len(HALVES), self.encoder.width
        features, there, place = latent[:, : f * (m + 1)], latent[:, -m - 2 : -2] > 0.5, latent[:, -2:]
        features = torch.cat([features[:, :f], features[:, f:].reshape(n, m, f)[there]])
        halves = torch.tensor(HALVES, dtype=latent.dtype).to(latent.device)
        where = torch.cat([place, (place[:, None] + halves)[there]])
        self._check_memory(n, len(where))
        near, far = (torch.from_numpy(each).to(latent.device) for each in _nearest(where, self.config.near))
        apart = torch.cdist(place, place)
        x = self.project(F.dropout(features, self.config.feature_dropout, self.training))
        for local, whole in zip(self.local_blocks, self.global_blocks, strict=True):
            x = local(x, far.to(x), near)
            x = torch.cat([whole(x[:n], apart), x[n:]])
        z = self.mlp(self.norm(x[:n]))
        return query[:, -2] + query[:, -1] * (z @ query[:, :-3].T + query[:, -3])

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE in units of the target; every section of the batch weighs the same."""
        pred = predict_batch(self, batch, query)
        return torch.stack([F.mse_loss(pred[rows], batch.measured[rows]) for rows in sections_of(batch)]).mean()

    def _check_memory(self, n: int, n_all: int) -> None:
        c = self.config
        need = 4 * (6 * c.heads * n * n + 4 * n_all * c.near * (c.width + c.heads))
        free = free_bytes(self.mean.device)
        if need > free:
            raise ValueError(
                f"a section of {n} shapes needs {need / 1e9:.1f} GB for attention among them, and {free / 1e9:.1f} GB "
                f"are free: about {int(n * (free / need) ** 0.5)} shapes fit. A section is never cut: use larger bins "
                "(stp.pp.tile_grid), or a model that sees patches alone."
            )


class NegativeBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), with attention weights that add up to 1 - `beta`.

    Weights are softmax(s - p) - beta softmax((-s - p) / tau), with s the scaled products of queries and keys and p the
    distance times 2^-(h + 1) for head h. Source: FEAST, negative-aware attention.
    """

    def __init__(self, width: int, *, heads: int, beta: float, tau: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.beta, self.tau = heads, beta, tau
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        inner = int(1.5 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )

    def forward(
        self, x: Float[Tensor, "n d"], apart: Float[Tensor, "n k"], among: Int[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n d"]:
        """Every row attends to the rows `among`, which are `apart` from it; None: to all, itself included."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # (n, heads, d / heads)
        q = q * q.shape[-1] ** -0.5
        if among is None:
            scores = torch.einsum("nhd,khd->nhk", q, k)
        else:
            scores = torch.einsum("nhd,nkhd->nhk", q, k[among])
        penalty = apart[:, None] * (0.5 ** torch.arange(1, self.heads + 1, device=x.device))[:, None]
        weights = torch.softmax(scores - penalty, dim=-1)
        weights = self.dropout(weights - self.beta * torch.softmax((-scores - penalty) / self.tau, dim=-1))
        if among is None:
            attended = torch.einsum("nhk,khd->nhd", weights, v)
        else:
            attended = torch.einsum("nhk,nkhd->nhd", weights, v[among])
        x = self.norm(x + self.out(attended.flatten(1)))
        return self.mlp_norm(x + self.mlp(x))


def _nearest(where: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n, k) the nearest other rows of (n, 2) places, nearest first, ties by place; and how far away they are."""
    places = where.detach().cpu().numpy().astype(np.float64)
    order = np.lexsort((places[:, 1], places[:, 0]))
    at = places[order]
    k = min(k, len(at) - 1) if len(at) > 1 else 1  # one alone attends to itself
    index, distance = np.empty((len(at), k), np.int64), np.empty((len(at), k), np.float32)
    for start in range(0, len(at), DISTANCE_ROWS):
        squares = np.square(at[start : start + DISTANCE_ROWS, None] - at).sum(axis=2)
        own = np.arange(len(squares))
        if len(at) > 1:
            squares[own, start + own] = np.inf
        found = np.argsort(squares, axis=1, kind="stable")[:, :k]
        rows = order[start : start + DISTANCE_ROWS]
        index[rows] = order[found]
        distance[rows] = np.sqrt(np.take_along_axis(squares, found, axis=1))
    return index, distance


def _between(sections: Sequence[Section], encoder: PatchEncoder, *, patch_px: int) -> dict[str, Tensor]:
    """Of all shapes their places, and of their pseudo-spots the features and whether they lie on the image."""
    parts = [_between_of(section, encoder, patch_px) for section in sections]
    return {name: torch.cat([part[name] for part in parts]) for name in ("place", "between", "there")}


def _between_of(section: Section, encoder: PatchEncoder, patch_px: int) -> dict[str, Tensor]:
    n, m = section.n_shapes, len(HALVES)
    place = torch.from_numpy(array_grid(section)).float() if n else torch.zeros(0, 2)
    features, there = torch.zeros(n, m, encoder.width), torch.zeros(n, m)
    step = _step(section, place.numpy())
    for j, half in enumerate(HALVES):
        dy, dx = step @ np.array(half)
        moved = replace(section, geometry=shapely.transform(section.geometry, lambda xy, by=(dx, dy): xy + by))
        on = on_image(moved, _coverage.bounds(moved.shapes))
        if len(on):
            features[on, j] = encoder.encode_sections([take(moved, on)], patch_px=patch_px).cpu()
            there[on, j] = 1.0
    return {"place": place, "between": features.flatten(1), "there": there}


def _step(section: Section, place: NDArray[np.floating]) -> NDArray[np.float64]:
    """(2, 2) pixels (y, x) along a row and along a column of the array: the affine that fits all shapes best."""
    bounds = _coverage.bounds(section.shapes)
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    known = np.isfinite(centre).all(axis=1)
    if not known.any():
        return np.zeros((2, 2))
    columns = np.column_stack([place[known], np.ones(known.sum())])
    return np.linalg.lstsq(columns, centre[known], rcond=None)[0][:2].T


def _config(config: str | FEASTConfig, genes: Sequence[str], mpp: float | None) -> FEASTConfig:
    made = resolve_config(config, FEASTConfig, PUBLISHED, genes, mpp=mpp)
    if made.width % made.heads:
        raise ValueError(f"heads={made.heads} do not divide the width {made.width}.")
    return made
