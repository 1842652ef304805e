"""Micrometres per pixel: the order of sources, known arrays, levels of the pyramid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from shapely import affinity
from spatialdata import SpatialData
from spatialdata.transformations import Affine, Identity, Scale, remove_transformation

from stpredict._spatialdata import DIAMETER_COLUMN, check_resolution, image_mpp, warn_of_mpp
from stpredict._spatialdata._arrays import spot_array
from stpredict._spatialdata._transformations import level_scale

from .builders import boxes, circles, counts_table, matrix, polygons, rgb, square_grid, systems

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
    assert image_mpp(spots, "image", mpp=0.45) == 0.45


@pytest.mark.parametrize("mpp", [0.43, 0.58, 1.0])
def test_an_argument_that_contradicts_a_micrometre_system_is_refused(spots, mpp):
    with pytest.raises(
        ValueError, match=rf"mpp={mpp:g} contradicts .*'micrometers' of image 'image'.*0.5 um.*remove_tra"
    ):
        image_mpp(spots, "image", mpp=mpp)
    remove_transformation(spots["image"], "micrometers")  # as the message says
    assert image_mpp(spots, "image", mpp=mpp) == mpp


def test_of_micrometre_systems_that_disagree_an_argument_chooses_one():
    um = {"um": Scale([0.5, 0.5], axes=XY), "microns": Scale([0.8, 0.8], axes=XY)}
    sdata = SpatialData(images={"image": rgb(9, 9, transformations=um)})
    assert image_mpp(sdata, "image", mpp=0.8) == 0.8
    with pytest.raises(ValueError, match="contradicts"):
        image_mpp(sdata, "image", mpp=0.65)


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


@pytest.mark.parametrize(
    ("name", "pitch", "mpp"), [("_square_008um", 20.0, 0.4), ("_square_008um", 40.0, None), ("bins", 20.0, None)]
)
def test_bins_that_are_drawn_as_circles(name, pitch, mpp):
    shapes = circles(square_grid(4, 5, pitch=pitch), 10.0, transformations={"global": Identity()})
    sdata = SpatialData(images={"image": rgb(transformations={"global": Identity()})}, shapes={name: shapes})
    if mpp is None:  # at twice their diameter they would be legacy spots of 100 um
        found = {20.0: None, 40.0: 5.0}[pitch]
        if found is None:
            with pytest.raises(ValueError, match="no micrometres per pixel can be found"):
                image_mpp(sdata, "image")
        else:
            assert image_mpp(sdata, "image") == pytest.approx(found)
    else:
        assert image_mpp(sdata, "image") == pytest.approx(mpp)


PIXEL = 0.2125  # of Xenium


def xenium(*, unit=1.0, he_mpp=0.5, stated=1.03, columns=True, as_circles=False):
    """What spatialdata-io makes of Xenium: an H&E image by an affine in a frame of Xenium's pixels, cells in um.

    `unit`: micrometres per unit of the cells' frame; `stated`: area in the table over that of the outline.
    """
    rng = np.random.default_rng(1)
    xy, radius = rng.uniform(10, 80, (30, 2)) / unit, rng.uniform(3, 6, 30) / unit
    frame = {"global": Scale([unit / PIXEL] * 2, axes=XY)}
    ids = [f"c{i}" for i in range(30)]
    angle = np.linspace(0, 2 * np.pi, 13)[:-1]
    corner = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outline = [shapely.Polygon(at + r * corner) for at, r in zip(xy, radius, strict=True)]
    cells = polygons(outline, ids=ids, transformations=frame)
    area = np.array([shape.area for shape in outline]) * unit**2
    if as_circles:
        cells, area = circles(xy, radius, ids=ids, transformations=frame), np.pi * (radius * unit) ** 2
    table = counts_table(ids, region="cells")
    named = {"cell_area": area * stated, "transcript_counts": 9, "control_probe_counts": 0, "total_counts": 9}
    if columns:
        table.obs = table.obs.assign(cell_id=ids, **named)
    table = table[::-1].copy()  # joined by id
    to_global = Affine(matrix(0.4, scale=(he_mpp / PIXEL,) * 2, flip=True, shift=(30, 7)), XY, XY)
    image = rgb(transformations={"global": to_global})
    return SpatialData(images={"he_image": image}, shapes={"cells": cells}, tables={"table": table})


@pytest.mark.parametrize(("unit", "as_circles", "tolerance"), [
    (1.0, False, 1e-9), (1.0, True, 1e-9),  # outlines in micrometres, as spatialdata-io reads them
    (PIXEL, False, 1e-9),  # transformed to "global"
    (3.0, False, 0.02),  # of an unknown unit: as exact as the outlines are
])  # fmt: skip
def test_cells_of_xenium_give_the_scale_by_the_areas_in_their_table(unit, as_circles, tolerance):
    sdata = xenium(unit=unit, as_circles=as_circles)
    assert image_mpp(sdata, "he_image") == pytest.approx(0.5, rel=tolerance)


def test_areas_of_a_table_that_is_not_xeniums_say_nothing():
    with pytest.raises(ValueError, match="no micrometres per pixel can be found"):
        image_mpp(xenium(columns=False), "he_image")


def test_cells_of_other_ids_say_nothing():
    sdata = xenium()
    sdata.tables["table"].obs["cell_id"] = [f"other{i}" for i in range(30)]
    with pytest.raises(ValueError, match="no micrometres per pixel can be found"):
        image_mpp(sdata, "he_image")


class TestWarns:
    """Of a scale given by hand that shapes contradict; the picture is tested with `picture_mpp`."""

    def test_shapes_contradict(self):
        with pytest.warns(UserWarning, match=r"mpp=0.2125 um per pixel is hardly right.*shapes 'cells' say 0.5 by"):
            warn_of_mpp(xenium(), "he_image", "cells", PIXEL)
        with pytest.warns(UserWarning, match=r"mpp=1.5 um per pixel is hardly right.*shapes 'spots' say 1 by"):
            warn_of_mpp(spots_only(hexagonal(), 27.5), "image", None, 1.5)

    def test_what_fits_says_nothing(self, spots):
        warn_of_mpp(xenium(), "he_image", "cells", 0.52)
        warn_of_mpp(spots_only(hexagonal(), 27.5), "image", None, 1.1)
        warn_of_mpp(spots_only(hexagonal(), 27.5), "image", None, None)
        warn_of_mpp(spots, "image", None, 0.5)

    def test_shapes_that_cannot_be_placed_say_nothing(self):
        both = {"global": Identity(), "other": Identity()}
        apart = {"global": Identity(), "other": Scale([2.0, 2.0], axes=XY)}
        sdata = spots_only(hexagonal(), 27.5, of_shapes=apart, of_image=both)
        warn_of_mpp(sdata, "image", None, 5.0)
        with pytest.raises(ValueError, match="place 'spots' differently"):
            image_mpp(sdata, "image")
