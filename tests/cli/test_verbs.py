from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import spatialdata


def test_train_saves_the_model_that_the_verb_trains(run, stores, ridge, tmp_path):
    import stpredict as stp

    out = tmp_path / "mine"
    options = ["--model", "ridge", "--n-genes", 12, "--shapes-key", "spots", "--no-progress"]
    status, said, err = run("train", stores[0], "--out", out, *options)
    assert status == 0, err
    assert f"model: {out}" in said
    mine, other = stp.models.load(out), stp.models.load(ridge)
    assert mine.genes == other.genes
    assert np.array_equal(mine.weight.numpy(), other.weight.numpy())
    assert mine.card.sections == ("toy0",)


def test_predict_writes_into_the_store_and_evaluate_scores_it(run, stores, ridge, tmp_path):
    status, _, err = run("predict", stores[1], "--model", ridge, "--shapes-key", "spots", "--no-progress")
    assert status == 0, err
    table = spatialdata.read_zarr(stores[1]).tables["table"]
    assert table.var["ridge"].sum() == 12
    assert np.isfinite(table.layers["ridge"][:, table.var["ridge"]]).all()

    out = tmp_path / "deep" / "genes.csv"
    status, said, err = run("evaluate", stores[1], "--key", "ridge", "--shapes-key", "spots", "--out", out)
    assert status == 0, err
    header, row = said.splitlines()[0], next(line for line in said.splitlines() if line.startswith("toy1"))
    for column in ("PCC@F", "PCC@S", "PCC@M", "log depth", "ceiling", "MSE", "dropped"):
        assert column in header
    genes = pd.read_csv(out)
    assert f" {genes['pcc'].mean():.3f} " in row
    assert f" {genes['pcc_log_depth'].mean():.3f} " in row
    assert f" {genes['ceiling'].mean():.3f} " in row


@pytest.mark.parametrize("from_file", [False, True])
def test_genes_are_names_or_a_file_of_names(run, stores, ridge, tmp_path, from_file: bool):
    names = json.loads((ridge / "card.json").read_text())["genes"][3:5]
    values = names
    if from_file:
        (tmp_path / "genes.txt").write_text("# two genes\n" + "\n".join(names) + "\n\n")
        values = [tmp_path / "genes.txt"]
    options = ["--model", ridge, "--shapes-key", "spots", "--key-added", "some", "--no-progress"]
    status, _, err = run("predict", stores[1], *options, "--genes", *values)
    assert status == 0, err
    table = spatialdata.read_zarr(stores[1]).tables["table"]
    assert set(table.var_names[table.var["some"]]) == set(names)


def test_of_several_stores_the_one_that_failed_is_named(run, stores, ridge):
    options = ["--model", ridge, "--shapes-key", "spots", "--key-added", "named", "--no-progress"]
    assert run("predict", stores[0], *options)[0] == 0
    status, _, err = run("predict", stores[1], stores[0], *options)
    assert status == 1
    said = err.splitlines()[-1]
    assert said.startswith("error: ")
    assert f"This was {stores[0]}, 2 of 2; those before it are done. The same call with --resume leaves" in said


def test_a_key_that_is_there_needs_overwrite(run, stores, ridge):
    arguments = ["predict", stores[1], "--model", ridge, "--shapes-key", "spots", "--no-progress"]
    assert run(*arguments)[0] == 0
    status, _, err = run(*arguments)
    assert status == 1
    assert "overwrite" in err
    assert run(*arguments, "--overwrite")[0] == 0


def test_train_keeps_a_model_that_is_there(run, stores, ridge, tmp_path):
    out = shutil.copytree(ridge, tmp_path / "ridge")
    before = (out / "card.json").read_bytes()
    arguments = ["train", stores[1], "--out", out, "--model", "mean", "--n-genes", 5, "--shapes-key", "spots"]
    status, _, err = run(*arguments)
    assert status == 1
    assert "--overwrite" in err
    assert (out / "card.json").read_bytes() == before
    assert run(*arguments, "--overwrite")[0] == 0
    assert json.loads((out / "card.json").read_text())["model"] == "Mean"


def test_validation_is_a_share_or_stores(run, stores, tmp_path):
    common = ["--model", "mean", "--n-genes", 5, "--shapes-key", "spots"]
    for name, val, source in (("share", 0.3, "spatial blocks"), ("store", stores[1], "validation sections: toy1")):
        status, _, err = run("train", stores[0], "--out", tmp_path / name, *common, "--val", val)
        assert status == 0, err
        assert json.loads((tmp_path / name / "card.json").read_text())["val_source"].startswith(source)


def test_options_of_pixnet_are_refused_for_others(run, stores, tmp_path):
    status, _, err = run("train", stores[0], "--out", tmp_path / "m", "--model", "ridge", "--encoder", "resnet18")
    assert status == 1
    assert "--encoder" in err and "--model ridge" in err


def test_every_model_class_can_be_chosen_and_its_needs_are_said():
    import stpredict as stp
    from stpredict.cli._train import ModelName, build, check_start, class_of

    names = set(stp.models.list_models(trained=False)["name"])
    assert {class_of(name).__name__ for name in ModelName.__args__} == names
    assert build("stnet", ["GNAS"], seed=0, mpp=1.5, config="small").mpp == 1.5
    assert build("mean", ["GNAS"], seed=0, mpp=None, config="small").mpp == 1.0
    for name in ("genequery", "sgn"):
        with pytest.raises(ValueError, match=f"--model {name} answers by the text of genes: pass --embeddings FILE"):
            check_start(name, {"config": "small"})
    with pytest.raises(ValueError, match="--embeddings: --model bleep has no such choice"):
        check_start("bleep", {"embeddings": "genes.safetensors"})
    with pytest.raises(ValueError, match="--config: --model ridge has no such choice"):
        check_start("ridge", {"config": "published"})


def test_train_takes_embeddings_for_a_model_that_answers_by_text(run, stores, tmp_path):
    import stpredict as stp

    genes = list(spatialdata.read_zarr(stores[0]).tables["table"].var_names[:4])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 8)).astype(np.float32)
    stp.tl.GeneEmbeddings(genes=tuple(genes), vectors=vectors, encoder="letters").save(tmp_path / "genes.safetensors")
    common = ["train", stores[0], "--model", "sgn", "--shapes-key", "spots", "--genes", *genes, "--no-progress"]
    status, _, err = run(*common, "--out", tmp_path / "without")
    assert status == 1
    assert "--embeddings" in err
    given = ["--embeddings", tmp_path / "genes.safetensors", "--max-epochs", 1]
    status, _, err = run(*common, *given, "--out", tmp_path / "with")
    assert status == 0, err
    assert stp.models.load(tmp_path / "with").is_text_queried


def test_a_pixnet_starts_alike_from_the_same_seed():
    import torch

    from stpredict.cli._train import build

    nets = [
        build("pixnet", ["GNAS", "SCD"], seed=seed, mpp=1.0, config="small", encoder=None, encoder_weights=None)
        for seed in (4, 4, 5)
    ]
    assert torch.equal(nets[0].genes_head.weight, nets[1].genes_head.weight)
    assert not torch.equal(nets[0].genes_head.weight, nets[2].genes_head.weight)


def test_models_prints_the_card_of_a_folder(run, ridge):
    status, said, _ = run("models", ridge)
    assert status == 0
    card = json.loads((ridge / "card.json").read_text())
    assert card["genes"][0] in said and card["genes"][-1] in said
    for value in ("Ridge", "toy0", "log1p_cp10k", "stp-2", card["weights_sha256"]):
        assert value in said


def test_models_lists_what_comes_with_the_package(run):
    import stpredict as stp

    status, said, _ = run("models")
    names = list(stp.models.list_models()["name"])
    assert status == 0
    assert all(name in said for name in names) if names else "No trained model" in said


def test_an_unknown_model_is_one_clear_line(run):
    status, _, err = run("models", "pixnet-her2")
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "no model 'pixnet-her2'" in err


def test_tables_keep_small_rates_and_whole_numbers():
    from stpredict.cli._options import shown

    text = shown(pd.DataFrame({"epoch": [0, 12], "loss": [0.12345, np.nan], "lr": [3e-5, 0.002], "n": [477.0, 3.0]}))
    assert [line.split()[1:] for line in text.splitlines()[1:]] == [
        ["0", "0.123", "3e-05", "477"],
        ["12", "NaN", "0.002", "3"],
    ]
