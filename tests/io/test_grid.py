"""The pitch of simulated arrays whose pitch is known."""

from __future__ import annotations

import numpy as np
import pytest

from stpredict.io import pitch_px
from stpredict.io.read_visium import STEP


def square(n=14, *, pitch=290.0, jitter=0.0, degrees=0.0, seed=0):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2)
    turn = np.deg2rad(degrees)
    xy = (grid + rng.normal(0, jitter, grid.shape)) @ (
        pitch * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    )
    return xy + 1000.0, grid


def hexagonal(n=12, *, pitch=137.0):
    row, col = (a.ravel() for a in np.mgrid[:n, : 2 * n])
    on_array = (row + col) % 2 == 0
    grid = np.column_stack([col, row])[on_array]
    return grid * [pitch / 2, pitch * np.sqrt(3) / 2], grid


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 200.0])
def test_exact_on_a_regular_array_however_it_is_turned(degrees):
    xy, grid = square(degrees=degrees)
    assert pitch_px(xy, grid) == pytest.approx(290)
    assert pitch_px(xy, None) == pytest.approx(290)


def test_hexagonal_array():
    xy, grid = hexagonal()
    assert pitch_px(xy, grid, step=STEP) == pytest.approx(137)
    assert pitch_px(xy, None) == pytest.approx(137)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_of_the_print_does_not_bias_it(seed):
    # 7 % of the pitch, as in her2st; the nearest distance of such an array is 9 % too short
    xy, grid = square(jitter=0.07, seed=seed)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    nearest = np.sort(distance, axis=1)[:, 1]
    assert np.median(nearest) < 0.95 * 290
    assert pitch_px(xy, grid) == pytest.approx(290, rel=0.004)


def test_holes_and_a_spot_out_of_place_do_not_matter():
    xy, grid = square()
    kept = np.random.default_rng(1).random(len(xy)) < 0.6
    xy, grid = xy[kept], grid[kept]
    xy[5] += 800
    assert pitch_px(xy, grid) == pytest.approx(290, rel=1e-3)


def test_scales_with_the_image():
    xy, grid = square(jitter=0.05)
    assert pitch_px(xy * 2.5, grid) == pytest.approx(2.5 * pitch_px(xy, grid))
    assert pitch_px(xy * 2.5, None) == pytest.approx(2.5 * pitch_px(xy, None))


def test_one_spot_has_no_pitch():
    with pytest.raises(ValueError, match="from 1 spot"):
        pitch_px(np.zeros((1, 2)), None)


def test_one_row_of_spots_has_no_pitch_across():
    xy, grid = square()
    row = grid[:, 1] == 4
    with pytest.raises(ValueError, match="no two of the 14 spots share an array column"):
        pitch_px(xy[row], grid[row])
