"""Unseen genes as a protocol: nothing of their counts is used, and every null is beside the score."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue", "other")


@pytest.fixture(scope="module")
def build():
    from stpredict.models import GeneQuery, Recipe
    from stpredict.tl import GeneEmbeddings

    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    embeddings = GeneEmbeddings(genes=GENES, vectors=vectors, encoder="random")

    def make(genes):
        torch.manual_seed(0)
        config = dataclasses.replace(
            GeneQuery(genes, embeddings=embeddings).config,
            patch_px=64, mpp=1.0, width=16, heads=2, head_width=8, mlp_width=16,
            recipe=Recipe(max_epochs=2, batch_size=1, lr=1e-3, encoder_lr=0.0),
        )  # fmt: skip
        return GeneQuery(config=config, embeddings=embeddings)

    return make


def run(make, build, **changes):
    import stpredict as stp

    arguments = {"genes": GENES, "shares": [0.5], "seeds": [0], "device": "cpu", "progress": False} | changes
    models = arguments.pop("models", {"query": build})
    train = arguments.pop("train", None) or [make(0)]
    return stp.tl.unseen_genes(train, [make(5, shuffle=True)], models, **arguments)


def test_every_null_stands_beside_the_model(make, build):
    frame = run(make, build, shares=[0.5], seeds=[0, 1])
    assert set(frame.seed) == {0, 1}
    one = frame[frame.seed == 0]
    assert one[one.genes == "unseen"].predictor.tolist() == [
        "model", "mean of seen", "nearest text", "log depth", "permuted",
    ]  # fmt: skip
    assert one[one.predictor == "model"].genes.tolist() == ["seen", "unseen", "all"]
    assert one[one.predictor == "model"].n_genes.tolist() == [2, 2, 4]
    assert "mse" not in frame
    parts = one[one.predictor == "model"].set_index("genes")["pcc_m"]
    assert parts["all"] == pytest.approx((parts["seen"] + parts["unseen"]) / 2)


def test_nothing_of_an_unseen_genes_counts_is_used(make, build):
    from stpredict.tl.unseen_genes import _split

    seen, unseen = _split(GENES, 0.5, 0, None)
    other = make(0)
    table = other.tables["table"]
    counts = table.X.toarray()
    columns = [GENES.index(gene) for gene in unseen]
    counts[:, columns] = counts[np.random.default_rng(1).permutation(len(counts))][:, columns] + 7
    table.X = counts
    plain, changed = (
        run(make, build, train=[train], target="as_is").set_index(["predictor", "genes"]) for train in (make(0), other)
    )
    np.testing.assert_array_equal(plain["pcc_m"].to_numpy(), changed["pcc_m"].to_numpy())
    counts[:, GENES.index(seen[0])] += np.arange(len(counts))
    table.X = counts
    moved = run(make, build, train=[other], target="as_is").set_index(["predictor", "genes"])
    assert not np.array_equal(plain["pcc_m"].to_numpy(), moved["pcc_m"].to_numpy())


def test_the_nulls_are_what_they_are_called(make, build):
    import stpredict as stp
    from stpredict import metrics
    from stpredict.tl.unseen_genes import _split

    frame = run(make, build).set_index(["predictor", "genes"])["pcc_m"]
    seen, unseen = _split(GENES, 0.5, 0, None)
    model, test = build(seen), make(5, shuffle=True)
    stp.tl.train([make(0)], model, val=0, progress=False, device="cpu")
    stp.tl.predict(test, model, genes=GENES, progress=False, device="cpu", precision="32")
    table = test.tables["table"]
    pred = {gene: table.layers["genequery"][:, table.var_names.get_loc(gene)] for gene in GENES}
    counts = table.X.toarray()
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    true = {gene: truth[:, table.var_names.get_loc(gene)] for gene in GENES}

    def r(guess, gene):
        return metrics.pcc(guess[:, None], true[gene][:, None])[0]

    mean = np.mean([pred[gene] for gene in seen], axis=0)
    assert frame["model", "unseen"] == pytest.approx(np.mean([r(pred[g], g) for g in unseen]), abs=1e-4)
    assert frame["mean of seen", "unseen"] == pytest.approx(np.mean([r(mean, g) for g in unseen]), abs=1e-4)
    crossed = np.mean([r(pred[unseen[1]], unseen[0]), r(pred[unseen[0]], unseen[1])])
    assert frame["permuted", "unseen"] == pytest.approx(crossed, abs=1e-4)
    v = {gene: model.text_vectors([gene])[0] for gene in GENES}
    cosine = {g: [v[g] @ v[s] / np.linalg.norm(v[g]) / np.linalg.norm(v[s]) for s in seen] for g in unseen}
    nearest = {g: seen[int(np.argmax(cosine[g]))] for g in unseen}
    assert frame["nearest text", "unseen"] == pytest.approx(np.mean([r(pred[nearest[g]], g) for g in unseen]), abs=1e-4)


def test_splits_are_of_the_seed_and_chromosomes_stay_whole():
    from stpredict.tl.unseen_genes import _split

    genes = [f"g{i}" for i in range(40)]
    seen, unseen = _split(genes, 0.3, 0, None)
    assert (len(seen), len(unseen)) == (12, 28)
    assert set(seen) | set(unseen) == set(genes)
    assert _split(genes, 0.3, 0, None) == (seen, unseen)
    assert _split(genes, 0.3, 1, None)[0] != seen
    chromosomes = {gene: f"chr{i % 7}" for i, gene in enumerate(genes)}
    for seed in range(5):
        seen, unseen = _split(genes, 0.5, seed, chromosomes)
        assert not {chromosomes[g] for g in seen} & {chromosomes[g] for g in unseen}
        assert 0.3 < len(seen) / 40 < 0.7
    with pytest.raises(ValueError, match="chromosomes lacks 1 of 40 genes: .'g3'."):
        _split(genes, 0.5, 0, {g: c for g, c in chromosomes.items() if g != "g3"})
    with pytest.raises(ValueError, match="a share of 0.01 of 40 genes leaves 0 seen"):
        _split(genes, 0.01, 0, None)


def test_it_goes_on_where_it_was(make, build, tmp_path, monkeypatch):
    from stpredict import _training

    first = run(make, build, path=tmp_path)

    def never(*_):
        raise AssertionError("this run is known")

    with monkeypatch.context() as patch:
        patch.setattr(_training, "fit", never)
        again = run(make, build, path=tmp_path)
    np.testing.assert_allclose(again["pcc_m"], first["pcc_m"])
    with pytest.raises(ValueError, match="was made of other genes"):
        run(make, build, path=tmp_path, genes=GENES[::-1])

    def longer(genes):
        model = build(genes)
        model.config = dataclasses.replace(model.config, dropout=0.2)
        return model

    with pytest.raises(ValueError, match="was made of other genes"):
        run(make, build, path=tmp_path, models={"query": longer})


def test_a_model_with_a_fixed_panel_is_refused(make, build):
    from stpredict.models import Ridge

    with pytest.raises(ValueError, match=r"models\['ridge'\] must return a model that answers by text"):
        run(make, build, models={"ridge": Ridge})


def test_first_weights_are_of_the_seed_whatever_was_drawn_before(make, build):
    def unseeded(genes):
        drawn = torch.rand(())  # what a builder that does not seed would start from
        model = build(genes)
        with torch.no_grad():
            next(model.parameters()).add_(drawn)
        return model

    frames = []
    for state in (1, 2):
        torch.manual_seed(state)
        frames.append(run(make, build, models={"query": unseeded}))
    assert frames[0].equals(frames[1])


def test_files_of_other_counts_or_first_weights_are_refused(make, build, tmp_path):
    run(make, build, path=tmp_path)
    other = make(0)
    other.tables["table"].X = other.tables["table"].X[::-1].copy()
    with pytest.raises(ValueError, match="made of other genes, sections, counts, settings or first weights"):
        run(make, build, path=tmp_path, train=[other])

    def heavier(genes):
        model = build(genes)
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return model

    with pytest.raises(ValueError, match="first weights"):
        run(make, build, path=tmp_path, models={"query": heavier})


def test_a_model_that_looks_at_the_test_counts_finds_none(make, build, peeking):
    seen = []
    run(make, build, models={"query": lambda genes: peeking(build(genes), seen)})
    assert any(expression is not None for expression in seen)  # in training
    assert seen[-1] is None
