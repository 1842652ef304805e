"""The pooled correlation against SciPy, and how it differs from the mean over sections."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stpredict import metrics


def _sections(sizes: tuple[int, ...] = (30, 50, 20), n_genes: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(2)
    trues = [rng.normal(i, 1, (n, n_genes)).astype(np.float32) for i, n in enumerate(sizes)]
    return [(true + rng.normal(size=true.shape)).astype(np.float32) for true in trues], trues


def test_equals_scipy_on_all_spots() -> None:
    preds, trues = _sections()
    pred, true = np.vstack(preds).astype(float), np.vstack(trues).astype(float)
    expected = [stats.pearsonr(pred[:, j], true[:, j]).statistic for j in range(4)]
    np.testing.assert_allclose(metrics.pooled_pcc(preds, trues), expected, atol=1e-12)


def test_one_section_is_its_own_pool_and_order_does_not_matter() -> None:
    preds, trues = _sections()
    np.testing.assert_array_equal(metrics.pooled_pcc(preds[:1], trues[:1]), metrics.pcc(preds[0], trues[0]))
    np.testing.assert_allclose(metrics.pooled_pcc(preds[::-1], trues[::-1]), metrics.pooled_pcc(preds, trues))


def test_offsets_between_sections_count_here_and_not_in_the_mean_over_sections() -> None:
    preds, trues = _sections()
    rng = np.random.default_rng(3)
    offsets = [rng.normal(100 * i, 1, pred.shape) for i, pred in enumerate(preds)]
    shifted = [true + 100 * i for i, true in enumerate(trues)]
    assert (metrics.pooled_pcc(offsets, shifted) > 0.99).all()
    assert abs(np.mean([metrics.pcc(p, t).mean() for p, t in zip(offsets, shifted, strict=True)])) < 0.3


def test_a_gene_constant_in_one_section_has_a_value_and_one_constant_in_all_has_none() -> None:
    preds, trues = _sections()
    trues[0][:, 1] = 5.0
    for true in trues:
        true[:, 2] = 5.0
    assert np.flatnonzero(np.isnan(metrics.pooled_pcc(preds, trues))).tolist() == [2]
    assert np.isnan(metrics.pcc(preds[0], trues[0])[1])


class TestRefuses:
    def test_other_numbers_of_sections(self) -> None:
        preds, trues = _sections()
        with pytest.raises(ValueError, match="the same sections; got 3 and 2"):
            metrics.pooled_pcc(preds, trues[:2])
        with pytest.raises(ValueError, match="got 0 and 0"):
            metrics.pooled_pcc([], [])

    def test_other_genes(self) -> None:
        preds, trues = _sections()
        preds[1], trues[1] = preds[1][:, :3], trues[1][:, :3]
        with pytest.raises(ValueError, match=r"sections have \[4, 3, 4\] genes.*in common"):
            metrics.pooled_pcc(preds, trues)

    def test_the_section_at_fault_is_named(self) -> None:
        preds, trues = _sections()
        preds[1][3] = np.nan
        with pytest.raises(ValueError, match="section 1 of preds and trues: pred holds NaN.* in 1 of 50 spots"):
            metrics.pooled_pcc(preds, trues)
        with pytest.raises(ValueError, match=r"section 0 .*\(30, 4\) and \(50, 4\)"):
            metrics.pooled_pcc(trues[:1], trues[1:2])
