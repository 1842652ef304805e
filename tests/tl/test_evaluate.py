"""Scores of a layer: those of stp.metrics on the spots that the protocol lets in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


@pytest.fixture
def predicted(sdata, ridge):
    import stpredict as stp

    stp.tl.predict(sdata, ridge, progress=False)
    return sdata


def test_scores_are_those_of_the_metrics(predicted):
    import stpredict as stp

    table = predicted.tables["table"]
    counts = table.X.toarray().astype(float)
    true = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, :3]
    pred = table.layers["ridge"][:, :3]
    scores = stp.tl.evaluate(predicted, "ridge")
    assert scores["gene"].tolist() == ["red", "green", "blue"]
    for name in ("pcc", "spearman", "mse", "mae"):
        np.testing.assert_allclose(scores[name], getattr(stp.metrics, name)(pred, true), rtol=1e-5)
    summary = scores.attrs["summary"].iloc[0]
    assert summary["pcc_m"] == pytest.approx(scores["pcc"].mean())
    assert (summary["n_spots"], summary["n_dropped"]) == (30, 0)
    assert summary["ceiling"] == pytest.approx(scores["ceiling"].mean())
    assert summary["log_depth"] == pytest.approx(scores["pcc_log_depth"].mean(), nan_ok=True)
    assert (scores["ceiling"] > scores["pcc"] - 0.05).all()


def test_scores_of_a_section_that_was_trained_on_are_said_to_be_that(make, tmp_path):
    import stpredict as stp

    ridge = stp.models.Ridge(["red", "green", "blue"])
    stp.tl.train([make(0), make(1)], ridge, progress=False)
    ridge.save(tmp_path / "ridge")
    loaded = stp.models.load(tmp_path / "ridge")
    assert len(set(loaded.card.image_digests)) == 2
    for seed, trained in ((1, True), (2, False)):
        sdata = make(seed)
        sdata.attrs["name"] = "called anything"
        stp.tl.predict(sdata, loaded, progress=False)
        if trained:
            with pytest.warns(UserWarning, match="'called anything': this Ridge was trained on its image") as caught:
                scores = stp.tl.evaluate(sdata, "ridge")
            assert caught[0].filename == __file__
        else:
            scores = stp.tl.evaluate(sdata, "ridge")
        assert scores.attrs["trained_on"] == {"called anything": trained}
    older = stp.models.load(tmp_path / "ridge")
    older.card = dataclasses.replace(older.card, image_digests=())
    stp.tl.predict(sdata, older, key_added="older", progress=False)
    assert stp.tl.evaluate(sdata, "older").attrs["trained_on"] == {"called anything": None}


def test_spots_below_the_minimum_are_dropped_and_counted(predicted):
    import stpredict as stp

    table = predicted.tables["table"]
    counts = table.X.toarray()
    counts[4] = [1, 1, 0, 0]
    table.X = type(table.X)(counts)
    summary = stp.tl.evaluate(predicted, "ridge").attrs["summary"].iloc[0]
    assert (summary["n_spots"], summary["n_dropped"]) == (29, 1)


def test_scores_of_two_models_are_joined_and_keep_a_summary_that_is_the_same(predicted, ridge):
    import pandas as pd

    import stpredict as stp

    stp.tl.predict(predicted, ridge, key_added="again", progress=False)
    first, again = (stp.tl.evaluate(predicted, key) for key in ("ridge", "again"))
    assert len(pd.concat([first, again])) == 6
    assert len(first.merge(again, on=["section", "gene"])) == 3
    pd.testing.assert_frame_equal(pd.concat([first, again]).attrs["summary"], first.attrs["summary"])
    assert first.attrs == again.copy().attrs
    again.attrs["summary"].loc[:, "pcc_m"] += 1
    assert first.attrs != again.attrs
    assert "summary" not in pd.concat([first, again]).attrs


def test_groups_are_written_beside_their_sections(predicted):
    import stpredict as stp

    scores = stp.tl.evaluate([predicted], "ridge", groups=["patient C"])
    assert set(scores["group"]) == {"patient C"}
    with pytest.raises(ValueError, match="groups names 2 groups for 1 sections"):
        stp.tl.evaluate([predicted], "ridge", groups=["a", "b"])


def test_a_layer_that_is_not_there_is_named(predicted):
    import stpredict as stp

    with pytest.raises(ValueError, match=r"(?s)'rigde'.*ridge"):
        stp.tl.evaluate(predicted, "rigde")


def test_genes_that_were_never_seen_have_correlations_and_no_errors(predicted):
    import stpredict as stp

    whole = stp.tl.evaluate(predicted, "ridge")
    assert whole["seen"].all()
    assert "summary_unseen" not in whole.attrs
    predicted.tables["table"].uns["stpredict"]["ridge"]["unseen_genes"] = ["green"]
    scores = stp.tl.evaluate(predicted, "ridge")
    assert scores["seen"].tolist() == [True, False, True]
    np.testing.assert_array_equal(scores["pcc"], whole["pcc"])
    assert np.isnan(scores["mse"]).tolist() == np.isnan(scores["mae"]).tolist() == [False, True, False]
    seen, unseen = (scores.attrs[f"summary_{kind}"].iloc[0] for kind in ("seen", "unseen"))
    assert unseen["pcc_m"] == pytest.approx(whole["pcc"][1])
    assert seen["pcc_m"] == pytest.approx(whole["pcc"][[0, 2]].mean())
    assert np.isnan(unseen["mse"])
    assert seen["mse"] == pytest.approx(whole["mse"][[0, 2]].mean())
    assert scores.attrs["summary"]["mse"].iloc[0] == pytest.approx(whole["mse"][[0, 2]].mean())
    with pytest.raises(ValueError, match=r"'mse'.* cannot be given for genes that the model never saw.*'green'"):
        stp.tl.evaluate(predicted, "ridge", scores=["pcc", "mse"])
    assert "mse" not in stp.tl.evaluate(predicted, "ridge", scores=["pcc", "spearman"])
    with pytest.raises(ValueError, match="'rmse'.* are unknown"):
        stp.tl.evaluate(predicted, "ridge", scores=["rmse"])


def _without(table, *, marks: bool, record: bool):
    """The same table as some joins of tables leave it."""
    if marks:
        del table.var["ridge"], table.var["ridge_val_pcc"]
    if record:
        del table.uns["stpredict"]


def test_a_layer_whose_marks_were_dropped_is_scored_by_its_record_or_its_values(predicted):
    import stpredict as stp

    whole = stp.tl.evaluate(predicted, "ridge")
    table = predicted.tables["table"]
    _without(table, marks=True, record=False)
    assert stp.tl.evaluate(predicted, "ridge").equals(whole)
    _without(table, marks=False, record=True)
    with pytest.warns(
        UserWarning, match=r"(?s)without var\['ridge'\].*merge='same', uns_merge='same'.*the 3 genes"
    ) as caught:
        assert stp.tl.evaluate(predicted, "ridge").equals(whole)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", ["whole", "sparse", "nan"])
def test_a_layer_that_is_no_prediction_says_what_is_missing(predicted, kind):
    import stpredict as stp

    table = predicted.tables["table"]
    counts = table.X.toarray().astype(np.float32)
    table.layers["other"] = {"whole": counts, "sparse": table.X, "nan": np.full_like(counts, np.nan)}[kind]
    why = "no dense array of floats" if kind == "sparse" else "whole numbers or NaN alone"
    with pytest.raises(ValueError, match=rf"has the layer 'other', but neither var\['other'\].*{why}.*Pass key="):
        stp.tl.evaluate(predicted, "other")
