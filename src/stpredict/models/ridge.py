"""Ridge: null model, ridge regression on colour statistics of the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, KFold, LeaveOneGroupOut
from torch import Tensor

from stpredict._places import check_inner_validation, inner_groups, tissues
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, as_panel, constructor, predict_batch
from stpredict.models._fields import LIMITS, Config
from stpredict.models._info import ModelInfo
from stpredict.models._samples import Batch, PatchSamples, Samples
from stpredict.models._scale import measured_expression
from stpredict.nn.encoders import rgb
from stpredict.nn.stain import optical_density, unmix

N_FEATURES = 42  # 7 statistics x (R, G, B, haematoxylin, eosin, DAB)


@dataclass(frozen=True)
class RidgeConfig(Config):
    """Every choice of a Ridge.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 1.0
        Micrometres per pixel.
    patch_um : float, default 112.0
        Side of the patch in micrometres.
    penalties : tuple[float, ...], default 10^-1 .. 10^5
        The penalties tried.
    recipe : Recipe, optional
        See `Recipe`.

    Raises
    ------
    ValueError
        For a patch of too few or too many pixels.
    """

    genes: tuple[str, ...]
    mpp: float = 1.0
    patch_um: float = 112.0
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-1, 6))
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=64))

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = LIMITS["patch_px"]
        if not low <= (side := round(self.patch_um / self.mpp)) <= high:
            raise ValueError(
                f"patch_um={self.patch_um:g} at mpp={self.mpp:g} is a patch of {side} px; it must have {low} to {high}."
            )


class Ridge(Model):
    """Ridge regression on 42 colour statistics of the 112 um patch around each shape.

    Mean, standard deviation and percentiles 5, 25, 50, 75, 95 of R, G, B and of haematoxylin, eosin, DAB by colour
    deconvolution; features standardised on the training spots; one penalty for all genes, from 10^-1 .. 10^5, by inner
    cross-validation over five random parts of the training spots, on the squared error. Where several sections are of
    one image, as scales of a tissue, the parts are images instead, or spatial blocks of a single one.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    mpp : float, default 1.0
        Micrometres per pixel.
    config : RidgeConfig, optional
        In place of `genes` and `mpp`.

    Raises
    ------
    ValueError
        For an empty or duplicated panel.

    References
    ----------
    The numeric protocol stp-2, Nulls.

    Examples
    --------
    >>> model = stp.models.Ridge(genes)
    >>> history = stp.tl.train(train, model, shapes_key="spots", progress=False)
    >>> stp.tl.predict(slide, model, shapes_key="spots", key_added="colours", progress=False)
    >>> "colours" in slide.tables["table"].layers
    True
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = RidgeConfig
    config: RidgeConfig
    info: ClassVar = ModelInfo(
        name="Ridge",
        task="ridge regression on 42 colour statistics of the patch",
    )

    centre: Tensor
    spread: Tensor
    weight: Tensor
    penalty: Tensor

    @constructor
    def __init__(self, genes: Sequence[str] = (), *, mpp: float = 1.0, config: RidgeConfig | None = None) -> None:
        super().__init__(config or RidgeConfig(genes=as_panel(genes), mpp=mpp))
        self.register_buffer("centre", torch.zeros(N_FEATURES))
        self.register_buffer("spread", torch.ones(N_FEATURES))
        self.register_buffer("weight", torch.zeros(len(self.genes), N_FEATURES + 1))
        self.register_buffer("penalty", torch.zeros(1))

    def prepare(self, sections: Sequence[Section]) -> None:
        """The closed form, with the penalty chosen by inner cross-validation on these sections."""
        check_inner_validation(sections, "Ridge")
        x = self._statistics(sections)
        y = measured_expression(sections).astype(np.float64)
        centre, spread = x.mean(axis=0), x.std(axis=0)
        spread[spread < 1e-8] = 1.0
        several = len(tissues(sections)) < len(sections)  # scales of one tissue: a random part would be in the others
        search = GridSearchCV(
            SklearnRidge(),
            {"alpha": self.config.penalties},
            scoring="neg_mean_squared_error",
            cv=LeaveOneGroupOut() if several else KFold(5, shuffle=True, random_state=0),
        )
        search.fit((x - centre) / spread, y, groups=inner_groups(sections) if several else None)
        best = search.best_estimator_
        weight = np.column_stack([np.atleast_2d(best.coef_), best.intercept_])  # of one gene it is a row
        self.centre, self.spread, self.weight, self.penalty = (
            torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in (centre, spread, weight, [best.alpha])
        )

    def _statistics(self, sections: Sequence[Section]) -> NDArray[np.float64]:
        samples = self.samples(sections, train=True)
        n = len(samples)
        batches = [samples.collate([samples[i] for i in range(k, min(k + 64, n))]) for k in range(0, n, 64)]
        return torch.cat([colour_statistics(rgb(batch.image)) for batch in batches]).double().numpy()

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape."""
        return PatchSamples(sections, patch_px=round(self.config.patch_um / self.mpp))

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The regression weights of these genes, the intercept last."""
        return self.weight[self.gene_index(genes)]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """Standardised colour statistics and a one."""
        z = (colour_statistics(rgb(batch.image)) - self.centre) / self.spread
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g d"]) -> Float[Tensor, "n g"]:
        """The linear model."""
        return latent @ query.T

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Mean squared error."""
        return torch.nn.functional.mse_loss(predict_batch(self, batch, query), batch.measured)


def colour_statistics(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 42"]:
    """Mean, sd and percentiles 5, 25, 50, 75, 95 of R, G, B, haematoxylin, eosin, DAB; RGB in [0, 1]."""
    with torch.autocast(image.device.type, enabled=False):  # a closed form, in float32 in training and in prediction
        stains = unmix(optical_density(image))
    values = torch.cat([image, stains], dim=1).flatten(2)  # (b, 6, pixels)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=values.dtype, device=values.device)
    percentiles = torch.quantile(values, levels, dim=2).movedim(0, -1)  # (b, 6, 5)
    moments = torch.stack([values.mean(2), values.std(2, correction=0)], dim=2)
    return torch.cat([moments, percentiles], dim=2).flatten(1)
