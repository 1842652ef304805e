"""The benchmark: folds, what a leak would change, resuming, and what is refused."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

NAMES = ("a", "b", "c")
ALONE = {"groups": None, "groups_reason": "simulated"}
RUN = {"n_genes": 3, "device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def sections(make):
    made = [make(seed, n=40) for seed in range(3)]
    for name, sdata in zip(NAMES, made, strict=True):
        sdata.attrs["name"] = name
    return made


@pytest.fixture
def models():
    import stpredict as stp

    return {"Ridge": stp.models.Ridge, "Mean": stp.models.Mean}


def benchmark(sections, models, *, cv="leave-one-section-out", **settings):
    import stpredict as stp

    return stp.tl.benchmark(sections, models, cv=cv, **(RUN | (ALONE if "groups" not in settings else {}) | settings))


def changed(sdata, change):
    """A copy whose counts are `change`(dense counts)."""
    from spatialdata import SpatialData

    table = sdata.tables["table"].copy()
    table.X = csr_matrix(change(table.X.toarray()).astype(np.float32))
    out = SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table})
    out.attrs["name"] = sdata.attrs["name"]
    return out


def test_the_result_is_what_predict_and_evaluate_say(sections, models):
    import stpredict as stp

    result = benchmark(sections, models)
    assert list(result.columns[:7]) == ["model", "seed", "fold", "section", "gene", "metric", "value"]
    assert set(result["model"]) == {"Ridge", "Mean", "ceiling", "log depth", "measured"}
    panel = stp.pp.gene_panel(sections[:2], n_genes=3)
    model = stp.models.Ridge(panel)
    stp.tl.train(sections[:2], model, val=0, device="cpu", precision="32", progress=False)
    stp.tl.predict(sections[2], model, device="cpu", precision="32", progress=False)
    scores = stp.tl.evaluate(sections[2], "ridge").set_index("gene")
    mine = result[(result["fold"] == "c")]
    for model_name, metric, column in (
        ("Ridge", "pcc", "pcc"), ("Ridge", "mse", "mse"), ("Ridge", "spearman", "spearman"), ("Ridge", "mae", "mae"),
        ("log depth", "pcc", "pcc_log_depth"), ("ceiling", "pcc", "ceiling"),
    ):  # fmt: skip
        got = mine[(mine["model"] == model_name) & (mine["metric"] == metric)].set_index("gene")["value"]
        np.testing.assert_allclose(
            got.loc[panel], scores.loc[panel, column], rtol=1e-6, err_msg=f"{model_name} {metric}"
        )
    summary = stp.tl.evaluate(sections[2], "ridge").attrs["summary"].iloc[0]
    table = stp.tables.sections(result)
    row = table[(table["model"] == "Ridge") & (table["section"] == "c")].iloc[0]
    for name in ("pcc_f", "pcc_s", "pcc_m", "heg", "hvg", "mse", "mae"):
        assert row[name] == pytest.approx(summary[name], rel=1e-6), name
    assert (result["diameter_um"].round(3) == 48).all()


def test_every_section_is_tested_once_and_groups_stay_together(sections, models):
    only = {"Mean": models["Mean"]}
    folds = benchmark(sections, only).attrs["protocol"]["folds"]
    assert {name: fold["test"] for name, fold in folds.items()} == {n: (n,) for n in NAMES}
    grouped = benchmark(sections, only, groups=["p", "q", "p"]).attrs["protocol"]
    assert [fold["test"] for fold in grouped["folds"].values()] == [("a", "c"), ("b",)]
    assert grouped["groups"] == {"a": "p", "b": "q", "c": "p"}
    two = benchmark(sections, only, cv=2).attrs["protocol"]["folds"]
    assert sorted(n for fold in two.values() for n in fold["test"]) == list(NAMES)
    named = benchmark(sections, only, cv={"there": (["a"], ["b", "c"])})
    assert set(named["fold"]) == {"there"} and set(named["section"]) == {"b", "c"}


def test_blocks_are_apart_and_cover_the_section(make, models):
    from stpredict._spatialdata import SectionSpec
    from stpredict.tl._benchmark._folds import block_folds, centres_um, usable_spots

    spec = SectionSpec()
    section = make(5, n=60)
    rows, at = usable_spots(section, spec)
    centre = dict(zip(rows.tolist(), centres_um(at), strict=True))
    folds = block_folds({"one": section}, margin_um=60.0, spec=spec)
    assert len(folds) == 3
    tested = np.concatenate([fold.kept["one"][1] for fold in folds])
    assert sorted(tested) == sorted(rows)
    for fold in folds:
        train, test = fold.kept["one"]
        apart = [np.hypot(*(centre[i] - centre[j])) for i in train.tolist() for j in test.tolist()]
        assert min(apart) >= 60.0
        assert not set(train) & set(test)
    result = benchmark([section], models, cv="blocks", margin_um=60.0, groups=None)
    sizes = result[(result["model"] == "Ridge") & (result["metric"] == "pcc")].groupby("fold").size()
    assert sizes.tolist() == [3, 3, 3]


# ---------------------------------------------------------------- leaks


def test_a_gene_that_varies_only_in_the_test_section_is_not_in_the_panel(sections, models):
    rng = np.random.default_rng(0)

    def only_there(counts):
        counts[:, 3] = rng.permutation(np.r_[np.zeros(20), np.full(20, 50_000)])
        return counts

    flat = [changed(s, lambda c: np.c_[c[:, :3], np.full(len(c), 1.0)]) for s in sections[:2]]
    result = benchmark([*flat, changed(sections[2], only_there)], models, by="hvg_union", n_genes=2)
    panels = {name: fold["panel"] for name, fold in result.attrs["protocol"]["folds"].items()}
    assert "other" not in panels["c"]
    assert "other" in panels["a"] and "other" in panels["b"]  # where that section is trained on


def trained_states(sections, build, **settings):
    """The state of every model that a benchmark trains, fold by fold."""
    kept = []

    def watched(panel):
        kept.append(build(panel))
        return kept[-1]

    benchmark(
        sections, {"watched": watched}, cv={"one": (["a", "b"], ["c"])}, genes=["red", "green", "blue"], **settings
    )
    return {key: value.clone() for key, value in kept[0].state_dict().items()}


def _same(one, other):
    return one.keys() == other.keys() and all(bool((one[key] == other[key]).all()) for key in one)


def test_nothing_of_the_test_counts_reaches_a_trained_model(sections, build, model_name):
    """Scalers, banks, panels, epochs: multiplied or shuffled, test counts leave every trained number as it is."""

    def other(counts):
        return np.random.default_rng(1).permutation(counts) * 3

    changes = [sections, [*sections[:2], changed(sections[2], other)]]
    settings = {"target": "as_is", "max_epochs": 2, "val": 0.2}
    one, two = (trained_states(each, lambda panel: build(model_name, tuple(panel)), **settings) for each in changes)
    assert _same(one, two)


def test_a_planted_leak_is_seen(sections):
    """The check above can fail: a model that peeks at the test section moves with its counts."""
    import stpredict as stp

    states = []
    for test in (sections[2], changed(sections[2], lambda counts: counts * 3)):

        def peeking(panel, test=test):
            model = stp.models.Mean(panel)
            prepare = model.prepare

            def prepare_and_peek(train):
                from stpredict import _spatialdata

                spec = _spatialdata.SectionSpec(target="as_is")
                section = _spatialdata.training_section(test, spec, genes=model.genes, at_mpp=model.mpp)
                prepare([*train, section])

            model.prepare = prepare_and_peek
            return model

        states.append(trained_states([*sections[:2], test], peeking, target="as_is"))
    assert not _same(*states)


def test_a_model_that_looks_at_the_test_counts_while_it_predicts_finds_none(sections, peeking):
    import stpredict as stp

    seen = []
    models = {"peeking": lambda panel: peeking(stp.models.Mean(panel), seen)}
    benchmark(sections, models, cv={"one": (["a", "b"], ["c"])}, genes=["red", "green", "blue"])
    assert seen
    assert seen[-1] is None


def test_shuffled_training_labels_score_about_zero(make, models):
    import stpredict as stp

    many = [make(seed, n=40) for seed in range(6)]
    for i, sdata in enumerate(many):
        sdata.attrs["name"] = f"s{i}"
    rng = np.random.default_rng(0)
    shuffled = [changed(s, rng.permutation) for s in many[:3]]
    cv = {"one": ([f"s{i}" for i in range(3)], [f"s{i}" for i in range(3, 6)])}
    found = {}
    for kind, train in (("right", many[:3]), ("shuffled", shuffled)):
        result = benchmark([*train, *many[3:]], {"Ridge": models["Ridge"]}, cv=cv)
        found[kind] = stp.tables.scores(result).loc["Ridge", ("ALL", "mean")]
    assert found["right"] > 0.25
    assert abs(found["shuffled"]) < 0.15  # nine correlations over 40 spots: a standard error of .05


# ---------------------------------------------------------------- resuming and failing


def test_it_goes_on_where_it_was_and_a_failed_run_is_tried_again(sections, models, tmp_path):
    calls = []

    def fails_once(panel):
        calls.append(panel)
        if len(calls) == 2:
            raise RuntimeError("the third fold is too much")
        return models["Mean"](panel)

    with pytest.warns(
        UserWarning, match=r"1 runs failed, .* Sometimes \(1: RuntimeError: the third fold is too much\)"
    ):
        first = benchmark(sections, {"Ridge": models["Ridge"], "Sometimes": fails_once}, path=tmp_path)
    failed = first[first["error"].notna()]
    assert failed["fold"].tolist() == ["b"]
    assert failed["error"].item() == "RuntimeError: the third fold is too much"
    assert set(first[first["model"] == "Sometimes"].dropna(subset="gene")["fold"]) == {"a", "c"}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_seed0.json")}
    assert len(files) == 5
    again = benchmark(sections, {"Ridge": models["Ridge"], "Sometimes": fails_once}, path=tmp_path)
    assert again["error"].isna().all()
    assert {path: path.stat().st_mtime_ns for path in files} == files
    fields = ["fold", "gene", "metric", "value", "seconds"]
    one, two = (frame[frame["model"] == "Ridge"][fields].reset_index(drop=True) for frame in (first, again))
    pd.testing.assert_frame_equal(one, two)
    assert json.loads((tmp_path / "protocol.json").read_text())["groups_reason"] == "simulated"


def test_a_model_that_always_fails_costs_its_own_rows_alone(sections, models):
    import torch

    import stpredict as stp

    def fails(panel):
        raise RuntimeError("there is no such file")

    with pytest.warns(UserWarning, match="3 runs failed"):
        result = benchmark(sections, {"Broken": fails, "Mean": models["Mean"]})
    failed = result.dropna(subset="error")
    assert failed["model"].tolist() == ["Broken"] * 3
    assert set(failed["error"]) == {"RuntimeError: there is no such file"}
    assert result.loc[(result["model"] == "Mean") & (result["metric"] == "mse"), "value"].notna().all()
    made = result.attrs["protocol"]["models"]
    assert made.keys() == {"Mean"}
    assert [of["threads"] for of in made["Mean"]["made_by"]] == [torch.get_num_threads()]
    table = stp.tables.scores(result)
    assert table.index.tolist()[:2] == ["Broken", "Mean"]
    assert table.loc["Broken"].isna().all()
    with pytest.raises(ValueError, match="'Broken', with which others are compared, has not been scored in every fold"):
        stp.tables.differences(result)


def test_seeds_are_checked_before_anything_is_trained(sections, models):
    built = []

    def counted(panel):
        built.append(panel)
        return models["Mean"](panel)

    with pytest.raises(ValueError, match="seeds= names no seeds for model 'Mean'"):
        benchmark(sections, {"counted": counted, "Mean": models["Mean"]}, seeds={"counted": [0]})
    assert built == []


def test_what_is_read_and_in_which_precision_is_part_of_the_protocol(sections, models, tmp_path):
    benchmark(sections, {"Mean": models["Mean"]}, path=tmp_path)
    with pytest.raises(ValueError, match="results of another protocol: precision, shapes_key differ"):
        benchmark(sections, {"Mean": models["Mean"]}, path=tmp_path, precision="bf16", shapes_key="spots")


def test_the_peak_is_what_a_run_adds_to_its_process():
    import time

    from stpredict.tl._benchmark._run import _peak

    with _peak("cpu") as idle:
        pass
    with _peak("cpu") as busy:
        held = np.ones(200_000_000 // 8)
        time.sleep(0.2)
    assert held.sum() > 0
    assert idle[0] < 50
    assert 150 < busy[0] < 400


def test_a_folder_of_another_protocol_is_left_alone(sections, models, tmp_path):
    only = {"Mean": models["Mean"]}
    benchmark(sections, only, path=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="results of another protocol: folds, panel differ"):
        benchmark(sections, only, path=tmp_path, n_genes=2)
    with pytest.raises(ValueError, match="results of another protocol: sections differ"):
        benchmark([*sections[:2], changed(sections[2], lambda c: c + 1)], only, path=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_settings_of_a_model_are_refused(sections, tmp_path):
    import stpredict as stp

    benchmark(sections, {"m": stp.models.Mean}, path=tmp_path)
    with pytest.warns(UserWarning, match="3 runs failed"):
        result = benchmark(sections, {"m": stp.models.Ridge}, path=tmp_path)
    assert result.dropna(subset="error")["error"].str.contains("first weights than models['m']", regex=False).all()
    assert len(result.dropna(subset="error")) == 3


def test_weights_to_start_from_are_part_of_a_run(sections, build, tmp_path):
    import torch

    def stnet(panel, factor=1.0):
        model = build("STNet", tuple(panel))
        with torch.no_grad():
            next(model.encoder.parameters()).mul_(factor)
        return model

    for builder, refused in ((stnet, 0), (stnet, 0), (lambda panel: stnet(panel, 1.5), 1)):
        cv = {"one": (["a", "b"], ["c"])}
        with pytest.warns(UserWarning, match="runs failed") if refused else contextlib.nullcontext():
            result = benchmark(sections, {"m": builder}, cv=cv, path=tmp_path, max_epochs=1)
        assert result["error"].notna().sum() == refused


@pytest.mark.slow
def test_seeds_may_differ_between_models(sections, models):
    result = benchmark(sections, models, seeds={"Ridge": [0, 1], "Mean": [0]})
    seeds = result.groupby("model")["seed"].unique()
    assert sorted(seeds["Ridge"]) == [0, 1] and seeds["Mean"].tolist() == [0]
    with pytest.raises(ValueError, match="seeds= names no seeds for model 'Mean'"):
        benchmark(sections, models, seeds={"Ridge": [0]})


def test_bad_input_is_said_before_anything_runs(sections, models):
    with pytest.raises(ValueError, match=r"2 folds need as many sections, and there is 1 .* Pass cv=\"blocks\""):
        benchmark(sections[:1], models)
    with pytest.raises(
        ValueError, match="2 folds need as many groups, and there is 1 .*groups=None with groups_reason"
    ):
        benchmark(sections, models, groups=["p"] * 3)
    with pytest.raises(ValueError, match="groups names 2 patients for 3 sections"):
        benchmark(sections, models, groups=["p", "q"])
    with pytest.raises(ValueError, match="groups_reason="):
        benchmark(sections, models, groups=None, groups_reason=None)
    with pytest.raises(ValueError, match="5 genes were asked, but the 2 sections have only 4 in common"):
        benchmark(sections, models, n_genes=5)
    with pytest.raises(ValueError, match=r"1 of the 2 genes are not in all of its sections: \['none'\]"):
        benchmark(sections, models, genes=["red", "none"])
    with pytest.raises(ValueError, match="names are not unique: \\['a'\\]"):
        benchmark([sections[0], sections[0]], models)
    with pytest.raises(ValueError, match="models= is empty"):
        benchmark(sections, {})
    with pytest.raises(ValueError, match="cv='loo' must be one of"):
        benchmark(sections, models, cv="loo")
    with pytest.raises(ValueError, match=r"cv\['x'\]: test=\['z'\] must be names of sections"):
        benchmark(sections, models, cv={"x": (["a"], ["z"])})
    with pytest.raises(ValueError, match=r"trains and tests on the same group: \['p'\]"):
        benchmark(sections, models, cv={"x": (["a"], ["b"])}, groups=["p", "p", "q"])
    lone = changed(sections[2], lambda counts: counts)
    lone.tables["table"].var_names = ["w", "x", "y", "z"]
    with pytest.raises(ValueError, match="no gene in common"):
        benchmark([*sections[:2], lone], models)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"Ridge": "Ridge"}, "models=.* must be a mapping of names, each to a function.*function of the panel"),
        ([1], "models=.* must be a mapping"),
        ({"ceiling": dict}, r"\['ceiling'\] are names of reference rows"),
    ],
)
def test_models_that_are_no_functions_are_refused_before_anything_runs(sections, models, said):
    with pytest.raises(ValueError, match=said):
        benchmark(sections, models)


def test_seeds_are_a_list(sections, models):
    with pytest.raises(ValueError, match=r"seeds=1 must be a list.*It is a list of seeds"):
        benchmark(sections, models, seeds=1)


def test_pooled_correlations_are_those_of_all_spots_together(sections, models, monkeypatch):
    import stpredict as stp
    from stpredict.tl._benchmark import _run as _benchmark_run

    seen = []
    scores = _benchmark_run.scores

    def kept(pred, true, section):
        seen.append((pred, true))
        return scores(pred, true, section)

    monkeypatch.setattr(_benchmark_run, "scores", kept)
    result = benchmark(sections, {"Ridge": models["Ridge"]}, genes=["red", "green", "blue"])
    expected = stp.metrics.pooled_pcc([p for p, _ in seen], [t for _, t in seen]).mean()
    assert stp.tables.pooled(result).loc["Ridge", "pooled PCC"] == pytest.approx(expected, abs=1e-6)


def test_blocks_have_a_difference_each(make, models):
    import stpredict as stp

    sdata = make(3, size=1024, n=120)
    sdata.attrs["name"] = "a"
    result = benchmark([sdata], models, cv="blocks", groups=None, groups_reason=None, margin_um=20.0)
    table = stp.tables.differences(result, score="mse")
    assert len(table.columns) == 4
    one = stp.tables.sections(result)
    mean = one[one["model"].isin(models)].groupby("model")["mse"].mean()
    first, other = list(models)[:2]
    assert table.loc[other, "mean"] == pytest.approx(mean[other] - mean[first])


def test_counts_that_are_not_raw_have_no_ceiling(sections, models):
    result = benchmark(sections, {"Mean": models["Mean"]}, raw_counts=False)
    assert result.loc[result["model"] == "ceiling", "value"].isna().all()
    assert result.attrs["protocol"]["raw_counts"] is False
