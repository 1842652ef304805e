"""Scores of genes, model beside model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stpredict import pl

GENES = [f"g{i}" for i in range(20)]


@pytest.fixture
def result() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"model": m, "section": s, "gene": g, "metric": metric, "value": rng.uniform(0, 0.5) + k}
        for k, m in enumerate(("Ridge", "ceiling", "PixNet"))
        for s in ("a", "b")
        for g in GENES
        for metric in (("pcc",) if m == "ceiling" else ("pcc", "mse"))
    ]
    constant = [{"model": "Mean", "section": "a", "gene": g, "metric": "pcc", "value": np.nan} for g in GENES]
    return pd.DataFrame(rows + constant)


def _points(ax: plt.Axes) -> dict[str, np.ndarray]:
    return {
        line.get_label(): line.get_ydata() for line in ax.lines if line.get_label() in ("Ridge", "PixNet", "ceiling")
    }


def test_a_point_a_gene_and_the_boxes_in_order_with_the_ceiling_last(result: pd.DataFrame) -> None:
    ax = pl.scores(result)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Ridge", "PixNet", "ceiling"]
    mean = result[result["metric"] == "pcc"].groupby(["model", "gene"])["value"].mean()
    for name, values in _points(ax).items():
        np.testing.assert_allclose(np.sort(values), np.sort(mean[name]))
    assert ax.get_ylabel() == "PCC" and ax.get_title() == "20 genes, mean over sections"


def test_lines_join_the_same_gene(result: pd.DataFrame) -> None:
    ax = pl.scores(result, models=["PixNet", "Ridge"], section="a")
    wide = result.query("metric == 'pcc' and section == 'a'").pivot(index="gene", columns="model", values="value")
    segments = ax.collections[0].get_segments()
    assert len(segments) == 20
    drawn = {tuple(np.round(segment[:, 1], 6)) for segment in segments}
    assert drawn == {tuple(np.round(row, 6)) for row in wide[["PixNet", "Ridge"]].to_numpy()}
    assert not pl.scores(result, paired=False).collections


def test_what_is_not_there_is_named(result: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"metric='r2' is none of this result: \['mse', 'pcc'\]"):
        pl.scores(result, metric="r2")
    with pytest.raises(ValueError, match=r"section='z' is none of this result: \['a', 'b'\]"):
        pl.scores(result, section="z")
    with pytest.raises(ValueError, match=r"models=\['ceiling'\] have no mse"):
        pl.scores(result, metric="mse", models=["Ridge", "ceiling"])
    with pytest.raises(ValueError, match=r"models=\['Mean'\] have no pcc"):
        pl.scores(result, models=["Mean"])
