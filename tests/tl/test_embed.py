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
    "bad key": (None, {"key_added": "a/b"}, "'a/b' cannot be the name of an obsm entry"),
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


@pytest.fixture
def resnet(tmp_path):
    """Weights of a resnet18, drawn here, as a local file; and the network itself."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model("resnet18").eval()
    save_file(net.state_dict(), tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors", net


def test_a_plain_encoder_by_its_name(sdata, resnet):
    """The mean of its last map over the patch around each shape, against timm itself."""
    path, net = resnet
    _embed(sdata, "resnet18", encoder_weights=path, encoder_mpp=1.0, patch_px=64)
    table, shapes = sdata.tables["table"], sdata.shapes["spots"]
    assert table.obsm["X_resnet18"].shape == (30, 512)
    pixels = torch.from_numpy(np.asarray(sdata.images["image"])).float() / 255
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    for row in (0, 7):
        point = shapes.loc[table.obs["instance_id"].iloc[row]].geometry
        y, x = int(np.floor(point.y - 32 + 0.5)), int(np.floor(point.x - 32 + 0.5))
        if min(y, x) < 0 or y + 64 > pixels.shape[1] or x + 64 > pixels.shape[2]:
            continue
        with torch.inference_mode():
            found = net.forward_features(((pixels[:, y : y + 64, x : x + 64] - mean) / std)[None]).mean((2, 3))[0]
        np.testing.assert_allclose(table.obsm["X_resnet18"][row], found.numpy(), rtol=1e-3, atol=1e-4)
        break
    else:
        pytest.fail("no row lies on the image")
    record = sdata.attrs["stpredict"]["tables/table/obsm/X_resnet18"]
    assert (record["model"], record["encoder"], record["mpp"]) == ("PlainEncoder", "resnet18", 1.0)


def test_a_transformer_by_its_name(sdata, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.safetensors")
    _embed(sdata, "vit_tiny_patch16_224", encoder_weights=tmp_path / "vit.safetensors", encoder_mpp=1.0)
    assert sdata.tables["table"].obsm["X_vit_tiny_patch16_224"].shape == (30, 192)


def test_settings_of_an_encoder_are_refused_beside_a_model(sdata, pixnet, resnet):
    before = _state(sdata)
    with pytest.raises(ValueError, match="patch_px are for the name of a plain encoder, such as 'resnet50'"):
        _embed(sdata, pixnet, patch_px=64)
    with pytest.raises(ValueError, match="patch_px=65 must be a multiple of 32 px, which 'resnet18' takes"):
        _embed(sdata, "resnet18", encoder_weights=resnet[0], patch_px=65, encoder_mpp=1.0)
    with pytest.raises(FileNotFoundError, match="no model 'resnet81'"):
        _embed(sdata, "resnet81")
    assert _state(sdata) == before


def test_an_encoder_that_needs_the_hub_is_refused_offline(sdata, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    before = _state(sdata)
    with pytest.raises(ConnectionError, match="'hf-hub:nobody/nothing' is described on a hub; HF_HUB_OFFLINE is set"):
        _embed(sdata, "hf-hub:nobody/nothing")
    with pytest.raises(ConnectionError, match="(?s)weights of encoder='resnet10t'.*Pass a local file"):
        _embed(sdata, "resnet10t")
    assert _state(sdata) == before
