"""The latent image space: each row that of its own shape, and nothing but the obsm entry written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spatialdata import read_zarr

RUN = {"device": "cpu", "precision": "32", "progress": False}


def _embed(sdata, model, **settings):
    import stpredict as stp

    stp.tl.embed(sdata, model, **(RUN | settings))
    return sdata


def _state(sdata):
    tables = {
        name: (list(t.obs), list(t.var), sorted(k for k in t.layers if k), sorted(t.uns), sorted(t.obsm))
        for name, t in sdata.tables.items()
    }
    return [sorted(sdata.images), sorted(sdata.shapes), tables, str(sdata.attrs)]


def test_the_head_on_the_embedding_is_the_prediction(sdata, pixnet):
    import stpredict as stp

    _embed(sdata, pixnet)
    stp.tl.predict(sdata, pixnet, **RUN)
    table = sdata.tables["table"]
    embedding = table.obsm["X_pixnet"]
    assert embedding.dtype == np.float32
    with torch.inference_mode():
        query = pixnet.query(pixnet.genes).numpy()
    assert embedding.shape == (30, query.shape[1] - 1)  # without the constant
    wanted = table.layers["pixnet"][:, table.var["pixnet"]]
    np.testing.assert_allclose(embedding @ query[:, :-1].T + query[:, -1], wanted, rtol=1e-5)
    assert embedding.std(axis=0).max() > 0


def test_it_writes_the_entry_and_its_record_and_nothing_else(sdata, pixnet):
    table = sdata.tables["table"]
    columns = list(table.obs), list(table.var), list(table.layers)
    _embed(sdata, pixnet, key_added="seen")
    assert (list(table.obs), list(table.var), list(table.layers)) == columns
    record = sdata.attrs["stpredict"]["tables/table/obsm/seen"]
    assert record == table.uns["stpredict"]["seen"]
    assert (record["model"], record["mpp"], record["weights_sha256"][:3].isalnum()) == ("PixNet", 1.0, True)
    assert "genes" not in record


def test_a_shuffled_table_gets_each_row_of_its_own_shape(make, ridge):
    frames = []
    for shuffle in (False, True):
        table = _embed(make(7, shuffle=shuffle), ridge).tables["table"]
        order = np.argsort(table.obs["instance_id"].to_numpy())
        frames.append(table.obsm["X_ridge"][order])
    np.testing.assert_array_equal(frames[0], frames[1])
    assert len(np.unique(frames[0], axis=0)) == 30


def test_off_the_image_and_without_a_shape_is_nan(sdata, pixnet):
    import shapely

    shapes = sdata.shapes["spots"]
    shapes.geometry = [shapely.Point(-900, -900), *shapes.geometry[1:]]
    with pytest.warns(UserWarning, match=r"1 of 30 shapes have nothing on the image.*isnan\(t.obsm\['X_pixnet'\]"):
        _embed(sdata, pixnet)
    table = sdata.tables["table"]
    lost = (table.obs["instance_id"] == shapes.index[0]).to_numpy()
    assert np.isnan(table.obsm["X_pixnet"][lost]).all()
    assert np.isfinite(table.obsm["X_pixnet"][~lost]).all()


def test_rows_of_other_shapes_are_nan(sdata, ridge):
    from spatialdata.models import TableModel

    table = sdata.tables["table"].copy()
    table.obs["region"] = ["elsewhere" if i < 4 else "spots" for i in range(30)]
    table.obs["region"] = table.obs["region"].astype("category")
    sdata.shapes["elsewhere"] = sdata.shapes["spots"].copy()
    del table.uns["spatialdata_attrs"]
    sdata.tables["table"] = TableModel.parse(
        table, region=["elsewhere", "spots"], region_key="region", instance_key="instance_id"
    )
    _embed(sdata, ridge, shapes_key="spots")
    values = sdata.tables["table"].obsm["X_ridge"]
    assert np.isnan(values[:4]).all()
    assert np.isfinite(values[4:]).all()


def test_a_store_gives_back_the_same_bits(make, sdata, pixnet, tmp_path):
    make(7, shuffle=True).write(tmp_path / "s.zarr")
    backed = read_zarr(tmp_path / "s.zarr")
    _embed(sdata, pixnet)
    _embed(backed, pixnet)
    for again in (backed, read_zarr(tmp_path / "s.zarr")):
        np.testing.assert_array_equal(again.tables["table"].obsm["X_pixnet"], sdata.tables["table"].obsm["X_pixnet"])
        assert "tables/table/obsm/X_pixnet" in again.attrs["stpredict"]


def _taken(sdata):
    sdata.tables["table"].obsm["X_pixnet"] = np.zeros((30, 2))


def _bins(sdata):
    import stpredict as stp

    stp.pp.tile_grid(sdata, diameter_um=64.0, shape="square", key_added="bins")


CASES = {
    "taken": (_taken, {}, r"there is a obsm entry of table 'table' called 'X_pixnet' already.*overwrite=True"),
    "no table": (_bins, {"shapes_key": "bins"}, r"no table annotates the shapes 'bins'.*stp.tl.predict"),
    "other shapes": (_bins, {"shapes_key": "bins", "table_name": "table"}, r"annotates \['spots'\], not 'bins'"),
    "missing shapes": (None, {"shapes_key": "spot"}, "no shapes 'spot'. Closest: 'spots'"),
    "bad key": (None, {"key_added": "a/b"}, "'a/b' cannot be the name of a obsm entry"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_requests_are_named_and_change_nothing(sdata, pixnet, case):
    spoil, settings, message = CASES[case]
    if spoil is not None:
        spoil(sdata)
    before = _state(sdata)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        _embed(sdata, pixnet, **settings)
    assert _state(sdata) == before


def test_overwrite_and_a_model_by_path(sdata, pixnet, tmp_path):
    import stpredict as stp

    _taken(sdata)
    pixnet.save(tmp_path / "model")
    _embed(sdata, tmp_path / "model", overwrite=True)
    assert sdata.tables["table"].obsm["X_pixnet"].shape[1] > 2
    with pytest.raises(ValueError, match="this Ridge was never trained"):
        _embed(sdata, stp.models.Ridge(["red"]))
    with pytest.raises(FileNotFoundError, match="no model 'pixnet-of-nobody'"):
        _embed(sdata, "pixnet-of-nobody")
