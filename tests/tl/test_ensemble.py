"""Ensembles through the verbs: training in place, the layer of the spread, stores, resuming, latent maps."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

GENES = ("red", "green", "blue")
RUN = {"device": "cpu", "precision": "32", "progress": False}


def _spots(seed: int):
    import stpredict as stp

    return stp.models.STNet(config=stp.models.STNetConfig(genes=GENES, mpp=1.0, patch_px=64), seed=seed)


@pytest.fixture(scope="module")
def left_out(make):
    """Three members after two epochs, each of which has left out one of two sections, in turn."""
    import stpredict as stp

    sections = [make(0), make(1)]
    for name, sdata in zip("AB", sections, strict=True):
        sdata.attrs["name"] = name
    model = stp.models.Ensemble([_spots(seed) for seed in range(3)])
    history = stp.tl.train(sections, model, val="sections", max_epochs=2, batch_size=16, seed=5, **RUN)
    return model, history


@pytest.fixture(scope="module")
def maps(pixnet):
    """Two dense members that differ in their head, and trained cards."""
    import copy

    import torch

    import stpredict as stp

    other = copy.deepcopy(pixnet)
    with torch.no_grad():
        other.genes_head.weight *= 3
    return stp.models.Ensemble([pixnet, other])


def test_members_leave_out_one_section_each_in_turn(left_out):
    model, history = left_out
    assert history["member"].tolist() == [0, 0, 1, 1, 2, 2]
    assert np.isfinite(history["val_loss"]).all()
    assert [each.card.seed for each in model.models] == [5, 6, 7]
    card = model.card
    assert (card.sections, card.seed, card.val_source) == (("A", "B"), 5, "sections left out in turn: A, B")
    assert set(card.held_out) == {"rmse", "error_80", "error_90", "ridge_pcc", "ceiling"}
    area = np.pi * 24**2
    assert card.held_out_um2 == pytest.approx((area, area), rel=1e-6)


def test_the_card_has_hashes_of_all_images_or_of_none(left_out):
    import stpredict as stp

    members = [copy.copy(each) for each in left_out[0].models]
    both = members[0].card.image_digests
    assert len(set(both)) == 2  # also of the section that was left out: it chose the epoch
    members[0].card = dataclasses.replace(members[0].card, image_digests=both[:1])
    members[1].card = dataclasses.replace(members[1].card, image_digests=both[1:])
    assert stp.models.Ensemble(members).card.image_digests == both
    members[1].card = dataclasses.replace(members[1].card, image_digests=())  # of an older version
    assert stp.models.Ensemble(members).card.image_digests == ()


def test_errors_are_those_of_members_on_the_sections_that_they_left_out(left_out, make):
    import stpredict as stp

    model, _ = left_out
    errors = []
    for member, seed in zip(model.models, (0, 1, 0), strict=True):
        sdata = make(seed)
        stp.tl.predict(sdata, member, key_added="one", **RUN)
        table = sdata.tables["table"]
        counts = table.X.toarray()
        true = np.log1p(counts[:, :3] / counts.sum(axis=1, keepdims=True) * 1e4)
        errors.append(np.abs(table.layers["one"][:, :3] - true))
    every = np.sort(np.concatenate(errors), axis=0)
    assert len(every) == 90
    wanted = {
        "rmse": np.sqrt((every**2).mean(axis=0)),
        "error_80": every[72],
        "error_90": every[81],
    }  # of 91: 73rd, 82nd
    for name, values in wanted.items():
        np.testing.assert_allclose(list(model.card.held_out[name].values()), values, rtol=1e-4)


def test_a_prediction_writes_the_spread_and_what_is_known_of_each_gene(left_out, sdata):
    import stpredict as stp

    model, _ = left_out
    for i, member in enumerate(model.models):
        stp.tl.predict(sdata, member, key_added=f"m{i}", **RUN)
    stp.tl.predict(sdata, model, genes=["blue", "red"], **RUN)
    table = sdata.tables["table"]
    each = np.stack([table.layers[f"m{i}"] for i in range(3)])[:, :, [0, 2]]
    np.testing.assert_allclose(table.layers["ensemble"][:, [0, 2]], each.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table.layers["ensemble_sd"][:, [0, 2]], each.std(axis=0, ddof=1), rtol=1e-3, atol=1e-5)
    assert table.layers["ensemble_sd"].dtype == np.float32
    assert np.isnan(table.layers["ensemble_sd"][:, [1, 3]]).all()
    for name in ("rmse", "error_80", "error_90", "ridge_pcc", "ceiling"):
        column = table.var[f"ensemble_val_{name}"].to_numpy()
        np.testing.assert_allclose(column[[0, 2]], [model.card.held_out[name][gene] for gene in ("red", "blue")])
        assert np.isnan(column[[1, 3]]).all()
    assert "m0_sd" not in table.layers
    assert table.uns["stpredict"]["ensemble"]["n_models"] == 3


@pytest.mark.parametrize("backed", [False, True])
def test_a_model_that_takes_the_place_of_an_ensemble_takes_its_spread_away(left_out, ridge, sdata, tmp_path, backed):
    from spatialdata import read_zarr

    import stpredict as stp

    sdata.tables["table"].layers["other_sd"] = np.ones((30, 4), np.float32)  # ours only where we wrote it
    if backed:
        sdata.write(tmp_path / "s.zarr")
        sdata = read_zarr(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="called 'other_sd' already"):
        stp.tl.predict(sdata, left_out[0], key_added="other", **RUN)
    stp.tl.predict(sdata, left_out[0], key_added="key", **RUN)
    assert "key_sd" in sdata.tables["table"].layers
    with pytest.raises(ValueError, match="called 'key' already"):
        stp.tl.predict(sdata, ridge, key_added="key", **RUN)
    stp.tl.predict(sdata, ridge, key_added="key", overwrite=True, **RUN)
    stp.tl.predict(sdata, ridge, key_added="other", **RUN)
    for each in (sdata, read_zarr(tmp_path / "s.zarr")) if backed else (sdata,):
        assert {"key", "other", "other_sd"} <= set(each.tables["table"].layers)
        assert "key_sd" not in each.tables["table"].layers
        assert "key_val_rmse" not in each.tables["table"].var


def test_a_new_table_and_a_store_have_the_spread_too(left_out, sdata, tmp_path):
    from spatialdata import read_zarr

    import stpredict as stp

    left_out[0].save(tmp_path / "model")
    sdata.write(tmp_path / "s.zarr")
    stp.tl.predict(tmp_path / "s.zarr", tmp_path / "model", table_added="new", **RUN)
    stp.tl.predict(tmp_path / "s.zarr", tmp_path / "model", **RUN)
    stored = read_zarr(tmp_path / "s.zarr")
    new, table = stored.tables["new"], stored.tables["table"]
    assert new.layers["ensemble_sd"].shape == (30, 3)
    order = table.obs["instance_id"].to_numpy()
    new = new[[list(new.obs["instance_id"]).index(name) for name in order]]
    np.testing.assert_array_equal(new.layers["ensemble_sd"], table.layers["ensemble_sd"][:, :3])
    assert {"ensemble_val_pcc", "ensemble_val_rmse"} <= set(new.var)
    stp.tl.predict(tmp_path / "s.zarr", tmp_path / "model", resume=True, **RUN)  # is there already


def test_an_interrupted_prediction_of_an_ensemble_goes_on(left_out, sdata, tmp_path, monkeypatch):
    from spatialdata import read_zarr

    import stpredict as stp
    from stpredict._spatialdata import PartialFiles

    model, _ = left_out
    sdata.write(tmp_path / "whole.zarr")
    sdata.write(tmp_path / "broken.zarr")
    stp.tl.predict(tmp_path / "whole.zarr", model, **RUN)
    keep = PartialFiles.keep

    def interrupted(self, chunk, part):
        keep(self, chunk, part)
        if chunk == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialFiles, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stp.tl.predict(tmp_path / "broken.zarr", model, **RUN)
    done = []
    monkeypatch.setattr(PartialFiles, "keep", lambda self, chunk, part: (done.append(chunk), keep(self, chunk, part)))
    stp.tl.predict(tmp_path / "broken.zarr", model, resume=True, **RUN)
    assert done == [2]  # of one piece a member
    whole, again = (read_zarr(tmp_path / name).tables["table"] for name in ("whole.zarr", "broken.zarr"))
    for layer in ("ensemble", "ensemble_sd"):
        np.testing.assert_array_equal(whole.layers[layer], again.layers[layer])


def test_maps_of_an_ensemble_are_averages_and_more_genes_come_from_its_latent(maps, sdata):
    import stpredict as stp

    for i, member in enumerate(maps.models):
        stp.tl.predict(sdata, member, output="raster", key_added=f"m{i}", **RUN)
    stp.tl.predict(sdata, maps, output="both", **RUN)
    each = np.stack([sdata.images[f"m{i}"].to_numpy().astype(np.float64) for i in range(2)])
    scale = np.abs(each).max()
    np.testing.assert_allclose(sdata.images["ensemble"].to_numpy(), each.mean(axis=0), atol=2e-3 * scale)
    stp.tl.predict(sdata, maps, output="latent", key_added="latent", **RUN)
    assert sdata.images["latent"].sizes["c"] == sum(m.query(["red"]).shape[1] for m in maps.models)
    stp.tl.query(sdata, "latent", ["blue", "red"], model=maps, key_added="asked")
    table = sdata.tables["table"]
    for name in ("", "_sd"):
        found, wanted = (table.layers[f"{key}{name}"][:, [0, 2]] for key in ("asked", "ensemble"))
        np.testing.assert_allclose(found, wanted, atol=5e-3 * scale)


def test_a_map_is_refused_where_members_look_at_patches(left_out, sdata):
    import stpredict as stp

    with pytest.raises(ValueError, match="Ensemble predicts shapes one by one and has no map"):
        stp.tl.predict(sdata, left_out[0], output="raster", **RUN)


def test_sections_are_left_out_by_ensembles_alone(ridge, left_out, make):
    import stpredict as stp

    with pytest.raises(ValueError, match="got a Ridge and 2 sections. Pass stp.models.Ensemble"):
        stp.tl.train([make(0), make(1)], stp.models.Ridge(GENES), val="sections", progress=False)
    with pytest.raises(ValueError, match="got a Ensemble and 1 sections"):
        stp.tl.train(make(0), stp.models.Ensemble([_spots(0), _spots(1)]), val="sections", progress=False)
    with pytest.raises(ValueError, match="val='blocks' must be"):
        stp.tl.train([make(0), make(1)], ridge, val="blocks", progress=False)


def test_an_ensemble_resumes_at_the_member_it_had_reached(make, tmp_path):
    import stpredict as stp
    from stpredict.models._base import weights_sha256

    settings = RUN | {"max_epochs": 1, "batch_size": 16, "val": 0.2}
    whole, broken = (stp.models.Ensemble([_spots(seed) for seed in range(2)]) for _ in range(2))
    stp.tl.train(make(0), whole, checkpoint_dir=tmp_path / "whole", **settings)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["member0", "member1"]
    broken.models[1].loss = None
    with pytest.raises(TypeError):
        stp.tl.train(make(0), broken, checkpoint_dir=tmp_path / "broken", **settings)
    assert broken.card is None
    again = stp.models.Ensemble([_spots(seed) for seed in range(2)])
    history = stp.tl.train(make(0), again, checkpoint_dir=tmp_path / "broken", resume=True, **settings)
    assert history["member"].tolist() == [0, 1]
    assert weights_sha256(again) == weights_sha256(whole)
    assert again.card.val_source == "spatial blocks held out of the training sections"
    assert dataclasses.replace(again.card, weights_sha256=None) == dataclasses.replace(whole.card, weights_sha256=None)
