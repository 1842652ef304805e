"""Intervals: as wide as the errors that are kept, for shapes of the size that they are known of."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import colour_sdata

GENES = ("red", "green", "blue")
RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture(scope="module")
def validated():
    """Ridge, validated by two sections of its own."""
    import stpredict as stp

    model = stp.models.Ridge(GENES)
    stp.tl.train([colour_sdata(0), colour_sdata(1)], model, val=[colour_sdata(2), colour_sdata(3)], progress=False)
    return model


def test_an_interval_is_the_value_and_the_error_that_the_card_keeps(validated, sdata):
    import stpredict as stp

    stp.tl.predict(sdata, validated, **RUN)
    table = sdata.tables["table"]
    for level, name in ((0.8, "error_80"), (0.9, "error_90")):
        low, high = stp.tl.intervals(sdata, "ridge", level=level)
        assert list(low.columns) == list(GENES)
        assert list(low.index) == list(table.obs_names)
        width = np.array([validated.card.held_out[name][gene] for gene in GENES])
        np.testing.assert_allclose(high, table.layers["ridge"][:, :3] + width, rtol=1e-6)
        np.testing.assert_allclose(low, np.maximum(table.layers["ridge"][:, :3] - width, 0), rtol=1e-6)
    only, _ = stp.tl.intervals(sdata, "ridge", genes=["blue", "red"], level=0.9)
    np.testing.assert_array_equal(only, low[["red", "blue"]])
    assert list(only.columns) == ["red", "blue"]


def test_a_logarithm_has_no_interval_below_nothing(validated, sdata):
    import stpredict as stp

    stp.tl.predict(sdata, validated, **RUN)
    sdata.tables["table"].layers["ridge"][:] = 0.01
    low, high = stp.tl.intervals(sdata, "ridge")
    assert (low == 0).all(axis=None)
    assert (high > 0.01).all(axis=None)


@pytest.mark.long
def test_of_exchangeable_shapes_the_level_is_held():
    """Two hundred new sections: the share over all of them is within three standard errors of what is promised."""
    import stpredict as stp

    shares = []
    for k in range(12):
        model = stp.models.Ridge(GENES)
        stp.tl.train(
            [colour_sdata(100 * k), colour_sdata(100 * k + 1)], model, val=[colour_sdata(100 * k + 2, n=60)],
            progress=False,
        )  # fmt: skip
        new = colour_sdata(100 * k + 3, n=60)
        stp.tl.predict(new, model, **RUN)
        low, high = stp.tl.intervals(new, "ridge")
        counts = new.tables["table"].X.toarray()
        true = np.log1p(counts[:, :3] / counts.sum(axis=1, keepdims=True) * 1e4)
        shares.append(((low.to_numpy() <= true) & (true <= high.to_numpy())).mean())
    mean, error = np.mean(shares), np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert abs(mean - 0.8) < 3 * error + 1 / 60


@pytest.mark.parametrize(("radius", "n_off"), [(24.0, 0), (24.0 * 1.2, 0), (24.0 * 1.3, 30), (24.0 / 1.3, 30)])
def test_shapes_of_another_size_have_none(validated, sdata, radius, n_off):
    import stpredict as stp

    sdata.shapes["spots"]["radius"] = radius
    stp.tl.predict(sdata, validated, mpp=1.0, **RUN)
    if n_off:
        with pytest.warns(
            UserWarning, match=r"30 of 30 shapes have no interval: their median area is .* of 1810 to 1810 um2"
        ):
            low, high = stp.tl.intervals(sdata, "ridge", mpp=1.0)
    else:
        low, high = stp.tl.intervals(sdata, "ridge", mpp=1.0)
    assert np.isnan(low).all(axis=1).sum() == np.isnan(high).all(axis=1).sum() == n_off


def test_only_the_shapes_of_another_size_have_none(validated, sdata):
    import stpredict as stp

    sdata.shapes["spots"].loc["s4", "radius"] = 5.0
    stp.tl.predict(sdata, validated, mpp=1.0, **RUN)
    with pytest.warns(UserWarning, match="1 of 30 shapes have no interval"):
        low, _ = stp.tl.intervals(sdata, "ridge", mpp=1.0)
    assert low.index[np.isnan(low).all(axis=1)].tolist() == ["s4"]


def test_without_held_out_errors_there_is_none(ridge, sdata):
    import stpredict as stp

    stp.tl.predict(sdata, ridge, **RUN)
    with pytest.raises(ValueError, match="no held-out errors are known of 'ridge'.*val=0"):
        stp.tl.intervals(sdata, "ridge")


def test_too_few_shapes_keep_no_error_of_a_high_level():
    from stpredict._training._evidence import conformal_quantile

    error = np.arange(1.0, 10.0)[:, None]  # 9 errors: of 10 the 8th and the 9th
    assert conformal_quantile(error, 0.8) == [8.0]
    assert conformal_quantile(error, 0.9) == [9.0]
    assert np.isnan(conformal_quantile(error[:-1], 0.9)).all()


def test_what_cannot_be_given_is_refused(validated, sdata):
    import stpredict as stp

    stp.tl.predict(sdata, validated, **RUN)
    with pytest.raises(ValueError, match=r"level=0.5: errors are kept at the levels \[0.8, 0.9\]"):
        stp.tl.intervals(sdata, "ridge", level=0.5)
    with pytest.raises(ValueError, match="no predicted layer 'rigde'. Closest: 'ridge'"):
        stp.tl.intervals(sdata, "rigde")
    with pytest.raises(ValueError, match=r"genes that 'ridge' was not predicted for: \['other'\]"):
        stp.tl.intervals(sdata, "ridge", genes=["other"])
    with pytest.raises(ValueError, match="no table 'tabel'"):
        stp.tl.reliability(sdata, "ridge", table_name="tabel")
    stp.tl.predict(sdata, validated, table_added="new", **RUN)
    with pytest.raises(ValueError, match=r"several tables: \['table', 'new'\]"):
        stp.tl.intervals(sdata, "ridge")
