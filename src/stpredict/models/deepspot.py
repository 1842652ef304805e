"""DeepSpot: a deep set over a spot, its parts, and the spots around it, on features of a frozen encoder.

Source: "DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from H&E Images", medRxiv
2025 (10.1101/2025.02.09.25321567): one map phi for every patch; of the spot phi itself, of its parts ("sub-spots") the
sum, of the neighbouring spots the largest value of each channel; rho makes expression of the three. Compared with the
official repository (ratschlab/DeepSpot: deepspot/spot/model.py, dataloader.py): ten networks for phi, of which the
median is taken, ten for rho, of which the mean; 9 parts, each enlarged to the side of a patch; neighbours are the
spots at most one row and one column away. Where we differ, or do not follow the released code:

- neighbours that are not there are left out of the maximum (the code: rows of zeros, whose phi takes part in it, as
  many as bring all spots to the most neighbours of any); a spot without a neighbour has zeros;
- it trains on the spots as they are (the code: draws them anew so that Leiden clusters of the expression weigh alike);
- features are standardised on the training spots and cut at 5 (the code: raw); of a transformer they are the mean of
  the patch tokens (the code: the class token);
- AdamW warms up and falls along a cosine, gradients are clipped (the code: a constant rate; training stops by its own
  loss).

Ours: "small" sees 192 um around a spot through a frozen MobileNetV2, as means and standard deviations at every stage,
with narrower layers and a larger rate, since a few hundred spots make few steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn

from stpredict._section import Section, take
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder, array_grid, on_image
from stpredict.models._samples import Batch, Patch, PatchSamples, Samples
from stpredict.models._scale import fit_scale, measured_expression, register_scale
from stpredict.nn.architecture import IMAGENET
from stpredict.nn.device import free_bytes

PATCHES = 8  # whose parts are encoded together when features are computed ahead


@dataclass(frozen=True)
class DeepSpotConfig(EncoderConfig, PatchConfig):
    """Every choice of a DeepSpot. Each value that the source does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        The ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 96
        Side of the patch around each spot in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; the encoder is frozen.
    features : {"pooled", "averaged"}, default "pooled"
        Which features of the encoder, see `PatchEncoder`.
    feature_dropout : float, default 0.0
        Share of an encoder's features that is dropped in training.
    side : int, default 3
        Parts along a side of the patch; where it does not divide, pixels are left over at its end, as in the code.
    part_px : int, default 64
        Side in pixels to which a part is enlarged before the encoder sees it.
    reach : int, default 1
        Neighbours are the spots at most so many rows and columns away.
    width : int, default 256
        Of phi.
    members : int, default 10
        Networks for phi, and for rho.
    dropout : float, default 0.3
        After the linear layer of phi and before that of rho.
    out_dropout : float, default 0.1
        After the linear layer of rho.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.DeepSpotConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.DeepSpot(config=config).mpp
    2.0
    """

    patch_px: int = 96
    features: Literal["pooled", "averaged"] = "pooled"
    feature_dropout: float = 0.0
    side: int = 3
    part_px: int = 64
    reach: int = 1
    width: int = 256
    members: int = 10
    dropout: float = 0.3
    out_dropout: float = 0.1
    recipe: Recipe = field(
        default_factory=lambda: Recipe(max_epochs=20, batch_size=32, lr=5e-4, encoder_lr=0.0, weight_decay=1e-2)
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.25,  # a patch is as wide as a spot of 55 um (110 px at 20x), enlarged to the 224 px of the encoder
    "patch_px": 224,
    "encoder": "hf-hub:MahmoodLab/UNI",
    "encoder_kwargs": {
        "img_size": 224, "patch_size": 16, "depth": 24, "num_heads": 16, "embed_dim": 1024, "init_values": 1e-5,
        "dynamic_img_size": True,
    },
    "encoder_mean": IMAGENET[0], "encoder_std": IMAGENET[1], "taps": (24,), "features": "averaged",
    "part_px": 224, "width": 512,
    "recipe": Recipe(max_epochs=15, batch_size=1024, lr=1e-4, encoder_lr=0.0, weight_decay=1e-6),
}  # fmt: skip


class DeepSpot(Model):
    """Expression inside shapes from the patch around each, its parts, and the patches of the shapes next to it.

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
    config : str | DeepSpotConfig, default "small"
        "small" (MobileNetV2), "published" (UNI, for a GPU), or a `DeepSpotConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an unknown configuration, sizes that the encoder does not take, more parts
        than pixels, and a section too large for memory.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.DeepSpot(genes, mpp=2.0).context
    'neighbours'
    """

    output: ClassVar = "spots"
    context = "neighbours"
    config_class: ClassVar = DeepSpotConfig
    config: DeepSpotConfig
    info: ClassVar = ModelInfo(
        name="DeepSpot",
        task="deep set over the patch, its parts, and the patches of the shapes next to it",
        title=("DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from H&E Images"),
        authors="Nonchev et al.",
        venue="medRxiv",
        year=2025,
        doi="10.1101/2025.02.09.25321567",
        code="https://github.com/ratschlab/DeepSpot",
        code_licence="MIT",
        encoder="hf-hub:MahmoodLab/UNI",
        encoder_licence="gated: its licence has to be accepted on the hub",
    )

    rho_weight: nn.Parameter
    rho_bias: nn.Parameter
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
        config: str | DeepSpotConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp))
        c = self.config
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind=c.features, folder=feature_cache, patch_px=c.patch_px
        )
        if c.part_px % self.encoder.encoder.block_px:
            raise ValueError(
                f"part_px={c.part_px} must be a multiple of {self.encoder.encoder.block_px} px, which {c.encoder!r} "
                "takes."
            )
        self.phi = Phi(self.encoder.width, c.width, members=c.members, dropout=c.dropout)
        bound = (3 * c.width) ** -0.5  # as a linear layer of torch starts
        self.rho_weight = nn.Parameter(torch.empty(c.members, len(c.genes), 3 * c.width).uniform_(-bound, bound))
        self.rho_bias = nn.Parameter(torch.empty(c.members, len(c.genes)).uniform_(-bound, bound))
        register_scale(self, len(c.genes), "mean", "spread")

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene and feature on the training sections."""
        fit_scale(self, measured_expression(sections))
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape, with features of its neighbours; in training its own and those of its parts."""
        c = self.config
        patches = PatchSamples(sections, patch_px=c.patch_px)
        ahead = self._known(patches) if train else {}
        return NeighbourSamples(
            PatchSamples(sections, patch_px=c.patch_px, extra=ahead, images=not train), self.encoder, reach=c.reach
        )

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """The mean over rho's networks of weights and bias of each gene; its training mean and spread."""
        at = self.gene_index(genes)
        columns = torch.stack([self.rho_bias.mean(dim=0), self.mean, self.spread], dim=1)
        return torch.cat([self.rho_weight.mean(dim=0), columns], dim=1)[at]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """phi of the spot, the sum of phi over its parts, the maximum of phi over its neighbours."""
        c, extra = self.config, batch.extra
        if "own" in extra:
            own, parts = extra["own"], extra["parts"]
        else:
            own, parts = self.encoder(batch.image), self._parts(batch.image)
        own, parts, near = (F.dropout(x, c.feature_dropout, self.training) for x in (own, parts, extra["near"]))
        return torch.cat([self.phi(own), self.phi(parts).sum(dim=1), largest(self.phi(near), extra["there"])], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The mean of rho's networks, in units of the target."""
        return query[:, -2] + query[:, -1] * (latent @ query[:, :-3].T + query[:, -3])

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE in standard units of the genes; in training each of rho's networks has dropout of its own."""
        mean, spread = query[:, -2].float(), query[:, -1].float()
        true = (batch.measured - mean) / spread
        if not self.training:
            return F.mse_loss((predict_batch(self, batch, query) - mean) / spread, true)
        c, at = self.config, self.gene_index(batch.genes)
        x = self.latent(batch).float()
        with torch.autocast(x.device.type, enabled=False):
            x = F.dropout(x.expand(c.members, *x.shape), c.dropout)
            each = torch.baddbmm(self.rho_bias[:, None, at], x, self.rho_weight[:, at].transpose(1, 2))
            return F.mse_loss(F.dropout(each, c.out_dropout).mean(dim=0), true)

    def _parts(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n s f"]:
        """Features of the parts of patches, row by row."""
        parts = cut(image, self.config.side, self.config.part_px)
        return self.encoder(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])

    @torch.no_grad()
    def _known(self, patches: PatchSamples) -> dict[str, Tensor]:
        """Features of all patches and their parts, which do not change while the model is trained."""
        own, parts = [], []
        for start in range(0, len(patches), PATCHES):
            rows = patches.__getitems__(range(start, min(start + PATCHES, len(patches))))
            image = patches.collate(rows).image.to(self.mean.device)
            own.append(self.encoder(image).cpu())
            parts.append(self._parts(image).cpu())
        return {"own": torch.cat(own), "parts": torch.cat(parts)}


class Phi(nn.Module):
    """The median over several networks of ReLU(dropout(linear(x))).

    Source: DeepSpot's code; of an even number of networks the lower of the two in the middle, as torch has it.
    """

    def __init__(self, n_inputs: int, width: int, *, members: int, dropout: float) -> None:
        super().__init__()
        self.members = members
        self.linear = nn.Linear(n_inputs, members * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*n f"]) -> Float[Tensor, "*n d"]:
        """Rows of non-negative channels."""
        each = F.relu(self.dropout(self.linear(x)))
        return each.unflatten(-1, (self.members, -1)).median(dim=-2).values


def largest(x: Float[Tensor, "n k d"], there: Bool[Tensor, "n k"]) -> Float[Tensor, "n d"]:
    """Of each channel the largest of the values that are there; 0 where none is. The values are not negative."""
    return (x * there[..., None]).amax(dim=1)


def cut(image: UInt8[Tensor, "n 3 h w"], side: int, part_px: int) -> UInt8[Tensor, "n s 3 p p"]:
    """side x side equal parts of patches, row by row, each enlarged to `part_px` px by bilinear interpolation."""
    n, _, height, width = image.shape
    h, w = height // side, width // side
    whole = image[:, :, : side * h, : side * w]
    parts = whole.reshape(n, 3, side, h, side, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, h, w)
    if (h, w) != (part_px, part_px):
        large = F.interpolate(parts.float(), size=(part_px, part_px), mode="bilinear", align_corners=False)
        parts = large.round().clamp(0, 255).to(torch.uint8)
    return parts.unflatten(0, (n, side * side))


class NeighbourSamples(Samples):
    """`PatchSamples`, with the features of the neighbouring shapes of each in `Batch.extra`.

    "near" (n, k, f): features of the patches of the shapes of the section next to it, zeros where there are fewer than
    k; "there" (n, k): which are there. A shape off the image is no neighbour.

    Parameters
    ----------
    patches : PatchSamples
        The patches.
    encoder : PatchEncoder
        Frozen.
    reach : int
        A neighbour is at most so many rows and columns of the grid away.
    """

    def __init__(self, patches: PatchSamples, encoder: PatchEncoder, *, reach: int) -> None:
        self.patches = patches
        features, rows = [], []
        for section, bounds, first in zip(patches.sections, patches.bounds, patches.first[:-1], strict=True):
            on = on_image(section, bounds)
            some = take(section, on)
            _check_memory(section, len(on), encoder)
            if some.n_shapes:
                features.append(encoder.encode_sections([some], patch_px=patches.patch_px).cpu())
            near = _near(array_grid(some), reach) if some.n_shapes else []
            start = sum(map(len, features)) - len(on)
            rows += [(int(first + k), start + of) for k, of in zip(on, near, strict=True)]
        self.features = torch.cat(features) if features else torch.zeros(0, encoder.width)
        self.near = dict(rows)
        self.n = max([1, *map(len, self.near.values())])

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Patch:
        return self.patches[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Patch]:
        return self.patches.__getitems__(indices)

    def collate(self, samples: Sequence[Patch]) -> Batch:
        """The batch of patches with its neighbours. Raises KeyError for a shape that is not on the image."""
        batch = self.patches.collate(samples)
        rows = [self.near[int(self.patches.first[i] + k)] for i, k in batch.rows]
        near = torch.zeros(len(rows), self.n, self.features.shape[1])
        there = torch.zeros(len(rows), self.n, dtype=torch.bool)
        for j, of in enumerate(rows):
            near[j, : len(of)], there[j, : len(of)] = self.features[of], True
        return replace(batch, extra={**batch.extra, "near": near, "there": there})


def _near(places: NDArray[np.int64], reach: int) -> list[NDArray[np.int64]]:
    """Of each shape the others at most `reach` rows and columns away, in rising order."""
    found = KDTree(places).query_ball_point(places, reach + 0.5, p=np.inf, return_sorted=True)
    return [np.array([j for j in of if j != i], dtype=np.int64) for i, of in enumerate(found)]


def _check_memory(section: Section, n: int, encoder: PatchEncoder) -> None:
    """Raise ValueError for a section whose features do not fit into memory."""
    need, free = 4 * n * encoder.width, free_bytes(torch.device("cpu"))
    if need > free:
        raise ValueError(
            f"section {section.name!r} of {n} shapes needs {need / 1e9:.1f} GB for the features of neighbours, and "
            f"{free / 1e9:.1f} GB are free: about {n * free // need} shapes fit. Use larger bins (stp.pp.tile_grid), "
            "or a model that sees patches alone."
        )


def _config(config: str | DeepSpotConfig, genes: Sequence[str], mpp: float | None) -> DeepSpotConfig:
    made = resolve_config(config, DeepSpotConfig, PUBLISHED, genes, mpp=mpp)
    if made.patch_px < made.side:
        raise ValueError(f"side={made.side}: a patch of {made.patch_px} px has no {made.side} x {made.side} parts.")
    return made
