"""The summary against the protocol's sentences, computed the plain way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stpredict import metrics

N_SPOTS, N_GENES = 90, 120


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    level = rng.permutation(np.linspace(0.5, 4, N_GENES))
    spread = rng.permutation(np.linspace(0.2, 1.5, N_GENES))
    true = level + spread * rng.normal(size=(N_SPOTS, N_GENES))
    pred = true + rng.uniform(0.2, 4.0, N_GENES) * rng.normal(size=true.shape)
    return pred.astype(np.float32), true.astype(np.float32)


def test_every_figure_by_hand(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = pair
    r = np.array([stats.pearsonr(pred[:, j].astype(float), true[:, j].astype(float)).statistic for j in range(N_GENES)])
    frame = pd.DataFrame({"r": r, "mean": true.mean(0), "var": true.var(0)})
    got = metrics.summary(pred, true)
    assert got["pcc_f"] == pytest.approx(np.quantile(r, 0.25), abs=1e-9)
    assert got["pcc_s"] == pytest.approx(np.quantile(r, 0.5), abs=1e-9)
    assert got["pcc_m"] == pytest.approx(r.mean(), abs=1e-9)
    assert got["heg"] == pytest.approx(frame.nlargest(50, "mean")["r"].mean(), abs=1e-9)
    assert got["hvg"] == pytest.approx(frame.nlargest(50, "var")["r"].mean(), abs=1e-9)
    assert got["mse"] == pytest.approx(np.mean((pred.astype(float) - true) ** 2), rel=1e-9)
    assert got["mae"] == pytest.approx(np.mean(abs(pred.astype(float) - true)), rel=1e-9)
    assert got[["n_spots", "n_genes", "n_nan_genes", "n_top"]].tolist() == [N_SPOTS, N_GENES, 0, 50]
    assert got.attrs["protocol"] == metrics.PROTOCOL == "stp-2"


def test_top_genes_are_chosen_after_nan_genes_are_removed(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = pair
    top = np.argsort(-true.mean(0))[:5]
    pred[:, top[:2]] = 1.25
    got = metrics.summary(pred, true, n_top=3)
    assert got["heg"] == pytest.approx(metrics.pcc(pred, true)[top[2:5]].mean())
    assert got["n_nan_genes"] == 2
    assert got["pcc_m"] == pytest.approx(np.nanmean(metrics.pcc(pred, true)))
    assert got["mse"] == pytest.approx(metrics.mse(pred, true).mean())  # an error exists for a constant gene too


def test_fewer_genes_than_n_top_uses_all_and_says_so(pair: tuple[np.ndarray, np.ndarray]) -> None:
    got = metrics.summary(pair[0][:, :20], pair[1][:, :20])
    assert got["n_top"] == 20
    assert got["heg"] == pytest.approx(got["pcc_m"])
    assert got["hvg"] == pytest.approx(got["pcc_m"])


def test_the_order_of_genes_and_spots_is_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, true = pair
    rng = np.random.default_rng(0)
    genes, spots = rng.permutation(N_GENES), rng.permutation(N_SPOTS)
    pd.testing.assert_series_equal(
        metrics.summary(pred[spots][:, genes], true[spots][:, genes]), metrics.summary(pred, true), rtol=1e-9
    )


def test_the_mean_null_has_errors_but_no_correlation(pair: tuple[np.ndarray, np.ndarray]) -> None:
    true = pair[1]
    got = metrics.summary(np.broadcast_to(true.mean(0), true.shape), true)
    assert got[["pcc_f", "pcc_s", "pcc_m", "heg", "hvg"]].isna().all()
    assert got["n_nan_genes"] == N_GENES
    assert got["n_top"] == 0
    assert got["mse"] == pytest.approx(true.var(0, dtype=float).mean(), rel=1e-5)


def test_bad_input_says_what_is_wrong(pair: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="n_top=0 must be at least 1"):
        metrics.summary(*pair, n_top=0)
    with pytest.raises(ValueError, match="no genes to score"):
        metrics.summary(pair[0][:, :0], pair[1][:, :0])


def test_correlations_that_are_known_are_one_a_gene_and_correlations(pair: tuple[np.ndarray, np.ndarray]) -> None:
    true = pair[1]
    for r in (np.full(N_GENES, 2.0), np.zeros(N_GENES - 1), np.zeros((1, N_GENES))):
        with pytest.raises(ValueError, match=r"r must be a correlation in \[-1, 1\] for each gene"):
            metrics.correlation_summary(r, true)
    assert np.isnan(metrics.correlation_summary(np.full(N_GENES, np.nan), true)["pcc_m"])


@pytest.mark.parametrize("score", ["pcc", "spearman", "mse", "mae", "rvd", "summary"])
def test_a_mask_is_not_dropped_in_silence(pair: tuple[np.ndarray, np.ndarray], score: str) -> None:
    pred, true = pair
    whole = getattr(metrics, score)(np.ma.array(pred), true)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(getattr(metrics, score)(pred, true)))
    for masked in ((np.ma.array(pred, mask=pred > 0), true), (pred, np.ma.array(true, mask=true > 0))):
        with pytest.raises(ValueError, match=r"(pred|true) is a masked array of which \d+ values are masked"):
            getattr(metrics, score)(*masked)


def test_a_total_below_the_sum_of_the_counts_is_refused() -> None:
    assert metrics.log1p_cp10k([[2.0, 3.0]], [5.0]).shape == (1, 2)
    with pytest.raises(ValueError, match="counts of 1 of 2 spots are more than their totals, such as 5 and 1"):
        metrics.log1p_cp10k([[1.0, 0.0], [5.0, 0.0]], [1.0, 1.0])
