"""The outline of a mask has the area of its pixels, wherever it is looked at."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import shapely
from rasterio.features import shapes as trace

from stpredict._spatialdata import _outline


def blobs(seed, height=40, width=50):
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(height, width))
    return gaussian_filter(noise, 1.5) > 0.05  # with holes, islands, and corners that touch


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outline_is_rasterios(seed):
    mask = blobs(seed)
    expected = [shapely.geometry.shape(each) for each, value in trace(mask.astype(np.uint8)) if value]
    found = _outline.outline(mask.astype(int) * 7)
    assert found.is_valid
    assert found.area == mask.sum()
    assert found.symmetric_difference(shapely.union_all(expected)).area == 0


def test_holes_stay_open_and_pixels_are_unit_squares():
    mask = np.zeros((9, 12), int)
    mask[2:8, 3:10] = 1
    mask[4:6, 5:7] = 0
    found = _outline.outline(mask)
    assert found.equals(shapely.Polygon(shapely.box(3, 2, 10, 8).exterior, [shapely.box(5, 4, 7, 6).exterior]))
    assert len(shapely.get_coordinates(found)) == 10  # no corner but the eight


def test_labels_of_several_pieces_are_one_mask():
    mask = np.zeros((6, 9), int)
    mask[1:4, 1:4], mask[1:4, 4:8] = 1, 2
    assert _outline.outline(mask).equals(shapely.box(1, 1, 8, 4))


@pytest.mark.parametrize("rows", [1, 7, 20, 40, 41])
def test_bands_of_rows_leave_no_seam(monkeypatch, rows):
    mask = blobs(3)
    whole = _outline.outline(mask)
    monkeypatch.setattr(_outline, "ROWS", rows)
    assert _outline.outline(da.from_array(mask, chunks=(11, 13))).symmetric_difference(whole).area == 0


def test_no_label_has_no_outline():
    assert _outline.outline(np.zeros((5, 5), int)).is_empty


def test_every_pixel_has_the_whole_image():
    assert _outline.outline(np.ones((5, 4), int)).equals(shapely.box(0, 0, 4, 5))


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_label_has_its_own_pixels(monkeypatch, seed, rows):
    """Labels that touch along sides and at corners, lie inside each other, and fall into pieces."""
    labels = np.random.default_rng(seed).integers(0, 5, (9, 12)).repeat(4, axis=0).repeat(3, axis=1)
    labels[5:9, 4:9], labels[20:23, 20:22] = 70_000, 9
    monkeypatch.setattr(_outline, "ROWS", rows)
    ids, geometry = _outline.outlines(da.from_array(labels.astype(np.uint32), chunks=(11, 13)))
    assert ids.tolist() == [1, 2, 3, 4, 9, 70_000]
    for label, found in zip(ids, geometry, strict=True):
        mask = (labels == label).astype(np.uint8)
        expected = shapely.union_all([shapely.geometry.shape(each) for each, value in trace(mask) if value])
        assert found.is_valid
        assert found.area == mask.sum()
        assert found.symmetric_difference(expected).area == 0


def test_no_label_has_no_outlines():
    ids, geometry = _outline.outlines(np.zeros((5, 5), int))
    assert len(ids) == len(geometry) == 0
