"""Tables: each figure is the one that a few lines of NumPy give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

GENES = [f"g{i}" for i in range(12)]


def result(n_sections: int = 4, *, seeds=(0, 1), models=("first", "second"), shift: float = 0.1) -> pd.DataFrame:
    """What a benchmark returns, of random scores; `second` is better than `first` by `shift` in every gene."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(n_sections):
        head = {"fold": f"f{s}", "section": f"s{s}", "diameter_um": 55.0 if s % 2 else 110.0}
        r = {seed: rng.uniform(-0.2, 0.6, len(GENES)) for seed in seeds}
        for metric in ("mean", "variance"):
            values = rng.permutation(len(GENES)).astype(float)
            rows += [
                head | {"model": "measured", "metric": metric, "gene": g, "value": v}
                for g, v in zip(GENES, values, strict=True)
            ]
        for model in ("ceiling", "log depth"):
            rows += [head | {"model": model, "metric": "pcc", "gene": g, "value": 0.7} for g in GENES]
        for k, model in enumerate(models):
            for seed in seeds:
                for metric, values in (("pcc", r[seed] + k * shift), ("mse", r[seed] ** 2), ("mae", np.abs(r[seed]))):
                    cost = {"seed": seed, "seconds": 10.0 * (k + 1), "peak_mb": 100.0 + s, "n_parameters": 7}
                    rows += [
                        head | cost | {"model": model, "metric": metric, "gene": g, "value": v}
                        for g, v in zip(GENES, values, strict=True)
                    ]
    return pd.DataFrame(rows).assign(error=None)


def pcc_of(frame, model, section, seed):
    part = frame[(frame["model"] == model) & (frame["section"] == section) & (frame["metric"] == "pcc")]
    return part[part["seed"] == seed].set_index("gene")["value"].loc[GENES].to_numpy()


@pytest.fixture(scope="module")
def tables():
    import stpredict as stp

    return stp.tables


def test_sections_are_quartiles_and_the_top_genes_of_what_was_measured(tables):
    frame = result()
    row = tables.sections(frame, n_top=3).set_index(["model", "section", "seed"]).loc[("second", "s1", 1)]
    r = pcc_of(frame, "second", "s1", 1)
    assert [row["pcc_f"], row["pcc_s"], row["pcc_m"]] == pytest.approx([np.percentile(r, 25), np.median(r), r.mean()])
    for score, metric in (("heg", "mean"), ("hvg", "variance")):
        measured = frame[(frame["model"] == "measured") & (frame["section"] == "s1") & (frame["metric"] == metric)]
        top = np.argsort(-measured.set_index("gene")["value"].loc[GENES].to_numpy())[:3]
        assert row[score] == pytest.approx(r[top].mean())
    assert (row["n_genes"], row["n_nan_genes"], row["diameter_um"]) == (12, 0, 55.0)


def test_scores_average_seeds_first_and_spread_over_sections(tables):
    frame = result()
    table = tables.scores(frame)
    by_section = [np.mean([pcc_of(frame, "first", f"s{s}", seed).mean() for seed in (0, 1)]) for s in range(4)]
    assert table.loc["first", ("ALL", "mean")] == pytest.approx(np.mean(by_section))
    assert table.loc["first", ("ALL", "sd")] == pytest.approx(np.std(by_section, ddof=1))
    assert list(table.index) == ["first", "second", "log depth", "ceiling"]
    assert table.loc["ceiling", ("ALL", "mean")] == pytest.approx(0.7)
    assert np.isnan(table.loc["ceiling", ("MSE", "mean")])
    with pytest.raises(ValueError, match=r"columns=\['r2'\] are no scores of this result"):
        tables.scores(frame, columns=["r2"])


def test_a_model_without_a_correlation_has_errors_only(tables):
    frame = result()
    constant = (frame["model"] == "first") & (frame["metric"] == "pcc")
    frame.loc[constant, "value"] = np.nan
    table = tables.scores(frame)
    assert np.isnan(table.loc["first", ("ALL", "mean")])
    assert table.loc["first", ("MSE", "mean")] > 0
    assert (tables.sections(frame).query("model == 'first'")["n_nan_genes"] == 12).all()


def test_differences_are_those_to_the_first_and_claim_nothing_of_four_sections(tables):
    table = tables.differences(result())
    assert table.index.tolist() == ["second"]
    assert list(table.columns) == ["s0", "s1", "s2", "s3", "mean"]
    np.testing.assert_allclose(table.to_numpy(float), 0.1)
    other = tables.differences(result(), first="second")
    assert other.loc["first", "mean"] == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="first='third' is no model"):
        tables.differences(result(), first="third")


def test_from_eight_sections_the_bootstrap_is_over_sections(tables):
    frame = result(8)
    noisy = frame["model"].eq("second") & frame["section"].eq("s0")
    frame.loc[noisy, "value"] += 0.4
    row = tables.differences(frame).loc["second"]
    assert row["mean"] == pytest.approx(0.15)
    draws = np.random.default_rng(5).choice(np.r_[0.5, np.full(7, 0.1)], size=(20_000, 8)).mean(axis=1)
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.02)
    assert row["low"] == pytest.approx(0.1)


def test_cost_counts_runs_and_failures(tables):
    frame = result()
    failed = pd.DataFrame([{"model": "second", "seed": 2, "fold": "f0", "error": "RuntimeError: no"}])
    table = tables.cost(pd.concat([frame, failed], ignore_index=True))
    assert table.loc["first"].to_dict() == {"seconds": 10, "peak MB": 103, "parameters": 7, "runs": 8, "failed": 0}
    assert table.loc["second", ["seconds", "runs", "failed"]].tolist() == [20, 9, 1]


def test_scales_transfer_and_text(tables):
    frame = result()
    scales = tables.scales(frame)
    assert list(scales.columns) == ["55 um", "110 um"]
    at_55 = np.mean([pcc_of(frame, "first", s, seed).mean() for s in ("s1", "s3") for seed in (0, 1)])
    assert scales.loc["first", "55 um"] == pytest.approx(at_55)
    transfer = tables.transfer(frame)
    assert transfer.loc[("f2", "second"), ("ALL", "mean")] - transfer.loc[("f2", "first"), ("ALL", "mean")] == (
        pytest.approx(0.1)
    )
    text = tables.text({"definitions": frame, "symbols": result(shift=0.3)})
    assert text.index.tolist() == [(k, m) for k in ("definitions", "symbols") for m in ("first", "second")]


def test_unseen_keeps_the_nulls_beside_the_model(tables):
    rng = np.random.default_rng(0)
    rows = [
        {"model": "m", "share": share, "seed": seed, "section": s, "predictor": p, "genes": genes}
        | dict(zip(("heg", "hvg", "pcc_m"), rng.uniform(size=3), strict=True))
        for share in (0.2, 0.4)
        for seed in (0, 1, 2)
        for s in ("a", "b")
        for genes, p in (("unseen", "model"), ("unseen", "permuted"), ("seen", "model"))
    ]
    frame = pd.DataFrame(rows)
    table = tables.unseen(frame)
    part = frame.query("share == 0.4 and predictor == 'permuted'").groupby("seed")["hvg"].mean()
    assert table.loc[(0.4, "m", "permuted"), ("HVG", "mean")] == pytest.approx(part.mean())
    assert table.loc[(0.4, "m", "permuted"), ("HVG", "sd")] == pytest.approx(part.std())
    assert len(tables.unseen(frame, genes="seen")) == 2
    with pytest.raises(ValueError, match=r"genes='none' must be one of \['seen', 'unseen'\]"):
        tables.unseen(frame, genes="none")


def test_markdown_has_mean_and_sd_in_one_cell(tables):
    table = tables.scores(result(), columns=("pcc_m", "mse"))
    lines = tables.markdown(table).splitlines()
    assert lines[0] == "| model | ALL | MSE |"
    assert lines[1] == "|---|---|---|"
    mean, sd = table.loc["first", "ALL"]
    assert lines[2].startswith(f"| first | {mean:.3f} ± {sd:.3f} | ")
    assert lines[4] == "| log depth | 0.700 ± 0.000 | — |"
    assert tables.markdown(tables.cost(result())).splitlines()[2] == "| first | 10 | 103 | 7 | 8 | 0 |"
    assert tables.markdown(tables.transfer(result())).splitlines()[0] == "| fold | model | HEG | HVG | ALL |"


def test_a_result_of_failures_alone_says_so(tables):
    with pytest.raises(ValueError, match="every run failed"):
        tables.scores(
            pd.DataFrame(
                [
                    {"model": "m", "seed": 0, "fold": "f", "section": None, "gene": None, "metric": None, "value": None}
                    | {"error": "no"}
                ]
            )
        )


def test_a_pipe_or_a_line_end_stays_in_its_cell(tables):
    frame = pd.DataFrame({"a|b": ["x|y", "two\nlines"]}, index=["one|1", "two"])
    assert tables.markdown(frame).splitlines()[2:] == [r"| one\|1 | x\|y |", "| two | two lines |"]
    assert tables.markdown(frame).splitlines()[0] == r"|  | a\|b |"
