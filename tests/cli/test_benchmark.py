"""`stpredict benchmark`: the plan, the tables, and what a plan may not say."""

from __future__ import annotations

import pandas as pd
import pytest

PLAN = """
stores = ["a.zarr", "b.zarr"]
out = "results"
cv = "leave-one-section-out"
groups_reason = "simulated"
n_genes = 8
shapes_key = "spots"

[models.Ridge]
class = "Ridge"

[models."no idea"]
class = "Mean"
"""


def test_a_plan_runs_and_goes_on_where_it_was(run, stores, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    status, out, err = run("benchmark", tmp_path / "plan.toml", "--no-progress", "--device", "cpu")
    assert status == 0 and "error" not in err
    lines = out.splitlines()
    assert lines[0].startswith("| model | PCC@F | PCC@S | ALL | HEG | HVG | MSE | MAE |")
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| Ridge", "| no idea", "| log depth", "| ceiling"]
    frame = pd.read_csv(tmp_path / "results" / "scores.csv")
    assert set(frame["fold"]) == set(frame["section"]) and frame["fold"].nunique() == 2
    mean = frame.query("model == 'Ridge' and metric == 'mse'").groupby("section")["value"].mean()
    assert f"{mean.mean():.3f} ± {mean.std():.3f}" in lines[2]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*_seed0.json")}
    assert len(before) == 4
    assert run("benchmark", tmp_path / "plan.toml", "--no-progress")[1].splitlines()[2] == lines[2]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('out = "results"\n', "", "lacks ['out']. A plan looks like this:"),
        ("n_genes", "n_gene", "has unknown keys ['n_gene']; there are ['by',"),
        ('class = "Mean"', 'class = "Median"', "[models.no idea] needs class = one of"),
        ('class = "Mean"', 'class = "Mean"\nencoder = "vit"', "Mean has no argument ['encoder']; it has ['config',"),
        ('"b.zarr"', '"c.zarr"', "there is no store"),
        ('groups_reason = "simulated"\n', "", "groups_reason = "),
        ("n_genes = 8", "n_genes =", "is no TOML"),
    ],
)
def test_what_a_plan_may_not_say_is_one_line(run, stores, tmp_path, old, new, said):
    assert old in PLAN
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new, 1))
    status, out, err = run("benchmark", tmp_path / "plan.toml")
    assert (status, out) == (1, "")
    assert said in err and len(err.splitlines()) == 1


def test_the_example_in_the_error_is_a_plan_that_is_understood(tmp_path):
    from stpredict.cli import _benchmark

    (tmp_path / "plan.toml").write_text(_benchmark.EXAMPLE)
    said, arguments = _benchmark._read(tmp_path / "plan.toml")
    assert list(said["models"]) == ["Ridge", "PixNet"]
    assert set(arguments) == {"cv", "groups", "n_genes"}
    for name, of in said["models"].items():
        assert _benchmark._builder(name, dict(of), tmp_path)
