"""Lists of stores, results that are there already, and what a store lacks: told before any work, by name."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import shapely
from spatialdata import read_zarr
from spatialdata.models import ShapesModel

RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def stored(make, tmp_path):
    """A function that writes a small object, with two outlines of tissue, to a store of that name."""

    def write(name):
        sdata = make(7, size=512)
        for key, side in (("left", 256), ("all", 512)):
            sdata.shapes[key] = ShapesModel.parse(_frame(sdata, shapely.box(0, 0, side, 512)))
        sdata.write(tmp_path / f"{name}.zarr")
        return tmp_path / f"{name}.zarr"

    return write


def _frame(sdata, polygon):
    """An outline as an element in the coordinate system of the spots."""
    import geopandas as gpd
    from spatialdata.transformations import get_transformation

    frame = ShapesModel.parse(gpd.GeoDataFrame(geometry=[polygon]))
    frame.attrs["transform"] = get_transformation(sdata.shapes["spots"], get_all=True)
    return frame


def _predict(sdata, model, **settings):
    import stpredict as stp

    stp.tl.predict(sdata, model, **(RUN | {"shapes_key": "spots"} | settings))


def test_an_empty_list_and_stores_that_are_not_there_are_told_before_the_work(stored, ridge, tmp_path, files_of):
    one = stored("one")
    before = files_of(one)
    with pytest.raises(ValueError, match="there is nothing to predict: the list"):
        _predict([], ridge)
    gone = [tmp_path / "gone.zarr", one, tmp_path / "lost.zarr"]
    with pytest.raises(FileNotFoundError, match=r"there is no store '.*gone.zarr', '.*lost.zarr'"):
        _predict(gone, ridge)
    assert files_of(one) == before


def test_the_store_that_failed_is_named_and_those_before_it_are_done(stored, ridge, tmp_path):
    paths = [stored("one"), tmp_path / "empty.zarr", stored("two")]
    paths[1].mkdir()
    with pytest.raises(ValueError, match=r"'.*empty.zarr' cannot be read as a SpatialData store") as caught:
        _predict(paths, ridge)
    assert "empty.zarr, 2 of 3; those before it are done" in caught.value.__notes__[-1]
    assert "resume=True leaves what is done" in caught.value.__notes__[-1]
    layers = [read_zarr(path).tables["table"].layers for path in (paths[0], paths[2])]
    assert ["ridge" in each for each in layers] == [True, False]


def test_a_store_that_is_named_twice_is_told_before_the_work(stored, ridge, files_of):
    path = stored("slide")
    before = files_of(path)
    with pytest.raises(ValueError, match=r"these stores are named twice: \['.*slide.zarr'\]"):
        _predict([path, stored("other"), read_zarr(path)], ridge)
    assert files_of(path) == before


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"genes": ["red"]}, "genes"),
        ({"tissue_key": "left"}, "image, mpp or tissue; shapes"),  # which are cut at its outline
        ({"mpp": 0.9}, "image, mpp or tissue; shapes"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_a_finished_result_of_something_else_is_refused_and_says_of_what(stored, ridge, settings, what, files_of):
    path = stored("slide")
    _predict(path, ridge)
    before = files_of(path)
    with pytest.raises(ValueError, match=rf"a result called 'ridge' already, which differs .* in: {what}\. Pass"):
        _predict(path, ridge, resume=True, **settings)
    assert files_of(path) == before


def test_the_same_name_inside_other_shapes_is_another_table(stored, ridge):
    path = stored("slide")
    _predict(path, ridge)
    _predict(path, ridge, shapes_key="all", resume=True)
    assert read_zarr(path).tables["all_ridge"].n_obs == 1


def test_a_raster_of_another_step_or_of_features_is_another(stored, pixnet, ridge, caplog):
    path = stored("slide")
    _predict(path, pixnet, output="raster")
    for settings, what in (({"raster_mpp": 8.0}, "raster_mpp"), ({"output": "latent"}, "output")):
        with pytest.raises(ValueError, match=f"called 'pixnet' already, which differs from this call in: {what}"):
            _predict(path, pixnet, resume=True, **({"output": "raster"} | settings))
    with caplog.at_level(logging.INFO, logger="stpredict"):
        _predict(path, pixnet, output="raster", resume=True)
    assert "has 'pixnet' of this model already" in caplog.text
    _predict(path, pixnet, output="raster", raster_mpp=8.0, resume=True, overwrite=True)
    assert read_zarr(path).attrs["stpredict"]["images/pixnet"]["raster_mpp"] == 8.0


def test_the_same_call_again_leaves_tissue_and_layer_as_they_are(stored, ridge, caplog, files_of):
    path = stored("slide")
    with pytest.warns(UserWarning, match="shapes have nothing on the image and tissue"):
        _predict(path, ridge, tissue_key="left")
    before = files_of(path)
    with caplog.at_level(logging.INFO, logger="stpredict"):
        _predict(path, ridge, tissue_key="left", resume=True)
    assert "has 'ridge' of this model already" in caplog.text
    assert files_of(path) == before


def test_a_record_without_its_result_is_no_result(stored, ridge):
    import stpredict as stp

    path = stored("slide")
    sdata = read_zarr(path)
    stp.tl.embed(sdata, ridge, shapes_key="spots", key_added="ridge", **RUN)
    _predict(path, ridge, resume=True)
    assert "ridge" in read_zarr(path).tables["table"].layers


def test_a_record_that_does_not_say_how_its_layer_was_made_is_refused(stored, ridge):
    import stpredict as stp

    path = stored("slide")
    _predict(path, ridge)
    stp.tl.embed(read_zarr(path), ridge, shapes_key="spots", key_added="ridge", **RUN)  # takes the place of the record
    with pytest.raises(ValueError, match="called 'ridge' already, which differs from this call in: genes. Pass"):
        _predict(path, ridge, resume=True)


def test_a_raster_that_was_deleted_is_made_again(stored, pixnet):
    path = stored("slide")
    _predict(path, pixnet, output="raster")
    sdata = read_zarr(path)
    del sdata.images["pixnet"]  # its record stays
    sdata.delete_element_from_disk("pixnet")
    assert "images/pixnet" in read_zarr(path).attrs["stpredict"]
    _predict(path, pixnet, output="raster", resume=True)
    assert "pixnet" in read_zarr(path).images


def test_a_model_of_other_settings_is_another(stored, pixnet):
    path = stored("slide")
    _predict(path, pixnet)
    plain = pixnet.config
    try:
        pixnet.config = dataclasses.replace(plain, turns=2)
        with pytest.raises(ValueError, match="called 'pixnet' already, which differs .* in: settings of the model"):
            _predict(path, pixnet, resume=True)
    finally:
        pixnet.config = plain


def test_a_mistyped_tissue_is_told_as_such(stored, ridge):
    with pytest.raises(ValueError, match=r"no tissue shapes or labels 'lefd'. Closest: 'left'. Pass tissue_key="):
        _predict(stored("slide"), ridge, shapes_key=None, tissue_key="lefd")


def test_a_new_table_of_shapes_that_the_store_lacks_is_refused(stored, pixnet, files_of):
    import stpredict as stp

    path = stored("slide")
    _predict(path, pixnet, output="raster")
    sdata = read_zarr(path)
    sdata.shapes["drawn"] = _frame(sdata, shapely.box(10, 10, 90, 90))
    before = files_of(path)
    for write in (lambda: _predict(sdata, pixnet, shapes_key="drawn", key_added="p"),
                  lambda: stp.tl.aggregate(sdata, "pixnet", shapes_key="drawn")):  # fmt: skip
        with pytest.raises(ValueError, match=r"'drawn' are in memory only, .* sdata.write_element\('drawn'\) first"):
            write()
    assert files_of(path) == before
    sdata.write_element("drawn")
    stp.tl.aggregate(sdata, "pixnet", shapes_key="drawn")
    assert np.isfinite(read_zarr(path).tables["drawn_pixnet"].X).all()


def test_a_list_may_be_an_array_or_a_column_and_names_an_object_once(stored, pixnet, make):
    import pandas as pd

    import stpredict as stp

    paths = [str(stored(name)) for name in ("a", "b")]
    for k, listed in enumerate((np.array(paths), pd.Series(paths), tuple(paths))):
        stp.tl.predict(listed, pixnet, shapes_key="spots", key_added=f"key{k}", **RUN)
        assert all(f"key{k}" in read_zarr(path).tables["table"].layers for path in paths)
    sdata = make(7, size=512)
    with pytest.raises(ValueError, match="an object is given twice"):
        stp.tl.predict([sdata, sdata], pixnet, shapes_key="spots", overwrite=True, **RUN)
    assert "pixnet" not in sdata.tables["table"].layers
