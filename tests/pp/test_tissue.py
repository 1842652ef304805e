"""The outline of tissue on simulated slides whose tissue is known, and on real ones."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

from stpredict import datasets, pp
from stpredict._spatialdata import resolve_shapes

UM = 2.0  # per pixel


def slide(tissue, *, hole=None, marks=(), seed=0, scale_factors=(2, 2)) -> SpatialData:
    """Glass of 2.4 x 2.4 mm with textured tissue where the shape says, in um; `marks` are dark, as hair and dust."""
    rng, n = np.random.default_rng(seed), 1200
    y, x = (np.mgrid[:n, :n] + 0.5) * UM
    on = shapely.contains_xy(tissue, x, y)
    if hole is not None:
        on &= ~shapely.contains_xy(hole, x, y)
    rgb = np.stack([np.full((n, n), level) for level in (236, 228, 233)]) + rng.normal(0, 1.5, (3, n, n))
    stain = np.array([170.0, 110, 160])[:, None, None] + rng.normal(0, 40, (1, n // 4, n // 4)).repeat(4, 1).repeat(
        4, 2
    )
    rgb = np.where(on, stain, rgb)
    for mark in marks:
        rgb = np.where(shapely.contains_xy(mark, x, y), 60, rgb)
    image = Image2DModel.parse(
        np.clip(rgb, 0, 255).astype(np.uint8), dims=("c", "y", "x"), c_coords=["r", "g", "b"],
        transformations={"global": Identity(), "micrometers": Scale([UM, UM], axes=("x", "y"))},
        scale_factors=list(scale_factors) or None,
    )  # fmt: skip
    return SpatialData(images={"image": image})


def outline(sdata, key="tissue"):
    """The tissue in micrometres."""
    return shapely.transform(shapely.union_all(sdata.shapes[key].geometry), lambda xy: xy * UM)


def overlap(a, b):
    return shapely.intersection(a, b).area / shapely.union(a, b).area


DISK = shapely.Point(1100, 1200).buffer(800)


@pytest.mark.parametrize("levels", [(), (2, 2)])
def test_the_outline_is_that_of_the_tissue(levels):
    sdata = slide(DISK, scale_factors=levels)
    assert pp.tissue(sdata) is None
    assert overlap(outline(sdata), DISK) > 0.96
    assert set(get_transformation(sdata.shapes["tissue"], get_all=True)) == {"global", "micrometers"}
    np.testing.assert_allclose(sdata.shapes["tissue"]["tissue_mm2"].sum(), outline(sdata).area / 1e6)


def test_hair_dust_and_fiducial_marks_are_left_out_and_parts_come_by_size():
    small = shapely.Point(2100, 300).buffer(220)
    hair = shapely.LineString([(50, 2300), (2300, 2200)]).buffer(8)
    dots = [shapely.Point(60 + 120 * i, 60).buffer(35) for i in range(12)]
    sdata = slide(shapely.union(DISK, small), marks=[hair, *dots])
    pp.tissue(sdata, key_added="outline")
    parts = sdata.shapes["outline"].geometry
    assert len(parts) == 2 and parts[0].area > parts[1].area
    assert overlap(outline(sdata, "outline"), shapely.union(DISK, small)) > 0.95


def test_large_holes_show_glass_and_small_ones_are_tissue():
    lumen, cell = shapely.Point(1100, 1200).buffer(250), shapely.Point(800, 900).buffer(30)
    sdata = slide(DISK, hole=shapely.union(lumen, cell))
    pp.tissue(sdata)
    found = outline(sdata)
    assert not shapely.contains_xy(found, 1100, 1200) and shapely.contains_xy(found, 800, 900)
    assert overlap(found, DISK - lumen) > 0.93


def test_tissue_that_fills_the_picture_is_the_picture():
    sdata = slide(shapely.box(0, 0, 2400, 2400))
    pp.tissue(sdata)
    assert overlap(outline(sdata), shapely.box(0, 0, 2400, 2400)) > 0.99


def test_glass_alone_holds_no_tissue():
    sdata = slide(shapely.Polygon(), marks=[shapely.Point(1000, 1000).buffer(20)])
    with pytest.raises(ValueError, match=r"no tissue was found in image 'image'.*mpp="):
        pp.tissue(sdata)
    assert list(sdata.shapes) == []


def test_the_outline_is_never_taken_for_spots_and_a_store_keeps_it(tmp_path):
    sdata = slide(DISK)
    sdata.write(tmp_path / "slide.zarr")
    sdata = read_zarr(tmp_path / "slide.zarr")
    pp.tissue(sdata)
    with pytest.raises(ValueError, match="no shapes to work in"):
        resolve_shapes(sdata)
    pp.tile_grid(sdata, diameter_um=100.0, tissue_key="tissue")
    assert resolve_shapes(read_zarr(tmp_path / "slide.zarr")) == "tiles"
    with pytest.raises(ValueError, match="there is a .*'tissue' already"):
        pp.tissue(sdata)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_tiles_lie_on_the_tissue_by_half_or_more(shape):
    sdata = slide(DISK)
    pp.tissue(sdata)
    pp.tile_grid(sdata, diameter_um=80.0, shape=shape, key_added="all")
    pp.tile_grid(sdata, diameter_um=80.0, shape=shape, key_added="some", tissue_key="tissue")
    region = shapely.union_all(sdata.shapes["tissue"].geometry)

    def pixels(key):
        frame = sdata.shapes[key]
        geometry = frame.geometry.to_numpy()
        return shapely.buffer(geometry, 20.0, quad_segs=64) if shape == "circle" else geometry

    whole = pixels("all")
    share = shapely.area(shapely.intersection(whole, region)) / shapely.area(whole)
    assert abs(len(sdata.shapes["some"]) - (share >= 0.5).sum()) <= (np.abs(share - 0.5) < 1e-3).sum()
    kept = pixels("some")
    assert (shapely.area(shapely.intersection(kept, region)) / shapely.area(kept)).min() > 0.499
    assert sdata.shapes["some"].index.tolist() == list(range(len(kept)))


def test_no_tile_on_the_tissue_is_said():
    sdata = slide(shapely.Point(1100, 1200).buffer(250))
    pp.tissue(sdata)
    with pytest.raises(ValueError, match=r"not one of the \d+ squares lies on the tissue 'tissue' by half"):
        pp.tile_grid(sdata, diameter_um=1100.0, shape="square", tissue_key="tissue")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["C2", "C5"])
def test_spots_of_real_sections_lie_on_their_tissue(data, name):
    (sdata,) = datasets.her2st([name], path=data / "her2st")
    pp.tissue(sdata)
    spots = shapely.points(shapely.get_coordinates(sdata.shapes["spots"].geometry.to_numpy()))
    region = shapely.union_all(sdata.shapes["tissue"].geometry)
    assert shapely.contains(region, spots).mean() > 0.97
    assert 7.0 < sdata.shapes["tissue"]["tissue_mm2"].sum() < 8.2  # by hand: 15 to 16 % of 6.4 x 6.8 mm, and lumina
