"""Shapes in the pixel frame of an image: read, placed, clipped."""

from __future__ import annotations

import logging

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata.transformations import Affine, Scale

from stpredict import _coverage
from stpredict._spatialdata import check_some_inside, geometry_of, shapes_in_pixels, tissue
from stpredict._spatialdata._shapes import clip_locally

from .builders import HEIGHT, WIDTH, boxes, circles, make_spots, mask_labels, matrix, polygons, square_grid

XY = ("x", "y")


def with_shapes(element):
    return make_spots(shapes={"it": element})


def test_rows_keep_the_order_of_the_element():
    xy = square_grid(2, 3)[::-1]
    shapes = geometry_of(with_shapes(circles(xy, np.arange(1.0, 7.0))), "it")
    np.testing.assert_array_equal(shapely.get_coordinates(shapes.geometry), xy)
    np.testing.assert_array_equal(shapes.radius, np.arange(1.0, 7.0))


def test_polygons_have_no_radius():
    shapes = geometry_of(with_shapes(polygons(boxes((0, 0, 1, 1), (2, 2, 3, 3)))), "it")
    assert np.isnan(shapes.radius).all()


def test_a_polygon_that_crosses_itself_is_repaired_and_said(caplog):
    bow_tie = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    with caplog.at_level(logging.WARNING, logger="stpredict"):
        geometry = geometry_of(with_shapes(polygons([bow_tie, *boxes((5, 5, 6, 6))])), "it").geometry
    assert "'it': 1 of 2 polygons cross themselves and are repaired" in caplog.text
    assert shapely.area(geometry).tolist() == [8.0, 1.0]


def test_the_repair_of_a_collapsed_polygon_leaves_no_line():
    spike = shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (-3, 0), (0, 0)])
    geometry = geometry_of(with_shapes(polygons([spike])), "it").geometry
    assert geometry[0].geom_type in ("Polygon", "MultiPolygon") and geometry[0].area == 16.0


def test_double_ids_are_named():
    element = circles(square_grid(1, 3), 2.0, ids=["a", "b", "b"])
    with pytest.raises(ValueError, match=r"shapes 'it' have instance ids that are not unique: \['b'\]"):
        geometry_of(with_shapes(element), "it")


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.0])
def test_radii_that_are_none_are_named(bad):
    element = circles(square_grid(1, 3), 2.0)
    element["radius"] = [2.0, bad, 2.0]
    sdata = make_spots()
    sdata.shapes.data["it"] = element  # as a careless edit leaves it: spatialdata checks only on the way in
    with pytest.raises(ValueError, match=r"shapes 'it': 1 radii are not positive, for example of \['s1'\]"):
        geometry_of(sdata, "it")


def test_other_geometries_are_named():
    sdata = make_spots()
    lines = gpd.GeoDataFrame(geometry=[shapely.LineString([(0, 0), (1, 1)]), shapely.box(0, 0, 1, 1)], index=["x", "y"])
    sdata.shapes.data["it"] = lines
    with pytest.raises(ValueError, match=r"1 of 2 rows are neither circles nor polygons, for example \['x'\]"):
        geometry_of(sdata, "it")


@pytest.mark.parametrize("step", [1.0, 2.5])
def test_place_gives_pixels_of_the_step(step):
    sdata = make_spots()
    shapes, area, on_image = shapes_in_pixels(sdata, "image", "spots", step=step)
    np.testing.assert_allclose(shapely.get_coordinates(shapes.geometry), square_grid() / step)
    np.testing.assert_allclose(shapes.radius, 10.0 / step)
    np.testing.assert_allclose(area, np.pi * (10.0 / step) ** 2)
    assert on_image.all()


def test_place_clips_to_the_image_and_keeps_the_whole_area():
    element = circles([[0.0, 50.0], [50.0, 50.0], [WIDTH, HEIGHT], [-40.0, 50.0], [10.0, 10.0]], 10.0)
    shapes, area, on_image = shapes_in_pixels(with_shapes(element), "image", "it")
    np.testing.assert_allclose(area, np.pi * 100)
    assert on_image.tolist() == [False, True, False, False, True]  # the last touches the border from inside
    left = _coverage.areas(shapes) / area
    np.testing.assert_allclose(left, [0.5, 1.0, 0.25, 0.0, 1.0], rtol=1e-5)
    assert shapes.radius[[1, 4]].tolist() == [10.0, 10.0]  # circles that are not cut stay circles


@pytest.mark.parametrize("affine", [
    matrix(0.7, shift=(5, -3)), matrix(0.2, scale=(2.0, 0.7), shear=0.4, flip=True), matrix(0.0, scale=(0.3, 3.0)),
])  # fmt: skip
def test_moving_image_and_shapes_alike_changes_nothing(affine):
    moved = {"common": Affine(affine, XY, XY)}
    before = make_spots(shapes={"cells": polygons(boxes((-5, 5, 40, 40), (50, 60, 80, 90)))})
    after = make_spots(shapes={"cells": polygons(boxes((-5, 5, 40, 40), (50, 60, 80, 90)))})
    for element in (after.images["image"], after.shapes["spots"], after.shapes["cells"]):
        element.attrs["transform"] = moved
    for key in ("spots", "cells"):
        old, new = shapes_in_pixels(before, "image", key, step=1.7), shapes_in_pixels(after, "image", key, step=1.7)
        np.testing.assert_allclose(_coverage.bounds(new[0]), _coverage.bounds(old[0]), atol=1e-9)
        for one, other in zip(new[1:], old[1:], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_circles_under_a_stretch_are_ellipses_of_the_right_area():
    element = circles([[30.0, 40.0]], 10.0, transformations={"global": Scale([2.0, 0.5], axes=XY)})
    shapes, area, _ = shapes_in_pixels(with_shapes(element), "image", "it")
    assert np.isnan(shapes.radius).all()
    np.testing.assert_allclose(shapely.bounds(shapes.geometry)[0], [40.0, 15.0, 80.0, 25.0], atol=5e-3)
    assert area[0] == pytest.approx(np.pi * 100, rel=1e-9)


def masks():
    """The same tissue four times: polygons, circles' complement in two pieces, labels, and labels of half the size."""
    half = np.zeros((HEIGHT, WIDTH), int)
    half[:, : WIDTH // 2] = 3
    coarse = {"global": Scale([2.0, 2.0], axes=XY)}
    return {
        "polygon": {"shapes": {"mask": polygons(boxes((0, 0, WIDTH / 2, HEIGHT)))}},
        "pieces": {"shapes": {"mask": polygons(boxes((0, 0, WIDTH / 2, 90), (0, 90, WIDTH / 2, HEIGHT)))}},
        "micrometres": {"shapes": {"mask": polygons(
            boxes((0, 0, WIDTH / 4, HEIGHT / 2)), transformations={"micrometers": Scale([1.0], axes=("x",))})}},
        "labels": {"labels": {"mask": mask_labels(half)}},
        "pyramid": {"labels": {"mask": mask_labels(half, scale_factors=[2])}},
        "coarse labels": {"labels": {"mask": mask_labels(half[::2, ::2], transformations=coarse)}},
    }  # fmt: skip


@pytest.mark.parametrize("kind", masks())
def test_tissue_of_any_kind_clips(kind):
    sdata = make_spots(**masks()[kind])
    assert tissue(sdata, "mask", "image").symmetric_difference(shapely.box(0, 0, WIDTH / 2, HEIGHT)).area < 1e-9
    element = circles([[60.0, 50.0], [120.0, 100.0], [180.0, 50.0]], 10.0)
    sdata.shapes["it"] = element
    shapes, area, on_image = shapes_in_pixels(
        sdata, "image", "it", region=tissue(sdata, "mask", "image", step=2.0), step=2.0
    )
    np.testing.assert_allclose(_coverage.areas(shapes) / area, [1.0, 0.5, 0.0], rtol=1e-5)
    assert on_image.all()  # of the tissue it says nothing


def test_tissue_of_circles():
    sdata = make_spots(shapes={"mask": circles([[50.0, 50.0], [100.0, 50.0]], 30.0)})
    both = tissue(sdata, "mask", "image")
    lens = 2 * 30**2 * np.arccos(25 / 30) - 25 * np.sqrt(4 * 30**2 - 50**2)
    assert both.area == pytest.approx(2 * np.pi * 900 - lens, rel=1e-3)


def test_clipping_by_parts_is_clipping():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    reach = 60 + 8 * rng.random(4000)
    coast = shapely.Polygon(np.stack([100 + reach * np.cos(angle), 100 + reach * np.sin(angle)], axis=1))
    region = shapely.MultiPolygon([coast, shapely.box(180, 0, 200, 200)])
    xy = rng.uniform(0, 200, (500, 2))
    bins = shapely.box(xy[:, 0], xy[:, 1], xy[:, 0] + 9, xy[:, 1] + 9)
    geometry = np.concatenate([shapely.points(xy), bins, [shapely.Polygon()] * 3])
    shapes = _coverage.Shapes(geometry, np.concatenate([rng.uniform(0.5, 8, 500), np.full(503, np.nan)]))
    at_once, by_parts = _coverage.clip(shapes, region), clip_locally(shapes, region)
    whole, parts = at_once.geometry, by_parts.geometry
    np.testing.assert_array_equal(by_parts.radius, at_once.radius)
    np.testing.assert_array_equal(shapely.is_empty(parts), shapely.is_empty(whole))
    np.testing.assert_allclose(shapely.area(parts), shapely.area(whole), rtol=1e-9)
    assert shapely.area(shapely.symmetric_difference(parts, whole)).max() < 1e-9
    assert 100 < at_once.circle.sum() < 400 and shapely.is_empty(whole).sum() > 100


def test_tissue_that_is_not_there():
    sdata = make_spots(labels={"mask": mask_labels(np.ones((HEIGHT, WIDTH)))})
    with pytest.raises(
        ValueError, match=r"no tissue shapes or labels 'masks'. Closest: 'mask'. Pass tissue_key= one of"
    ):
        tissue(sdata, "masks", "image")
    empty = make_spots(labels={"mask": mask_labels(np.zeros((HEIGHT, WIDTH)))})
    with pytest.raises(ValueError, match="labels 'mask' hold no tissue: every pixel is 0"):
        tissue(empty, "mask", "image")


def test_tissue_beside_the_image_leaves_nothing():
    sdata = make_spots(shapes={"mask": polygons(boxes((500, 500, 600, 600)))})
    shapes, *_ = shapes_in_pixels(sdata, "image", "spots", region=tissue(sdata, "mask", "image"))
    assert shapely.is_empty(shapes.geometry).all()


def test_all_outside_is_an_error_and_one_inside_is_not():
    nothing = _coverage.Shapes([shapely.Polygon(), shapely.Polygon()], [np.nan, np.nan])
    with pytest.raises(ValueError, match="all 2 shapes of 'cells' lie outside image 'he' and the tissue 'mask'"):
        check_some_inside(nothing, shapes_key="cells", image_key="he", tissue_key="mask")
    one = _coverage.Shapes([shapely.Polygon(), shapely.Point(1, 1)], [np.nan, 1.0])
    check_some_inside(one, shapes_key="cells", image_key="he")
