"""Micrometres per pixel: the order of sources, known arrays, levels of the pyramid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from shapely import affinity
from spatialdata import SpatialData
from spatialdata.transformations import Affine, Identity, Scale

from stpredict._spatialdata import DIAMETER_COLUMN, check_resolution, image_mpp
from stpredict._spatialdata._transformations import level_scale, spot_array

from .builders import boxes, circles, matrix, polygons, rgb, square_grid, systems

XY = ("x", "y")


def hexagonal(n_y=12, n_x=12, pitch=100.0):
    y, x = np.mgrid[:n_y, :n_x].astype(float)
    return np.stack([(x + (y % 2) / 2) * pitch, y * pitch * np.sqrt(3) / 2], axis=-1).reshape(-1, 2) + 60.0


def spots_only(xy, radius, *, of_shapes=None, of_image=None):
    """An image without micrometres, and circles on it."""
    image = rgb(40, 50, transformations=of_image or {"global": Identity()})
    shapes = circles(xy, radius, transformations=of_shapes or {"global": Identity()})
    return SpatialData(images={"image": image}, shapes={"spots": shapes})


def test_the_argument_wins(spots):
    assert image_mpp(spots, "image", mpp=0.31) == 0.31


@pytest.mark.parametrize("mpp", [0, -0.5, float("nan"), float("inf")])
def test_an_argument_that_is_no_size_is_refused(spots, mpp):
    with pytest.raises(ValueError, match=rf"mpp must be a positive number.*got {mpp}"):
        image_mpp(spots, "image", mpp=mpp)


@pytest.mark.parametrize("name", ["um", "\u00b5m", "Microns", "micrometers"])
def test_a_micrometre_system_is_taken_by_its_area(name):
    um = Affine(matrix(0.8, scale=(0.5, 0.5), flip=True, shift=(3, 4)), XY, XY)
    sdata = SpatialData(images={"image": rgb(9, 9, transformations={"global": Identity(), name: um})})
    assert image_mpp(sdata, "image") == pytest.approx(0.5, rel=1e-12)


def test_the_system_comes_before_the_spots():
    sdata = spots_only(hexagonal(), 27.5, of_image=systems(0.7))
    assert image_mpp(sdata, "image") == pytest.approx(0.7)


def test_a_pyramid_has_the_mpp_of_its_finest_level():
    sdata = SpatialData(images={"image": rgb(51, 67, scale_factors=[2, 2], transformations=systems(0.5))})
    assert image_mpp(sdata, "image") == pytest.approx(0.5)


def test_stretched_pixels_warn_and_give_the_geometric_mean():
    def stretched(x):
        um = Scale([x, 0.5], axes=XY)
        return SpatialData(images={"image": rgb(9, 9, transformations={"um": um})})

    assert image_mpp(stretched(0.6), "image") == pytest.approx(np.sqrt(0.3))
    with pytest.warns(UserWarning, match=r"pixels of image 'image' are stretched: one side is 1.30 times"):
        assert image_mpp(stretched(0.65), "image") == pytest.approx(np.sqrt(0.325))


def test_micrometre_systems_that_disagree_are_named():
    um = {"um": Scale([0.5, 0.5], axes=XY), "microns": Scale([0.6, 0.6], axes=XY)}
    sdata = SpatialData(images={"image": rgb(9, 9, transformations=um)})
    with pytest.raises(ValueError, match=r"disagree.*'um': 0.5, 'microns': 0.6.*Pass mpp="):
        image_mpp(sdata, "image")


def test_nothing_to_go_by_names_the_three_ways():
    sdata = SpatialData(images={"image": rgb(9, 9, transformations={"global": Identity()})})
    with pytest.raises(
        ValueError, match=r"Three ways.*pass mpp=.*'micrometers'.*known array.*\['global'\]; shapes: \[\]"
    ):
        image_mpp(sdata, "image")


@pytest.mark.parametrize(("xy", "radius", "um_per_unit"), [
    (hexagonal(), 27.5, 1.0),  # Visium as printed: 55 um at 100 um
    (hexagonal(), 32.5, 1.0),  # Visium as Space Ranger draws it: 65 um
    (hexagonal(pitch=137.6), 89.4525 / 2, 65 / 89.4525),  # the example of 10x Genomics' manual
    (square_grid(12, 12, pitch=290.0), 72.5, 100 / 145),  # legacy ST
])  # fmt: skip
def test_known_arrays(xy, radius, um_per_unit):
    _, found = spot_array(xy, np.full(len(xy), radius))
    assert found == pytest.approx(um_per_unit, rel=1e-9)


def test_an_array_with_holes_and_jitter_is_still_known():
    rng = np.random.default_rng(0)
    xy = square_grid(14, 14, pitch=290.0)
    xy = xy[rng.random(len(xy)) > 0.2]
    _, found = spot_array(xy + rng.normal(0, 6, xy.shape), np.full(len(xy), 72.5))
    assert found == pytest.approx(100 / 145)  # by the diameter: jitter does not reach it


@pytest.mark.parametrize(("xy", "radius"), [
    (hexagonal(), np.full(144, 10.0)),  # spots far apart
    (hexagonal(), np.full(144, 50.0)),  # touching
    (square_grid(12, 12, pitch=100.0), np.full(144, 27.5)),  # Visium's ratio, another grid
    (hexagonal(), np.linspace(26.0, 29.0, 144)),  # cells of many sizes
    (hexagonal(1, 9), np.full(9, 27.5)),  # too few
    (np.random.default_rng(0).uniform(0, 1200, (144, 2)), np.full(144, 27.5)),  # no grid
])  # fmt: skip
def test_what_is_no_known_array(xy, radius):
    assert spot_array(xy, radius) is None


def test_spots_give_the_mpp_through_any_affine():
    # spots in micrometres / 3, turned and mirrored onto an image of 0.4 um per pixel
    to_pixels = Affine(matrix(0.6, scale=(3 / 0.4, 3 / 0.4), flip=True, shift=(50, 9)), XY, XY)
    sdata = spots_only(hexagonal() / 3, 27.5 / 3, of_shapes={"global": to_pixels})
    assert image_mpp(sdata, "image", "spots") == pytest.approx(0.4)
    assert image_mpp(sdata, "image") == pytest.approx(0.4)


def test_spots_help_where_other_shapes_are_read():
    sdata = spots_only(hexagonal(), 27.5)
    sdata.shapes["cells"] = polygons(boxes((1, 1, 9, 9)), transformations={"global": Identity()})
    assert image_mpp(sdata, "image", "cells") == pytest.approx(1.0)


def test_the_shapes_that_are_asked_come_first():
    sdata = spots_only(hexagonal(), 27.5)
    sdata.shapes["others"] = circles(hexagonal(pitch=50.0), 13.75, transformations={"global": Identity()})
    assert image_mpp(sdata, "image", "others") == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"arrays of spots disagree.*'others': 2, 'spots': 1"):
        image_mpp(sdata, "image")


def test_spots_elsewhere_say_nothing():
    sdata = spots_only(hexagonal(), 27.5, of_shapes={"elsewhere": Identity()})
    with pytest.raises(ValueError, match="Three ways"):
        image_mpp(sdata, "image")


def test_a_stated_diameter_comes_before_the_grid():
    # 50 um at a pitch of 100 um would look like legacy ST of twice the size
    sdata = spots_only(square_grid(6, 6, pitch=200.0), 50.0)
    assert image_mpp(sdata, "image") == pytest.approx(1.0)
    sdata.shapes["spots"][DIAMETER_COLUMN] = 50.0
    assert image_mpp(sdata, "image") == pytest.approx(0.5)


def test_shapes_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match="no shapes 'spot'. Closest: 'spots'"):
        image_mpp(spots_only(hexagonal(), 27.5), "image", "spot")


def her2st_spots(folder):
    table = pd.read_csv(folder / "her2st" / "C5_selection.tsv", sep="\t")
    return table.loc[table.selected == 1, ["pixel_x", "pixel_y"]].to_numpy(float)


def csv_spots(folder, name):
    return pd.read_csv(folder / name)[["x_px", "y_px"]].to_numpy(float)


@pytest.mark.parametrize(("read", "diameter_um", "mpp"), [
    (her2st_spots, 100.0, 0.69),
    (lambda folder: csv_spots(folder, "mob/MOB1_spots.csv"), 100.0, 3.44),
    (lambda folder: csv_spots(folder, "mouse_colon/d0_spots.csv"), 55.0, 0.971),
])  # fmt: skip
def test_real_arrays_are_known(data, read, diameter_um, mpp):
    xy = read(data)
    _, found = spot_array(xy, np.full(len(xy), diameter_um / mpp / 2))
    assert found == pytest.approx(mpp)


def test_resolution_that_is_fine_says_nothing():
    check_resolution(0.25, 1.0, "image")
    check_resolution(1.25, 1.0, "image")


@pytest.mark.parametrize("image", [1.3, 2.0])
def test_a_coarser_image_warns(image):
    with pytest.warns(UserWarning, match=rf"image 'he' has {image:.4g} um per pixel, the model sees at 1: {image:.2f}"):
        check_resolution(image, 1.0, "he")


def test_a_much_coarser_image_raises():
    with pytest.raises(ValueError, match=r"image 'he' has 2.1 um per pixel.*2.10 times.*Use a finer image"):
        check_resolution(2.1, 1.0, "he")
    with pytest.raises(ValueError, match="at_mpp must be a positive number.*got 0"):
        check_resolution(1.0, 0, "he")


@pytest.mark.parametrize(("step", "best"), [(0.7, 0), (1.0, 0), (1.99, 0), (2.0, 1), (3.9, 1), (4.0, 2), (50.0, 2)])
def test_the_level_just_finer_than_needed(step, best):
    assert level_scale([(400, 800), (200, 400), (100, 200)], step) == (best, (step / 2**best, step / 2**best))


def test_a_level_counts_as_large_as_its_size_says():
    level, scale = level_scale([(9911, 9274), (4955, 4637), (2477, 2318)], 2.0)
    assert level == 1  # 9911 / 4955 is 2.0002: enlarged by 0.02 %, far below what can be seen
    np.testing.assert_allclose(np.array(scale) * [9911 / 4955, 2.0], 2.0, rtol=1e-12)


def test_a_level_that_is_coarse_along_one_axis_is_not_taken():
    assert level_scale([(100, 100), (50, 25)], 3.0)[0] == 0


@pytest.mark.parametrize(("name", "mpp"), [("_square_008um", 0.4), ("sample_square_016um", 0.8), ("bins", None)])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_bins_of_visium_hd_give_the_scale_by_their_name_and_side(name, mpp, turn):
    y, x = (at.ravel() * 20.0 + 30.0 for at in np.mgrid[:4, :5])
    squares = shapely.box(x, y, x + 20, y + 20)
    squares = [affinity.rotate(square, turn, origin=(0, 0), use_radians=True) for square in squares]
    image = rgb(transformations={"global": Identity()})
    shapes = polygons(squares, transformations={"global": Identity()})
    sdata = SpatialData(images={"image": image}, shapes={name: shapes})
    if mpp is None:
        with pytest.raises(ValueError, match="no micrometres per pixel can be found"):
            image_mpp(sdata, "image")
    else:
        assert image_mpp(sdata, "image") == pytest.approx(mpp)
