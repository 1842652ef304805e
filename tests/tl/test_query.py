"""More genes from a stored latent raster: the values of `tl.predict`, without its backbone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from spatialdata import read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

RUN = {"device": "cpu", "precision": "32", "progress": False}
HALF = 2.0**-11  # half a step of 11 significant bits, relative


@pytest.fixture(scope="module")
def pixnet(pixnet):
    """The trained model with a head so strong that its genes vary by more than 11 bits can hide."""
    model = copy.deepcopy(pixnet)
    with torch.no_grad():
        model.genes_head.weight *= 100
    return model


@pytest.fixture
def latent(sdata, pixnet):
    """The object with the latent raster "latent" of `pixnet`."""
    import stpredict as stp

    stp.tl.predict(sdata, pixnet, output="latent", key_added="latent", **RUN)
    return sdata


def _query(sdata, genes=("red", "blue"), **settings):
    import stpredict as stp

    stp.tl.query(sdata, "latent", genes, **settings)
    return sdata


def _layer(sdata, key="pixnet", genes=("red", "blue")):
    return np.asarray(sdata.tables["table"][:, list(genes)].layers[key], dtype=np.float64)


def _bound(model, sdata, genes):
    """(g,) how much the rounding of the latent can change a value before the link."""
    size = np.abs(sdata.images["latent"].to_numpy().astype(float)).max(axis=(1, 2))
    with torch.inference_mode():
        return HALF * (np.abs(model.query(genes).numpy()) @ size)


def _state(sdata):
    """Everything that a verb could have changed, in words."""
    table = sdata.tables["table"]
    places = [sorted(table.obs), sorted(table.var), sorted(k for k in table.layers if k), sorted(table.uns)]
    return [sorted(sdata.images), sorted(sdata.tables), places, str(sdata.attrs)]


@pytest.mark.parametrize("changed", [{}, {"reduction": "sum"}, {"link": "log1p"}], ids=["mean", "sum", "log1p"])
def test_the_layer_is_that_of_predict(sdata, pixnet, changed):
    import stpredict as stp

    model = copy.deepcopy(pixnet)
    model.config = replace(model.config, **changed)
    stp.tl.predict(sdata, model, genes=["blue", "red"], key_added="wanted", **RUN)
    stp.tl.predict(sdata, model, output="latent", key_added="latent", **RUN)
    _query(sdata, model=model)
    wanted, got = _layer(sdata, "wanted"), _layer(sdata)
    # a value has 11 bits, and a shape has some hundred pixels whose roundings cancel
    assert (np.abs(got - wanted) <= 0.02 * wanted.std(axis=0)).all()
    table = sdata.tables["table"]
    np.testing.assert_allclose(table.obs["pixnet_coverage"], table.obs["wanted_coverage"], atol=1e-9)
    np.testing.assert_array_equal(table.var["pixnet_val_pcc"], table.var["wanted_val_pcc"])
    assert table.var["pixnet"].tolist() == [True, False, True, False]


@pytest.mark.parametrize("raster_mpp", [None, 16.0])
def test_the_raster_is_that_of_predict(sdata, pixnet, raster_mpp):
    import stpredict as stp

    for output in ("latent", "raster"):
        stp.tl.predict(sdata, pixnet, output=output, key_added=output, raster_mpp=raster_mpp, **RUN)
    _query(sdata, ["green", "red"], model=pixnet, output="raster")
    got, theirs = sdata.images["pixnet"], sdata.images["raster"]
    wanted = theirs.to_numpy()[[1, 0]].astype(float)
    bound = _bound(pixnet, sdata, ["green", "red"])[:, None, None] + 2 * HALF * np.abs(wanted)
    assert (np.abs(got.to_numpy() - wanted) <= bound).all()
    assert (np.abs(got.to_numpy() - wanted).std(axis=(1, 2)) < 0.05 * wanted.std(axis=(1, 2))).all()
    assert (got.dtype, got.coords["c"].values.tolist()) == (np.float32, ["green", "red"])
    mine, other = (get_transformation(image, get_all=True) for image in (got, theirs))
    assert mine.keys() == other.keys()
    for name in mine:
        one, two = (each[name].to_affine_matrix(("x", "y"), ("x", "y")) for each in (mine, other))
        np.testing.assert_array_equal(one, two)


def test_the_records_are_those_of_predict(latent, pixnet):
    import stpredict as stp

    stp.tl.predict(latent, pixnet, output="both", genes=["red", "blue"], key_added="wanted", **RUN)
    _query(latent, model=pixnet, output="both")
    records = latent.attrs["stpredict"]
    for place in ("tables/table/layers", "images"):
        wanted = {key: value for key, value in records[f"{place}/wanted"].items() if key != "shapes_digest"}
        assert records[f"{place}/pixnet"] == wanted | {"raster": "latent"}
    assert latent.tables["table"].uns["stpredict"]["pixnet"] == records["tables/table/layers/pixnet"]


def test_the_backbone_does_not_run(latent, pixnet, monkeypatch):
    def fail(batch):
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(pixnet, "latent", fail)
    del latent.images["image"]  # nor is the image needed
    _query(latent, model=pixnet, output="both")
    assert np.isfinite(_layer(latent)).all()


def test_a_gene_does_not_depend_on_its_company(latent, pixnet):
    _query(latent, ["green", "blue", "red"], model=pixnet)
    for gene in ("red", "blue"):
        _query(latent, gene, model=pixnet, key_added=f"only_{gene}")
        np.testing.assert_allclose(_layer(latent, f"only_{gene}", [gene]), _layer(latent, genes=[gene]), rtol=1e-5)


def test_pieces_do_not_show_and_bound_what_is_held(latent, pixnet, monkeypatch):
    import importlib

    module = importlib.import_module("stpredict.tl.query")
    _query(latent, model=pixnet, output="raster", key_added="whole")
    monkeypatch.setattr(module, "REGION_BYTES", 4 * (latent.images["latent"].sizes["c"] + 2) * 32**2)
    seen = []
    head = pixnet.head
    monkeypatch.setattr(pixnet, "head", lambda rows, query: seen.append(len(rows)) or head(rows, query))
    _query(latent, model=pixnet, output="raster", key_added="pieces")
    assert set(seen) == {32 * 32}
    assert len(seen) == 16
    whole, pieces = (latent.images[key].to_numpy().astype(float) for key in ("whole", "pieces"))
    np.testing.assert_allclose(pieces, whole, rtol=2 * HALF, atol=1e-6)


def test_a_store_gives_back_the_same_bits(make, latent, pixnet, tmp_path):
    import stpredict as stp

    make(7, shuffle=True).write(tmp_path / "s.zarr")
    backed = read_zarr(tmp_path / "s.zarr")
    stp.tl.predict(backed, pixnet, output="latent", key_added="latent", **RUN)
    _query(latent, model=pixnet, output="both")
    _query(backed, model=pixnet, output="both")
    for again in (backed, read_zarr(tmp_path / "s.zarr")):
        np.testing.assert_array_equal(_layer(again), _layer(latent))
        np.testing.assert_array_equal(again.images["pixnet"].to_numpy(), latent.images["pixnet"].to_numpy())
        np.testing.assert_array_equal(again.images["latent"].to_numpy(), latent.images["latent"].to_numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_other_shapes_get_a_table_of_their_own(latent, pixnet):
    import stpredict as stp

    stp.pp.tile_grid(latent, diameter_um=64.0, shape="square", key_added="bins")
    _query(latent, model=pixnet, shapes_key="bins")
    stp.tl.predict(latent, pixnet, genes=["red", "blue"], shapes_key="bins", table_added="wanted", **RUN)
    got, wanted = (latent.tables[name] for name in ("bins_pixnet", "wanted"))
    assert got.obs["instance_id"].tolist() == wanted.obs["instance_id"].tolist()
    np.testing.assert_allclose(got.X, wanted.X, atol=_bound(pixnet, latent, ["red", "blue"]).max())


def test_off_the_raster_is_nan_with_one_warning(latent, pixnet):
    import shapely

    shapes = latent.shapes["spots"]
    shapes.geometry = [shapely.Point(-900, -900), shapely.Point(0, 100), *shapes.geometry[2:]]
    with pytest.warns(UserWarning, match=r"1 of 30 shapes have nothing on the raster 'latent'.*'pixnet_coverage'"):
        _query(latent, model=pixnet)
    table = latent.tables["table"]
    lost, half = (table.obs["instance_id"] == shapes.index[i] for i in (0, 1))
    assert np.isnan(_layer(latent)[lost]).all()
    assert np.isfinite(_layer(latent)[~lost]).all()
    assert table.obs["pixnet_coverage"][half.to_numpy()].item() == pytest.approx(0.5, abs=1e-6)


def test_the_model_of_the_provenance_is_loaded_and_checked(latent, pixnet, tmp_path):
    record = latent.attrs["stpredict"]["images/latent"]
    pixnet.save(tmp_path / "model")
    record["model_path"] = str(tmp_path / "model")
    _query(latent)
    _query(latent, model=tmp_path / "model", key_added="by_path")
    np.testing.assert_array_equal(_layer(latent, "by_path"), _layer(latent))

    other = copy.deepcopy(pixnet)
    with torch.no_grad():
        other.genes_head.bias += 1
    before = _state(latent)
    hashes = r"(?s)with the weights {}\.\.\..*this PixNet has (?!{})[0-9a-f]{{12}}\.\.\..*Pass the model that made it"
    mine = record["weights_sha256"][:12]
    with pytest.raises(ValueError, match=hashes.format(mine, mine)):
        _query(latent, model=other, key_added="other")
    other.save(tmp_path / "model", overwrite=True)
    with pytest.raises(ValueError, match=hashes.format(mine, mine)):
        _query(latent, key_added="other")
    record["model_path"] = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=rf"is not where it was, .*gone'. Pass model=, the PixNet .* {mine}"):
        _query(latent, key_added="other")
    record["model_path"] = None
    with pytest.raises(ValueError, match=rf"does not say where its model is kept.*Pass model=.*{mine}"):
        _query(latent, key_added="other")
    record["model_path"] = str(tmp_path / "model")
    assert _state(latent) == before


def test_texts_of_further_genes_reach_the_model(latent, pixnet, tmp_path, monkeypatch):
    from stpredict._embeddings import GeneEmbeddings

    texts = GeneEmbeddings(genes=("mauve",), vectors=np.ones((1, 4), np.float32), encoder="some/encoder")
    texts.save(tmp_path / "texts.safetensors")
    with pytest.raises(ValueError, match="fixed panel"):
        _query(latent, model=pixnet, embeddings=texts)
    known = []
    monkeypatch.setattr(pixnet, "add_embeddings", lambda embeddings: known.append(embeddings.genes))
    _query(latent, model=pixnet, embeddings=texts)
    _query(latent, model=pixnet, embeddings=tmp_path / "texts.safetensors", overwrite=True)
    assert known == [("mauve",), ("mauve",)]


def test_a_gene_that_was_never_seen(sdata, pixnet, tmp_path):
    import stpredict as stp
    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models._base import new_card

    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    seen, unseen = (
        GeneEmbeddings(genes=genes, vectors=rows, encoder="some/encoder")
        for genes, rows in ((("red", "green", "blue"), vectors[:3]), (("other",), vectors[3:]))
    )
    torch.manual_seed(0)
    model = stp.models.PixNet(config=replace(pixnet.config, genes=seen.genes), head="text", embeddings=seen)
    with torch.no_grad():
        model.genes_head.network[-1].weight *= 100
    model.card = new_card(model)
    model.save(tmp_path / "model")
    stp.tl.predict(sdata, tmp_path / "model", output="latent", key_added="latent", **RUN)
    with pytest.raises(ValueError, match=r"(?s)\['other'\].*embed_genes"):
        _query(sdata, "other")
    _query(sdata, ["other", "red"], embeddings=unseen, output="both")
    stp.tl.predict(sdata, tmp_path / "model", genes=["other"], embeddings=unseen, key_added="wanted", **RUN)
    got, wanted = (_layer(sdata, key, ["other"]) for key in ("pixnet", "wanted"))
    assert np.abs(got - wanted).max() <= 0.01 * wanted.std()
    assert sdata.images["pixnet"].coords["c"].values.tolist() == ["other", "red"]
    stp.tl.embed(sdata, tmp_path / "model", device="cpu", progress=False)  # of no gene, so of no text
    records = sdata.attrs["stpredict"]
    assert "texts_digest" not in records["tables/table/obsm/X_pixnet"]
    assert records["images/pixnet"]["unseen_genes"] == ["other"]
    _query(sdata, ["other"], embeddings=unseen, key_added="asked")
    asked, predicted = (sdata.attrs["stpredict"][f"tables/table/layers/{key}"] for key in ("asked", "wanted"))
    assert {name for name in asked | predicted if asked.get(name) != predicted.get(name)} == {"raster", "shapes_digest"}
    assert np.isnan(sdata.tables["table"].var["pixnet_val_pcc"]["other"])


def _gene_raster(sdata):
    sdata.images["genes"] = Image2DModel.parse(np.zeros((2, 8, 8), np.float16), dims=("c", "y", "x"))


def _fewer_channels(sdata):
    sdata.images["latent"] = sdata.images["latent"].isel(c=slice(0, 5))


def _taken(sdata):
    sdata.tables["table"].layers["pixnet"] = np.zeros(sdata.tables["table"].shape, np.float32)


CASES = {
    "no such image": (None, "latnet", {}, r"no image 'latnet'. Closest: 'latent'.*latent_key="),
    "the image": (None, "image", {}, r"'image' is no latent raster.*\['latent'\].*output='latent'"),
    "a gene raster": (_gene_raster, "genes", {}, r"'genes' is no latent raster.*\['latent'\]"),
    "some channels": (_fewer_channels, "latent", {}, r"has 5 channels, and its model \d+: the image was changed"),
    "unknown genes": (None, "latent", {"genes": ["red", "mauve"]}, r"not in the panel of this PixNet: \['mauve'\]"),
    "twice": (None, "latent", {"genes": ["red", "red"]}, "none twice"),
    "no genes": (None, "latent", {"genes": []}, "at least one gene"),
    "layer taken": (_taken, "latent", {}, r"layer.* called 'pixnet' already.*overwrite=True"),
    "raster taken": (None, "latent", {"key_added": "image", "output": "raster"}, "image called 'image' already"),
    "its own name": (
        None, "latent", {"key_added": "latent", "output": "raster", "overwrite": True},
        "would take the name of the latent raster 'latent', which it is read from",
    ),
    "unknown output": (None, "latent", {"output": "latent"}, r"output='latent' must be one of 'layer'"),
    "no such shapes": (None, "latent", {"shapes_key": "spot"}, "no shapes 'spot'. Closest: 'spots'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_requests_are_named_and_change_nothing(latent, pixnet, case):
    import stpredict as stp

    spoil, latent_key, settings, message = CASES[case]
    if spoil is not None:
        spoil(latent)
    before = _state(latent)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        stp.tl.query(latent, latent_key, **({"genes": ["red", "blue"], "model": pixnet} | settings))
    assert _state(latent) == before


def test_a_failure_in_the_middle_changes_nothing(latent, pixnet, tmp_path, monkeypatch):
    latent.write(tmp_path / "s.zarr")
    backed = read_zarr(tmp_path / "s.zarr")
    before, calls, head = _state(backed), [], pixnet.head

    def fail(rows, query):
        calls.append(len(rows))
        if len(calls) > 1:  # the layer has been read, the raster has not
            raise OSError("the disk is gone")
        return head(rows, query)

    monkeypatch.setattr(pixnet, "head", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        _query(backed, model=pixnet, output="both")
    assert _state(backed) == before == _state(read_zarr(tmp_path / "s.zarr"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
