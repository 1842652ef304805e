"""Windows are sets of pixels; tiles partition an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIDE = 24
EDGE = st.integers(-4, 18)
SIZE = st.integers(0, 12)


@pytest.fixture(scope="session")
def window_module():
    from stpredict import _window

    return _window


def pixels_of(window):
    return {(y, x) for y in range(window.y0, window.y1) for x in range(window.x0, window.x1)}


@settings(deadline=None)
@given(a=st.tuples(EDGE, EDGE, SIZE, SIZE), b=st.tuples(EDGE, EDGE, SIZE, SIZE))
def test_intersect_is_the_common_set_of_pixels(window_module, a, b):
    a, b = window_module.Window(*a), window_module.Window(*b)
    both = a.intersect(b)
    common = pixels_of(a) & pixels_of(b)
    assert (pixels_of(both) if both is not None else set()) == common
    assert (both is None) == (not common)


def test_pad_grows_every_side(window_module):
    window = window_module.Window(2, 3, 4, 5)
    assert window.pad(2) == window_module.Window(0, 1, 8, 9)
    assert window.pad(0) == window


def test_slices_cut_the_window_out_of_an_array_with_any_corner(window_module):
    image = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    outer, inner = window_module.Window(3, 5, 10, 12), window_module.Window(6, 7, 4, 3)
    np.testing.assert_array_equal(image[outer.slices()][inner.slices(outer)], image[inner.slices()])
    assert image[inner.slices()].shape == inner.shape


@pytest.mark.parametrize("size", [(-1, 3), (3, -1)])
def test_a_negative_size_is_refused(window_module, size):
    with pytest.raises(ValueError, match=r"negative size.*-1"):
        window_module.Window(0, 0, *size)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(0, 5))
def test_cores_partition_the_image(window_module, height, width, core_px, halo_px):
    seen = np.zeros((height + core_px, width + core_px), dtype=int)
    for tile in window_module.tiles(height, width, core_px=core_px, halo_px=halo_px):
        seen[tile.core.slices()] += 1
        assert tile.core.shape == (core_px, core_px)
        assert tile.core.y0 % core_px == 0 and tile.core.x0 % core_px == 0  # anchored at pixel (0, 0)
        assert tile.read == tile.core.pad(halo_px)
    assert (seen[:height, :width] == 1).all()
    assert seen.max() == 1


def test_tiles_come_row_by_row(window_module):
    cores = [(tile.core.y0, tile.core.x0) for tile in window_module.tiles(9, 9, core_px=4, halo_px=1)]
    assert cores == sorted(cores) and len(cores) == 9


@pytest.mark.parametrize(("height", "width", "core_px", "halo_px", "said"), [
    (0, 5, 4, 0, "0 x 5"), (5, 0, 4, 0, "5 x 0"), (5, 5, 0, 0, "core_px must be at least 1"), (5, 5, 4, -1, "halo_px"),
])  # fmt: skip
def test_what_cannot_be_tiled_is_refused(window_module, height, width, core_px, halo_px, said):
    with pytest.raises(ValueError, match=said):
        window_module.tiles(height, width, core_px=core_px, halo_px=halo_px)
