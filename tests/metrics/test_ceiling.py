"""The ceiling on simulated counts, where the mean that a perfect predictor would know is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stpredict import metrics

N_SPOTS, N_GENES, N_REST = 300, 40, 200


def _simulated(seed: int = 0, depth: float = 20_000.0) -> tuple[np.ndarray, np.ndarray]:
    """Poisson counts of a known field, (spots, all genes), and that field as rates per spot."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, N_SPOTS)[:, None]
    level = np.exp(rng.normal(0, 1.0, N_GENES + N_REST))
    swing = np.linspace(0.05, 0.9, N_GENES + N_REST)
    field = level * np.exp(
        swing * np.sin(2 * np.pi * (x * rng.uniform(1, 3, N_GENES + N_REST) + rng.uniform(size=N_GENES + N_REST)))
    )
    rates = field / field.sum(axis=1, keepdims=True)
    totals = depth * np.exp(rng.normal(0, 0.3, (N_SPOTS, 1)))
    return rng.poisson(rates * totals), rates


@pytest.mark.parametrize(
    ("depth", "bias", "scatter"),
    [(40_000.0, 0.015, 0.12), (4_000.0, 0.05, 0.25)],  # halves of few counts are noisy, and log1p bends them
)
def test_it_is_the_correlation_of_the_true_mean(depth: float, bias: float, scatter: float) -> None:
    counts, rates = _simulated(depth=depth)
    columns = np.arange(0, N_GENES + N_REST, 4)
    measured = metrics.log1p_cp10k(counts[:, columns], counts.sum(axis=1))
    perfect = metrics.pcc(np.log1p(rates[:, columns] * 1e4), measured)
    error = metrics.ceiling(counts, columns, n_splits=5) - perfect
    assert np.ptp(perfect) > 0.4  # from hardly to well measured
    assert error.mean() == pytest.approx(0.0, abs=bias)
    assert np.abs(error[perfect > 0.5]).max() < scatter


def test_depth_raises_it() -> None:
    shallow, deep = (metrics.ceiling(_simulated(depth=d)[0], np.arange(N_GENES)).mean() for d in (2_000.0, 50_000.0))
    assert deep > shallow + 0.2


def test_by_the_protocol_step_by_step() -> None:
    counts, _ = _simulated(depth=5_000.0)
    rng = np.random.default_rng(7)
    nonzero = counts.nonzero()
    first = np.zeros_like(counts)
    first[nonzero] = rng.binomial(counts[nonzero], 0.5)
    halves = [np.log1p(h / h.sum(axis=1, keepdims=True) * 1e4)[:, [200, 230]] for h in (first, counts - first)]
    r = np.array([np.corrcoef(halves[0][:, j], halves[1][:, j])[0, 1] for j in range(2)])
    assert (r > 0).all()
    np.testing.assert_allclose(metrics.ceiling(counts, [200, 230], seed=7), np.sqrt(2 * r / (1 + r)), rtol=1e-9)


def test_dense_sparse_and_mask_are_one() -> None:
    counts, _ = _simulated()
    columns = [3, 0, 17]
    dense = metrics.ceiling(counts, columns, seed=1)
    np.testing.assert_array_equal(metrics.ceiling(sparse.csr_matrix(counts.astype(np.float32)), columns, seed=1), dense)
    np.testing.assert_array_equal(metrics.ceiling(sparse.csc_array(counts), columns, seed=1), dense)
    mask = np.isin(np.arange(counts.shape[1]), columns)
    np.testing.assert_array_equal(metrics.ceiling(counts, mask, seed=1), dense[[1, 0, 2]])


def test_seed_decides_and_input_is_left_alone() -> None:
    counts = sparse.csr_array(_simulated()[0])
    before = counts.copy()
    np.testing.assert_array_equal(metrics.ceiling(counts, [1, 2], seed=4), metrics.ceiling(counts, [1, 2], seed=4))
    assert (metrics.ceiling(counts, [1, 2], seed=4) != metrics.ceiling(counts, [1, 2], seed=5)).all()
    assert (counts != before).nnz == 0


def test_no_signal_is_zero_and_no_counts_is_nan() -> None:
    counts, _ = _simulated(depth=3_000.0)
    rng = np.random.default_rng(1)
    counts[:, :100] = rng.poisson(3.0, (N_SPOTS, 100))  # pure Poisson noise: halves correlate by chance alone
    counts[:, 100] = 0
    out = metrics.ceiling(counts, np.arange(101))
    assert np.isnan(out[100])
    assert not np.isnan(out[:100]).any()
    assert 20 < (out[:100] == 0).sum() < 80
    assert ((out[:100] >= 0) & (out[:100] <= 1)).all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("value", "message"), [(0.5, "not integers"), (-1.0, "negative"), (np.nan, "NaN or infinite")]
    )
    def test_values_that_are_no_counts(self, value: float, message: str) -> None:
        counts = _simulated()[0].astype(float)
        counts[2, 2] = value
        with pytest.raises(ValueError, match=f"{message}.*raw counts"):
            metrics.ceiling(counts, [0])

    def test_spots_without_counts(self) -> None:
        counts = _simulated()[0]
        counts[[4, 8]] = 0
        with pytest.raises(ValueError, match="2 of 300 spots have no counts.*below 500"):
            metrics.ceiling(counts, [0])

    def test_columns_that_do_not_exist(self) -> None:
        counts = _simulated()[0]
        with pytest.raises(ValueError, match=r"outside the 240 of counts: \[-1\] \(1 of 2\).*get_indexer"):
            metrics.ceiling(counts, [0, -1])
        with pytest.raises(ValueError, match="list of positions"):
            metrics.ceiling(counts, ["GNAS"])
        with pytest.raises(ValueError, match=r"mask of columns must have shape \(240,\), got \(3,\)"):
            metrics.ceiling(counts, [True, False, True])

    def test_n_splits(self) -> None:
        with pytest.raises(ValueError, match="n_splits"):
            metrics.ceiling(_simulated()[0], [0], n_splits=0)


@pytest.mark.parametrize(
    ("efficiency_sd", "within"),
    [pytest.param(0.35, 0.03, marks=pytest.mark.slow), pytest.param(0.1, 0.01, marks=pytest.mark.slow)],
)
def test_on_simulated_sections_it_is_the_score_of_the_true_field(efficiency_sd, within):
    """What it is too high by is the depth that both halves share: little where all spots are caught alike."""
    import stpredict as stp

    for section in stp.datasets.toy(2, seed=0, size_um=1600.0, n_genes=60, efficiency_sd=efficiency_sd):
        counts = section.tables["table"].X
        found = np.nanmean(stp.metrics.ceiling(counts, np.arange(counts.shape[1]), n_splits=3))
        assert found == pytest.approx(section.attrs["toy"]["oracle"]["pcc_m"], abs=within)


def test_halves_without_counts_are_left_out():
    counts = np.random.default_rng(0).poisson(0.4, (400, 6))
    counts[:, 0] += 1
    found = metrics.ceiling(counts, np.arange(6))
    assert np.isfinite(found[:1]).all()
    assert np.isnan(
        metrics.ceiling(np.array([[1, 0], [0, 1], [1, 0]]), np.arange(2))
    ).all()  # one count cannot be split
