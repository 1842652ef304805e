"""Training from SpatialData: what is held out, what the card says, and which spots are used."""

from __future__ import annotations

import numpy as np
import pytest

GENES = ("red", "green", "blue")


def test_the_card_says_what_was_seen(make):
    import stpredict as stp

    sdatas = [make(0), make(1)]
    for name, sdata in zip("AB", sdatas, strict=True):
        sdata.attrs["name"] = name
    model = stp.models.Ridge(GENES)
    stp.tl.train(sdatas, model, seed=3, progress=False, licence="CC0-1.0")
    card = model.card
    assert (card.sections, card.seed, card.licence, card.target) == (("A", "B"), 3, "CC0-1.0", "log1p_cp10k")
    assert card.n_target_genes == 4
    assert card.val_source == "spatial blocks held out of the training sections"
    assert set(card.val_pcc) == set(GENES)
    assert all(value is not None for value in card.val_pcc.values())


def test_validation_sections_are_named_and_not_trained_on(make):
    import stpredict as stp

    val = make(5)
    val.attrs["name"] = "V"
    with_val, alone = stp.models.Mean(GENES), stp.models.Mean(GENES)
    stp.tl.train(make(0), with_val, val=[val], progress=False)
    stp.tl.train(make(0), alone, val=0, progress=False)
    assert with_val.card.val_source == "validation sections: V"
    assert alone.card.val_source == ""
    np.testing.assert_array_equal(with_val.mean, alone.mean)


def test_a_null_may_be_trained_on_values_that_are_no_counts(make):
    import stpredict as stp

    sdata = make(0)
    sdata.tables["table"].layers["scaled"] = np.asarray(sdata.tables["table"].X.todense()) / 7.5 - 3
    model = stp.models.Mean(GENES)
    stp.tl.train(sdata, model, val=0, layer="scaled", target="as_is", progress=False)
    wanted = sdata.tables["table"].layers["scaled"][:, :3].mean(axis=0)
    np.testing.assert_allclose(model.mean, np.asarray(wanted).ravel(), rtol=1e-4)
    assert model.card.target == "as_is"
    with pytest.raises(ValueError, match=r"112 values that are not whole numbers.*as_is"):
        stp.tl.train(sdata, model, val=0, layer="scaled", progress=False)


def test_spots_of_few_counts_are_left_out(make):
    import stpredict as stp

    sdata, clean = make(0), make(0)
    table = sdata.tables["table"]
    counts = table.X.toarray()
    counts[0] = [3, 0, 0, 1]
    table.X = type(table.X)(counts)
    clean_rows = clean.tables["table"][1:].copy()
    clean.tables["table"] = clean_rows
    models = [stp.models.Mean(GENES) for _ in range(2)]
    for each, model in zip((sdata, clean), models, strict=True):
        stp.tl.train(each, model, val=0, progress=False)
    np.testing.assert_allclose(models[0].mean, models[1].mean, rtol=1e-6)


def test_a_device_that_is_not_there_leaves_the_model_untrained(make, pixnet):
    import stpredict as stp

    model = stp.models.PixNet(config=pixnet.config)
    with pytest.raises(ValueError, match="device='cuda:9' is not there"):
        stp.tl.train(make(0), model, val=0, device="cuda:9", progress=False)
    assert model.card is None


@pytest.mark.parametrize(
    "setting",
    [
        {"max_epochs": 0}, {"max_epochs": -1}, {"max_epochs": 1.5}, {"max_epochs": True}, {"batch_size": 0},
        {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"lr": "1e-3"},
        {"seed": -1}, {"devices": 0}, {"num_nodes": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_with_which_nothing_could_be_trained_are_refused_before_any_work(make, setting, monkeypatch):
    import stpredict as stp

    model, sdata = stp.models.Mean(GENES), make(0)
    monkeypatch.setattr(stp.models.Mean, "prepare", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(ValueError, match=next(iter(setting))):
        stp.tl.train(sdata, model, progress=False, **setting)
    assert model.card is None


def test_a_section_that_is_given_twice_is_refused(make):
    import stpredict as stp

    one, other = make(0), make(1)
    with pytest.raises(ValueError, match=r"sdatas\[1\] is the same section as sdatas\[0\]"):
        stp.tl.train([one, one], stp.models.Mean(GENES), progress=False)
    with pytest.raises(ValueError, match=r"val\[1\] is the same section as sdatas\[0\]"):
        stp.tl.train([one], stp.models.Mean(GENES), val=[other, one], progress=False)


@pytest.mark.parametrize("val", ["C2", True, {"a": 1}, [], [3]], ids=str)
def test_validation_that_is_neither_a_share_nor_sections_is_refused(make, val):
    import stpredict as stp

    with pytest.raises(ValueError, match="val"):
        stp.tl.train(make(0), stp.models.Mean(GENES), val=val, progress=False)


@pytest.mark.parametrize("sdatas", [[], [None], 7], ids=str)
def test_what_is_no_section_is_refused(sdatas):
    import stpredict as stp

    with pytest.raises(ValueError, match="sdatas"):
        stp.tl.train(sdatas, stp.models.Mean(GENES), progress=False)
