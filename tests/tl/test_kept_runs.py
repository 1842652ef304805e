"""Files of finished runs are found by later versions: their names and the hashes inside are what they were."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

# as 891ed2f wrote them for the sections below; the weights and settings of Mean are of no library's making
BENCHMARK = {
    "Mean_a_1b5dd0_seed0.json": "42536c9eb079c4e0",
    "Mean_b_807a3a_seed0.json": "7e4e4e18e514de8e",
    "Mean_c_0966bf_seed0.json": "a0cdf94830f937d1",
}


def hashes(folder) -> dict[str, str]:
    return {file.name: json.loads(file.read_text())["of"] for file in sorted(folder.glob("*_seed*.json"))}


@pytest.fixture
def never_fitted(monkeypatch):
    """A function after whose call nothing may be trained any more."""
    from stpredict import _training

    def never(*_, **__):
        raise AssertionError("this run is known")

    return lambda: monkeypatch.setattr(_training, "fit", never)


def test_of_a_benchmark(make, tmp_path, never_fitted):
    import stpredict as stp

    sections = [make(seed, n=40) for seed in range(3)]
    for name, sdata in zip("abc", sections, strict=True):
        sdata.attrs["name"] = name

    def run():
        return stp.tl.benchmark(
            sections, {"Mean": stp.models.Mean}, cv="leave-one-section-out", groups_reason="simulated", n_genes=3,
            device="cpu", precision="32", progress=False, path=tmp_path,
        )  # fmt: skip

    first = run()
    assert hashes(tmp_path) == BENCHMARK
    never_fitted()
    assert run().equals(first)


def test_of_unseen_genes(make, tmp_path, never_fitted):
    """The recipe of the hash, written out: a model of text has weights that libraries draw."""
    import stpredict as stp
    from stpredict._record import stable_hash
    from stpredict.models import GeneQuery
    from stpredict.models._base import first_seed, weights_sha256

    genes = ("red", "green", "blue", "other")
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    embeddings = stp.tl.GeneEmbeddings(genes=genes, vectors=vectors, encoder="random")

    def build(seen):
        config = GeneQuery(seen, embeddings=embeddings).config
        small = dataclasses.replace(config, patch_px=64, mpp=1.0, width=16, heads=2, head_width=8, mlp_width=16)
        return GeneQuery(config=small, embeddings=embeddings)

    def run():
        return stp.tl.unseen_genes(
            [make(0)], [make(5, shuffle=True)], {"query": build}, genes=genes, shares=[0.5], seeds=[1], max_epochs=1,
            device="cpu", progress=False, path=tmp_path,
        )  # fmt: skip

    first = run()
    rng = np.random.default_rng([1, 500])
    chosen = set(rng.choice(4, 2, replace=False).tolist())
    seen = tuple(gene for i, gene in enumerate(genes) if i in chosen)
    with first_seed(1):
        model = build(seen)
    counts = [{"n_spots": 30, "dropped": {}, "counts": digest} for digest in ("f56c51a062ca3e28", "7dc9695433ea3779")]
    elements = {
        "image_key": None, "shapes_key": None, "table_name": "table", "layer": None, "target": "log1p_cp10k",
        "mpp": None,
    }  # fmt: skip
    config = dataclasses.asdict(model.config)
    del config["recipe"]["min_steps"]  # a field that there was none of then; 0 here
    of = stable_hash(seen, genes, 1, counts, config, weights_sha256(model), elements, 1)
    assert hashes(tmp_path) == {"query_0.5_seed1.json": of}
    never_fitted()
    np.testing.assert_array_equal(run()["pcc_m"], first["pcc_m"])


def test_a_hash_of_plain_values_is_what_it_was():
    from stpredict._record import stable_hash

    assert stable_hash(("a", "b"), 0.5, {"y": None, "x": 1}, [True]) == "3afd31a51fbe7f45"
