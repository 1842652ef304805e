"""ImageView reads exact area averages, the same from every window; Section checks its rows."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import shapely


@pytest.fixture
def section_module():
    from stpredict import _section

    return _section


@pytest.fixture
def window_type():
    from stpredict._window import Window

    return Window


@pytest.fixture
def pixels():
    """A (3, 53, 71) image of noise: no window looks like another."""
    return np.random.default_rng(3).integers(0, 256, (3, 53, 71), dtype=np.uint8)


def brute_force(pixels, scale, y, x):
    """The mean under one working pixel, by summing every level pixel times its overlap."""
    total, area = np.zeros(3), 0.0
    for i in range(pixels.shape[1]):
        high = max(0.0, min((y + 1) * scale[0], i + 1) - max(y * scale[0], i))
        for j in range(pixels.shape[2]) if high > 0 else ():
            wide = max(0.0, min((x + 1) * scale[1], j + 1) - max(x * scale[1], j))
            total, area = total + high * wide * pixels[:, i, j], area + high * wide
    return total / area


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (1.45, 2.3), (3.7, 3.7), (7.0, 5.5), (0.9995, 0.9995)])
def test_pixels_are_area_averages(section_module, pixels, scale):
    view = section_module.ImageView(pixels=pixels, scale=scale, mpp=1.0)
    seen = view.read(view.window)
    assert seen.shape == (view.height, view.width, 3) and seen.dtype == np.uint8
    rng = np.random.default_rng(0)
    corners = [(0, 0), (view.height - 1, 0), (0, view.width - 1), (view.height - 1, view.width - 1)]
    some = [(int(rng.integers(view.height)), int(rng.integers(view.width))) for _ in range(40)]
    for y, x in corners + some:
        # half a grey level for rounding, a little for float32
        np.testing.assert_allclose(seen[y, x], brute_force(pixels, scale, y, x), atol=0.5 + 1e-3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_coarse_image_is_enlarged_as_by_an_image_library(section_module, pixels, factor):
    from PIL import Image

    pixels = pixels // 4 + 96  # theirs is cut to 0..255 along each axis, which noise of all greys would reach
    view = section_module.ImageView(pixels=pixels, scale=(1 / factor, 1 / factor), mpp=1.0)
    picture = Image.fromarray(np.moveaxis(pixels, 0, -1))
    expected = np.asarray(picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC))
    inner = (slice(2 * factor, -2 * factor),) * 2  # at the border theirs leaves out pixels that are not there
    np.testing.assert_allclose(view.read(view.window)[inner].astype(int), expected[inner].astype(int), atol=1)


@pytest.mark.parametrize("scale", [0.37, 0.6, 0.99])
def test_a_ramp_stays_a_ramp_when_enlarged(section_module, scale):
    ramp = np.broadcast_to(np.arange(0, 200, 4, dtype=np.uint8), (3, 50, 50))
    view = section_module.ImageView(pixels=ramp, scale=(scale, scale), mpp=1.0)
    at = (np.arange(view.width) + 0.5) * scale - 0.5
    inside = (at >= 1) & (at <= 48)
    np.testing.assert_allclose(view.read(view.window)[3, inside, 0], 4 * at[inside], atol=0.5 + 1e-3)


@pytest.mark.parametrize("scale", [
    (1.0, 1.0), (1.4521591538, 1.4521591538), (2.0, 1.0), (2.7, 1.1), (0.8, 0.8), (0.31, 1.5),
])  # fmt: skip
def test_overlapping_windows_agree_to_the_bit(section_module, window_type, pixels, scale):
    view = section_module.ImageView(pixels=pixels, scale=scale, mpp=1.0)
    whole = view.read(view.window)
    for y0, x0, height, width in [(0, 0, 7, 9), (3, 5, 11, 2), (1, 1, 1, 1), (view.height - 4, view.width - 3, 4, 3)]:
        part = window_type(y0, x0, height, width)
        np.testing.assert_array_equal(view.read(part), whole[part.slices()])


@pytest.mark.parametrize(("n_level", "scale", "expected"), [
    (53, 1.0, 53), (53, 2.0, 27), (52, 2.0, 26), (53, 1.7, 32), (6400, 1.0000000001, 6400), (10, 3.3333333333, 3),
    (5, 100.0, 1),
])  # fmt: skip
def test_size_is_the_level_over_the_scale_rounded_up(section_module, n_level, scale, expected):
    view = section_module.ImageView(pixels=np.zeros((3, n_level, n_level), np.uint8), scale=(scale, scale), mpp=1.0)
    assert (view.height, view.width) == (expected, expected)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.3, 1.9)])
def test_outside_is_white_and_inside_stays(section_module, pixels, scale):
    view = section_module.ImageView(pixels=pixels, scale=scale, mpp=1.0)
    padded = view.read(view.window.pad(5))
    np.testing.assert_array_equal(padded[5:-5, 5:-5], view.read(view.window))
    for border in (padded[:5], padded[-5:], padded[:, :5], padded[:, -5:]):
        assert (border == 255).all()


def test_a_window_beside_the_image_is_white_and_reads_nothing(section_module, window_type):
    view = section_module.ImageView(pixels=Recorder(np.zeros((3, 20, 20), np.uint8)), scale=(1.0, 1.0), mpp=1.0)
    assert (view.read(window_type(30, 0, 4, 6)) == 255).all()
    assert view.pixels.asked == []


def test_a_partly_covered_last_pixel_is_the_mean_of_what_is_there(section_module):
    level = np.full((3, 5, 5), 40, np.uint8)
    level[:, 4, :] = 90
    view = section_module.ImageView(pixels=level, scale=(2.0, 1.0), mpp=1.0)
    seen = view.read(view.window)
    assert seen.shape == (3, 5, 3)
    assert (seen[:2] == 40).all() and (seen[2] == 90).all()  # not mixed with white


class Recorder:
    """An array that remembers which slices were asked."""

    def __init__(self, array):
        self.array, self.shape, self.asked = array, array.shape, []

    def __getitem__(self, key):
        self.asked.append(key)
        return self.array[key]


def test_only_the_pixels_under_the_window_are_asked(section_module, window_type, pixels):
    view = section_module.ImageView(pixels=Recorder(pixels), scale=(1.5, 2.0), mpp=1.0)
    view.read(window_type(4, 10, 6, 3))
    ((_, y, x),) = view.pixels.asked
    assert (y.start, y.stop) == (6, 15) and (x.start, x.stop) == (20, 26)


def test_dask_chunks_outside_the_window_are_never_computed(section_module, window_type, pixels):
    asked = []

    def block(block_info=None):
        (_, _), (y0, y1), (x0, x1) = block_info[None]["array-location"]
        asked.append((y0, x0))
        return pixels[:, y0:y1, x0:x1]

    lazy = da.map_blocks(block, chunks=((3,), (20, 20, 13), (20, 20, 20, 11)), dtype=np.uint8, meta=np.empty((0, 0, 0)))
    view = section_module.ImageView(pixels=lazy, scale=(2.0, 2.0), mpp=1.0)
    asked.clear()
    seen = view.read(window_type(11, 0, 8, 15))  # level rows 22..38, columns 0..30
    assert set(asked) == {(20, 0), (20, 20)}
    plain = section_module.ImageView(pixels=pixels, scale=(2.0, 2.0), mpp=1.0)
    np.testing.assert_array_equal(seen, plain.read(window_type(11, 0, 8, 15)))


def make_section(section_module, **changes):
    rows = {
        "geometry": np.array([shapely.Point(1, 1), shapely.Point(2, 2)], dtype=object),
        "radius": np.ones(2),
        "ids": np.array(["a", "b"]),
        "area": np.full(2, np.pi),
    }
    view = section_module.ImageView(pixels=np.zeros((3, 8, 8), np.uint8), scale=(1.0, 1.0), mpp=0.5)
    return section_module.Section(name="s", image=view, **(rows | changes))


def test_section_has_the_mpp_of_its_image_and_counts_its_shapes(section_module):
    section = make_section(section_module)
    assert section.mpp == 0.5 and section.n_shapes == 2


@pytest.mark.parametrize("rows", [{"radius": np.ones(3)}, {"ids": np.array(["a"])}, {"expression": np.ones((3, 4))}])
def test_section_refuses_rows_of_another_number(section_module, rows):
    with pytest.raises(ValueError, match=f"section 's' has 2 shapes.*{next(iter(rows))}"):
        make_section(section_module, **rows)
