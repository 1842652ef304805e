"""Images at display scale: what is read, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stpredict.pl import _map


def _levels(height: int = 64, width: int = 96) -> list[xr.DataArray]:
    y, x = np.mgrid[:height, :width]
    fine = np.stack([x + 0.5, y + 0.5]).astype(np.float32)  # a pixel's value is where its centre lies
    halves = [fine]
    for _ in range(2):
        last = halves[-1]
        halves.append(last.reshape(2, last.shape[1] // 2, 2, last.shape[2] // 2, 2).mean(axis=(2, 4)))
    return [xr.DataArray(level, dims=("c", "y", "x")) for level in halves]


def _centres(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Where the matrix says the pixels' centres lie, (2, h, w)."""
    _, height, width = pixels.shape
    y, x = np.mgrid[:height, :width] + 0.5
    return np.einsum("ij,jyx->iyx", matrix, np.stack([x, y, np.ones_like(x)]))[:2]


@pytest.mark.parametrize("n_px", [500, 96, 40, 17, 9, 3])
@pytest.mark.parametrize("view", [(0, 0, 96, 64), (13, 7, 71, 50), (-40, -40, 200, 30)])
def test_pixels_lie_where_the_matrix_says(n_px: int, view: tuple[float, float, float, float]) -> None:
    a = np.deg2rad(25)
    affine = np.array([[2 * np.cos(a), -np.sin(a), 5], [2 * np.sin(a), np.cos(a), -3], [0, 0, 1]])
    pixels, matrix = _map.read_view(_levels(), np.eye(3), view, n_px=n_px)
    np.testing.assert_allclose(_centres(pixels, matrix), pixels, atol=1e-4)
    pixels, matrix = _map.read_view(_levels(), affine, _map.box_of(view, affine), n_px=n_px)
    there = np.einsum("ij,jyx->iyx", affine, np.concatenate([pixels, np.ones_like(pixels[:1])]))[:2]
    np.testing.assert_allclose(_centres(pixels, matrix), there, atol=1e-3)


def test_no_more_is_read_than_is_seen() -> None:
    pixels, _ = _map.read_view(_levels(), np.eye(3), (10.0, 20.0, 30.0, 28.0), n_px=1000)
    assert pixels.shape == (2, 8, 20)
    levels = _levels()
    levels[0] = levels[1] = None  # type: ignore[call-overload]
    with pytest.raises(AttributeError):
        _map.read_view(levels, np.eye(3), (0, 0, 96, 64), n_px=24)
    levels = _levels()
    levels[1] = xr.full_like(levels[1], np.nan)
    levels[0] = xr.full_like(levels[0], np.nan)
    pixels, _ = _map.read_view(levels, np.eye(3), (0, 0, 96, 64), n_px=24)
    assert np.isfinite(pixels).all()
    assert pixels.shape == (2, 16, 24)


def test_averaging_leaves_nan_out_and_rounds_bytes() -> None:
    values = np.array([[[1, np.nan, np.nan, np.nan], [3, 8, np.nan, np.nan]]], np.float16)
    pixels, _ = _map.read_view([xr.DataArray(values, dims=("c", "y", "x"))], np.eye(3), (0, 0, 4, 2), n_px=2)
    np.testing.assert_array_equal(pixels, [[[4.0, np.nan]]])
    grey = xr.DataArray(np.array([[[0, 1], [255, 255]]], np.uint8), dims=("c", "y", "x"))
    pixels, _ = _map.read_view([grey], np.eye(3), (0, 0, 2, 2), n_px=1)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[128]]]


@pytest.mark.parametrize(("system", "um"), [("global", 2.0), ("micrometers", 1.0)])
@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_micrometres_per_unit(make_sdata, system: str, um: float, turn: float) -> None:
    sdata = make_sdata(turn=turn)
    assert _map.micrometres_per_unit(sdata, "spots", system) == pytest.approx(um)
