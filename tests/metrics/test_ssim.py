"""ssim against scikit-image on full grids, and by hand where spots are missing."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from stpredict import metrics
from stpredict.metrics import _scores

SHAPE = (12, 15)


def _cells(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.stack([a.ravel() for a in np.mgrid[: shape[0], : shape[1]]], axis=1)


def _maps(n_genes: int = 3, shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    n = shape[0] * shape[1]
    true = np.log1p(rng.poisson(np.exp(np.sin(_cells(shape)[:, :1] / 2 + np.arange(n_genes))), (n, n_genes)))
    return 0.6 * true + 0.3 * rng.normal(size=true.shape) + 0.2, true


@pytest.mark.parametrize("win_size", [3, 7, 11])
def test_a_full_grid_equals_scikit_image(win_size: int) -> None:
    pred, true = _maps()
    expected = [
        structural_similarity(
            true[:, j].reshape(SHAPE), pred[:, j].reshape(SHAPE), win_size=win_size, data_range=np.ptp(true[:, j])
        )
        for j in range(3)
    ]
    np.testing.assert_allclose(metrics.ssim(pred, true, _cells(), win_size=win_size), expected, atol=1e-10)
    if win_size == 7:
        np.testing.assert_allclose(metrics.ssim(pred, true, _cells()), expected, atol=1e-10)


def _by_hand(pred: np.ndarray, true: np.ndarray, cells: np.ndarray, win_size: int) -> float:
    """The docstring's rule in loops, for one gene."""
    half, (height, width) = win_size // 2, cells.max(axis=0) + 1
    c1, c2 = (0.01 * np.ptp(true)) ** 2, (0.03 * np.ptp(true)) ** 2
    index = []
    for row, column in cells:
        if not (half <= row < height - half and half <= column < width - half):
            continue
        near = (abs(cells - [row, column]) <= half).all(axis=1)
        if near.sum() < win_size:
            continue
        (var_p, cov), (_, var_t) = np.cov(pred[near], true[near])
        mean_p, mean_t = pred[near].mean(), true[near].mean()
        luminance = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
        index.append(luminance * (2 * cov + c2) / (var_p + var_t + c2))
    return float(np.mean(index))


@pytest.mark.parametrize("kept", [0.9, 0.4])
def test_missing_spots_do_not_count(kept: float) -> None:
    pred, true = _maps()
    keep = np.random.default_rng(4).random(len(pred)) < kept
    keep[[0, -1]] = True  # so that the bounding box stays
    expected = [_by_hand(pred[keep, j], true[keep, j], _cells()[keep], 5) for j in range(3)]
    np.testing.assert_allclose(metrics.ssim(pred[keep], true[keep], _cells()[keep], win_size=5), expected, atol=1e-10)


def test_a_hexagonal_array_with_every_other_cell_empty() -> None:
    pred, true = _maps()
    keep = _cells().sum(axis=1) % 2 == 0
    expected = [_by_hand(pred[keep, j], true[keep, j], _cells()[keep], 7) for j in range(3)]
    np.testing.assert_allclose(metrics.ssim(pred[keep], true[keep], _cells()[keep]), expected, atol=1e-10)


def test_windows_with_too_few_spots_do_not_count() -> None:
    pred, true = _maps(1)
    cells = _cells()
    block = (cells < [8, 15]).all(axis=1)
    far = (cells == [11, 14]).all(axis=1) | (cells == [9, 3]).all(axis=1)  # alone, the second with windows of its own
    keep = block | far
    assert metrics.ssim(pred[keep], true[keep], cells[keep], win_size=3) == pytest.approx(
        _by_hand(pred[keep, 0], true[keep, 0], cells[keep], 3), abs=1e-10
    )


def test_what_must_not_change_it() -> None:
    pred, true = _maps()
    plain = metrics.ssim(pred, true, _cells())
    np.testing.assert_allclose(metrics.ssim(5 * pred, 5 * true, _cells()), plain, atol=1e-10)
    np.testing.assert_allclose(metrics.ssim(pred, true, _cells() + [30, -4]), plain, atol=1e-12)
    np.testing.assert_allclose(metrics.ssim(pred, true, _cells()[:, ::-1]), plain, atol=1e-12)
    order = np.random.default_rng(1).permutation(len(pred))
    np.testing.assert_allclose(metrics.ssim(pred[order], true[order], _cells()[order]), plain, atol=1e-12)


def test_it_sees_agreement_and_place() -> None:
    pred, true = _maps()
    np.testing.assert_allclose(metrics.ssim(true, true, _cells()), 1, atol=1e-12)
    shuffled = np.random.default_rng(1).permutation(true)
    assert (metrics.ssim(shuffled, true, _cells()) < metrics.ssim(pred, true, _cells()) - 0.2).all()


def test_blocks_of_genes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, true = _maps()
    whole = metrics.ssim(pred, true, _cells())
    monkeypatch.setattr(_scores, "BLOCK_VALUES", len(pred))
    np.testing.assert_allclose(metrics.ssim(pred, true, _cells()), whole, atol=1e-12)


def test_a_gene_that_is_constant_in_truth_is_nan_and_one_in_prediction_is_not() -> None:
    pred, true = _maps()
    true[:, 0], pred[:, 1] = 0.7, true[:, 1].mean()
    index = metrics.ssim(pred, true, _cells())
    assert np.isnan(index).tolist() == [True, False, False]
    assert index[1] == pytest.approx(
        structural_similarity(true[:, 1].reshape(SHAPE), pred[:, 1].reshape(SHAPE), data_range=np.ptp(true[:, 1]))
    )


class TestRefuses:
    @pytest.mark.parametrize("win_size", [1, 4, -3])
    def test_impossible_windows(self, win_size: int) -> None:
        with pytest.raises(ValueError, match=f"odd and at least 3, got {win_size}"):
            metrics.ssim(*_maps(), _cells(), win_size=win_size)

    def test_a_window_larger_than_the_array(self) -> None:
        with pytest.raises(ValueError, match="13 x 13 cells does not fit into the 12 x 15 cells.*smaller win_size"):
            metrics.ssim(*_maps(), _cells(), win_size=13)

    def test_scattered_spots(self) -> None:
        pred, true = _maps()
        with pytest.raises(ValueError, match="no window of 3 x 3 cells holds 3 spots"):
            metrics.ssim(pred, true, 2 * _cells(), win_size=3)

    def test_positions_instead_of_a_grid(self) -> None:
        with pytest.raises(ValueError, match="integers, got dtype float64.*not positions in pixels"):
            metrics.ssim(*_maps(), _cells() * 1.0)

    def test_a_grid_of_another_form_or_length(self) -> None:
        with pytest.raises(ValueError, match=r"\(n_spots, 2\).*got shape \(180,\)"):
            metrics.ssim(*_maps(), _cells()[:, 0])
        with pytest.raises(ValueError, match="each of the 180 spots, got 165"):
            metrics.ssim(*_maps(), _cells()[:-15])

    def test_two_spots_in_one_cell(self) -> None:
        cells = _cells()
        cells[7] = cells[8]
        with pytest.raises(ValueError, match=r"two spots lie in one cell of grid: \[\[0, 8\]\] \(1 cells\)"):
            metrics.ssim(*_maps(), cells)

    def test_values_that_are_not_finite(self) -> None:
        pred, true = _maps()
        true[5, 0] = np.inf
        with pytest.raises(ValueError, match="true holds NaN or infinite values in 1 of 180 spots"):
            metrics.ssim(pred, true, _cells())
