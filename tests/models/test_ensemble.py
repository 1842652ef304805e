"""Ensembles: averages of their members, before the link where members are maps, and how far these lie apart."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

GENES = ("red", "green", "blue")


def _dense(seed: int, *, link: str = "identity", genes=GENES, **fields):
    from stpredict import models

    config = models.PixNetConfig(
        genes=genes, mpp=1.0, encoder="mobilenetv2_035", filters=(8, 8, 12, 16), window_px=256, core_px=512,
        halo_px=256, context_rank=0, link=link, **fields,
    )  # fmt: skip
    return models.PixNet(config=config, seed=seed)


def _spots(seed: int, *, genes=GENES, **fields):
    from stpredict import models

    return models.STNet(config=models.STNetConfig(genes=genes, mpp=1.0, patch_px=64, **fields), seed=seed)


def _predict(model, section, *, raster=None, genes=GENES, **runtime):
    from stpredict._inference import RuntimeOptions, predict_with_spread

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return predict_with_spread(model, section, list(genes), runtime=run, raster=raster)


@pytest.fixture(scope="module")
def dense():
    """A function of a link: an ensemble of three maps that were not trained, whose rates are far apart."""
    from stpredict import models

    def make(link: str = "identity"):
        members = [_dense(seed, link=link) for seed in range(3)]
        for k, each in enumerate(members):
            each.genes_head.start(np.full(3, 0.5 + 2 * k, np.float32), np.ones(3, np.float32))
        return models.Ensemble(members)

    return make


@pytest.mark.parametrize("link", ["identity", "log1p"])
def test_dense_members_are_averaged_before_the_link(dense, link, colour_section):
    model, section = dense(link), colour_section(2)
    each = np.stack([_predict(member, section).values for member in model.models])
    found = _predict(model, section)
    rates = np.expm1(each) if link == "log1p" else each
    wanted = np.log1p(rates.mean(axis=0)) if link == "log1p" else rates.mean(axis=0)
    np.testing.assert_allclose(found.values, wanted, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.spread, each.std(axis=0, ddof=1), rtol=1e-3, atol=1e-4)
    if link == "log1p":  # the other order is another number
        assert np.abs(found.values - each.mean(axis=0)).max() > 0.01


@pytest.mark.parametrize("link", ["identity", "log1p"])
def test_layer_and_raster_of_a_dense_ensemble_agree(dense, link, colour_section):
    """A shape of whole cells holds the mean of the cells of the raster, in rates."""
    import shapely

    model, section = dense(link), colour_section(2)
    square = np.array([shapely.box(128, 160, 192, 224)], dtype=object)
    section = dataclasses.replace(
        section, geometry=square, radius=np.array([np.nan]), ids=np.arange(1), area=np.array([64.0**2]),
        expression=None, genes=None,
    )  # fmt: skip
    side = int(512 / model.stride)
    raster = np.full((3, side, side), np.nan, np.float32)

    def take(y, x, values):
        raster[:, y, x] = values

    found = _predict(model, section, raster=take)
    assert np.isfinite(raster).all()
    a, b, c, d = (int(v / model.stride) for v in (160, 224, 128, 192))
    inside = raster[:, a:b, c:d].mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(found.values[0], np.log1p(inside) if link == "log1p" else inside, rtol=1e-5, atol=1e-6)


def test_members_that_look_at_patches_are_averaged_in_units_of_the_target(colour_section):
    from stpredict import models

    section = colour_section(2)
    ridge = models.Ridge(GENES)
    ridge.prepare([colour_section(0), colour_section(1)])
    model = models.Ensemble([_spots(0), _spots(1), ridge])
    each = np.stack([_predict(member, section, genes=("blue", "red")).values for member in model.models])
    found = _predict(model, section, genes=("blue", "red"))
    np.testing.assert_allclose(found.values, each.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.spread, each.std(axis=0, ddof=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(_predict(model, section, batch_size=64).share, found.share)


@pytest.mark.parametrize("kind", ["dense", "spots"])
def test_the_latent_is_that_of_the_members_side_by_side(kind, dense, colour_section):
    from stpredict import models
    from stpredict._inference import RuntimeOptions, embed

    model = dense() if kind == "dense" else models.Ensemble([_spots(0), _spots(1)])
    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    values, share = embed(model, colour_section(2), runtime=run)
    wanted = np.concatenate([embed(each, colour_section(2), runtime=run)[0] for each in model.models], axis=1)
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)
    assert share.shape == (24,)


def test_pieces_of_members_that_look_at_patches_have_numbers_of_their_own(colour_section, tmp_path):
    """Two halves of the pieces, done one after the other in another order, give the whole."""
    from stpredict import models
    from stpredict._inference import RuntimeOptions, n_chunks, predict_with_spread, run_chunks
    from stpredict._spatialdata import PartialFiles

    model, section = models.Ensemble([_spots(0), _spots(1)]), colour_section(2)
    run = RuntimeOptions(device="cpu", precision="32", batch_size=8, progress=False).resolve(model.output)
    whole = predict_with_spread(model, section, GENES, runtime=run)
    n, parts = n_chunks(model, section, runtime=run, raster=False), PartialFiles(tmp_path)
    assert n == sum(n_chunks(each, section, runtime=run, raster=False) for each in model.models) == 2
    for which in ([1], [0]):
        run_chunks(model, section, GENES, which, runtime=run, parts=parts)
    assert {path.stem for path in tmp_path.glob("*.npz")} == {"0", "1"}
    resumed = predict_with_spread(model, section, GENES, runtime=run, parts=parts)
    for found, wanted in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


WRONG = {
    "genes": (lambda: [_dense(0), _dense(1, genes=("red", "blue", "green"))], "agree in genes: that of member 0"),
    "mpp": (lambda: [_spots(0), _at_mpp(2.0)], "agree in mpp"),
    "link": (lambda: [_dense(0), _dense(1, link="log1p")], "agree in link.*member 1"),
    "kind": (lambda: [_dense(0), _spots(1)], r"agree in kind \(output\)"),
    "tiling": (lambda: [_dense(0), _dense(1, turns=4)], "agree in tiling"),
    "one": (lambda: [_dense(0)], "needs 2 to 64 members, got 1"),
    "the same": (lambda: [one := _dense(0), one], "given twice"),
    "nested": (lambda: [_ensemble(), _spots(3)], "is an Ensemble itself"),
}


def _at_mpp(mpp: float):
    from stpredict import models

    return models.STNet(config=models.STNetConfig(genes=GENES, mpp=mpp, patch_px=64))


def _ensemble():
    from stpredict import models

    return models.Ensemble([_spots(0), _spots(1)])


@pytest.mark.parametrize("case", WRONG)
def test_members_that_do_not_agree_are_refused(case):
    from stpredict import models

    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        models.Ensemble(make())


@pytest.fixture(scope="module")
def trained(colour_section):
    """A function of "dense" or "spots": an ensemble of two after three steps each."""
    from stpredict import models
    from stpredict._training import TrainOptions, fit

    def make(kind: str):
        model = models.Ensemble([(_dense if kind == "dense" else _spots)(seed) for seed in range(2)])
        plan = TrainOptions(max_epochs=2, batch_size=16, device="cpu", precision="32", progress=False)
        history = fit(model, [colour_section(0)], [colour_section(1)], plan, sections=("colour0",))
        return model, history

    return make


@pytest.mark.parametrize("kind", ["dense", "spots"])
def test_members_are_trained_one_after_the_other_and_saved_together(kind, trained, colour_section, tmp_path):
    from stpredict import models
    from stpredict.models._base import weights_sha256

    model, history = trained(kind)
    assert history["member"].tolist() == [0, 0, 1, 1]
    assert [each.card.seed for each in model.models] == [0, 1]
    assert weights_sha256(model.models[0]) != weights_sha256(model.models[1])
    assert set(model.card.val_pcc) == set(GENES)
    model.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md", "card.json", "model.safetensors",
    ]  # fmt: skip
    again = models.load(tmp_path / "saved")
    assert repr(again) == repr(model)
    assert repr(again).startswith("Ensemble(2 x ")
    for found, wanted in zip(_predict(again, colour_section(2)), _predict(model, colour_section(2)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert again.models[1].card.sections == ("colour0",)


def test_the_card_of_an_ensemble_is_read_as_data(trained, tmp_path):
    from stpredict import models

    trained("spots")[0].save(tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())

    def refused(message, change):
        broken = json.loads(json.dumps(card))
        change(broken["config"])
        (tmp_path / "m" / "card.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            models.load(tmp_path / "m")

    refused("'Nothing', which is not known", lambda c: c["members"][0].update(model="Nothing"))
    refused("cannot be one", lambda c: c["members"][0].update(model="Ensemble"))
    refused("must have 'model'", lambda c: c["members"][0].update(path="/"))
    refused("needs 2 to 64 members, got 0", lambda c: c.update(members=[]))
    refused("may have 64", lambda c: c.update(members=c["members"] * 40))
    refused("does not know", lambda c: c["members"][0]["config"].update(other=1))
    # columns would change places
    refused("genes is .*, and that of its members", lambda c: [m["config"]["genes"].reverse() for m in c["members"]])
    refused("mpp is .*, and that of its members 2.0", lambda c: [m["config"].update(mpp=2.0) for m in c["members"]])
    refused("link is 'log1p', and that of its members 'identity'", lambda c: c.update(link="log1p"))
    refused("does not fit", lambda c: c.update(members=[*c["members"], c["members"][0]]))


@pytest.mark.parametrize(("step", "n_built"), [(32, 3), (0, 1)], ids=["distinct", "alike"])
def test_members_that_a_file_does_not_hold_are_not_built(trained, tmp_path, monkeypatch, step, n_built):
    from stpredict import models
    from stpredict.models import _ensemble

    trained("spots")[0].save(tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    first = card["config"]["members"][0]
    others = [{**first, "config": {**first["config"], "patch_px": 32 + step * k}} for k in range(64)]
    card["config"]["members"] = others  # the file holds two
    (tmp_path / "m" / "card.json").write_text(json.dumps(card))
    built = []
    make = _ensemble._made
    monkeypatch.setattr(_ensemble, "_made", lambda spec: built.append(spec) or make(spec))
    with pytest.raises(ValueError, match=r"does not fit .*'members\.2\."):
        models.load(tmp_path / "m")
    assert len(built) == n_built


def test_an_ensemble_of_trained_models_needs_no_training(trained, colour_section):
    from stpredict import models

    first, second = trained("spots")[0].models
    model = models.Ensemble([first, second])
    assert model.card.sections == ("colour0",)
    assert model.card.val_pcc == {}  # of the ensemble nothing was held out
    assert models.Ensemble([first, _spots(5)]).card is None
