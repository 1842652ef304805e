"""Affines between elements, against spatialdata's own transformation of the shapes."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from spatialdata import SpatialData, transform
from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation

from stpredict._spatialdata import affines, is_micrometres, pixel_size, relative_affine
from stpredict._spatialdata._transformations import anisotropy

from .builders import boxes, mask_labels, matrix, polygons, rgb

XY = ("x", "y")
TRANSFORMATIONS = {
    "identity": Identity(),
    "turn": Affine(matrix(0.7, shift=(5, -3)), XY, XY),
    "shear and flip": Affine(matrix(0.2, scale=(2.0, 0.7), shear=0.4, flip=True), XY, XY),
    "anisotropic scale": Scale([0.3, 1.9], axes=("y", "x")),
    "swapped axes": MapAxis({"x": "y", "y": "x"}),
    "sequence": Sequence([
        MapAxis({"x": "y", "y": "x"}),
        Scale([2.0], axes=("x",)),
        Sequence([Translation([4.0, -9.0], axes=("y", "x")), Affine(matrix(1.1, shear=0.3), XY, XY)]),
    ]),
    "with channels": Affine(
        np.array([[1, 0, 0, 0], [0, 0.9, 0.2, 3], [0, -0.1, 1.1, -2], [0, 0, 0, 1.0]]), ("c", "y", "x"), ("c", "y", "x")
    ),
}  # fmt: skip
SQUARE = boxes((3, 4, 20, 31))


def corners_by_spatialdata(element, system):
    return shapely.get_coordinates(transform(element, to_coordinate_system=system).geometry.to_numpy())


@pytest.mark.parametrize("of_image", list(TRANSFORMATIONS))
@pytest.mark.parametrize("of_shapes", [name for name in TRANSFORMATIONS if name != "with channels"])
def test_pixels_and_shapes_meet_in_the_common_system(of_image, of_shapes):
    image = rgb(50, 60, transformations={"common": TRANSFORMATIONS[of_image]})
    shapes = polygons(SQUARE, transformations={"common": TRANSFORMATIONS[of_shapes]})
    sdata = SpatialData(images={"image": image}, shapes={"shapes": shapes})
    affine = relative_affine(sdata, "shapes", "image")
    assert affine.dtype == np.float64 and affine[2].tolist() == [0, 0, 1]

    own = shapely.get_coordinates(SQUARE)
    in_pixels = (np.c_[own, np.ones(len(own))] @ affine.T)[:, :2]
    # the same corners, said in pixels and brought to the common system by spatialdata
    as_pixels = polygons([shapely.Polygon(in_pixels)], transformations={"common": TRANSFORMATIONS[of_image]})
    np.testing.assert_allclose(
        corners_by_spatialdata(as_pixels, "common"), corners_by_spatialdata(shapes, "common"), atol=1e-9
    )


def test_there_and_back_is_the_identity():
    image = rgb(50, 60, transformations={"a": TRANSFORMATIONS["shear and flip"]})
    shapes = polygons(SQUARE, transformations={"a": TRANSFORMATIONS["sequence"]})
    sdata = SpatialData(images={"image": image}, shapes={"shapes": shapes})
    there, back = relative_affine(sdata, "shapes", "image"), relative_affine(sdata, "image", "shapes")
    np.testing.assert_allclose(there @ back, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(relative_affine(sdata, "image", "image"), np.eye(3))


@pytest.mark.parametrize("scale_factors", [[2], [2, 2]])
def test_a_pyramid_has_the_frame_of_its_finest_level(scale_factors):
    systems = {"a": TRANSFORMATIONS["turn"]}
    sdata = SpatialData(
        images={"flat": rgb(51, 67, transformations=systems),
                "pyramid": rgb(51, 67, transformations=systems, scale_factors=scale_factors)},
        labels={"labels": mask_labels(np.ones((51, 67)), transformations=systems, scale_factors=scale_factors)},
    )  # fmt: skip
    np.testing.assert_allclose(relative_affine(sdata, "flat", "pyramid"), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(relative_affine(sdata, "labels", "flat"), np.eye(3), atol=1e-12)


def make_two(shift_px):
    """Shapes in pixels and in micrometres (0.25 um per pixel), the second system off by `shift_px` pixels."""
    image = rgb(50, 60, transformations={"global": Identity(), "um": Scale([0.25, 0.25], axes=XY)})
    um = Sequence([Scale([0.25, 0.25], axes=XY), Translation([0.25 * shift_px], axes=("x",))])
    shapes = polygons(SQUARE, transformations={"global": Identity(), "um": um, "elsewhere": Scale([9.0], axes=("y",))})
    return SpatialData(images={"image": image}, shapes={"shapes": shapes})


def test_systems_that_agree_give_one_answer():
    np.testing.assert_allclose(relative_affine(make_two(0.05), "shapes", "image"), np.eye(3), atol=1e-12)


@pytest.mark.parametrize("shift_px", [0.2, 40.0])
def test_systems_that_disagree_are_named_with_their_distance(shift_px):
    with pytest.raises(ValueError, match=f"place 'shapes' differently: against 'global', 'um' by {shift_px:.3g} px"):
        relative_affine(make_two(shift_px), "shapes", "image")


def test_no_common_system_lists_both():
    sdata = SpatialData(
        images={"image": rgb(9, 9, transformations={"a": Identity(), "b": Identity()})},
        shapes={"shapes": polygons(SQUARE, transformations={"c": Identity()})},
    )
    with pytest.raises(ValueError, match=r"share no coordinate system.*\['c'\].*\['a', 'b'\].*set_transformation"):
        relative_affine(sdata, "shapes", "image")


def test_a_system_onto_which_the_plane_is_mapped_flat_does_not_count():
    flat = Affine(np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), XY, XY)
    sdata = SpatialData(shapes={"shapes": polygons(SQUARE, transformations={"flat": flat, "good": Identity()})})
    assert list(affines(sdata, "shapes")) == ["good"]


@pytest.mark.parametrize("name", ["um", "UM", "\u00b5m", "\u03bcm", "micron", "Microns", "micrometer", "micrometers",
                                  "Micrometre", " micrometres"])  # fmt: skip
def test_names_of_micrometres(name):
    assert is_micrometres(name)


@pytest.mark.parametrize("name", ["global", "umap", "mm", "pixels", ""])
def test_other_names_are_no_micrometres(name):
    assert not is_micrometres(name)


def test_size_and_stretch_of_a_pixel():
    affine = matrix(0.4, scale=(0.5, 0.8), flip=True, shift=(7, 7))
    assert pixel_size(affine) == pytest.approx(np.sqrt(0.4))
    assert anisotropy(affine) == pytest.approx(1.6)


@pytest.mark.parametrize(("system", "is_one"), [
    ("micrometers", True), ("um", True), ("Micrometres", True), ("micrometers-s1", True), ("microns_sample", True),
    ("um-s1", False), ("micrometersx", False), ("global-s1", False),
])  # fmt: skip
def test_names_of_systems_in_micrometres(system, is_one):
    assert is_micrometres(system) == is_one
