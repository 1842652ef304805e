"""EncoderRidge: null model, principal components and ridge regression on features of a frozen encoder.

What a model that trains a network on top of an encoder has to beat: the same encoder, untrained, and a closed form. The
form is that of benchmarks of foundation models ("HEST-1k", NeurIPS 2024: ridge on 256 principal components of frozen
features), with two choices that are made here on the training sections alone: how many components, and which penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stpredict._places import check_inner_validation, inner_groups
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch, PatchSamples, Samples
from stpredict.models._scale import measured_expression

TIE = 1e-7  # relative: errors that differ by less are equal but for rounding


@dataclass(frozen=True)
class EncoderRidgeConfig(EncoderConfig, PatchConfig):
    """Every choice of an EncoderRidge.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each shape in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; of every tap the mean and the standard deviation over the patch are features.
    components : tuple[int, ...], default (8, 16, 32, 64, 128, 256)
        The numbers of principal components tried.
    penalties : tuple[float, ...], default 10^0 .. 10^6
        The penalties tried, half a power of ten apart.
    recipe : Recipe, optional
        See `Recipe`; nothing is trained by steps.

    Raises
    ------
    ValueError
        For no number of components, or no penalty, to try.

    Examples
    --------
    >>> config = stp.models.EncoderRidgeConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.EncoderRidge(config=config).mpp
    2.0
    """

    components: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    penalties: tuple[float, ...] = tuple(10 ** (k / 2) for k in range(13))
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=64))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("components", "penalties"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one value to try.")


class EncoderRidge(Model):
    """Ridge regression on principal components of what a frozen encoder sees in the patch around each shape.

    Means and standard deviations over the patch of every channel of every tap, standardised on the training spots;
    their principal components; one ridge regression for all genes. The number of components and the penalty are those
    of the least squared error when one image after the other is left out of the training sections (of a single image,
    one of 4 x 4 spatial blocks), the components computed without it.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of the encoder are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    config : EncoderRidgeConfig, optional
        In place of `genes` and `mpp`; it may name another encoder.
    seed : int, optional
        Draws the weights of an encoder that is given none; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, and a patch that the encoder does not take.

    References
    ----------
    The numeric protocol stp-2, Nulls.

    Examples
    --------
    >>> model = stp.models.EncoderRidge(genes, mpp=2.0)
    >>> model.config.patch_px
    128
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = EncoderRidgeConfig
    config: EncoderRidgeConfig
    n_auxiliary: ClassVar = 1
    info: ClassVar = ModelInfo(
        name="EncoderRidge",
        task="principal components and ridge regression on features of a frozen encoder",
        encoder="mobilenetv2_100",
    )

    projection: Tensor
    weight: Tensor
    penalty: Tensor
    n_components: Tensor

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        config: EncoderRidgeConfig | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(resolve_config(config or "small", EncoderRidgeConfig, {}, genes, mpp=mpp))
        c = self.config
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind="pooled", folder=feature_cache, patch_px=c.patch_px
        )
        rank = min(max(c.components), self.encoder.width)
        self.register_buffer("projection", torch.zeros(rank, self.encoder.width))
        self.register_buffer("weight", torch.zeros(len(self.genes), rank + 1))
        self.register_buffer("penalty", torch.zeros(1))
        self.register_buffer("n_components", torch.zeros(1))

    @torch.no_grad()
    def prepare(self, sections: Sequence[Section]) -> None:
        """The closed form, with both choices by inner cross-validation on these sections."""
        check_inner_validation(sections, "EncoderRidge")  # before the encoder looks at them
        c, device = self.config, self.projection.device
        self.encoder.fit(sections, patch_px=c.patch_px)
        x = self.encoder.encode_sections(sections, patch_px=c.patch_px).double().cpu().numpy()
        y = measured_expression(sections).astype(np.float64)
        groups = inner_groups(sections)
        parts = [_Moments.of(x[groups == group], y[groups == group]) for group in np.unique(groups)]
        rank = len(self.projection)
        k, penalty = _choose(parts, c.components, c.penalties, rank)
        fitted = _Fit.of(_Moments.total(parts), rank)
        projection, weight = np.zeros(self.projection.shape), np.zeros(self.weight.shape)
        projection[:k] = fitted.axes[:, :k].T
        weight[:, :k] = fitted.coefficients(penalty)[:k].T
        weight[:, -1] = fitted.y - weight[:, :k] @ projection[:k] @ fitted.x
        for name, value in (
            ("projection", projection),
            ("weight", weight),
            ("penalty", [penalty]),
            ("n_components", [k]),
        ):
            setattr(self, name, torch.from_numpy(np.asarray(value, dtype=np.float32)).to(device))

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape."""
        return PatchSamples(sections, patch_px=self.config.patch_px)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The regression weights of these genes, the intercept last."""
        return self.weight[self.gene_index(genes)]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """Components of the standardised features, 0 beyond those that are used, and a one."""
        z = self.encoder(batch.image).float() @ self.projection.T
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g d"]) -> Float[Tensor, "n g"]:
        """The linear model."""
        return latent @ query.T

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error."""
        return torch.nn.functional.mse_loss(predict_batch(self, batch, query), batch.measured)


class _Moments(NamedTuple):
    """All that a regression needs of (n, f) features and (n, g) targets: their number, sums and products."""

    n: float
    x: NDArray[np.float64]  # (f,)
    y: NDArray[np.float64]  # (g,)
    xx: NDArray[np.float64]  # (f, f)
    xy: NDArray[np.float64]  # (f, g)
    yy: float

    @classmethod
    def of(cls, x: NDArray[np.float64], y: NDArray[np.float64]) -> _Moments:
        return cls(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y, float((y * y).sum()))

    @classmethod
    def total(cls, parts: Sequence[_Moments]) -> _Moments:
        sums: Any = [sum(values) for values in zip(*parts, strict=True)]
        return cls(*sums)

    def without(self, part: _Moments) -> _Moments:
        pairs: Any = zip(self, part, strict=True)
        return type(self)(*(mine - its for mine, its in pairs))

    def around(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> _Moments:
        """The same of features and targets from which these are subtracted."""
        n = self.n
        xx = self.xx - np.outer(x, self.x) - np.outer(self.x, x) + n * np.outer(x, x)
        xy = self.xy - np.outer(x, self.y) - np.outer(self.x, y) + n * np.outer(x, y)
        return _Moments(n, self.x - n * x, self.y - n * y, xx, xy, float(self.yy - 2 * y @ self.y + n * y @ y))


class _Fit(NamedTuple):
    """Means of features (f,) and targets (g,), principal axes (f, k) by falling variance, and ridge on these."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    axes: NDArray[np.float64]
    variance: NDArray[np.float64]  # (k,) sums of squares
    product: NDArray[np.float64]  # (k, g) of components and targets

    @classmethod
    def of(cls, moments: _Moments, rank: int) -> _Fit:
        x, y = moments.x / moments.n, moments.y / moments.n
        centred = moments.around(x, y)
        variance, axes = np.linalg.eigh(centred.xx)
        axes = axes[:, ::-1][:, :rank]
        return cls(x, y, axes, variance[::-1][:rank].clip(0), axes.T @ centred.xy)

    def coefficients(self, penalty: float) -> NDArray[np.float64]:
        """(k, g) of ridge on the components; the first j are those of ridge on the first j."""
        return self.product / (self.variance + penalty)[:, None]


def _choose(
    parts: Sequence[_Moments], components: Sequence[int], penalties: Sequence[float], rank: int
) -> tuple[int, float]:
    """The number of components and the penalty of the least squared error over parts that are left out in turn.

    Of several that are equal but for rounding, the fewest components: more than there are spots add nothing.
    """
    total, sizes = _Moments.total(parts), sorted({min(k, rank) for k in components})
    error = np.zeros((len(sizes), len(penalties)))
    for part in parts if len(parts) > 1 else []:
        fitted = _Fit.of(total.without(part), rank)
        held = part.around(fitted.x, fitted.y)
        xx, xy = fitted.axes.T @ held.xx @ fitted.axes, fitted.axes.T @ held.xy
        for j, penalty in enumerate(penalties):
            c = fitted.coefficients(penalty)
            for i, k in enumerate(sizes):
                error[i, j] += held.yy - 2 * (c[:k] * xy[:k]).sum() + (c[:k] * (xx[:k, :k] @ c[:k])).sum()
    least = error <= error.min() + TIE * abs(error.min())
    size, which = divmod(int(least.argmax()), len(penalties))  # the first: the fewest components
    return sizes[size], penalties[which]
