"""What is known of each gene, and in words; what is not known is said to be so."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import colour_sdata

RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def predicted(sdata):
    """An object with a predicted layer, whose evidence a test may write itself."""
    import stpredict as stp

    model = stp.models.Ridge(("red", "green", "blue"))
    stp.tl.train([colour_sdata(0), colour_sdata(1)], model, progress=False)
    stp.tl.predict(sdata, model, key_added="key", **RUN)
    return sdata


def _evidence(sdata, pcc, ridge=np.nan, domain=None):
    table = sdata.tables["table"]
    table.var["key_val_pcc"] = [*pcc, np.nan]
    table.var["key_val_ridge_pcc"] = ridge
    if domain is not None:
        table.obs["key_domain"] = domain
    import stpredict as stp

    return stp.tl.reliability(sdata, "key")


def test_a_row_a_gene_and_nan_for_what_is_not_known(predicted):
    import stpredict as stp

    frame = stp.tl.reliability(predicted, "key")
    var = predicted.tables["table"].var
    assert list(frame) == ["gene", "val_pcc", "ridge_pcc", "ceiling", "val_rmse", "spread", "in_domain", "verdict"]
    assert frame["gene"].tolist() == ["red", "green", "blue"]
    for name in ("val_pcc", "val_rmse"):
        np.testing.assert_array_equal(frame[name], var[f"key_{name}"][:3])
    np.testing.assert_array_equal(frame["ceiling"], var["key_val_ceiling"][:3])
    assert frame[["ridge_pcc", "spread", "in_domain"]].isna().all(axis=None)  # Ridge is no null of itself
    assert frame.attrs["held_out"] == "spatial blocks held out of the training sections"


def test_a_model_without_validation_has_no_evidence(ridge, sdata):
    import stpredict as stp

    stp.tl.predict(sdata, ridge, **RUN)
    frame = stp.tl.reliability(sdata, "ridge")
    assert set(frame["verdict"]) == {"no held-out evidence"}
    assert frame.drop(columns=["gene", "verdict"]).isna().all(axis=None)
    assert frame.attrs["held_out"] == ""


def test_verdicts(predicted):
    frame = _evidence(predicted, [0.05, 0.2, 0.5], ridge=0.1)
    assert frame["verdict"].tolist() == [
        "not predicted on held-out data", "weak on held-out data", "predicted on held-out data",
    ]  # fmt: skip
    frame = _evidence(predicted, [np.nan, 0.5, 0.4], ridge=0.45)
    assert frame["verdict"].tolist() == [
        "no held-out evidence", "predicted on held-out data", "no better than Ridge on held-out data",
    ]  # fmt: skip


@pytest.mark.parametrize(("n_outside", "outside"), [(14, False), (16, True)])
def test_tissue_outside_what_the_model_knows_goes_before_what_it_did_elsewhere(predicted, n_outside, outside):
    domain = np.r_[np.full(n_outside, 99.5), np.full(30 - n_outside, 50.0)]
    frame = _evidence(predicted, [0.5, 0.6, 0.7], domain=domain)
    assert frame["in_domain"].tolist() == [1 - n_outside / 30] * 3
    wanted = "this tissue is outside what the model knows" if outside else "predicted on held-out data"
    assert set(frame["verdict"]) == {wanted}
    domain[:] = np.nan
    assert _evidence(predicted, [0.5, 0.6, 0.7], domain=domain)["in_domain"].isna().all()


def test_the_spread_is_the_mean_over_shapes_that_have_one(predicted):
    import stpredict as stp

    table = predicted.tables["table"]
    sd = np.tile(np.array([1.0, 2.0, 3.0, np.nan], np.float32), (30, 1))
    sd[0] = np.nan
    table.layers["key_sd"] = sd
    assert stp.tl.reliability(predicted, "key")["spread"].isna().all()  # no ensemble wrote it
    table.uns["stpredict"]["key"]["n_models"] = 3
    assert stp.tl.reliability(predicted, "key")["spread"].tolist() == [1.0, 2.0, 3.0]


def test_ridge_and_ceiling_are_of_the_held_out_shapes(make):
    """A network beside Ridge: what its card says of Ridge is what Ridge's own card says."""
    import stpredict as stp

    config = stp.models.STNetConfig(genes=("red", "green"), mpp=1.0, patch_px=64)
    network, ridge = stp.models.STNet(config=config), stp.models.Ridge(("red", "green"))
    settings = {"seed": 4, "device": "cpu", "precision": "32", "progress": False}
    val, train = [make(3)], [make(0), make(1)]
    stp.tl.train(train, network, val=val, max_epochs=1, **settings)
    stp.tl.train(train, ridge, val=val, **settings)
    assert network.card.held_out["ridge_pcc"] == pytest.approx(ridge.card.val_pcc)
    counts = val[0].tables["table"].X
    wanted = stp.metrics.ceiling(counts, [0, 1])
    np.testing.assert_allclose(list(network.card.held_out["ceiling"].values()), wanted, rtol=1e-6)
    stp.tl.train(train, network, val=0, max_epochs=1, **settings)
    assert network.card.held_out == {}
