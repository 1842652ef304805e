"""A metric that is entered into the registry is everywhere: evaluation, benchmark, tables, plots, command line."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def made_up(monkeypatch):
    """The registry with one more metric: the largest error of every gene."""
    from stpredict import metrics

    def largest(pred, true):
        return np.abs(pred - true).max(axis=0)

    entry = metrics.Metric(function=largest, title="Largest error", better="lower", unit="target units")
    monkeypatch.setitem(metrics.METRICS, "largest", entry)
    return entry


def test_evaluate_gives_it_and_refuses_it_where_it_cannot_be(made_up, sdata, ridge):
    import stpredict as stp

    stp.tl.predict(sdata, ridge, progress=False)
    frame = stp.tl.evaluate(sdata, "ridge")
    assert list(frame.columns[3:8]) == ["pcc", "spearman", "mse", "mae", "largest"]
    assert (frame["largest"] >= frame["mae"]).all()
    assert list(stp.tl.evaluate(sdata, "ridge", scores=["largest"]).columns[3:]) == [
        "largest", "pcc_log_depth", "ceiling",
    ]  # fmt: skip
    sdata.tables["table"].uns["stpredict"]["ridge"]["unseen_genes"] = ["green"]
    assert np.isnan(stp.tl.evaluate(sdata, "ridge")["largest"]).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="'largest'.* cannot be given for genes that the model never saw"):
        stp.tl.evaluate(sdata, "ridge", scores=["largest"])


def test_benchmark_tables_and_plots_have_it_by_its_title(made_up, make):
    import stpredict as stp

    sections = [make(seed, n=40) for seed in range(2)]
    for name, sdata in zip("ab", sections, strict=True):
        sdata.attrs["name"] = name
    result = stp.tl.benchmark(
        sections, {"Ridge": stp.models.Ridge}, cv="leave-one-section-out", groups_reason="simulated", n_genes=3,
        device="cpu", precision="32", progress=False,
    )  # fmt: skip
    rows = result[(result["metric"] == "largest") & (result["model"] == "Ridge")]
    assert len(rows) == 6 and rows["value"].notna().all()
    assert "largest" in stp.tables.sections(result)
    table = stp.tables.scores(result, columns=["heg", "largest"])
    assert list(table.columns.get_level_values(0)) == ["HEG", "HEG", "Largest error", "Largest error"]
    with pytest.raises(ValueError, match=r"are no scores .*'mae', 'spearman'.*'largest'"):
        stp.tables.scores(result, columns=["r2"])
    assert stp.pl.scores(result, metric="largest").get_ylabel() == "Largest error"


def test_what_needs_more_than_values_is_no_score_of_a_layer(monkeypatch, make):
    import stpredict as stp
    from stpredict import metrics

    seen = []

    def degree(pred, true, graph):
        seen.append(graph.shape)
        return np.full(pred.shape[1], graph.sum(axis=1).mean())

    entry = metrics.Metric(function=degree, title="Degree", better="zero", needs="neighbours")
    monkeypatch.setitem(metrics.METRICS, "degree", entry)
    sdata = make(3, size=1024, n=120)
    result = stp.tl.benchmark(
        [sdata], {"Mean": stp.models.Mean}, cv="blocks", margin_um=20.0, genes=["red"], device="cpu", progress=False
    )
    assert (result.loc[result["metric"] == "degree", "value"] > 0).all()
    assert len(seen) == 3
    assert not entry.scores_layers


def test_the_command_line_lets_it_be_chosen(made_up, capsys):
    from stpredict.cli import app

    app.meta(["evaluate", "--help"], result_action="return_value")
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[choices: pcc, spearman, mse, mae, largest]" in page
