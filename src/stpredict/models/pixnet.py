"""PixNet: a dense map of expression from an H&E image, fitted through sums or means inside measured shapes.

Source: "From Spots to Pixels: Dense Spatial Gene Expression Prediction from Histology Images", arXiv 2503.01347
(CVPR 2026), Figure 2 and its caption; decoder details from two long third-party notes on its v4, and where both are
silent the order of operations of MCADS-Decoder, which the authors credit. The official repository holds no code.

Where we differ, or had to choose:

- the encoder pyramid: three skips and a bottom. A ViT's tokens all have one stride: the bottom is the last tap averaged
  down by 8, the skips are earlier taps averaged by 4, 2, 1. A CNN brings its own strides.
- with six filters the rules give three depth-to-space and two bilinear steps; the two finest levels have no skip.
- self-attention of the skip fusion is in fixed windows laid from pixel (0, 0) of the section (MCADS: image rows), so an
  answer does not depend on the tile; the residual adds the upsampled tensor U (Figure 2; the notes' formula is not
  channel-consistent).
- the map is pooled as an area-weighted mean by default (the paper: a sum; see `PixNetConfig.reduction`).
- the last features are pooled first and the 1x1 head is applied after: the same algebra, without 250 full maps.
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
from safetensors.torch import load_file
from torch import Tensor, nn

from stpredict._card import CARD, WEIGHTS, Card, find_model
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, check_panel, predict_batch
from stpredict.models._samples import Batch, Samples, WindowSamples, rgb
from stpredict.nn.encoders import Encoder, EncoderSpec
from stpredict.nn.losses import mse_pcc


@dataclass(frozen=True)
class PixNetConfig:
    """Every choice of a PixNet. Each value that the sources do not give carries its reason.

    genes, mpp
        Ordered panel; micrometres per pixel.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; four taps, finest first: three skips and the bottom.
    filters
        Decoder widths, finest level first.
    n_bilinear
        How many of the finest upsampling steps are bilinear; the deeper ones are depth-to-space.
    attention_window
        Side, in cells of its level, of the squares within which the skip fusion attends.
    """

    genes: tuple[str, ...]
    mpp: float = 2.0  # not given; of 1 and 2 um the better on a held-out training section (benchmarks/README.md)
    encoder: str = "mobilenetv2_100"
    taps: tuple[int, ...] = (1, 2, 3, 4)
    encoder_kwargs: Mapping[str, Any] = field(default_factory=dict)
    encoder_mean: tuple[float, ...] | None = None
    encoder_std: tuple[float, ...] | None = None
    filters: tuple[int, ...] = (32, 48, 64, 96)  # narrow: 2 cores; chosen before any score was seen
    n_bilinear: int = 1  # the paper has 2 of 5; a CNN pyramid needs 3 steps, the finest of which is bilinear
    attention_window: int = 8  # not given; 64 tokens cost little, and the window of a level stays below a 100 um spot
    reduction: Literal["mean", "sum"] = "mean"  # the paper sums; log expression is intensive (docs: concepts)
    link: Literal["identity", "log1p"] = "identity"  # the paper: the map is in log units
    pcc_weight: float = 0.5  # the paper
    window_px: int = 384  # training window, not given: about ten 100 um spots, and a step of 8 windows fits a laptop
    stain_jitter: float = 0.12  # not given: stain strength and hue vary by +- 24 % each
    core_px: int = 1024  # inference tile; a multiple of every attention window and stride
    halo_px: int = 384  # measured with trained weights: benchmarks/README.md, seams
    turns: int = 1  # 4 or 8: the mean over quarter turns (and flips) at prediction, at that many times the cost
    recipe: Recipe = field(
        # not given for this size; the paper's 5e-4 with 1e-4 decay is the published configuration
        default_factory=lambda: Recipe(
            max_epochs=20, batch_size=8, lr=3e-3, encoder_lr=1e-3, weight_decay=1e-2, patience=10
        )
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.5,  # UNI2-h was trained at 0.5 um / px
    "encoder": "hf-hub:MahmoodLab/UNI2-h",
    "taps": (6, 12, 18, 24),  # not given ("e.g. 2/4/6"): four groups of equal depth
    "encoder_kwargs": {
        "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU", "dynamic_img_size": True,
    },
    "filters": (64, 128, 256, 512, 512, 512),
    "n_bilinear": 2,
    "window_px": 896,  # not given; a multiple of 224 and of every attention window
    "core_px": 1792,
    "halo_px": 896,  # one attention window of the deepest fusion
    "recipe": Recipe(max_epochs=200, lr=5e-4, encoder_lr=0.0, weight_decay=1e-4),
}  # fmt: skip


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
    out = U + softmax(Q K^T / sqrt(d)) V, within squares of `window` cells.
    """

    def __init__(self, c_skip: int, c_up: int, *, window: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(c_skip, c_skip, 3, padding=1, groups=c_skip)
        self.mix = nn.Conv2d(c_skip, c_skip, 1)
        self.layer_norm = nn.LayerNorm(c_skip)
        self.batch_norm = nn.BatchNorm2d(c_skip)
        self.qkv = nn.Conv2d(c_skip + c_up, 3 * c_up, 1)
        self.window = window

    def forward(self, skip: Float[Tensor, "b s h w"], up: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The upsampled map, with what it attends to added."""
        a = self.spread(skip)
        m = self.layer_norm(self.mix(F.silu(a)).movedim(1, -1)).movedim(-1, 1)
        skip = self.batch_norm(F.silu(a + m))
        q, k, v = self._windows(self.qkv(torch.cat([skip, up], dim=1)))
        return up + self._merge(F.scaled_dot_product_attention(q, k, v), up.shape)

    def _windows(self, qkv: Tensor) -> Tensor:
        b, c3, h, w = qkv.shape
        n = self.window
        grid = qkv.reshape(b, 3, c3 // 3, h // n, n, w // n, n).permute(1, 0, 3, 5, 4, 6, 2)
        return grid.reshape(3, -1, n * n, c3 // 3)  # (qkv, windows, cells, c)

    def _merge(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        b, c, h, w = shape
        n = self.window
        grid = rows.reshape(b, h // n, w // n, n, n, c).permute(0, 5, 1, 3, 2, 4)
        return grid.reshape(b, c, h, w)


class Decoder(nn.Module):
    """The top-down path: from the bottom of the pyramid to the finest level, with a fusion wherever there is a skip."""

    def __init__(self, channels: Sequence[int], filters: Sequence[int], *, n_bilinear: int, window: int) -> None:
        super().__init__()
        n_bare = len(filters) - len(channels)  # finest levels for which the encoder has no map
        if n_bare < 0:
            raise ValueError(f"{len(filters)} filters for {len(channels)} encoder maps; give one filter a level.")
        self.bottom = ConvBlock(channels[-1], filters[-1])
        self.ups, self.fusions = nn.ModuleList(), nn.ModuleList()
        for level in range(len(filters) - 2, -1, -1):
            up = BilinearUp if level < n_bilinear else DepthToSpaceUp
            self.ups.append(up(filters[level + 1], filters[level]))
            if level >= n_bare:
                self.fusions.append(SkipFusion(channels[level - n_bare], filters[level], window=window))
        self.last = ConvBlock(filters[0], filters[0])

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(b, filters[0], h, w) at the finest level, of encoder maps from fine to coarse."""
        x = self.bottom(pyramid[-1])
        for i, up in enumerate(self.ups):
            x = up(x)
            if i < len(self.fusions):
                x = self.fusions[i](pyramid[-2 - i], x)
        return self.last(x)


class PixNet(Model):
    """A continuous map of expression, read out inside any shape.

    genes
        The ordered panel.
    encoder, mpp
        Override the configuration's.
    encoder_weights
        A local .safetensors state dict of timm; the name or folder of a saved PixNet, whose encoder and decoder are
        taken over; "timm" for the weights timm fetches for the name; None: random.
    config
        "small" (a CNN pyramid, trained and shipped here), "published" (UNI2-h, for a GPU), or a `PixNetConfig`.

    Raises ValueError for an empty or duplicated panel, or sizes that do not divide (with what they must divide by).
    Source: see the module's head.
    """

    output: ClassVar = "raster"
    context: ClassVar = "shape"
    config_class: ClassVar = PixNetConfig

    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder: str | None = None,
        mpp: float | None = None,
        encoder_weights: str | Path | None = None,
        config: str | PixNetConfig = "small",
    ) -> None:
        super().__init__()
        home = _home_of(encoder_weights)
        donor = None if home is None else _donor(home)
        self.config = _config(config, genes, encoder, mpp, donor)
        c = self.config
        self.genes, self.mpp, self.recipe = c.genes, c.mpp, c.recipe
        spec = EncoderSpec(c.encoder, c.taps, c.encoder_kwargs, c.encoder_mean, c.encoder_std)
        self.encoder = Encoder(spec, weights=None if home is not None else encoder_weights)
        self.decoder = Decoder(self.encoder.channels, c.filters, n_bilinear=c.n_bilinear, window=c.attention_window)
        self.weight = nn.Parameter(torch.randn(len(c.genes), c.filters[0]) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(c.genes)))
        self.stride = self.encoder.strides[0] / 2 ** (len(c.filters) - len(c.taps))
        self._position = {gene: i for i, gene in enumerate(c.genes)}
        _check_sizes(c, self.encoder)
        if home is not None:
            state = load_file(home / WEIGHTS)
            body = {key: value for key, value in state.items() if key.startswith(("encoder.", "decoder."))}
            self.load_state_dict(body, strict=False)

    def prepare(self, sections: Sequence[Section]) -> None:
        """Set the output bias to the mean of the training target, each section weighing the same."""
        means = np.mean([s.expression.mean(axis=0) for s in sections if s.expression is not None], axis=0)
        if self.config.link == "log1p":
            means = np.log(np.expm1(np.maximum(np.expm1(means), 1e-3)))
        with torch.no_grad():
            self.bias.copy_(torch.from_numpy(np.asarray(means)))

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
        )

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of the 1x1 head for these genes, the bias last."""
        positions = [self._position[gene] for gene in genes]
        rows = torch.cat([self.weight, self.bias[:, None]], dim=1)[positions]
        return F.softplus(rows) if self.config.link == "log1p" else rows

    def latent(self, batch: Batch) -> Float[Tensor, "b d r c"]:
        """The last feature map and a constant 1, at `stride` pixels a cell."""
        pyramid = self.encoder(rgb(batch.image))
        if self.encoder.is_vit:
            pyramid = [F.avg_pool2d(x, 2**i) if i else x for i, x in enumerate(pyramid)]
        x = self.decoder(pyramid)
        if self.config.link == "log1p":
            x = F.softplus(x)  # with non-negative weights the map is a non-negative rate
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g d"]) -> Float[Tensor, "n g"]:
        """The 1x1 convolution, on rows."""
        return latent @ query.T

    def link(self, values: Tensor) -> Tensor:
        """Log units: as they are, or log1p of a rate per 10,000 counts."""
        return torch.log1p(values) if self.config.link == "log1p" else values

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """MSE + 0.5 (1 - batch-wise Pearson), inside the measured shapes only."""
        values = predict_batch(self, batch, query)
        return mse_pcc(values, batch.measured, pcc_weight=self.config.pcc_weight)

    def finish(self, sections: Sequence[Section]) -> None:
        """Nothing: the weights are all there is."""


def _home_of(encoder_weights: str | Path | None) -> Path | None:
    """The folder of the saved PixNet that gives its weights; None for a file, for timm's weights and for none."""
    if encoder_weights is None or encoder_weights == "timm" or Path(encoder_weights).is_file():
        return None
    return find_model(encoder_weights)


def _donor(home: Path) -> dict[str, Any]:
    """The fields of a saved PixNet's config that decide the shapes of its encoder and decoder."""
    card = Card.read(home / CARD)
    if card.model != "PixNet":
        raise ValueError(f"encoder_weights={str(home)!r} is a {card.model}; name a PixNet.")
    shape = ("encoder", "taps", "encoder_kwargs", "encoder_mean", "encoder_std", "filters", "n_bilinear")
    fields = {key: card.config[key] for key in (*shape, "attention_window")}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _config(
    config: str | PixNetConfig,
    genes: Sequence[str],
    encoder: str | None,
    mpp: float | None,
    donor: Mapping[str, Any] | None,
) -> PixNetConfig:
    named = {"small": {}, "published": PUBLISHED}
    if isinstance(config, str):
        if config not in named:
            raise ValueError(f"config={config!r} is unknown. Choose one of {sorted(named)}, or pass a PixNetConfig.")
        config = PixNetConfig(genes=(), **named[config])
    given = {"genes": tuple(genes) or None, "encoder": encoder, "mpp": mpp}
    config = replace(config, **{key: value for key, value in given.items() if value is not None} | dict(donor or {}))
    check_panel(config.genes, "PixNet")
    return config


def _check_sizes(c: PixNetConfig, encoder: Encoder) -> None:
    if c.turns not in (1, 4, 8):
        raise ValueError(f"turns={c.turns} must be 1, 4 (quarter turns) or 8 (with flips).")
    n_bare = len(c.filters) - len(c.taps)
    coarsest = encoder.strides[0] / 2**n_bare * 2 ** (len(c.filters) - 2)  # stride of the deepest fusion
    unit = int(np.lcm(encoder.block_px, int(coarsest) * c.attention_window))
    for name in ("window_px", "core_px", "halo_px"):
        if getattr(c, name) % unit:
            raise ValueError(
                f"{name}={getattr(c, name)} must be a multiple of {unit} px: the encoder's unit is "
                f"{encoder.block_px} px, an attention window of the deepest fusion is "
                f"{int(coarsest) * c.attention_window} px."
            )
