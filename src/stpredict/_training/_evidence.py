"""What a model says of held-out shapes beside what was measured there, and the evidence that a card keeps of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stpredict import metrics
from stpredict._card import ERROR_LEVELS
from stpredict._section import Section
from stpredict._training._module import val_batches
from stpredict.models import Ensemble
from stpredict.models._base import Model, predict_batch


@dataclass(frozen=True)
class HeldOut:
    """Predicted and measured values of held-out shapes.

    Parameters
    ----------
    pred, true : ndarray of float32
        (n, g) in target units.
    section : ndarray of int64
        (n,) number of the section that each shape is of.
    area_um2 : ndarray of float64
        (n,) area of each shape in square micrometres.
    """

    pred: NDArray[np.float32]
    true: NDArray[np.float32]
    section: NDArray[np.int64]
    area_um2: NDArray[np.float64]


def held_out(model: Model, val: Sequence[Section]) -> HeldOut:
    """The predictions of a model for sections that it was not trained on, in the order of their shapes."""
    if isinstance(model, Ensemble) and model.output == "spots":  # each member has samples of its own
        parts = [held_out(each, val) for each in model.models]
        mean = np.mean([each.pred for each in parts], axis=0, dtype=np.float32)
        return HeldOut(mean, parts[0].true, parts[0].section, parts[0].area_um2)
    samples = model.samples(val, train=False)
    batches = [samples.collate([samples[i] for i in b]) for b in val_batches(model, samples, model.recipe.batch_size)]
    device = next(model.parameters(), torch.zeros(())).device
    with torch.inference_mode():
        values = [predict_batch(model, b.to(device), model.query(b.genes)).cpu().numpy() for b in batches]
    rows = np.concatenate([b.rows for b in batches])
    order = np.lexsort(rows.T[::-1])
    pred, true = (np.concatenate(each)[order] for each in (values, [b.measured.numpy() for b in batches]))
    section, shape = rows[order].T
    area = [s.area * s.mpp**2 for s in val]
    return HeldOut(pred, true, section, np.array([area[i][k] for i, k in zip(section, shape, strict=True)]))


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """All of them as one: sections of different parts are different sections."""
    first = np.cumsum([0, *(each.section.max() + 1 for each in parts)])
    return HeldOut(
        np.concatenate([each.pred for each in parts]),
        np.concatenate([each.true for each in parts]),
        np.concatenate([each.section + k for each, k in zip(parts, first, strict=False)]),
        np.concatenate([each.area_um2 for each in parts]),
    )


def evidence(held: HeldOut | None, genes: Sequence[str]) -> dict[str, Any]:
    """The fields of a card that held-out shapes speak for; none without them.

    - `val_pcc`: correlation by section, averaged over sections.
    - `held_out`: "rmse", the root of the mean squared error; "error_80" and "error_90", below which that share of
      absolute errors lies, by split conformal prediction: of n errors the ceil((n + 1) level)-th smallest.
    - `held_out_um2`: smallest and largest area of these shapes, but for 5 % on either side.

    References
    ----------
    Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018, algorithm 2.
    """
    if held is None:
        return {}
    error = np.abs(held.pred.astype(np.float64) - held.true)
    found = {"rmse": np.sqrt(np.mean(error**2, axis=0))}
    found |= {name: conformal_quantile(error, level) for name, level in ERROR_LEVELS.items()}
    return {
        "val_pcc": by_gene(genes, mean_pcc(held)),
        "held_out": {name: by_gene(genes, values) for name, values in found.items()},
        "held_out_um2": tuple(float(v) for v in np.quantile(held.area_um2, (0.05, 0.95))),
    }


def conformal_quantile(error: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(g,) of absolute errors (n, g) the ceil((n + 1) level)-th smallest; NaN where n is too small for the level."""
    k = int(np.ceil((len(error) + 1) * level - 1e-9))
    if k > len(error):
        return np.full(error.shape[1], np.nan)
    return np.partition(error, k - 1, axis=0)[k - 1]


def mean_pcc(held: HeldOut) -> NDArray[np.float64]:
    """(g,) correlation over the shapes of each section, averaged over sections; NaN where it is undefined."""
    of_sections = [held.section == i for i in np.unique(held.section)]
    scores = [metrics.pcc(held.pred[rows], held.true[rows]) for rows in of_sections if rows.sum() > 2]
    if not scores:
        return np.full(held.pred.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.nanmean(scores, axis=0)


def by_gene(genes: Sequence[str], values: NDArray[np.floating]) -> dict[str, float | None]:
    """Values by the names of genes; None for what is not finite."""
    return {gene: float(v) if np.isfinite(v) else None for gene, v in zip(genes, values, strict=True)}
