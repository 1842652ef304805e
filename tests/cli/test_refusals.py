"""Commands that a user gets wrong: one line that names the option, status 1, no traceback, nothing written."""

from __future__ import annotations

import pytest

FEW = ["--n-genes", "5", "--shapes-key", "spots"]
WRONG = {
    "an unknown command": (["predcit"], "predcit"),
    "an unknown option": (["predict", "a.zarr", "--model", "m", "--gens", "A"], "gens"),
    "no store": (["predict", "--model", "m"], "STORES"),
    "no model": (["predict", "{a}"], "model"),
    "a store that is not there": (["predict", "no.zarr", "--model", "{ridge}"], "no store 'no.zarr'"),
    "a folder that is no store": (["predict", "{folder}", "--model", "{ridge}"], "no zarr store"),
    "a model that is not there": (["predict", "{a}", "--model", "nope"], "no model 'nope'"),
    "mpp that is a word": (["predict", "{a}", "--model", "{ridge}", "--mpp", "coarse"], "mpp"),
    "mpp of nothing": (["predict", "{a}", "--model", "{ridge}", "--mpp", "0"], "--mpp"),
    "mpp that is NaN": (["predict", "{a}", "--model", "{ridge}", "--mpp", "nan"], "--mpp"),
    "an absurd mpp": (["predict", "{a}", "--model", "{ridge}", "--mpp", "1e-9"], "--mpp"),
    "a step of NaN": (["predict", "{a}", "--model", "{ridge}", "--raster-mpp", "nan"], "--raster-mpp"),
    "an unknown output": (["predict", "{a}", "--model", "{ridge}", "--output", "picture"], "output"),
    "a batch of nothing": (["predict", "{a}", "--model", "{ridge}", "--batch-size", "0"], "--batch-size"),
    "an unknown device": (["predict", "{a}", "--model", "{ridge}", "--device", "gpu"], "--device"),
    "an unknown precision": (["predict", "{a}", "--model", "{ridge}", "--precision", "8"], "--precision"),
    "an unknown gene": (["predict", "{a}", "--model", "{ridge}", "--genes", "NOPE"], "NOPE"),
    "an unknown image": (
        ["predict", "{a}", "--model", "{ridge}", "--shapes-key", "spots", "--image-key", "imgae"],
        "--image-key",
    ),
    "unknown shapes": (["predict", "{a}", "--model", "{ridge}", "--shapes-key", "spot"], "--shapes-key"),
    "an unknown table": (
        ["predict", "{a}", "--model", "{ridge}", "--shapes-key", "spots", "--table-name", "tabel"],
        "--table-name",
    ),
    "a map of no map": (["predict", "{a}", "--model", "{ridge}", "--output", "raster"], "--output"),
    "a name with a slash": (
        ["predict", "{a}", "--model", "{ridge}", "--shapes-key", "spots", "--key-added", "a/b"],
        "'a/b'",
    ),
    "train: no output": (["train", "{a}"], "out"),
    "train: an unknown model": (["train", "{a}", "--model", "forest", "--out", "{folder}/m"], "model"),
    "train: no epochs": (["train", "{a}", "--out", "{folder}/m", *FEW, "--max-epochs", "0"], "--max-epochs"),
    "train: a rate of nothing": (["train", "{a}", "--out", "{folder}/m", *FEW, "--lr", "0"], "--lr"),
    "train: a seed below 0": (["train", "{a}", "--out", "{folder}/m", *FEW, "--seed", "-1"], "seed"),
    "train: a share of 2": (["train", "{a}", "--out", "{folder}/m", *FEW, "--val", "2"], "val"),
    "train: an unknown layer": (["train", "{a}", "--out", "{folder}/m", *FEW, "--layer", "raw"], "--layer"),
    "train: an unknown target": (["train", "{a}", "--out", "{folder}/m", *FEW, "--target", "logs"], "target"),
    "train: such a store": (["train", "no.zarr", "--out", "{folder}/m"], "no store 'no.zarr'"),
    "train: an encoder of no name": (["train", "{a}", "--out", "{folder}/m", *FEW, "--encoder", "nope"], "nope"),
    "evaluate: nothing predicted": (["evaluate", "{a}"], "no predicted layer"),
    "evaluate: an unknown layer": (["evaluate", "{a}", "--key", "nope"], "nope"),
    "evaluate: such a store": (["evaluate", "no.zarr", "--key", "a"], "no store 'no.zarr'"),
    "benchmark: no plan": (["benchmark"], "PLAN"),
    "benchmark: a plan that is not there": (["benchmark", "no.toml"], "no.toml"),
    "benchmark: a plan that is none": (["benchmark", "{folder}/plan.toml"], "plan.toml"),
    "models: of no name": (["models", "nope"], "nope"),
    "demo: a size of no kind": (["demo", "--seed", "x"], "seed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_one_line_that_names_the_option(run, stores, ridge, tmp_path, case):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "plan.toml").write_text("stores = [")
    arguments, said = WRONG[case]
    before = sorted(path for path in tmp_path.rglob("*"))
    places = {"a": stores[0], "ridge": ridge, "folder": folder}
    status, out, err = run(*(each.format(**places) for each in arguments))
    assert status in (1, 2)  # 2 is the argument parser's
    assert said in err
    assert "Traceback" not in err + out
    assert sorted(path for path in tmp_path.rglob("*")) == before
