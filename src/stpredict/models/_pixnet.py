"""Blocks of PixNet: decoder, heads (free for each gene or made from its text), context branch with its regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._embeddings import GeneEmbeddings
from stpredict._places import check_inner_validation, inner_groups
from stpredict._section import Section
from stpredict.models._reduced_rank import reduced_rank_ridge
from stpredict.models._samples import Batch
from stpredict.models._scale import depth_weights, measured_expression, of_panel_or_mean
from stpredict.models._texts import Vocabulary
from stpredict.models._windows import WindowSamples
from stpredict.nn.encoders import Encoder, EncoderSpec, folded_encoder, rgb
from stpredict.nn.pool import Pooling
from stpredict.nn.stain import optical_density, unmix

PENALTIES = tuple(10 ** (k / 2) for k in range(4, 11))  # 10^2 .. 10^5, of a linear context
KERNEL_PENALTIES = tuple(10 ** (k / 2) for k in range(-5, 5))  # 10^-2.5 .. 10^2
KERNEL_WIDTH = 2.5  # squared, in mean squared distances from the mean; 1.5 to 4 were alike (benchmarks/tried.md)
# of the map (benchmarks/README.md, her2st); shapes of a median of at least so many square um are spots
SHARE_OF_SPOTS, SHARE_OF_BINS, SPOT_UM2 = 0.7, 0.3, 1e3
# shares whose PCC@M differs by less are alike; fewer held-out shapes choose none, for they choose at random
SHARE_SLACK, FEWEST_TO_CHOOSE = 0.005, 50
WINDOWS = 2  # a forward pass
GLASS = 0.1  # mean optical density of red, green and blue below which a pixel shows no tissue
COLOUR_PX = 2  # side of the squares whose mean colours are looked at
LEAST_AXIS = 1e-5  # of the largest: smaller axes of the kernel are lost in the rounding of float32
COLOUR_STEP = 4  # of these squares, every fourth along each axis tells where the levels are


class ConvBlock(nn.Sequential):
    """Depth-wise 3x3, batch norm, leaky ReLU, then 1x1, batch norm, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            nn.LeakyReLU(),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.LeakyReLU(),
        )


class DepthToSpaceUp(nn.Sequential):
    """Upsampling of a deep level: 3x3 to 4 C, depth-to-space by 2, 3x3, block (K = C 2^d filters, d = 2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, 4 * c_out, 3, padding=1),
            nn.ReLU(),
            nn.PixelShuffle(2),
            nn.Conv2d(c_out, c_out, 3, padding=1),
            nn.ReLU(),
            ConvBlock(c_out, c_out),
        )


class BilinearUp(nn.Sequential):
    """Upsampling of a shallow level: block, bilinear by 2, block."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(ConvBlock(c_in, c_out), nn.Upsample(scale_factor=2, mode="bilinear"), ConvBlock(c_out, c_out))


class SkipFusion(nn.Module):
    """SAFB: an encoder feature is gated, joined with the upsampled map, and both attend to each other.

    a = DWConv3x3(F); m = LN(Conv1x1(SiLU(a))); F' = BN(SiLU(a + m)); Q, K, V = Conv1x1([F', U]);
    out = U + softmax(Q K^T / sqrt(d)) V, within squares of `window` cells. Of two grids of squares, the second half
    a square further on along both axes, the one whose border is farther away counts more: of the step across a border
    about a fifth is left.
    """

    weight: Tensor

    def __init__(self, c_skip: int, c_up: int, *, window: int, n_grids: int = 1) -> None:
        super().__init__()
        self.spread = nn.Conv2d(c_skip, c_skip, 3, padding=1, groups=c_skip)
        self.mix = nn.Conv2d(c_skip, c_skip, 1)
        self.layer_norm = nn.LayerNorm(c_skip)
        self.batch_norm = nn.BatchNorm2d(c_skip)
        self.qkv = nn.Conv2d(c_skip + c_up, 3 * c_up, 1)
        self.window, self.n_grids = window, n_grids
        inside = 1 - (2 * torch.arange(window) + 1 - window).abs() / window  # rises towards the middle
        first, second = (torch.outer(w, w) for w in (inside, inside.roll(window // 2)))
        self.register_buffer("weight", first / (first + second), persistent=False)

    def forward(self, skip: Float[Tensor, "b s h w"], up: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The upsampled map, with what it attends to added."""
        a = self.spread(skip)
        m = self.layer_norm(self.mix(F.silu(a)).movedim(1, -1)).movedim(-1, 1)
        skip = self.batch_norm(F.silu(a + m))
        qkv = self.qkv(torch.cat([skip, up], dim=1))
        found = self._attended(qkv)
        n, (h, w) = self.window, up.shape[-2:]
        if self.n_grids == 2 and 1 < n < min(h, w):  # along the border of the map there is the first grid alone
            first = n // 2
            inner = (..., slice(first, first + h - n), slice(first, first + w - n))
            weight = self.weight.roll((-first, -first), (0, 1)).to(found.dtype).repeat(h // n - 1, w // n - 1)
            found[inner] = torch.lerp(self._attended(qkv[inner]), found[inner], weight)
        return up + found

    def _attended(self, qkv: Float[Tensor, "b c3 h w"]) -> Float[Tensor, "b c h w"]:
        b, c3, h, w = qkv.shape
        return self._merge(_attend(*self._windows(qkv)), (b, c3 // 3, h, w))

    def _windows(self, qkv: Float[Tensor, "b c3 h w"]) -> Float[Tensor, "3 m cells c"]:
        """Queries, keys and values, cut into the m = b (h / n) (w / n) squares of n = `window` cells."""
        b, c3, h, w = qkv.shape
        c, n = c3 // 3, self.window
        grid = qkv.reshape(b, 3, c, h // n, n, w // n, n)  # (b, qkv, c, row of squares, y, column of squares, x)
        return grid.permute(1, 0, 3, 5, 4, 6, 2).reshape(3, -1, n * n, c)

    def _merge(self, rows: Float[Tensor, "m cells c"], shape: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """The map of this shape that `_windows` cut into squares."""
        b, c, h, w = shape
        n = self.window
        grid = rows.reshape(b, h // n, w // n, n, n, c)  # (b, row of squares, column of squares, y, x, c)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def _attend(q: Float[Tensor, "w n d"], k: Float[Tensor, "w n d"], v: Float[Tensor, "w n d"]) -> Float[Tensor, "w n d"]:
    """softmax(Q K^T / sqrt(d)) V within every window.

    Written out where the CPU is to give a gradient: windows are small, and torch's fused backward pass is far slower.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


class Decoder(nn.Module):
    """The top-down path: from the bottom of the pyramid to the finest level, with a fusion wherever there is a skip."""

    def __init__(
        self, channels: Sequence[int], filters: Sequence[int], *, n_bilinear: int | None, window: int,
        n_grids: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        n_bare = len(filters) - len(channels)  # finest levels for which the encoder has no map
        if n_bare < 0:
            raise ValueError(f"{len(filters)} filters for {len(channels)} encoder maps; give one filter a level.")
        self.bottom = ConvBlock(channels[-1], filters[-1])
        self.ups, self.fusions = nn.ModuleList(), nn.ModuleList()
        for level in range(len(filters) - 2, -1, -1):
            up = BilinearUp if n_bilinear is None or level < n_bilinear else DepthToSpaceUp
            self.ups.append(up(filters[level + 1], filters[level]))
            if level >= n_bare:
                self.fusions.append(
                    SkipFusion(channels[level - n_bare], filters[level], window=window, n_grids=n_grids)
                )
        self.last = ConvBlock(filters[0], filters[0])

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(b, filters[0], h, w) at the finest level, of encoder maps from fine to coarse."""
        x = self.bottom(pyramid[-1])
        for i, up in enumerate(self.ups):
            x = up(x)
            if i < len(self.fusions):
                x = self.fusions[i](pyramid[-2 - i], x)
        return self.last(x)


class PanelHead(nn.Module):
    """A free row for every gene of a fixed panel."""

    def __init__(self, genes: Sequence[str], n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(genes), n_features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(genes)))
        self._position = {gene: i for i, gene in enumerate(genes)}

    def start(self, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        """Set the bias to the training mean of each gene; `spread` is not needed."""
        with torch.no_grad():
            self.bias.copy_(torch.from_numpy(mean))

    def forward(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of these genes, the bias last."""
        return torch.cat([self.weight, self.bias[:, None]], dim=1)[self.positions(genes)]

    def positions(self, genes: Sequence[str]) -> list[int]:
        """Where these genes are in the panel."""
        return [self._position[gene] for gene in genes]


class TextHead(nn.Module):
    """Rows made from the embedding of a gene's text by a small network, so that a gene never seen has one too.

    The network answers in standard units: a seen gene's row is scaled by its training spread and shifted by its
    training mean, an unseen gene's by the means of both over the panel, since nothing of its counts is known.

    Source: SGN's weights from text (256 L2-normalised weights and a bias from a text transformer; 64 genes a step),
    here two linear layers on a frozen embedding; and the 1x1 head of PixNet, whose rows they replace.
    """

    network: Any  # layers share no interface that a type checker could see
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        genes: Sequence[str],
        n_features: int,
        *,
        vocabulary: Sequence[str],
        text: Mapping[str, Any],
        embeddings: GeneEmbeddings | None,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.texts = Vocabulary(vocabulary, text, embeddings)
        self.network = nn.Sequential(
            nn.Linear(int(text["width"]), hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_features + 1),
        )
        with torch.no_grad():
            self.network[-1].weight.mul_(0.1)
            self.network[-1].bias.zero_()
        self.register_buffer("mean", torch.zeros(len(genes)))
        self.register_buffer("spread", torch.ones(len(genes)))
        self._panel, self._position = tuple(genes), {gene: i for i, gene in enumerate(genes)}

    def start(self, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        """Keep each panel gene's training mean and spread, and fit the scale of the embeddings."""
        self.mean, self.spread = torch.from_numpy(mean).to(self.mean), torch.from_numpy(spread).to(self.mean)
        self.texts.fit(self._panel)

    def forward(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of these genes, the bias last."""
        rows = self.network(self.texts.rows(genes))
        at = torch.tensor([self._position.get(gene, -1) for gene in genes], device=rows.device)
        mean, spread = of_panel_or_mean(self.mean, at), of_panel_or_mean(self.spread, at)
        rows = rows * spread[:, None]
        return torch.cat([rows[:, :-1], rows[:, -1:] + mean[:, None]], dim=1)


class ColourShares(nn.Module):
    """Share of a place that is darker than some levels, in red, green, blue, haematoxylin, eosin and DAB.

    Levels are quantiles of optical densities of the training tissue; a share is a sigmoid with a fifth of their
    standard deviation, so that it is bounded on any slide, whatever its stain.

    Parameters
    ----------
    n_levels : int
        Levels of each of the six; zeros until `fit` sets them.
    """

    levels: Tensor
    width: Tensor

    def __init__(self, n_levels: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.zeros(6, n_levels))
        self.register_buffer("width", torch.ones(6))

    def forward(self, densities: Float[Tensor, "b 6 r c"]) -> Float[Tensor, "b f r c"]:
        """The shares of places of these optical densities (`densities`)."""
        above = densities[:, :, None] - self.levels[:, :, None, None]
        return torch.sigmoid(above / self.width[:, None, None, None]).flatten(1, 2)

    @staticmethod
    def densities(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 6 r c"]:
        """Mean optical densities of the channels and of the stains in every square of `COLOUR_PX` pixels.

        RGB in [0, 1].
        """
        density = F.avg_pool2d(optical_density(image), COLOUR_PX)
        return torch.cat([density, unmix(density)], dim=1)

    def fit(self, densities: Float[Tensor, "n 6"]) -> None:
        """Set the levels by squares of training tissue; glass among them is left out."""
        seen = densities.double().cpu().numpy()
        tissue = seen[seen[:, :3].mean(axis=1) > GLASS]
        seen = tissue if len(tissue) else seen
        n = self.levels.shape[1]
        levels = np.quantile(seen, np.linspace(0.05, 0.95, n) if n > 1 else [0.5], axis=0).T
        width = np.maximum(0.2 * seen.std(axis=0), 1e-3)
        self.levels, self.width = (torch.tensor(v).to(self.levels) for v in (levels, width))


class ContextBranch(nn.Module):
    """What a frozen CNN and plain colours say of a square around each cell, as linear channels of the map.

    Of the CNN's maps it is the mean and standard deviation, of colours their shares (`ColourShares`), which carry over
    better to the slides of another laboratory; and the means of all these over a wider square. A square is centred on
    its cell: the outermost of `cells` + 1 cells count by half. All are standardised by buffers that training fills, as
    the projection and the weights are; `share`, the part of the prediction that comes from here, is 0 until then.

    What is projected are these statistics or, with landmarks, how alike they are to those of some training shapes: a
    Gaussian kernel of the distance, whose regression (of Nystroem's form) is not linear in the statistics. All tissue
    that is like none of them gets one and the same value, which need not be the mean.

    Parameters
    ----------
    spec : EncoderSpec
        Which encoder; all its stages are used, whatever taps the spec names.
    cells : int
        Side of the square in cells of the coarsest stage, even.
    rank : int
        Channels of the projection.
    n_genes : int
        Length of the panel, whose weights on these channels and intercepts are kept here.
    zoom : int, default 1
        How many times the image is enlarged for the encoder: what it was pretrained on is seen closer than tissue at 2
        um per pixel. Its cells are then so many times smaller, and its work is the square of it.
    levels : int, default 0
        Of each colour; 0: colours are not looked at.
    wide_cells : int, default 0
        Side of the wider square in cells, even; 0: there is none.
    n_landmarks : int, default 0
        Training shapes that tissue is compared with, at most; 0: the projection is of the statistics themselves.
    """

    centre: Tensor
    spread: Tensor
    projection: Tensor
    box: Tensor
    wide_box: Tensor | None
    landmarks: Tensor | None
    weight: Tensor
    intercept: Tensor
    share: Tensor

    def __init__(
        self, spec: EncoderSpec, *, weights: str | Path | None, cells: int, rank: int, n_genes: int, zoom: int = 1,
        levels: int = 0, wide_cells: int = 0, n_landmarks: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.zoom = zoom
        self.encoder = Encoder(spec, weights=weights).requires_grad_(False)
        self.cell_px = max(self.encoder.strides)
        self.colours = ColourShares(levels) if levels else None
        self.n_of_encoder = 2 * sum(self.encoder.channels)
        n = (self.n_of_encoder + 6 * levels) * (2 if wide_cells else 1)
        self.register_buffer("box", _box(cells), persistent=False)
        self.register_buffer("wide_box", _box(wide_cells) if wide_cells else None, persistent=False)
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("spread", torch.ones(n))
        self.register_buffer("landmarks", torch.zeros(n_landmarks, n) if n_landmarks else None)
        self.register_buffer("projection", torch.zeros(rank, n_landmarks or n))
        self.register_buffer("weight", torch.zeros(n_genes, rank))
        self.register_buffer("intercept", torch.zeros(n_genes))
        self.register_buffer("share", torch.zeros(()))

    @property
    def reach_px(self) -> int:
        """How far around a place the squares look, in pixels of the image; beside them what the encoder's maps see."""
        cells = sum(len(box) // 2 for box in (self.box, self.wide_box) if box is not None)
        return (cells + 1) * self.cell_px // self.zoom

    def window_px(self, of_training: int) -> int:
        """Side of the windows that it is fitted in: twice that of training, and not less than its squares need."""
        needed = of_training + 2 * self.reach_px
        return max(2 * of_training, -(-needed // self.cell_px) * self.cell_px)

    def train(self, mode: bool = True) -> ContextBranch:
        """Always in eval mode: nothing here is trained by gradient."""
        return super().train(False)

    def statistics(self, image: Float[Tensor, "b 3 h w"], encoder: Encoder | None = None) -> Float[Tensor, "b f r c"]:
        """Means, then standard deviations, of every channel, and shares of colours, around every coarse cell.

        After them, where there is a wider square, their means in it. RGB in [0, 1].

        Parameters
        ----------
        encoder : Encoder, optional
            The same one with its batch norms folded; None: the module's own.
        """
        if self.zoom > 1:
            image = F.interpolate(image, scale_factor=self.zoom, mode="bilinear", align_corners=False)
        maps = [x.float() for x in (encoder or self.encoder)(image)]
        sides = [self.cell_px // stride for stride in self.encoder.strides]
        with torch.autocast(image.device.type, enabled=False):  # a variance is a difference of nearly equal numbers
            mean = torch.cat([F.avg_pool2d(x, k) for x, k in zip(maps, sides, strict=True)], dim=1)
            square = torch.cat([F.avg_pool2d(x.square(), k) for x, k in zip(maps, sides, strict=True)], dim=1)
            mean, square = _around(mean, self.box), _around(square, self.box)
            found = [mean, (square - mean.square()).clamp_min(0).sqrt()]
            if self.colours is not None:
                shares = self.colours(self.colours.densities(image.float()))
                found.append(_around(F.avg_pool2d(shares, self.cell_px // COLOUR_PX), self.box))
            near = torch.cat(found, dim=1)
            return near if self.wide_box is None else torch.cat([near, _around(near, self.wide_box)], dim=1)

    def forward(self, image: Float[Tensor, "b 3 h w"], *, size: Sequence[int]) -> Float[Tensor, "b k r c"]:
        """The projected statistics, interpolated to a map of this size; zeros, at no cost, while the share is 0."""
        if self.share == 0:
            return image.new_zeros(len(image), len(self.projection), *size)
        standard = (self.statistics(image) - self.centre[:, None, None]) / self.spread[:, None, None]
        if self.landmarks is None:
            return self.fine(torch.einsum("kf,bfrc->bkrc", self.projection, standard), size=size)
        with torch.autocast(image.device.type, enabled=False):  # a distance is a difference of nearly equal numbers
            alike = gaussian_kernel(standard.movedim(1, -1), self.landmarks)
            return self.fine((alike @ self.projection.T).movedim(-1, 1), size=size)

    def mixed(self, rows: Float[Tensor, "g d"], positions: Sequence[int]) -> Float[Tensor, "g k"]:
        """The head's rows (bias last) with the context's weights put in, each branch weighed by its share."""
        own, weight, intercept = 1 - self.share, self.weight[list(positions)], self.intercept[list(positions)]
        bias = own * rows[:, -1] + self.share * intercept
        return torch.cat([own * rows[:, :-1], self.share * weight, bias[:, None]], dim=1)

    def fitted(self, weight: NDArray[np.float32], intercept: NDArray[np.float32], *, share: float) -> None:
        """Take in what `fit_context` returns."""
        device = self.share.device
        self.weight, self.intercept = torch.from_numpy(weight).to(device), torch.from_numpy(intercept).to(device)
        self.share = torch.tensor(share, device=device)

    @staticmethod
    def fine(coarse: Tensor, *, size: Sequence[int]) -> Tensor:
        """A coarse map interpolated bilinearly."""
        return F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)


def _box(cells: int) -> Tensor:
    """Weights (cells + 1,) of a square's cells along a side; the outermost count by half."""
    weight = torch.ones(cells + 1)
    weight[[0, -1]] = 0.5
    return weight / cells


def _around(x: Float[Tensor, "b f r c"], box: Float[Tensor, " k"]) -> Float[Tensor, "b f r c"]:
    """Means in the square around each cell."""
    n, half = x.shape[1], len(box) // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    x = F.conv2d(x, box.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
    return F.conv2d(x, box.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)


def gaussian_kernel(x: Float[Tensor, "*n f"], landmarks: Float[Tensor, "m f"]) -> Float[Tensor, "*n m"]:
    """exp(-|x - landmark|^2)."""
    product = 2 * (x @ landmarks.T)
    return (product - x.square().sum(-1, keepdim=True) - landmarks.square().sum(-1)).clamp_max(0).exp()


def default_share(sections: Sequence[Section], mpp: float) -> float:
    """The share of the context in the map by the median area of the training shapes: less for bins and cells.

    Areas of sections are in pixels of `mpp` micrometres.
    """
    area = float(np.median(np.concatenate([section.area for section in sections]))) * mpp**2
    return SHARE_OF_SPOTS if area >= SPOT_UM2 else SHARE_OF_BINS


def fit_context(
    context: ContextBranch, sections: Sequence[Section], *, window_px: int, stride: float, half_weight_counts: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardise and project the statistics so that they predict expression, and say how.

    A ridge of reduced rank for all genes (`reduced_rank_ridge`), within sections, for which colours together weigh as
    much as all maps of the encoder; with landmarks a kernel ridge. Its penalty and its rank, at most that of the
    projection, are chosen by leaving out one image at a time with all of its sections (of a single image, one of four
    by four blocks: the squares around neighbours overlap). Shapes weigh by their depth (`depth_weight`).

    Returns
    -------
    The weights (g, rank) of the projected channels, 0 beyond the rank that was chosen, and the intercepts (g,).
    """
    check_inner_validation(sections, "the context of PixNet")
    if context.colours is not None:
        context.colours.fit(_densities(context, sections, window_px=window_px, stride=stride))
    x = _statistics(context, sections, window_px=window_px, stride=stride)
    y = measured_expression(sections).astype(np.float64)
    centre, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0
    for square in np.split(spread, 1 if context.wide_box is None else 2):
        colours = square[context.n_of_encoder :]
        colours /= np.sqrt(context.n_of_encoder / max(1, len(colours)))
    x -= centre.astype(np.float32)
    x /= spread.astype(np.float32)
    penalties, of_features = PENALTIES, None
    if context.landmarks is not None:
        width = np.sqrt(KERNEL_WIDTH * np.square(x, dtype=np.float64).sum(axis=1).mean()) or 1.0
        spread *= width
        landmarks, x, of_features = _features(x / np.float32(width), len(context.landmarks))
        context.landmarks.copy_(torch.from_numpy(landmarks))
        penalties = KERNEL_PENALTIES
    rank = context.projection.shape[0]
    fitted = reduced_rank_ridge(
        x, y, sections=np.repeat(np.arange(len(sections)), [s.n_shapes for s in sections]),
        folds=inner_groups(sections), penalties=penalties, max_rank=rank,
        weights=depth_weights(sections, half_weight_counts),
    )  # fmt: skip
    # the level is that of all shapes alike, as scores are: a log of few counts is lower by itself
    intercept = y.mean(axis=0) - fitted.weight @ (fitted.projection @ x.mean(axis=0, dtype=np.float64))
    found = fitted.projection if of_features is None else fitted.projection @ of_features.T
    weights, projection = np.zeros((y.shape[1], rank)), np.zeros(context.projection.shape)
    weights[:, : len(found)], projection[: len(found), : found.shape[1]] = fitted.weight, found
    device = context.projection.device
    for name, value in (("centre", centre), ("spread", spread), ("projection", projection)):
        setattr(context, name, torch.from_numpy(value.astype(np.float32)).to(device))
    return weights.astype(np.float32), intercept.astype(np.float32)


def _features(
    x: NDArray[np.float32], n_landmarks: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Landmarks among the rows of x, and features whose products are the kernel's values (Nystroem's approximation).

    Source: Williams and Seeger, "Using the Nystroem method to speed up kernel machines", NIPS 2000.

    Returns
    -------
    Landmarks (n_landmarks, f), zeros where there are not as many rows; features (n, k); and what makes them of the
    kernel's values with the first m landmarks, (m, k).
    """
    some = np.sort(np.random.default_rng(0).permutation(len(x))[:n_landmarks])
    landmarks = np.zeros((n_landmarks, x.shape[1]), np.float32)
    landmarks[: len(some)] = x[some]
    rows = torch.from_numpy(x)
    alike = gaussian_kernel(rows, rows[some]).numpy()
    size, axes = np.linalg.eigh(alike[some].astype(np.float64))
    kept = size > LEAST_AXIS * size.max()
    whitening = axes[:, kept] / np.sqrt(size[kept])
    return landmarks, (alike @ whitening.astype(np.float32)), whitening


def _batches(sections: Sequence[Section], *, window_px: int, stride: float) -> Iterator[Batch]:
    samples = WindowSamples(
        sections, window_px=window_px, stride=stride, reduction="mean", stain_jitter=0.0, train=False, seed=0
    )
    for k in range(0, len(samples), WINDOWS):
        yield samples.collate([samples[i] for i in range(k, min(k + WINDOWS, len(samples)))])


def _densities(
    context: ContextBranch, sections: Sequence[Section], *, window_px: int, stride: float
) -> Float[Tensor, "n 6"]:
    """Optical densities of some squares of the sections' windows, for the levels of colours."""
    assert context.colours is not None
    found = []
    with torch.no_grad(), torch.autocast(context.share.device.type, enabled=False):
        for batch in _batches(sections, window_px=window_px, stride=stride):
            densities = context.colours.densities(rgb(batch.image.to(context.share.device)).float())
            found.append(densities[:, :, ::COLOUR_STEP, ::COLOUR_STEP].movedim(1, -1).reshape(-1, 6).cpu())
    return torch.cat(found)


def _statistics(
    context: ContextBranch, sections: Sequence[Section], *, window_px: int, stride: float
) -> NDArray[np.float32]:
    """The statistics (n, f) pooled inside every shape of the sections, as a map of the projected ones will be."""
    n = round(window_px / stride)
    fine = _interpolation(window_px * context.zoom // context.cell_px, n)
    device, encoder = context.projection.device, folded_encoder(context.encoder)
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    with torch.no_grad():
        for batch in _batches(sections, window_px=window_px, stride=stride):
            assert batch.pooling is not None
            coarse = context.statistics(rgb(batch.image.to(device)), encoder)
            found.append((batch.rows, _inside(coarse, batch.pooling, fine)))
    rows, values = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    return values[np.lexsort((rows[:, 1], rows[:, 0]))]


def _interpolation(coarse: int, fine: int) -> sp.csr_array:
    """(fine^2, coarse^2) what `ContextBranch.fine` does to square maps, as a matrix."""
    along = F.interpolate(torch.eye(coarse)[None], size=fine, mode="linear", align_corners=False)[0].T.numpy()
    rows = sp.csr_array(along)
    return sp.csr_array(sp.kron(rows, rows, format="csr"))


def _inside(coarse: Tensor, into: Pooling, fine: sp.csr_array) -> NDArray[np.float32]:
    """(n, f) what `pool` says of the interpolated map; the fine map of a thousand channels is never made."""
    shape = (into.n_shapes, len(coarse) * fine.shape[0])
    weight = sp.csr_array((into.weight.numpy(), (into.shape.numpy(), into.cell.numpy())), shape=shape)
    cells = weight @ sp.csr_array(sp.block_diag([fine] * len(coarse), format="csr"))
    return np.asarray(cells @ coarse.movedim(1, -1).flatten(0, 2).cpu().numpy(), dtype=np.float32)
