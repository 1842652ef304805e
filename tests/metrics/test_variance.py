"""rvd against its formula, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest

from stpredict import metrics


def _pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = np.log1p(rng.poisson(2.0, (60, 7))).astype(np.float32)
    return (0.5 * true + 0.1 * rng.normal(size=true.shape)).astype(np.float32), true


def test_rvd_equals_its_formula_gene_by_gene() -> None:
    pred, true = _pair()
    expected = []
    for j in range(7):
        p, t = pred[:, j].astype(float), true[:, j].astype(float)
        var_p, var_t = np.mean(p**2) - np.mean(p) ** 2, np.mean(t**2) - np.mean(t) ** 2
        expected.append(((var_p - var_t) / (var_t + 0.01)) ** 2)
    np.testing.assert_allclose(metrics.rvd(pred, true), expected, rtol=1e-6)


def test_rvd_is_blind_to_place_and_offset_and_sees_spread() -> None:
    pred, true = _pair()
    rng = np.random.default_rng(1)
    np.testing.assert_allclose(metrics.rvd(rng.permutation(true) + 3, true), 0, atol=1e-9)
    np.testing.assert_allclose(metrics.rvd(rng.permutation(pred), true), metrics.rvd(pred, true), rtol=1e-6)
    assert (metrics.rvd(0.25 * pred, true) > metrics.rvd(pred, true)).all()


def test_rvd_of_constant_genes_is_a_number() -> None:
    pred, true = _pair()
    variance = true.astype(float).var(axis=0)
    np.testing.assert_allclose(
        metrics.rvd(np.broadcast_to(true.mean(axis=0), true.shape), true),
        (variance / (variance + 0.01)) ** 2,
        rtol=1e-6,
    )
    flat = np.ones_like(true)
    np.testing.assert_allclose(metrics.rvd(pred, flat), (pred.astype(float).var(axis=0) / 0.01) ** 2, rtol=1e-6)
    assert metrics.rvd(flat, flat).tolist() == [0.0] * 7


def test_rvd_checks_its_input() -> None:
    pred, true = _pair()
    with pytest.raises(ValueError, match=r"\(60, 7\) and \(60, 6\)"):
        metrics.rvd(pred, true[:, :6])
    pred[3] = np.nan
    with pytest.raises(ValueError, match="in 1 of 60 spots"):
        metrics.rvd(pred, true)
