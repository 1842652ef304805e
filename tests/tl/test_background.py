"""Shapes and maps on bare glass are told of, and so are measured spots that do not lie on the tissue."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import shapely
from geopandas import GeoDataFrame
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, Translation, set_transformation

RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def slide(make):
    """The section of colours in the left upper corner of a slide of glass, four times as large."""
    sdata = make(5, n=60)
    pixels = np.full((3, 1024, 1024), 238, np.uint8)
    pixels[:, :512, :512] = sdata.images["image"].to_numpy()
    systems = {"global": Identity(), "micrometers": Scale([1.0, 1.0], axes=("x", "y"))}
    sdata.images["image"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=systems
    )
    return sdata


def test_tiles_on_glass_are_told_of_with_the_way_out(slide, ridge):
    import stpredict as stp

    stp.pp.tile_grid(slide, diameter_um=64.0)
    said = r"7\d% of the 256 shapes of 'tiles' is background.*pp\.tissue.*tissue_key="
    with pytest.warns(UserWarning, match=said) as caught:
        stp.tl.predict(slide, ridge, shapes_key="tiles", **RUN)
    assert caught[0].filename == __file__


def test_a_map_of_glass_is_told_of_and_one_that_is_cut_is_not(slide, pixnet):
    import stpredict as stp

    with pytest.warns(UserWarning, match=r"7\d% of the image 'image' is background") as caught:
        stp.tl.predict(slide, pixnet, shapes_key="spots", output="raster", **RUN)
    assert caught[0].filename == __file__
    stp.pp.tissue(slide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stp.tl.predict(slide, pixnet, output="both", tissue_key="tissue", key_added="cut", **RUN)
    assert 0.2 < np.isfinite(slide.images["cut"].to_numpy()[0]).mean() < 0.3


def test_points_of_a_map_on_glass_say_nothing_of_the_tissue(slide, pixnet, monkeypatch):
    import stpredict as stp
    from stpredict.tl import _domain

    seen = []

    def percentiles(model, sdata, spec, section, *, skipped):
        seen.append((shapely.get_coordinates(section.geometry), skipped))
        return None, None

    monkeypatch.setattr(_domain, "_percentiles", percentiles)
    with pytest.warns(UserWarning, match=r"7\d% of the image 'image' is background") as caught:
        stp.tl.predict(slide, pixnet, shapes_key="spots", output="raster", **RUN)
    assert caught[0].filename == __file__
    ((points, skipped),) = seen
    side = points.max() / 2
    on_tissue = (points < 0.95 * side).all(axis=1)
    off_it = (points > 1.05 * side).any(axis=1)
    assert on_tissue.sum() > 50 and off_it.sum() > 150
    assert skipped[off_it].all() and not skipped[on_tissue].any()


def test_spots_on_their_tissue_are_not_warned_of(slide, ridge):
    import stpredict as stp

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stp.tl.predict(slide, ridge, **RUN)


@pytest.mark.parametrize("verb", ["predict", "train"])
def test_measured_spots_off_the_tissue_are_shifted(slide, ridge, verb):
    import stpredict as stp

    shift = Translation([300.0, 300.0], axes=("x", "y"))
    set_transformation(slide.shapes["spots"], {"global": shift, "micrometers": shift}, set_all=True)
    with pytest.warns(UserWarning, match=r"\d\d% of the 60 measured spots in 'spots' lie on bare glass, so .*shifted"):
        if verb == "predict":
            stp.tl.predict(slide, ridge, **RUN)
        else:
            stp.tl.train(slide, stp.models.Ridge(["red", "blue"], mpp=1.0), progress=False)


def test_spots_that_the_table_says_lie_off_the_tissue_are_not_shifted(slide, ridge):
    import stpredict as stp

    table = slide.tables["table"]
    spots = slide.shapes["spots"]
    lost = np.arange(len(spots)) < 20
    places = np.where(lost, shapely.points(800, 100 + 40 * np.arange(len(spots)) % 900), spots.geometry)
    moved = GeoDataFrame({"radius": spots["radius"].to_numpy()}, geometry=places, index=spots.index)
    slide.shapes["spots"] = ShapesModel.parse(moved, transformations={"global": Identity()})
    table.obs["in_tissue"] = (~lost).astype(int)
    with pytest.warns(UserWarning, match=r"33% of the 60 shapes of 'spots' is background"):
        stp.tl.predict(slide, ridge, mpp=1.0, **RUN)


def test_a_picture_too_small_to_show_glass_is_not_judged(make, ridge):
    import stpredict as stp

    sdata = make(6, size=160, n=3)
    sdata.images["image"] = Image2DModel.parse(
        np.full((3, 160, 160), 240, np.uint8), dims=("c", "y", "x"), c_coords=["r", "g", "b"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stp.tl.predict(sdata, ridge, mpp=1.0, **RUN)
