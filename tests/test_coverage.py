"""Coverage against exactextract, shapely and integrals; its invariances; what it refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import integrate

from stpredict import _coverage
from stpredict._coverage import Shapes, areas, bounds, clip, coverage, inside, transform
from stpredict._window import Window

few = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BOWTIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
DONUT = shapely.Polygon(shapely.box(1.3, 2.1, 9.7, 11.2).exterior, [shapely.box(3.5, 4.0, 6.25, 8.5).exterior])
PAIR = shapely.MultiPolygon([DONUT, shapely.box(10.5, 1.5, 14.5, 3.25), shapely.Point(4.9, 6.2).buffer(1.1)])


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def way(request, monkeypatch):
    """Everything here holds with a compiler and without."""
    assert _coverage._kernels.COMPILED  # numba comes with spatialdata
    monkeypatch.setattr(_coverage._kernels, "COMPILED", request.param == "compiled")
    return request.param


def disk(x, y, r, *, corners=40_000):
    """A circle as a polygon so fine that its errors (2.6 / corners^3) are rounding."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    r = r * np.sqrt(2 * np.pi / corners / np.sin(2 * np.pi / corners))
    return shapely.Polygon(np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1))


def by_shapely(polygon, window, *, cell_px=1):
    """(rows, cols) areas by one intersection per cell; the polygon is cut to each row first, for speed alone."""
    out = np.zeros((window.height // cell_px, window.width // cell_px))
    x = window.x0 + cell_px * np.arange(out.shape[1])
    for i in range(out.shape[0]):
        y = window.y0 + cell_px * i
        strip = shapely.intersection(polygon, shapely.box(window.x0, y, window.x1, y + cell_px))
        if not strip.is_empty:
            out[i] = shapely.area(shapely.intersection(strip, shapely.box(x, y, x + cell_px, y + cell_px)))
    return out


def covered(geometry, radius, window, *, cell_px=1):
    """(rows, cols) areas of one shape."""
    grid = window.height // cell_px, window.width // cell_px
    return coverage(Shapes([geometry], [radius]), window, cell_px=cell_px).toarray().reshape(grid)


def scattered(n, *, size=64.0, seed=0):
    """Circles and polygons in turn, some of them across the border of (0, 0, size, size), overlapping."""
    rng = np.random.default_rng(seed)
    points = shapely.points(rng.uniform(-4, size + 4, (n, 2)))
    radius = np.exp(rng.uniform(np.log(0.3), np.log(9.0), n))
    spin = rng.uniform(0, 6.28, (n, 1)) + (np.arange(7) + rng.uniform(0, 0.9, (n, 7))) * (2 * np.pi / 7)
    arm = (radius[:, None] * rng.uniform(0.4, 1.0, (n, 7)))[..., None]
    arms = arm * np.stack([np.cos(spin), np.sin(spin)], axis=-1)
    stars = shapely.polygons(shapely.get_coordinates(points)[:, None] + arms)
    even = np.arange(n) % 2 == 0
    return np.where(even, points, stars), np.where(even, radius, np.nan)


@st.composite
def polygons(draw):
    """Valid polygons about (8, 8), with a hole or without, on grid lines or not, either way round."""
    corners = draw(st.integers(3, 9))
    snap = draw(st.sampled_from([0.0, 0.25, 1.0]))
    angle = (np.arange(corners) + draw(st.floats(0, 1))) * 2 * np.pi / corners
    reach = np.array(draw(st.lists(st.floats(1.0, 9.0), min_size=corners, max_size=corners)))
    xy = 8 + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    polygon = shapely.make_valid(shapely.Polygon(np.round(xy / snap) * snap if snap else xy))
    if draw(st.booleans()):
        polygon = shapely.difference(polygon, shapely.box(7.5, 7.0, 8.25, 9.0))
    polygon = shapely.multipolygons([p for p in shapely.get_parts(polygon) if p.geom_type == "Polygon"])
    return shapely.reverse(polygon) if draw(st.booleans()) else polygon


@pytest.mark.parametrize("radius", [1e-3, 0.3, 0.5, 1.0, 2.7, 13.2])
@pytest.mark.parametrize("centre", [(20.0, 20.0), (20.5, 20.5), (20.31, 19.87), (20.0, 20.4999999)])
@pytest.mark.parametrize("cell_px", [1, 3])
def test_circles_equal_shapely_in_every_cell(radius, centre, cell_px):
    window = Window(0, 0, 42, 42)
    truth = by_shapely(disk(*centre, radius), window, cell_px=cell_px)
    found = covered(shapely.Point(centre), radius, window, cell_px=cell_px)
    # 1e-9 of the area is what the oracle's corners and coordinates leave
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-9 * np.pi * radius**2 + 1e-13)
    assert found.sum() == pytest.approx(np.pi * radius**2, rel=1e-11)


def test_circle_equals_an_integral():
    x, y, r = 3.37, 2.81, 2.2

    def slice_length(u, x0):
        half = np.sqrt(max(r**2 - (u - y) ** 2, 0.0))
        return max(min(x + half, x0 + 1) - max(x - half, x0), 0.0)

    truth = [[integrate.quad(slice_length, i, i + 1, (j,), limit=200)[0] for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(covered(shapely.Point(x, y), r, Window(0, 0, 6, 6)), truth, atol=1e-7)


def test_mean_and_sum_equal_exactextract():
    extract = pytest.importorskip("exactextract")
    geopandas = pytest.importorskip("geopandas")
    geometry, radius = scattered(60, size=48.0)
    geometry, radius = np.append(geometry, [DONUT, PAIR]), np.append(radius, [np.nan, np.nan])
    window = Window(0, 0, 48, 48)
    field = np.random.default_rng(1).uniform(0, 1, window.shape)
    weights = coverage(Shapes(geometry, radius), window)
    sums, area = weights @ field.ravel(), weights.sum(axis=1)
    drawn = [disk(g.x, g.y, r, corners=4000) if np.isfinite(r) else g for g, r in zip(geometry, radius, strict=True)]
    # exactextract is north-up: row 0 is at the largest y; and it needs a crs, any crs
    north_up = shapely.transform(np.array(drawn), lambda xy: xy * [1, -1] + [0, window.height])
    shapes = geopandas.GeoDataFrame(geometry=north_up, crs=3857)
    raster = extract.raster.NumPyRasterSource(field, 0, 0, 48, 48, srs_wkt=shapes.crs.to_wkt())
    truth = extract.exact_extract(raster, shapes, ["sum", "mean", "count"], output="pandas")
    seen = truth["count"].to_numpy() > 0
    assert 50 <= seen.sum() < 62
    assert np.array_equal(area > 0, seen)
    np.testing.assert_allclose(sums[seen], truth["sum"][seen], rtol=1e-5)
    np.testing.assert_allclose(sums[seen] / area[seen], truth["mean"][seen], rtol=1e-5)


@given(polygons(), st.sampled_from([1, 2, 5]))
@few
def test_polygons_equal_shapely_in_every_cell(polygon, cell_px):
    window = Window(-5, 3, 20, 10)  # of polygons about (8, 8): some are cut on the left, the right or below
    found = covered(polygon, np.nan, window, cell_px=cell_px)
    np.testing.assert_allclose(found, by_shapely(polygon, window, cell_px=cell_px), atol=1e-11)


@pytest.mark.parametrize("shape", [DONUT, PAIR, shapely.reverse(PAIR)], ids=["hole", "island in a hole", "reversed"])
def test_holes_and_islands(shape):
    window = Window(0, 0, 12, 16)
    found = covered(shape, np.nan, window)
    np.testing.assert_allclose(found, by_shapely(shape, window), atol=1e-12)
    assert found[5, 4] < 1e-2 or shape is not DONUT  # the hole is a hole
    assert found.sum() == pytest.approx(shape.area, rel=1e-12)


def test_squares_on_grid_lines_fill_their_cells_and_no_others():
    squares = shapely.box([0, 8, 3], [0, 8, 2], [8, 16, 4], [8, 16, 3])
    found = coverage(Shapes(squares, np.full(3, np.nan)), Window(0, 0, 16, 16))
    assert np.diff(found.indptr).tolist() == [64, 64, 1]
    assert set(found.data) == {1.0}
    assert found.toarray()[2].reshape(16, 16)[2, 3] == 1.0
    assert found.has_sorted_indices


def test_rows_are_independent_and_keep_their_order(monkeypatch):
    geometry, radius = scattered(80)
    window = Window(0, 0, 64, 64)
    whole = coverage(Shapes(geometry, radius), window).toarray()
    order = np.random.default_rng(2).permutation(80)
    np.testing.assert_allclose(
        coverage(Shapes(geometry[order], radius[order]), window).toarray(), whole[order], atol=1e-13
    )
    monkeypatch.setattr(_coverage._edges, "BLOCK_CELLS", 100)
    np.testing.assert_allclose(coverage(Shapes(geometry, radius), window).toarray(), whole, atol=1e-13)


@given(
    st.tuples(*[st.floats(-3, 20, allow_subnormal=False)] * 2),
    st.tuples(*[st.floats(1e-6, 20, allow_subnormal=False)] * 2),
)
@few
def test_an_upright_rectangle_equals_the_same_with_a_tooth_that_is_no_rectangle(corner, size):
    """By the other way: a polygon with a sliver more is not upright and goes by its sides."""
    (x, y), (w, h) = corner, size
    window, nan = Window(0, 0, 16, 16), np.full(2, np.nan)
    tooth = shapely.Polygon([(x, y), (x + w, y), (x + w, y + h), (x + w / 2, y + h * (1 + 1e-9)), (x, y + h)])
    one, other = coverage(Shapes([shapely.box(x, y, x + w, y + h), tooth], nan), window).toarray()
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8 + 1e-9 * h)  # of the sliver in a cell


@pytest.mark.parametrize("seed", range(5))
def test_loops_and_numpy_find_the_same(seed, monkeypatch):
    geometry, radius = scattered(400, seed=seed)
    window = Window(11, 7, 40, 36)  # many cross its border or miss it
    one, other = [], []
    for found, compiled in ((one, True), (other, False)):
        monkeypatch.setattr(_coverage._kernels, "COMPILED", compiled)
        found.extend(coverage(Shapes(geometry, radius), window, cell_px=cell_px) for cell_px in (1, 4))
    for compiled, numpy in zip(one, other, strict=True):
        assert np.array_equal(compiled.indptr, numpy.indptr)
        assert np.array_equal(compiled.indices, numpy.indices)
        np.testing.assert_allclose(compiled.data, numpy.data, atol=1e-12)


def test_rectangles_circles_and_polygons_keep_their_rows():
    geometry, radius = scattered(60)
    rng = np.random.default_rng(5)
    x, y, w, h = rng.uniform(0, 60, (4, 60)) * [[1], [1], [0.2], [0.2]]
    squares = shapely.box(x, y, x + w + 0.1, y + h + 0.1)
    every, radii = np.append(geometry, squares), np.append(radius, np.full(60, np.nan))
    window, order = Window(0, 0, 64, 64), rng.permutation(120)
    mixed = coverage(Shapes(every[order], radii[order]), window)
    assert mixed.has_sorted_indices
    alone = [
        coverage(Shapes(geometry, radius), window).toarray(),
        coverage(Shapes(squares, radii[60:]), window).toarray(),
    ]
    np.testing.assert_allclose(mixed.toarray(), np.concatenate(alone)[order], atol=1e-13)
    np.testing.assert_allclose(alone[1][0].reshape(64, 64), by_shapely(squares[0], window), atol=1e-12)


def test_sums_beyond_float32_are_infinite_without_a_warning():
    geometry, radius = scattered(60)
    geometry = np.append(geometry, [shapely.box(1.5, 1.5, 63, 62)])
    weights = _coverage.Weights.of(coverage(Shapes(geometry, np.append(radius, np.nan)), Window(0, 0, 64, 64)))
    assert len(weights.start) < sum(part.shape[0] for part in weights.parts)  # some shapes have several rows
    largest = max((part @ np.ones(64 * 64)).max() for part in weights.parts)
    planes = np.full((1, 64 * 64), 3e38 / largest, np.float32)  # a row can be held, the sum of several cannot
    sums = weights.one_by_one(planes)
    assert np.isposinf(sums[-1, 0])
    np.testing.assert_array_equal(weights.of_cells(planes.T), sums)


def test_sums_are_right_to_1e_6_however_many_cells_and_threads(monkeypatch):
    geometry, radius = scattered(60)
    geometry = np.append(geometry, [shapely.box(1.5, 1.5, 63, 62), shapely.Point(300, 300)])
    found = coverage(Shapes(geometry, np.append(radius, [np.nan, 3.0])), Window(0, 0, 64, 64))
    values = np.random.default_rng(1).uniform(0, 5, (64 * 64, 7)).astype(np.float32)
    values[:, 6] = 0.1  # equal numbers lose most
    wanted = found @ values.astype(np.float64)
    sums = []
    for n in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", n)
        weights = _coverage.Weights.of(found)
        sums.append(weights.of_cells(values))
        np.testing.assert_array_equal(weights.one_by_one(values.T), sums[-1])
        planes, areas = weights.of_planes(values.T)
        assert areas is None
        np.testing.assert_allclose(planes, sums[-1], rtol=1e-6)
    np.testing.assert_allclose(sums[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(sums[0][-1], 0.0)
    np.testing.assert_array_equal(sums[1], sums[0])
    np.testing.assert_array_equal(sums[2], sums[0])
    np.testing.assert_allclose(weights.area, found.sum(axis=1))


def test_values_that_are_nan_have_no_area():
    geometry, radius = scattered(30)
    found = coverage(Shapes(geometry, radius), Window(0, 0, 64, 64))
    planes = np.random.default_rng(1).uniform(0, 5, (3, 64 * 64)).astype(np.float16)
    planes[1, ::3] = np.nan
    sums, areas = _coverage.Weights.of(found).of_planes(planes)
    there = ~np.isnan(planes)
    np.testing.assert_allclose(sums, found @ np.where(there, planes, 0).T.astype(float), rtol=1e-5)
    np.testing.assert_allclose(areas, found @ there.T.astype(float), rtol=1e-6)


def test_no_cell_is_overfull_and_none_beyond_the_bounds_is_touched():
    geometry, radius = scattered(400, seed=3)
    tiny = 10.0 ** -np.linspace(1, 9, 200)  # their rows sum to rounding noise that is large beside their areas
    geometry = np.append(geometry, shapely.points(np.random.default_rng(4).uniform(1, 63, (200, 2))))
    radius = np.append(radius, tiny)
    found = coverage(Shapes(geometry, radius), Window(0, 0, 64, 64)).tocoo()
    row, column = np.divmod(found.col, 64)
    y0, x0, y1, x1 = bounds(Shapes(geometry, radius))[found.row].T
    assert ((row + 1 > y0) & (row < y1) & (column + 1 > x0) & (column < x1)).all()
    assert found.data.min() > 0
    assert found.data.max() <= 1
    np.testing.assert_allclose(found.sum(axis=1)[400:], np.pi * tiny**2, rtol=1e-5)


@given(st.integers(1, 31), st.integers(1, 31), st.integers(0, 5))
@few
def test_a_window_is_the_sum_of_its_parts(y, x, seed):
    geometry, radius = scattered(30, size=32.0, seed=seed)
    window = Window(0, 0, 32, 32)
    parts = [Window(y0, x0, y1 - y0, x1 - x0) for y0, y1 in [(0, y), (y, 32)] for x0, x1 in [(0, x), (x, 32)]]
    joined = np.zeros((30, *window.shape))
    for part in parts:
        joined[(slice(None), *part.slices())] = (
            coverage(Shapes(geometry, radius), part).toarray().reshape(30, *part.shape)
        )
    np.testing.assert_allclose(
        joined, coverage(Shapes(geometry, radius), window).toarray().reshape(joined.shape), atol=1e-12
    )


def test_a_shape_across_tile_borders_is_not_lost_and_far_from_the_origin_neither():
    far = 100_000
    geometry = np.array([shapely.Point(far + 8, far + 8), shapely.box(far + 7.9, far + 7.9, far + 8.2, far + 8.1)])
    radius = np.array([0.3, np.nan])
    tiles = [Window(far + y, far + x, 8, 8) for y in (0, 8) for x in (0, 8)]
    per_tile = np.stack([coverage(Shapes(geometry, radius), tile).sum(axis=1) for tile in tiles])
    assert (per_tile > 0).all()
    np.testing.assert_allclose(per_tile[:, 0], np.pi * 0.09 / 4, rtol=1e-8)
    np.testing.assert_allclose(per_tile.sum(axis=0), areas(Shapes(geometry, radius)), rtol=1e-8)


def test_total_is_the_area_of_every_shape_wholly_inside():
    geometry, radius = scattered(300)
    window = Window(0, 0, 64, 64)
    total, area = coverage(Shapes(geometry, radius), window).sum(axis=1), areas(Shapes(geometry, radius))
    whole = inside(Shapes(geometry, radius), window)
    assert 100 < whole.sum() < 300
    np.testing.assert_allclose(total[whole], area[whole], rtol=1e-10)
    assert (total[~whole] < area[~whole] * (1 - 1e-6)).all()


@pytest.mark.parametrize("cell_px", [2, 4, 16])
def test_cells_are_blocks_of_pixels(cell_px):
    geometry, radius = scattered(60)
    window = Window(-8, 4, 48, 64)
    pixels = coverage(Shapes(geometry, radius), window).toarray()
    blocks = pixels.reshape(60, 48 // cell_px, cell_px, 64 // cell_px, cell_px).sum(axis=(2, 4))
    found = coverage(Shapes(geometry, radius), window, cell_px=cell_px).toarray()
    np.testing.assert_allclose(found, blocks.reshape(60, -1), atol=1e-11)


def test_shapes_that_miss_the_window_leave_empty_rows():
    geometry = [shapely.Point(-5, 4), shapely.Point(4, 30), shapely.box(8, 0, 9, 8), shapely.box(-3, -3, 0, 0)]
    geometry += [shapely.Polygon(), shapely.Point(), shapely.Point(4, 4)]
    found = coverage(Shapes(geometry, [5, 2, np.nan, np.nan, np.nan, np.nan, 100]), Window(0, 0, 8, 8))
    assert np.diff(found.indptr).tolist() == [0, 0, 0, 0, 0, 0, 64]
    np.testing.assert_allclose(found.toarray()[6], 1.0)  # a circle larger than the window


@pytest.mark.parametrize("window", [Window(0, 0, 8, 12), Window(0, 0, 0, 12), Window(0, 0, 0, 0)])
def test_no_shapes_or_no_cells(window):
    cells = window.height * window.width // 16
    assert coverage(Shapes([], []), window, cell_px=4).shape == (0, cells)
    found = coverage(Shapes([shapely.Point(0, 0)], [3.0]), window, cell_px=4)
    assert found.shape == (1, cells)
    assert (found.nnz > 0) == (cells > 0)
    assert areas(Shapes([], [])).shape == (0,)
    assert bounds(Shapes([], [])).shape == (0, 4)
    assert inside(Shapes([], []), window).shape == (0,)
    assert len(transform(Shapes([], []), np.diag([2, 1, 1]))) == len(clip(Shapes([], []), DONUT)) == 0


def test_the_mean_of_a_constant_is_the_constant():
    geometry, radius = scattered(200)
    weights = coverage(Shapes(geometry, radius), Window(0, 0, 64, 64))
    area = weights.sum(axis=1)
    means = (weights @ np.full(64 * 64, 3.7))[area > 0] / area[area > 0]
    np.testing.assert_allclose(means, 3.7, rtol=1e-14)


@pytest.mark.parametrize("centre", [(10.0, 11.0), (10.5, 11.0), (10.5, 11.5)])
@pytest.mark.parametrize("radius", [0.3, 0.5, 1.7, 9.0])
def test_the_mean_of_a_gradient_is_its_value_at_the_centre(centre, radius):
    rows, columns = np.mgrid[:24, :24] + 0.5
    weights = coverage(Shapes([shapely.Point(centre)], [radius]), Window(0, 0, 24, 24))
    # exact, as the grid looks the same from both sides of these centres
    mean = weights @ (3.1 * columns - 0.7 * rows).ravel() / weights.sum(axis=1)
    assert mean[0] == pytest.approx(3.1 * centre[0] - 0.7 * centre[1], rel=1e-13)


@given(st.floats(20, 30), st.floats(20, 30), st.floats(0.3, 18))
@few
def test_the_mean_of_a_gradient_is_its_value_at_any_centre_on_a_fine_grid(x, y, r):
    # a cell has one value, also where a circle cuts a corner from it: with cells of r / 100 that hardly matters
    fine = 100 / r
    window = Window(int(y * fine) - 110, int(x * fine) - 110, 221, 221)
    rows, columns = np.mgrid[window.y0 : window.y1, window.x0 : window.x1] + 0.5
    circle = transform(Shapes([shapely.Point(x, y)], [r]), np.diag([fine, fine, 1]))
    mean = coverage(circle, window) @ ((3.1 * columns - 0.7 * rows).ravel() / fine) / areas(circle)
    assert mean[0] == pytest.approx(3.1 * x - 0.7 * y, abs=1e-4 * r)


def test_areas_bounds_and_inside():
    shapes = Shapes([shapely.Point(5, 3), DONUT, shapely.Polygon(), shapely.Point()], [2.0, np.nan, np.nan, 1.0])
    assert len(shapes) == 4 and shapes.circle.tolist() == [True, False, False, False]
    np.testing.assert_allclose(areas(shapes), [4 * np.pi, DONUT.area, 0, 0])
    expected = [[1, 3, 5, 7], [2.1, 1.3, 11.2, 9.7], [np.nan] * 4, [np.nan] * 4]
    np.testing.assert_allclose(bounds(shapes), expected)
    assert inside(shapes, Window(1, 3, 4, 4)).tolist() == [True, False, False, False]
    assert inside(shapes, Window(1, 3, 4, 3)).tolist() == [False, False, False, False]
    assert inside(shapes, Window(1, 1, 11, 9)).tolist() == [True, True, False, False]
    assert areas(shapes.rows(np.array([1, 0]))).tolist() == areas(shapes)[[1, 0]].tolist()


@pytest.mark.parametrize("flip", [1, -1], ids=["turned", "flipped"])
def test_a_similarity_keeps_circles(flip):
    turn = 2.5 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]) @ np.diag([1, flip])
    affine = np.block([[turn, np.array([[7], [9]])], [np.zeros((1, 2)), 1]])
    before = Shapes([shapely.Point(3, -2), DONUT, shapely.Point()], [1.2, np.nan, 1.0])
    after = transform(before, affine)
    geometry = after.geometry
    assert geometry[0].geom_type == "Point"
    np.testing.assert_allclose([geometry[0].x, geometry[0].y], turn @ [3, -2] + [7, 9])
    np.testing.assert_allclose(areas(after), areas(before) * 2.5**2)
    assert after.radius[0] == pytest.approx(3.0)
    assert before.geometry[0].equals(shapely.Point(3, -2))
    assert before.radius[0] == 1.2
    assert geometry[2].is_empty


@pytest.mark.parametrize("radius", [0.3, 2.0, 9.0, 50.0])
@pytest.mark.parametrize("linear", [[[1, 0.4], [0.1, -0.8]], [[3, 0], [0, 1]], [[1, 0], [0, 1.001]]])
def test_other_maps_turn_circles_into_ellipses(radius, linear):
    linear, shift = np.array(linear), np.array([70.2, 90.3])
    affine = np.block([[linear, shift[:, None]], [np.zeros((1, 2)), 1]])
    ellipse = transform(Shapes([shapely.Point(1.3, 2.6)], [radius]), affine)
    area = np.pi * radius**2 * abs(np.linalg.det(affine))
    assert np.isnan(ellipse.radius[0])
    assert areas(ellipse)[0] == pytest.approx(area, rel=1e-9)
    oracle = shapely.transform(disk(1.3, 2.6, radius, corners=10_000), lambda xy: xy @ linear.T + shift)
    y0, x0, y1, x1 = bounds(ellipse)[0]
    window = Window(int(y0) - 2, int(x0) - 2, int(y1 - y0) + 5, int(x1 - x0) + 5)
    truth, found = (coverage(each, window) for each in (Shapes([oracle], [np.nan]), ellipse))
    # all of the misplaced area together: no field of values in [0, 1] can change its mean by more
    assert abs(found - truth).sum() / area < 1e-5
    assert found.sum() == pytest.approx(area, rel=1e-9)


@given(polygons())
@few
def test_polygons_move_as_shapely_moves_them(polygon):
    affine = np.array([[0.7, 0.5, 20], [-0.4, -1.1, 40], [0, 0, 1]])  # a flip: its rings turn the other way round
    moved = transform(Shapes([polygon], [np.nan]), affine)
    window = Window(10, 10, 40, 40)
    truth = by_shapely(shapely.transform(polygon, lambda xy: xy @ affine[:2, :2].T + affine[:2, 2]), window)
    np.testing.assert_allclose(covered(moved.geometry[0], moved.radius[0], window), truth, atol=1e-10)
    assert areas(moved)[0] == pytest.approx(polygon.area * abs(np.linalg.det(affine)))


def test_clip_keeps_what_is_inside_and_empties_what_is_outside():
    region = shapely.MultiPolygon([shapely.box(0, 0, 20, 20) - shapely.box(8, 8, 12, 12), shapely.box(30, 0, 50, 20)])
    points = shapely.points([[4, 4], [25, 10], [10, 10], [10, 10], [0, 10], [40, 10]])
    boxes = shapely.box([1, 20, 19], [1, 3, 3], [2, 22, 31], [2, 5, 4])
    geometry = np.array([*points, *boxes, shapely.Point()])
    radius = np.array([4.0, 5.0, 1.0, 4.0, 3.0, 100.0, np.nan, np.nan, np.nan, 1.0])
    left = clip(Shapes(geometry, radius), region)
    found, radii = left.geometry, left.radius
    assert found[0] is geometry[0]  # touches the border from inside
    assert radii[0] == 4.0
    assert found[6] is geometry[6]
    gone = [1, 2, 7, 9]  # between the parts, in the hole, side by side, nothing to begin with
    assert shapely.is_empty(found).nonzero()[0].tolist() == gone
    assert np.isnan(radii[1:]).all()
    assert set(shapely.get_type_id(found[radii != 4.0])) <= {3, 6}
    cut = areas(left)[[3, 4, 5, 8]]
    np.testing.assert_allclose(cut, [np.pi * 16 - 16, np.pi * 9 / 2, region.area, 2.0], rtol=1e-6)
    assert radius[1] == 5.0  # the input is untouched
    assert not geometry[1].is_empty


def test_clip_leaves_no_lines_behind():
    region = shapely.Polygon([(0, 0), (10, 0), (10, 4), (6, 4), (6, 6), (10, 6), (10, 10), (0, 10)])
    square = shapely.box(6, 3, 8, 6)  # meets the region in an area and, at x = 6 and y = 6, in lines
    found = clip(Shapes([square], [np.nan]), region)
    assert found.geometry[0].geom_type in {"Polygon", "MultiPolygon"}
    assert areas(found)[0] == pytest.approx(2.0)


@given(polygons(), st.floats(2, 14), st.floats(2, 14), st.floats(0.3, 6))
@few
def test_clipped_circles_cover_the_intersection(region, x, y, r):
    window = Window(-2, -2, 24, 24)
    found = clip(Shapes([shapely.Point(x, y)], [r]), region)
    truth = coverage(Shapes([disk(x, y, r, corners=5000) & region], [np.nan]), window)
    assert abs(coverage(found, window) - truth).sum() <= 1e-5 * np.pi * r**2


@pytest.mark.parametrize(
    ("geometry", "radius", "message"),
    [
        (shapely.Point(1, 1), 0.0, r"row 1 is POINT \(1 1\) with radius 0.0"),
        (shapely.Point(1, 1), -2.0, "radius -2.0"),
        (shapely.Point(1, 1), np.nan, "row 1 .* radius nan"),
        (shapely.Point(1, 1), np.inf, "row 1 .* radius inf"),
        (shapely.Point(np.nan, 1), 1.0, "row 1 .*finite coordinates"),
        (shapely.LineString([(0, 0), (1, 1)]), np.nan, "row 1 is a LineString"),
        (shapely.MultiPoint([(0, 0), (1, 1)]), 1.0, "row 1 is a MultiPoint"),
        (None, np.nan, "row 1 is None"),
        (BOWTIE, np.nan, r"row 1 is not valid: Self-intersection\[1 1\]"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda g, r: coverage(Shapes(g, r), Window(0, 0, 8, 8)),
        lambda g, r: areas(Shapes(g, r)),
        lambda g, r: transform(Shapes(g, r), np.eye(3)),
        lambda g, r: clip(Shapes(g, r), DONUT),
    ],
    ids=["coverage", "areas", "transform", "clip"],
)
def test_rows_that_are_no_shape_raise(call, geometry, radius, message):
    with pytest.raises(ValueError, match=message):
        call([shapely.Point(1, 1), geometry, shapely.Polygon()], [1.0, radius, np.nan])


def test_an_invalid_row_is_named_by_its_own_number():
    outside = shapely.box(50, 50, 51, 51)
    with pytest.raises(ValueError, match="row 2 is not valid"):
        coverage(Shapes([outside, outside, BOWTIE], np.full(3, np.nan)), Window(0, 0, 8, 8))


@pytest.mark.parametrize("cell_px", [0, -1, 3, 1.5])
def test_cells_that_do_not_tile_the_window_raise(cell_px):
    with pytest.raises(ValueError, match=f"cells of {cell_px} px do not tile a window of 8 x 12 px"):
        coverage(Shapes([shapely.Point(1, 1)], [1.0]), Window(0, 0, 8, 12), cell_px=cell_px)


def test_rows_of_two_lengths_raise():
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        areas(Shapes([DONUT, DONUT], [np.nan]))


@pytest.mark.parametrize("affine", [np.eye(2), np.full((3, 3), np.nan), np.diag([1, 1, 2])], ids=["2x2", "nan", "2"])
def test_matrices_that_are_no_affine_map_raise(affine):
    with pytest.raises(ValueError, match=r"finite \(3, 3\) matrix with last row 0 0 1"):
        transform(Shapes([DONUT], [np.nan]), affine)


def test_a_singular_map_raises():
    with pytest.raises(ValueError, match="singular"):
        transform(Shapes([DONUT], [np.nan]), [[1, 2, 0], [2, 4, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("region", "message"), [(BOWTIE, "Self-intersection"), (shapely.Point(0, 0), "a Point"), (None, "None")]
)
def test_regions_that_are_none_raise(region, message):
    with pytest.raises(ValueError, match=message):
        clip(Shapes([DONUT], [np.nan]), region)


@pytest.mark.parametrize("where", ["os.environ['NUMBA_DISABLE_JIT'] = '1'", "sys.modules['numba'] = None"])
def test_no_compiler_is_no_error(where):
    code = f"""
import os, sys
{where}
import shapely
from stpredict import _coverage
from stpredict._window import Window
assert not _coverage._kernels.COMPILED
print(_coverage.coverage(_coverage.Shapes([shapely.Point(5, 5).buffer(2)], [float("nan")]), Window(0, 0, 10, 10)).sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(shapely.Point(5, 5).buffer(2).area)
