"""What a model's held-out correlation is read beside: Ridge on the same shapes, and the ceiling of the measurement."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _spatialdata, _training, metrics
from stpredict._section import take
from stpredict.models.ridge import Ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._section import Section
    from stpredict.models import Model
    from stpredict.tl._domain import Source

MOST_SHAPES = 2_000  # of a fold that Ridge is trained on, and as many that it is asked for
MOST_COUNTED = 20_000  # rows of a table whose counts are split


def add_references(
    model: Model,
    folds: Sequence[tuple[Sequence[Section], Sequence[Section]]],
    measured: Sequence[Source],
    plan: _training.TrainOptions,
) -> None:
    """Put into the card of a model what Ridge reaches on the same held-out shapes, and the ceiling.

    Parameters
    ----------
    folds
        Training and held-out sections, as the model was shown them; without any held-out ones nothing is done.
    measured
        Objects and specs of the sections whose counts the ceiling is of.
    """
    if model.card is None or not any(held for _, held in folds):
        return
    found = dict(model.card.held_out)
    if any(p.requires_grad for p in model.parameters()):
        values = [_ridge(model, train, held, plan) for train, held in folds]
        found["ridge_pcc"] = _training.by_gene(model.genes, _mean(values))
    ceilings = [_ceiling(sdata, model.genes, spec) for sdata, spec in measured if spec.target == "log1p_cp10k"]
    if ceilings:
        found["ceiling"] = _training.by_gene(model.genes, _mean(ceilings))
    model.card = replace(model.card, held_out=found)


def _ridge(
    model: Model, train: Sequence[Section], held: Sequence[Section], plan: _training.TrainOptions
) -> NDArray[np.float64]:
    """(g,) correlation of Ridge on the held-out sections of a fold."""
    ridge = Ridge(model.genes, mpp=model.mpp)
    own = _training.TrainOptions(seed=plan.seed, device="cpu", precision="32", progress=False)
    _training.fit(ridge, _some(train, plan.seed), _some(held, plan.seed), own)
    assert ridge.card is not None
    values = [ridge.card.val_pcc[gene] for gene in model.genes]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _some(sections: Sequence[Section], seed: int) -> list[Section]:
    """The sections with at most `MOST_SHAPES` shapes together, drawn from each in proportion."""
    n = sum(s.n_shapes for s in sections)
    if n <= MOST_SHAPES:
        return list(sections)
    rng = np.random.default_rng([seed, n])
    kept = [max(3, s.n_shapes * MOST_SHAPES // n) for s in sections]
    return [
        take(s, np.sort(rng.choice(s.n_shapes, min(k, s.n_shapes), replace=False)))
        for s, k in zip(sections, kept, strict=True)
    ]


def _ceiling(sdata: SpatialData, genes: Sequence[str], spec: _spatialdata.SectionSpec) -> NDArray[np.float64]:
    """(g,) ceiling of the measurement in an object; NaN where its counts are too few to split."""
    what = f"table {spec.table_name!r}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is wrong with the table training has warned
        rows, _ = _spatialdata.usable_rows(sdata, spec)
        if len(rows) > MOST_COUNTED:
            rows = np.sort(np.random.default_rng(len(rows)).choice(rows, MOST_COUNTED, replace=False))
        table = sdata.tables[spec.table_name]
        columns, _ = _spatialdata.match_genes(genes, list(table.var_names), what=what, var=table.var)
        matrix: Any = _spatialdata.matrix_of(table, spec.layer, what=what)[rows]
        return metrics.ceiling(matrix, columns) if len(rows) > 2 else np.full(len(genes), np.nan)


def _mean(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(g,) mean over those that are not NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.nanmean(values, axis=0)
