"""A grid of shapes lies where it is said to lie, in every coordinate system of the image."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from spatialdata import SpatialData, read_zarr, transform
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

from stpredict import pp
from stpredict._spatialdata import image_mpp, section

from .builders import make_image

XY = ("x", "y")


@pytest.fixture
def slide():
    """40 x 90 px of 0.5 um: 20 x 45 um."""
    return SpatialData(images={"image": make_image()})


def test_touching_squares_tile_the_image_from_its_corner(slide):
    assert pp.tile_grid(slide, diameter_um=5.0, shape="square", key_added="bins") is None
    bins = slide.shapes["bins"]
    assert len(bins) == 4 * 9 and bins.index.tolist() == list(range(36))
    assert shapely.union_all(bins.geometry).equals(shapely.box(0, 0, 90, 40))
    assert bins.geometry.area.sum() == 90 * 40
    assert bins.geometry[1].bounds == (10, 0, 20, 10) and bins.geometry[9].bounds == (0, 10, 10, 20)  # row by row


def test_circles_at_a_pitch_lie_wholly_on_the_image(slide):
    pp.tile_grid(slide, diameter_um=4.0, pitch_um=6.0, key_added="spots")
    spots = slide.shapes["spots"]
    xy = shapely.get_coordinates(spots.geometry.to_numpy())
    assert (spots["radius"] == 4.0).all()
    x, y = (np.unique(column) for column in xy.T)
    np.testing.assert_allclose(x, 4.0 + 12.0 * np.arange(7))  # the eighth would end at 92 px
    np.testing.assert_allclose(y, 4.0 + 12.0 * np.arange(3))
    assert len(xy) == 21


def test_an_exact_fit_is_not_lost_to_rounding():
    sdata = SpatialData(images={"image": make_image(30, 30, mpp=0.1)})
    pp.tile_grid(sdata, diameter_um=0.3, shape="square", key_added="bins")
    assert len(sdata.shapes["bins"]) == 100


def test_every_coordinate_system_of_the_image_is_kept():
    image = make_image(scale_factors=[2])
    turn = Affine(np.array([[0.0, -2.0, 30], [1.5, 0.3, 4], [0, 0, 1]]), XY, XY)
    systems = {"global": turn, "micrometers": Scale([0.5, 0.5], axes=XY), "other": Sequence([turn, Scale([3], ("x",))])}
    set_transformation(image, systems, set_all=True)
    sdata = SpatialData(images={"image": image})
    pp.tile_grid(sdata, diameter_um=5.0, shape="square", key_added="bins")
    bins = sdata.shapes["bins"]
    assert set(get_transformation(bins, get_all=True)) == set(systems)
    for name, system in systems.items():
        matrix = system.to_affine_matrix(XY, XY)
        corner = np.array([10.0, 10.0, 1.0]) @ matrix.T
        found = shapely.get_coordinates(transform(bins, to_coordinate_system=name).geometry[10])
        assert np.abs(found - corner[:2]).max(axis=1).min() < 1e-9  # one of its corners is pixel (10, 10)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_the_mpp_can_be_said_and_is_remembered(shape):
    sdata = SpatialData(images={"image": make_image(mpp=None)})
    with pytest.raises(ValueError, match="Three ways"):
        pp.tile_grid(sdata, diameter_um=4.0, shape=shape, key_added="grid")
    pp.tile_grid(sdata, diameter_um=4.0, pitch_um=8.0, shape=shape, mpp=0.4, key_added="grid")
    np.testing.assert_allclose(np.ptp(sdata.shapes["grid"].geometry[0].bounds[::2]), 10.0 if shape == "square" else 0.0)
    assert image_mpp(sdata, "image", "grid") == pytest.approx(0.4)  # no second guess at what array this is


def test_a_grid_is_read_as_a_section(slide):
    pp.tile_grid(slide, diameter_um=5.0, shape="square", key_added="bins")
    found = section(slide, at_mpp=1.0)
    np.testing.assert_allclose(found.area, 25.0)
    assert found.n_shapes == 36 and not shapely.is_empty(found.geometry).any()


def test_a_backed_object_keeps_it_in_its_store(slide, tmp_path):
    slide.write(tmp_path / "x.zarr")
    sdata = read_zarr(tmp_path / "x.zarr")
    pp.tile_grid(sdata, diameter_um=5.0, key_added="grid")
    stored = read_zarr(tmp_path / "x.zarr")
    assert len(stored.shapes["grid"]) == 36
    assert get_transformation(stored.shapes["grid"], get_all=True)["global"] == Identity()
    assert image_mpp(stored, "image", "grid") == pytest.approx(0.5)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"diameter_um": 0}, "diameter_um=0 must be at least"),
    ({"diameter_um": 5, "pitch_um": -1}, "pitch_um=-1 must be at least"),
    ({"diameter_um": float("nan")}, "diameter_um=nan must be a finite number"),
    ({"diameter_um": 5, "shape": "hexagon"}, "shape='hexagon' must be one of 'circle', 'square'"),
    ({"diameter_um": 21}, r"no circle of 21 um fits on image 'image', which is 20 x 45 um.*\(0.5 was used\)"),
    ({"diameter_um": 5, "key_added": "image"}, "'image'"),
    ({"diameter_um": 5, "key_added": "a b"}, "'a b'"),
    ({"diameter_um": 5, "image_key": "he"}, "no image 'he'"),
    ({"diameter_um": 5, "mpp": 0}, "mpp=0 must lie in"),
])  # fmt: skip
def test_what_is_refused_changes_nothing(slide, arguments, said):
    with pytest.raises(ValueError, match=said):
        pp.tile_grid(slide, **({"key_added": "grid"} | arguments))
    assert not slide.shapes
