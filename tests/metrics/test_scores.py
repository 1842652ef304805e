"""Scores against SciPy column by column, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from stpredict import metrics
from stpredict.metrics import _scores


def _pair(
    seed: int = 0, n_spots: int = 60, n_genes: int = 7, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = np.log1p(rng.poisson(2.0, (n_spots, n_genes))).astype(dtype)
    pred = (0.5 * true + rng.normal(size=true.shape)).astype(dtype)
    return pred, true


@given(
    seed=st.integers(0, 2**16),
    n_spots=st.integers(5, 40),
    n_genes=st.integers(1, 6),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=30, deadline=None)
def test_correlations_equal_scipy(seed: int, n_spots: int, n_genes: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    pred = rng.normal(3.0, 2.0, (n_spots, n_genes)).astype(dtype)
    # ties, as counts have them
    true = np.arange(n_spots)[:, None] % 4 + rng.poisson(1.0, (n_spots, n_genes)).astype(dtype)
    columns = [(pred[:, j].astype(float), true[:, j].astype(float)) for j in range(n_genes) if np.ptp(true[:, j]) > 0]
    keep = np.ptp(true, axis=0) > 0
    np.testing.assert_allclose(
        metrics.pcc(pred, true)[keep], [stats.pearsonr(p, t).statistic for p, t in columns], atol=1e-12
    )
    np.testing.assert_allclose(
        metrics.spearman(pred, true)[keep], [stats.spearmanr(p, t).statistic for p, t in columns], atol=1e-12
    )


def test_errors_equal_their_definition() -> None:
    pred, true = _pair()
    p, t = pred.astype(float), true.astype(float)
    squared = [np.mean((p[:, j] - t[:, j]) ** 2) for j in range(7)]
    absolute = [np.mean(abs(p[:, j] - t[:, j])) for j in range(7)]
    np.testing.assert_allclose(metrics.mse(pred, true), squared, rtol=1e-13)
    np.testing.assert_allclose(metrics.mae(pred, true), absolute, rtol=1e-13)


@pytest.mark.parametrize("score", [metrics.pcc, metrics.spearman, metrics.mse, metrics.mae])
def test_shape_dtype_and_inputs_left_alone(score: object) -> None:
    pred, true = _pair()
    before = pred.copy(), true.copy()
    out = score(pred, true)  # type: ignore[operator]
    assert out.shape == (7,)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(true, before[1])


@pytest.mark.parametrize("score", [metrics.pcc, metrics.spearman])
def test_affine_maps_of_either_side_change_no_correlation(score: object) -> None:
    pred, true = _pair(dtype=np.float64)
    plain = score(pred, true)  # type: ignore[operator]
    np.testing.assert_allclose(score(3.0 * pred + 1e4, 1e-9 * true - 0.0), plain, atol=1e-9)  # type: ignore[operator]
    np.testing.assert_allclose(score(-pred, true), -plain, atol=1e-12)  # type: ignore[operator]


def test_spearman_sees_order_alone() -> None:
    pred, true = _pair(dtype=np.float64)
    np.testing.assert_allclose(metrics.spearman(np.exp(pred), true**3), metrics.spearman(pred, true), atol=1e-12)


@pytest.mark.parametrize("score", [metrics.pcc, metrics.spearman])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-12, 123456.7])
def test_a_constant_gene_is_nan_on_either_side(score: object, value: float) -> None:
    pred, true = _pair()
    pred[:, 1] = value
    true[:, 4] = value
    out = score(pred, true)  # type: ignore[operator]
    assert np.flatnonzero(np.isnan(out)).tolist() == [1, 4]


@pytest.mark.parametrize("score", [metrics.pcc, metrics.spearman])
def test_rounding_of_a_constant_is_no_signal(score: object) -> None:
    pred, true = _pair()
    true[:, 0] += np.arange(60)
    # a constant map read out by weighted means: equal up to the last bits of float32
    pred[:, 0] = np.float32(0.7) * (1 + np.float32(1.2e-7) * np.linspace(-2, 2, 60).round().astype(np.float32))
    assert np.ptp(pred[:, 0]) > 0
    assert np.isnan(score(pred, true)[0])  # type: ignore[operator]


def test_small_but_real_variation_is_scored() -> None:
    pred, true = _pair(dtype=np.float64)
    np.testing.assert_allclose(metrics.pcc(1.0 + 1e-5 * pred, true), metrics.pcc(pred, true), atol=1e-8)
    np.testing.assert_allclose(metrics.pcc(1e-200 * pred, true), metrics.pcc(pred, true), atol=1e-8)


def test_blocks_of_genes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, true = _pair(n_genes=23)
    whole = metrics.pcc(pred, true), metrics.mse(pred, true)
    monkeypatch.setattr(_scores, "BLOCK_VALUES", 60 * 4)
    np.testing.assert_array_equal(metrics.pcc(pred, true), whole[0])
    np.testing.assert_array_equal(metrics.mse(pred, true), whole[1])


@pytest.mark.parametrize("score", [metrics.pcc, metrics.spearman, metrics.mse, metrics.mae])
class TestBadInput:
    def test_shapes_that_differ(self, score: object) -> None:
        pred, true = _pair()
        with pytest.raises(ValueError, match=r"\(60, 7\) and \(60, 6\).*same genes"):
            score(pred, true[:, :6])  # type: ignore[operator]

    def test_one_dimension(self, score: object) -> None:
        pred, true = _pair()
        with pytest.raises(ValueError, match=r"pred must be \(n_spots, n_genes\), got 1 dimension.*\[:, None\]"):
            score(pred[:, 0], true[:, 0])  # type: ignore[operator]

    def test_nan_spots_are_counted(self, score: object) -> None:
        pred, true = _pair()
        pred[[3, 9, 11]] = np.nan
        with pytest.raises(ValueError, match=r"pred holds NaN.* in 3 of 60 spots; drop those spots"):
            score(pred, true)  # type: ignore[operator]

    def test_genes_outside_the_panel_are_told_from_spots(self, score: object) -> None:
        pred, true = _pair()
        pred[:, [2, 5]] = np.nan
        with pytest.raises(ValueError, match=r"in all spots of 2 of 7 genes.*var\[key\]") as error:
            score(pred, true)  # type: ignore[operator]
        assert "drop those spots" not in str(error.value)

    def test_infinite_truth(self, score: object) -> None:
        pred, true = _pair()
        true[0, 0] = np.inf
        with pytest.raises(ValueError, match=r"true holds NaN or infinite values in 1 of 60 spots"):
            score(pred, true)  # type: ignore[operator]

    def test_sparse_and_text(self, score: object) -> None:
        pred, true = _pair()
        with pytest.raises(ValueError, match="true is a sparse matrix"):
            score(pred, sparse.csr_array(true))  # type: ignore[operator]
        with pytest.raises(ValueError, match="real numbers"):
            score(pred.astype(str), true)  # type: ignore[operator]

    def test_too_few_spots(self, score: object) -> None:
        pred, true = _pair()
        with pytest.raises(ValueError, match=r"spots are needed, got 0"):
            score(pred[:0], true[:0])  # type: ignore[operator]
