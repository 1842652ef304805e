"""Gene embeddings: order, one file, joining, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GENES = ("GNAS", "SCD", "KRT5", "MS4A1")


@pytest.fixture(scope="module")
def embeddings():
    from stpredict._embeddings import GeneEmbeddings

    vectors = np.random.default_rng(0).normal(size=(4, 6))
    return GeneEmbeddings(
        GENES, vectors, "org/model", "c0ffee", pooling="first", text_sha256="12ab", n_symbol_only=1, max_tokens=64
    )


def part(embeddings, genes):
    return replace(embeddings, genes=tuple(genes), vectors=embeddings.take(genes))


def test_vectors_follow_the_genes_asked(embeddings):
    taken = embeddings.take(["KRT5", "GNAS", "KRT5"])
    np.testing.assert_array_equal(taken, embeddings.vectors[[2, 0, 2]])
    assert (taken.dtype, embeddings.width) == (np.float32, 6)


def test_a_gene_without_a_vector_is_named_with_the_ways_to_get_one(embeddings):
    with pytest.raises(ValueError, match=r"\['krt5', 'XIST'\] \(2 of 3\).*krt5 -> KRT5\..*describe_genes.*org/model"):
        embeddings.take(["krt5", "SCD", "XIST"])
    with pytest.raises(ValueError) as raised:
        embeddings.take(["XIST"])
    assert "Closest" not in str(raised.value)


def test_what_is_saved_is_what_is_loaded(embeddings, tmp_path):
    from stpredict._embeddings import GeneEmbeddings

    embeddings.save(tmp_path / "genes.safetensors")
    loaded = GeneEmbeddings.load(tmp_path / "genes.safetensors")
    np.testing.assert_array_equal(loaded.vectors, embeddings.vectors)
    for name in (
        "genes",
        "encoder",
        "revision",
        "pooling",
        "text_sha256",
        "n_symbol_only",
        "n_truncated",
        "max_tokens",
    ):
        assert getattr(loaded, name) == getattr(embeddings, name), name
    assert [file.name for file in tmp_path.iterdir()] == ["genes.safetensors"]


def test_rows_of_a_transposed_array_are_saved_as_rows(embeddings, tmp_path):
    turned = replace(embeddings, vectors=np.asfortranarray(embeddings.vectors))
    turned.save(tmp_path / "genes.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "genes.safetensors")["vectors"], embeddings.vectors)


def test_a_failed_save_leaves_the_old_file(embeddings, tmp_path, monkeypatch):
    from stpredict import _embeddings

    path = tmp_path / "genes.safetensors"
    embeddings.save(path)
    before = path.read_bytes()

    def interrupted(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(_embeddings, "save_file", interrupted)
    with pytest.raises(OSError, match="disk is full"):
        embeddings.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("fields", "said"), [
    ({"genes": ("A", "B", "A", "C")}, r"more than once: \['A'\] \(1 in all\)"),
    ({"genes": ("A", "B", "C")}, r"one row for each of 3 genes, got shape \(4, 6\)"),
    ({"genes": ()}, "embeddings of no genes"),
    ({"genes": {"A", "B", "C", "D"}}, "genes=.* must be a list of names, in the order of the vectors"),
    ({"genes": "ABCD"}, "genes='ABCD' must be a list of names"),
    ({"genes": None}, "genes=None must be a list of names"),
    ({"genes": ("A", "B", "C", "")}, "must be a list of names"),
    ({"encoder": None}, "encoder=None must be a text"),
    ({"pooling": 5}, "pooling=5 must be a text"),
    ({"max_tokens": float("nan")}, "max_tokens=nan must be an integer or None"),
    ({"n_symbol_only": -5}, "n_symbol_only=-5: must lie in"),
    ({"vectors": np.ones(4)}, r"got shape \(4,\)"),
    ({"vectors": np.ones((4, 0))}, r"got shape \(4, 0\)"),
    ({"vectors": np.array([[1.0], [np.nan], [1.0], [np.inf]])}, r"2 genes are not finite, such as \['SCD', 'MS4A1'\]"),
])  # fmt: skip
def test_what_is_no_embedding_is_refused(embeddings, fields, said):
    with pytest.raises(ValueError, match=said):
        replace(embeddings, **fields)


def test_joining_adds_the_new_genes(embeddings):
    whole = part(embeddings, GENES[:3]).join(part(embeddings, GENES[2:]))
    assert whole.genes == GENES
    np.testing.assert_array_equal(whole.vectors, embeddings.vectors)
    assert whole.text_sha256 != embeddings.text_sha256
    assert (whole.encoder, whole.revision, whole.pooling, whole.max_tokens) == ("org/model", "c0ffee", "first", 64)
    assert embeddings.join(part(embeddings, GENES[1:])) is embeddings


@pytest.mark.parametrize(("fields", "said"), [
    ({"encoder": "org/other"}, "encoder 'org/model' and 'org/other'"),
    ({"revision": None}, "revision 'c0ffee' and None"),
    ({"pooling": "mean"}, "pooling 'first' and 'mean'"),
    ({"max_tokens": None}, "max_tokens 64 and None"),
    ({"vectors": np.ones((4, 5))}, "width 6 and 5"),
    ({"genes": ("SCD", "B", "C", "D")}, r"1 genes have two vectors, such as \['SCD'\]"),
])  # fmt: skip
def test_what_was_made_in_another_way_is_not_joined(embeddings, fields, said):
    with pytest.raises(ValueError, match=said):
        embeddings.join(replace(embeddings, **fields))


def write(path, embeddings, *, tensor="vectors", **header):
    card = {"genes": list(GENES), "encoder": "m"}
    metadata = {"format": "stpredict-gene-embeddings/1", "card": json.dumps(card)} | header
    save_file({tensor: embeddings.vectors}, path, metadata=metadata)


@pytest.mark.parametrize(("header", "said"), [
    ({"format": "pt"}, "no gene embeddings: its format is 'pt', expected 'stpredict-gene-embeddings/1'"),
    ({"tensor": "weights"}, "with a tensor 'vectors'"),
    ({"card": "{"}, "the card is not JSON"),
    ({"card": "[]"}, r"lacks \['encoder', 'genes'\]"),
    ({"card": '{"genes": ["A"]}'}, r"lacks \['encoder'\]"),
    ({"card": '{"genes": ["A"], "encoder": "m", "colour": 1}'}, r"unknown fields \['colour'\]"),
    ({"card": '{"genes": ["A"], "encoder": "m"}'}, r"one row for each of 1 genes, got shape \(4, 6\)"),
    ({"card": '{"genes": ["A", "B", "A", "C"], "encoder": "m"}'}, "more than once"),
])  # fmt: skip
def test_a_foreign_file_is_refused(embeddings, tmp_path, header, said):
    from stpredict._embeddings import GeneEmbeddings

    write(tmp_path / "genes.safetensors", embeddings, **header)
    with pytest.raises(ValueError, match=said):
        GeneEmbeddings.load(tmp_path / "genes.safetensors")


def test_the_same_file_with_a_right_header_is_read(embeddings, tmp_path):
    from stpredict._embeddings import GeneEmbeddings

    write(tmp_path / "genes.safetensors", embeddings)
    with pytest.warns(UserWarning, match="is of an older version and has no hash"):
        assert GeneEmbeddings.load(tmp_path / "genes.safetensors").genes == GENES


@pytest.mark.parametrize("what", ["vectors", "card"])
def test_a_file_whose_hash_is_another_is_refused(embeddings, tmp_path, what):
    from stpredict._embeddings import GeneEmbeddings

    path = tmp_path / "genes.safetensors"
    embeddings.save(path)
    content = bytearray(path.read_bytes())
    at = len(content) - 3 if what == "vectors" else content.index(b"SCD")
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="genes.safetensors was changed or damaged"):
        GeneEmbeddings.load(path)


def test_a_damaged_or_missing_file_is_named(embeddings, tmp_path):
    from stpredict._embeddings import GeneEmbeddings

    path = tmp_path / "genes.safetensors"
    embeddings.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="genes.safetensors is no .safetensors file, or a damaged one"):
        GeneEmbeddings.load(path)
    with pytest.raises(FileNotFoundError, match="no file .*embed_genes"):
        GeneEmbeddings.load(tmp_path / "other.safetensors")
