"""TRIPLEX: cross-attention between a spot's patch, its surrounding patches, and all spots of the section.

Source: "Accurate Spatial Gene Expression Prediction by Integrating Multi-Resolution Features" (CVPR 2024) and its
released code (NEXGEM/TRIPLEX, state of the paper). Where we differ, or do not follow the released code:

- hidden widths of feed-forward layers are ratio x width (the code's neighbour branch at times: the ratio itself);
- no smoothing of labels over 3 x 3 spots (the code smooths test labels too), all genes of a spot in the denominator of
  its labels (the code: the selected ones), no epoch chosen by the test fold (the code stops early by its correlation);
- neighbouring patches that lie wholly off the image are seen neither by the neighbours' attention, nor by the fusion,
  nor by the mean from which the neighbours' branch predicts (the code: masked in attention alone);
- nothing is dropped out in evaluation (the code's attention layers without a bias stay in training mode then, so that
  three dropouts of its section branch are on when it is tested, and its scores carry their noise; still so in HEAD);
- features of neighbours and section are standardised on the training spots and cut at 5 (the code: as they come);
- the attention bias of the neighbours is learned for every pair of distances (|rows|, |columns|), as in the code's
  first release and in HEAD (2b1d780 of September 2024 has a fixed code of positions in its place);
- spots keep their token beside the positional convolution, as in the state of the paper (HEAD: the convolution alone);
- spots that share a place of the grid enter the positional convolution by their mean, and every spot keeps its row (the
  code: by their sum, and rows come back in the order of the grid, one a place);
- the patch of a spot is turned and flipped at random in training, as in the code, where its encoder is trained; a
  frozen one sees it as it is;
- AdamW warms up and falls along a cosine (the code: Adam, x .9 every 50 epochs); images are normalised as the encoder
  was trained (the code: not); "published" takes any ResNet18 weights (the paper: self-supervised on histology).

The fused prediction is a target of the branches and learns from them in turn: neither the formula nor the code stops
that gradient. Ours: predictions are in standard units of the gene, so that they start near its mean (the loss is in
units of the target, as there); "small" projects features of a frozen CNN to its narrow width, with dropout on them, and
takes the patches around a spot from one lattice over the section, which spots share: an eighth to encode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._section import Section, take
from stpredict._window import Window
from stpredict.models._base import Model, Recipe, constructor
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder, array_grid, on_image
from stpredict.models._samples import Batch, Patch, PatchSamples, Samples, TurnedSamples
from stpredict.models._scale import fit_scale, measured_expression, register_scale
from stpredict.nn.device import free_bytes
from stpredict.nn.transformer import TransformerBlock

SPOTS = 8  # whose neighbouring patches are encoded together


@dataclass(frozen=True)
class TRIPLEXConfig(EncoderConfig, PatchConfig):
    """Every choice of a TRIPLEX. Each value that the source does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each spot, and of each patch around that, in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`. There are two encoders of this kind: one for the tokens of the spot's own patch,
        from its last tap, and a frozen one for neighbours and sections.
    frozen : bool, default True
        Whether the encoder of the spot's own patch stays as it is.
    context_features : {"pooled", "averaged"}, default "pooled"
        Which features of the frozen encoder, see `PatchEncoder`.
    feature_dropout : float, default 0.5
        Share of an encoder's features that is dropped in training.
    side : int, default 5
        Patches along a side of the square around a spot, odd.
    lattice : bool, default True
        Whether these patches are of a lattice laid from pixel (0, 0), the one that holds the spot's centre in the
        middle, or lie around the spot's own patch.
    width : int, default 256
        Of the tokens.
    fusion, section, neighbours : tuple[int, int, int, float], default (1, 4, 2, 0.2)
        (depth, heads, width of the feed-forward layer / width, dropout) of the three transformers.
    branch_share : float, default 0.3
        Share of a branch's loss that compares it with the fused prediction.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.TRIPLEXConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.TRIPLEX(config=config).mpp
    2.0
    """

    mpp: float = 2.0  # 256 um around a spot, as for GeneQuery (benchmarks/README.md)
    frozen: bool = True
    context_features: Literal["pooled", "averaged"] = "pooled"
    feature_dropout: float = 0.5  # not given; hundreds of spots, a thousand features
    side: int = 5
    lattice: bool = True  # the source: no; 4,500 patches a section of 180 spots take minutes on a CPU
    width: int = 256  # the source: 512, that of its features
    fusion: tuple[int, int, int, float] = (1, 4, 2, 0.2)  # depths, heads and ratios: the least of the source's grid
    section: tuple[int, int, int, float] = (1, 4, 2, 0.2)
    neighbours: tuple[int, int, int, float] = (1, 4, 2, 0.2)
    branch_share: float = 0.3
    recipe: Recipe = field(
        # the source: 1e-4 with batches of 128 for up to 200 epochs, on ten times the spots
        default_factory=lambda: Recipe(max_epochs=20, batch_size=32, lr=5e-4, encoder_lr=0.0, weight_decay=1e-2)
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # not given: 224 px at the slides' full resolution
    "patch_px": 224, "encoder": "resnet18", "taps": (4,), "frozen": False, "context_features": "averaged",
    "feature_dropout": 0.0, "lattice": False, "width": 512,
    "fusion": (1, 4, 4, 0.2), "section": (3, 16, 4, 0.1), "neighbours": (3, 16, 1, 0.3),  # those of her2st
    "recipe": Recipe(max_epochs=200, batch_size=128, lr=1e-4, encoder_lr=1e-4, weight_decay=0.0),
}  # fmt: skip


class _Columns(NamedTuple):
    """The columns of a query: weights (g, d) and bias on the fused token, training mean and spread (g,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, query: Tensor) -> _Columns:
        """By name, in the order of `TRIPLEX.query`."""
        return cls(query[:, :-3], *query[:, -3:].T)


class TRIPLEX(Model):
    """Expression inside shapes from three views: the patch, its neighbourhood, the section.

    A shape's answer depends on all shapes of its section, not on the batch: every batch carries the section.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where frozen image features are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : str | TRIPLEXConfig, default "small"
        "small" (a frozen CNN), "published" (a trained ResNet18, for a GPU), or a `TRIPLEXConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an even `side`, and a section too large for memory.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> stp.models.TRIPLEX(genes, mpp=2.0).context
    'neighbours'
    """

    output: ClassVar = "spots"
    context = "neighbours"
    config_class: ClassVar = TRIPLEXConfig
    config: TRIPLEXConfig
    info: ClassVar = ModelInfo(
        name="TRIPLEX",
        task="cross-attention between patch, surroundings and section",
        title="Accurate Spatial Gene Expression Prediction by Integrating Multi-Resolution Features",
        authors="Chung et al.",
        venue="CVPR",
        year=2024,
        code="https://github.com/NEXGEM/TRIPLEX",
        encoder="resnet18",
    )

    branches: Any  # a ModuleList of Linear: from the patch, its neighbours, the section
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
        config: str | TRIPLEXConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp))
        c = self.config
        places: dict[str, Any] = {"weights": encoder_weights, "folder": feature_cache, "patch_px": c.patch_px}
        self.encoder = PatchEncoder(c.encoder_spec, kind="tokens", frozen=c.frozen, **places)
        self.context_encoder = PatchEncoder(c.encoder_spec, kind=c.context_features, **places)
        self.projections = nn.ModuleList(
            nn.Identity() if width == c.width else nn.Linear(width, c.width)
            for width in (self.encoder.width, self.context_encoder.width, self.context_encoder.width)
        )
        self.neighbour_tower = NeighbourTower(c.width, c.neighbours, side=c.side)
        self.section_tower = SectionTower(c.width, c.section)
        self.fusion_tower = FusionTower(c.width, c.fusion)
        self.out = nn.Linear(c.width, len(c.genes))
        self.branches = nn.ModuleList(nn.Linear(c.width, len(c.genes)) for _ in range(3))
        register_scale(self, len(c.genes), "mean", "spread")

    def prepare(self, sections: Sequence[Section]) -> None:
        """The scale of every gene and feature on the training sections."""
        fit_scale(self, measured_expression(sections))
        for encoder in (self.encoder, self.context_encoder):
            encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape, its neighbours' features, and those of its section."""
        c = self.config
        patches = PatchSamples(sections, patch_px=c.patch_px, seed=seed)
        own = TurnedSamples(patches, seed=seed, stream=(4,)) if train and not c.frozen else patches
        return TriplexSamples(
            patches, self.context_encoder, own=own, side=c.side, lattice=c.lattice, width=c.width, keep=train
        )

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g q"]:
        """Weights and bias of each gene on the fused token; its training mean and spread."""
        at = self.gene_index(genes)
        columns = torch.stack([self.out.bias, self.mean, self.spread], dim=1)
        return torch.cat([self.out.weight, columns], dim=1)[at]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The fused token of every shape."""
        return self._views(batch)[0]

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The linear model."""
        gene = _Columns.of(query)
        return gene.mean + gene.spread * (latent @ gene.weight.T + gene.bias)

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE of the fused prediction and of every branch, which are also compared with each other."""
        fused, *views = self._views(batch)
        at, gene = self.gene_index(batch.genes), _Columns.of(query)
        scale = torch.stack([gene.mean, gene.spread], dim=1).float()
        with torch.autocast(fused.device.type, enabled=False):
            pred = self.head(fused.float(), query.float())
            rows = [torch.cat([b.weight[at], b.bias[at, None], scale], dim=1) for b in self.branches]
            each = [self.head(view.float(), row) for view, row in zip(views, rows, strict=True)]
            return fusion_loss(pred, each, batch.measured, share=self.config.branch_share)

    def _views(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, d) each: the fused token; what the branches of patch, neighbours and section predict from."""
        extra = batch.extra
        features = (self.encoder(batch.image), extra["around"], extra["whole"])
        own, around, whole = (
            project(F.dropout(each, self.config.feature_dropout, self.training))
            for project, each in zip(self.projections, features, strict=True)
        )
        present, lengths = extra["present"], extra["lengths"].tolist()
        around = self.neighbour_tower(around, present)
        parts = zip(whole.split(lengths), extra["place"].split(lengths), strict=True)
        section = torch.cat([self.section_tower(x, place) for x, place in parts])[extra["row"]]
        fused = self.fusion_tower(section, own, around, present)
        share = present.to(around) / present.sum(dim=1, keepdim=True)
        return fused, own.mean(dim=1), (share[..., None] * around).sum(dim=1), section


class NeighbourBlock(TransformerBlock):
    """A block over the places of a square, with a learned bias of attention for every (|rows|, |columns|) apart."""

    offsets: Tensor

    def __init__(self, width: int, *, side: int, heads: int, head_width: int, mlp_width: int, dropout: float) -> None:
        super().__init__(width, heads=heads, head_width=head_width, mlp_width=mlp_width, dropout=dropout)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        y, x = y.flatten(), x.flatten()
        offsets = side * (y[:, None] - y).abs() + (x[:, None] - x).abs()
        self.register_buffer("offsets", offsets, persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.heads, side * side))

    def among(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Every place attends to the places that `keep` marks."""
        q, k, v = self._project(x)
        bias = self.bias[:, self.offsets].masked_fill(~keep[:, None, None, :], -torch.inf)
        return self._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q)))


class FusionBlock(TransformerBlock):
    """A block whose queries come from one sequence and whose keys and values come from another; one norm for both."""

    def across(
        self, x: Float[Tensor, "b n d"], tokens: Float[Tensor, "b m d"], keep: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Every row of `x` attends to the tokens that `keep` marks; None: to all."""
        q, (_, k, v) = self._project(x)[0], self._project(tokens)
        mask = None if keep is None else keep[:, None, None, :]
        return self._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class NeighbourTower(nn.Module):
    """Tokens of the side x side patches around a spot."""

    blocks: Any  # a ModuleList of NeighbourBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float], *, side: int) -> None:
        super().__init__()
        depth, inner = _block_sizes(width, sizes)
        self.blocks = nn.ModuleList(NeighbourBlock(width, side=side, **inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "n s d"], present: Bool[Tensor, "n s"]) -> Float[Tensor, "n s d"]:
        """Attention of each patch to the patches that are present."""
        for block in self.blocks:
            x = block.among(x, present)
        return self.norm(x)


class SectionTower(nn.Module):
    """Tokens of all spots of one section: a block, their places by a convolution, and the other blocks."""

    blocks: Any  # a ModuleList of TransformerBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float]) -> None:
        super().__init__()
        depth, inner = _block_sizes(width, sizes)
        self.blocks = nn.ModuleList(TransformerBlock(width, **inner) for _ in range(depth))
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "m d"], place: Int[Tensor, "m 2"]) -> Float[Tensor, "m d"]:
        """Each spot with all others; `place` is its row and column."""
        first, *others = self.blocks
        x = first(x[None])[0]
        x = (x + self._around(x, place))[None]
        for block in others:
            x = block(x)
        return self.norm(x[0])

    def _around(self, x: Tensor, place: Tensor) -> Tensor:
        """The depth-wise convolution of the grid at every spot; empty places are 0, shared ones hold a mean."""
        place = place - place.min(dim=0).values
        height, breadth = (place.max(dim=0).values + 1).tolist()
        at = place[:, 0] * breadth + place[:, 1]
        count = torch.bincount(at, minlength=height * breadth).clamp_min(1)
        grid = x.new_zeros(height * breadth, x.shape[1]).index_add(0, at, x) / count[:, None].to(x)
        return self.position(grid.T.unflatten(1, (height, breadth))[None])[0].flatten(1).T[at]


class FusionTower(nn.Module):
    """Cross-attention of a spot's section token to the tokens of its patch and its neighbours, with shared blocks."""

    blocks: Any  # a ModuleList of FusionBlock

    def __init__(self, width: int, sizes: tuple[int, int, int, float]) -> None:
        super().__init__()
        depth, inner = _block_sizes(width, sizes)
        self.blocks = nn.ModuleList(FusionBlock(width, **inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        section: Float[Tensor, "n d"],
        own: Float[Tensor, "n t d"],
        around: Float[Tensor, "n s d"],
        present: Bool[Tensor, "n s"],
    ) -> Float[Tensor, "n d"]:
        """One fused token per spot: layer norm of the sum of both attended tokens."""
        attended = [section[:, None], section[:, None]]
        for block in self.blocks:
            attended = [block.across(attended[0], own), block.across(attended[1], around, present)]
        return self.norm((attended[0] + attended[1])[:, 0])


def fusion_loss(
    fused: Float[Tensor, "n g"], branches: Sequence[Tensor], true: Float[Tensor, "n g"], *, share: float = 0.3
) -> Float[Tensor, ""]:
    """MSE(fused, true) + sum over branches of (1 - share) MSE(branch, true) + share MSE(branch, fused).

    The gradient of the last term reaches both of its sides.
    """
    loss = F.mse_loss(fused, true)
    for branch in branches:
        loss = loss + (1 - share) * F.mse_loss(branch, true) + share * F.mse_loss(branch, fused)
    return loss


def _block_sizes(width: int, sizes: tuple[int, int, int, float]) -> tuple[int, dict[str, Any]]:
    """The depth, and the sizes of a block. Raises ValueError for heads that do not divide the width."""
    depth, heads, ratio, dropout = sizes
    if depth < 1 or width % heads:
        raise ValueError(
            f"a transformer of width {width} cannot have depth {depth} and {heads} heads: the depth is at "
            "least 1 and the heads divide the width."
        )
    return depth, {"heads": heads, "head_width": width // heads, "mlp_width": ratio * width, "dropout": dropout}


class TriplexSamples(Samples):
    """`PatchSamples`, with what TRIPLEX sees beside the patch in `Batch.extra`.

    Parameters
    ----------
    encoder : PatchEncoder
        Frozen: of every section in a batch "whole" (m, f) features of all shapes on the image, "place" (m, 2) their
        grid places, "lengths" how many are of each section, and "row" (n,) which of them each row is; of every row
        "around" (n, side^2, f) features of the patches around it, row by row, and "present" (n, side^2): whether such a
        patch lies on the image at least in part (the shape's own always counts).
    own : Samples
        The patches of the spots themselves: `patches`, or these turned.
    width : int
        Of a token: a section whose tokens do not fit into memory is refused with ValueError.
    keep : bool
        Whether features around shapes are held in memory: in training they come again in every epoch.
    """

    def __init__(
        self, patches: PatchSamples, encoder: PatchEncoder, *, own: Samples, side: int, lattice: bool, width: int,
        keep: bool,
    ) -> None:  # fmt: skip
        self.own, self.patches, self.encoder, self.side, self.lattice = own, patches, encoder, side, lattice
        on = [on_image(section, bounds) for section, bounds in zip(patches.sections, patches.bounds, strict=True)]
        sections = [take(section, rows) for section, rows in zip(patches.sections, on, strict=True)]
        self.row = [{int(k): j for j, k in enumerate(rows)} for rows in on]
        self.place = [torch.from_numpy(array_grid(s)) if s.n_shapes else torch.zeros(0, 2).long() for s in sections]
        for section, place in zip(sections, self.place, strict=True):
            _check_memory(section, place, width, encoder.centre.device)
        self.whole = [
            encoder.encode_sections([s], patch_px=patches.patch_px).cpu()
            if s.n_shapes
            else torch.zeros(0, encoder.width)
            for s in sections
        ]
        self.known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        if keep:
            shapes = [(i, int(k)) for i, rows in enumerate(on) for k in rows]
            self.known = dict(zip(shapes, self._around(shapes), strict=True))

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Patch:
        return self.own[index]

    def collate(self, samples: Sequence[Patch]) -> Batch:
        """The batch of patches with its context. Raises KeyError for a shape that is not on the image."""
        batch = self.patches.collate(samples)
        shapes = [(int(i), int(k)) for i, k in batch.rows]
        sections = sorted({i for i, _ in shapes})
        lengths = [len(self.whole[i]) for i in sections]
        first = dict(zip(sections, np.cumsum([0, *lengths]).tolist(), strict=False))
        new = [shape for shape in dict.fromkeys(shapes) if shape not in self.known]
        seen = self.known | dict(zip(new, self._around(new), strict=True))
        around, present = zip(*(seen[shape] for shape in shapes), strict=True)
        extra = {
            "whole": torch.cat([self.whole[i] for i in sections]),
            "place": torch.cat([self.place[i] for i in sections]),
            "lengths": torch.tensor(lengths),
            "row": torch.tensor([first[i] + self.row[i][k] for i, k in shapes]),
            "around": torch.stack(around),
            "present": torch.stack(present),
        }
        return replace(batch, extra=extra)

    @torch.no_grad()
    def _around(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """Features (side^2, f) of the patches around each shape, 0 where they are off the image, and which are on."""
        found = []
        for start in range(0, len(shapes), SPOTS):
            cut = [self._cut(*shape) for shape in shapes[start : start + SPOTS]]
            images, present = (torch.from_numpy(np.stack(part)) for part in zip(*cut, strict=True))
            features = self.encoder(images[present].permute(0, 3, 1, 2).to(self.encoder.centre.device)).cpu()
            around = torch.zeros(*present.shape, features.shape[1])
            around[present] = features
            found += list(zip(around, present, strict=True))
        return found

    def _cut(self, i: int, k: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The patches around a shape (side^2, h, w, 3), read in one window, and which of them are on the image."""
        image, px, bounds = self.patches.sections[i].image, self.patches.patch_px, self.patches.bounds[i][k]
        twice = bounds[:2] + bounds[2:]
        own = np.floor(twice / 2 / px) * px if self.lattice else np.floor((twice - px) / 2 + 0.5)
        corner = own.astype(int) - self.side // 2 * px
        window = Window(int(corner[0]), int(corner[1]), self.side * px, self.side * px)
        pixels = image.read(window).reshape(self.side, px, self.side, px, 3).swapaxes(1, 2)
        low = corner[:, None] + px * np.arange(self.side)
        y, x = (low + px > 0) & (low < np.array([[image.height], [image.width]]))
        present = np.outer(y, x).ravel()
        present[len(present) // 2] = True
        return pixels.reshape(-1, px, px, 3), present


def _check_memory(section: Section, place: Tensor, width: int, device: torch.device) -> None:
    """Raise ValueError for a section whose tokens and grid do not fit into memory."""
    n, cells = len(place), int((place.max(dim=0).values + 1).prod()) if len(place) else 0
    need, free = 4 * width * (8 * n + 3 * cells), free_bytes(device)
    if need > free:
        raise ValueError(
            f"section {section.name!r} of {n} shapes on a grid of {cells} places needs {need / 1e9:.1f} GB for its "
            f"tokens, and {free / 1e9:.1f} GB are free: about {n * free // need} shapes fit. A section is never cut: "
            "use larger bins (stp.pp.tile_grid), or a model that sees patches alone."
        )


def _config(config: str | TRIPLEXConfig, genes: Sequence[str], mpp: float | None) -> TRIPLEXConfig:
    made = resolve_config(config, TRIPLEXConfig, PUBLISHED, genes, mpp=mpp)
    if made.side % 2 != 1:
        raise ValueError(f"side={made.side}: a spot lies in the middle of an odd number of patches; use 3, 5 or 7.")
    return made
