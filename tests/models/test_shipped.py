"""The model that comes with the package: its size, its card, and that it predicts."""

from __future__ import annotations

import numpy as np
import pytest

NAME = "pixnet-her2st"


@pytest.fixture(scope="module")
def model():
    import stpredict as stp

    return stp.models.load(NAME)


def test_it_is_listed_and_small():
    from stpredict import models
    from stpredict._card import find_model

    row = models.list_models().set_index("name").loc[NAME]
    assert (row["model"], row["n_genes"], row["sections"]) == ("PixNet", 250, "C2, C3, C4, C5")
    assert sum(path.stat().st_size for path in find_model(NAME).iterdir()) <= 20e6


def test_its_card_has_scores_with_their_nulls(model):
    card = model.card
    assert card.protocol == "stp-2"
    assert len(set(card.image_digests)) == 4
    assert card.licence != "not stated"
    assert set(card.scores) == {f"{name} left out" for name in ("C2", "C3", "C4", "C5")}
    for fold in card.scores.values():
        assert {"pixnet", "ridge", "mean", "ceiling"} <= set(fold)
        assert fold["ridge"]["pcc_m"] < fold["pixnet"]["pcc_m"] < fold["ceiling"]
    values = [value for value in card.val_pcc.values() if value is not None]
    assert len(values) > 200
    assert -1 <= min(values) < max(values) <= 1


def test_it_predicts_an_h_and_e_section(model):
    import stpredict as stp

    sdata = stp.datasets.toy(1, size_um=600)[0]
    said = "do not look like what the model was trained on, by colour"  # simulated
    with pytest.warns(UserWarning, match=said) as caught:
        stp.tl.predict(sdata, model, shapes_key="spots", table_added="predicted", progress=False, output="both")
    assert caught[0].filename == __file__
    table = sdata.tables["predicted"]
    assert table.shape[1] == 250
    assert np.isfinite(table.X).all()
    assert table.X.std() > 0
    assert sdata.images["pixnet"].sizes["c"] == 250


@pytest.mark.slow
def test_it_knows_its_training_sections(model, data):
    import stpredict as stp

    sdata = stp.datasets.her2st(["C3"], path=data / "her2st")[0]
    stp.tl.predict(sdata, model, progress=False)
    with pytest.warns(UserWarning, match="'C3': this PixNet was trained on its image"):
        scores = stp.tl.evaluate(sdata, "pixnet")
    assert scores["pcc"].mean() > 0.35
