"""Stores that a stranger damaged and arguments that mean nothing: an answer that holds, or a refusal.

Drawn by hypothesis from fixed seeds: a few dozen by default, thousands with
`pytest -o addopts=--import-mode=importlib -m fuzz -s`, which prints what became of them.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from anndata import read_zarr
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

REFUSALS = (ValueError, OSError, MemoryError, RuntimeError)  # what the verbs document
SLOWEST_S = 20.0


def _drawn(check, *, n: int, first: int, of: st.SearchStrategy) -> None:
    """Run `check` on `n` examples of a strategy, drawn from the seed `first`."""
    configured = settings(
        max_examples=n, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    seed(first)(configured(given(of)(check)))()


# ---- stores


def _damage(folder, draw: random.Random) -> str:
    """Damage one file of a store, of whatever kind; what was done, in a word."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = [path for path in files if path.suffix == ".json"]
    path = draw.choice(described if described and draw.random() < 0.6 else files)
    content = path.read_bytes()
    how = draw.choice(("deleted", "emptied", "cut", "flipped", "junk", "edited", "edited", "moved"))
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif how == "junk":
        path.write_bytes(draw.randbytes(draw.randrange(1, 400)))
    elif how == "moved":
        other = draw.choice(files)
        path.write_bytes(other.read_bytes())
    elif how == "edited" and path.suffix == ".json":
        path.write_text(json.dumps(_edited(json.loads(content), draw)))
    elif content:
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :])
    return f"{how} {'json' if path.suffix == '.json' else path.suffix or 'chunk'}"


def _edited(node, draw: random.Random):
    """A JSON document with one value exchanged, or one key taken away."""
    if not isinstance(node, dict | list) or not node or draw.random() < 0.2:
        return draw.choice((None, -1, 0, 1e9, "", "nonsense", [], {}, [[]], True, 2**70, "../../.."))
    node = dict(node) if isinstance(node, dict) else list(node)
    key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    if isinstance(node, dict) and draw.random() < 0.2:
        del node[key]
    else:
        node[key] = _edited(node[key], draw)
    return node


@pytest.fixture
def whole(make, tmp_path):
    """A small store of one section."""
    path = tmp_path / "whole.zarr"
    make(3, n=12).write(path)
    return path


def _fuzz_stores(whole, model, *, n: int, first: int, files_of) -> Counter:
    counts = Counter()

    def check(number):
        import stpredict as stp

        draw = random.Random(number)
        path = whole.parent / "damaged.zarr"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        did = " and ".join(_damage(path, draw) for _ in range(draw.choice((1, 1, 1, 3))))
        before, start = files_of(path), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say of elements that they leave out
            try:
                stp.tl.predict(path, model, table_added="new", progress=False)
                outcome = "predicted"
            except REFUSALS as error:
                assert str(error).strip(), did
                outcome = f"refused by {type(error).__name__}"
                assert files_of(path) == before, did
        assert time.perf_counter() - start < SLOWEST_S, did
        if outcome == "predicted":  # the damage may lie elsewhere; what was written is whole
            assert np.isfinite(read_zarr(path / "tables" / "new").X).any(), did
        counts[outcome] += 1

    _drawn(check, n=n, first=first, of=st.integers(0, 2**62))
    return counts


def test_a_damaged_store_is_predicted_or_refused(whole, ridge, files_of):
    counts = _fuzz_stores(whole, ridge, n=12, first=0, files_of=files_of)
    assert sum(counts.values()) >= 12
    assert counts["refused by ValueError"] > 0


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(1, 5))
def test_a_thousand_damaged_stores_are_predicted_or_refused(whole, ridge, files_of, batch):
    counts = _fuzz_stores(whole, ridge, n=250, first=batch, files_of=files_of)
    print(f"\nbatch {batch}: {json.dumps(dict(sorted(counts.items())))}")


# ---- arguments

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 600), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["image", "spots", "table", "red", "ridge", "layer", "raster", "mean", "auto", "cpu", "as_is"]),
    st.sampled_from([["red"], ["red", "blue"], ("green",), 1.0, 0.5, 16, np.float32(1.0), np.arange(3), object()]),
)  # fmt: skip
VERBS = {
    "tl.predict": {"image_key", "shapes_key", "table_name", "genes", "mpp", "tissue_key", "output", "raster_mpp"}
    | {"key_added", "table_added", "overwrite", "device", "precision", "batch_size", "embeddings", "resume", "client"},
    "tl.embed": {"image_key", "shapes_key", "table_name", "mpp", "tissue_key", "key_added", "batch_size", "device"},
    "tl.evaluate": {"key", "layer", "table_name", "groups", "image_key", "shapes_key", "tissue_key", "scores"},
    "tl.aggregate": {"raster_key", "shapes_key", "stat", "genes", "table_name", "table_added", "key_added"},
    "tl.query": {"latent_key", "genes", "model", "shapes_key", "output", "table_name", "embeddings"},
    "pp.tile_grid": {"diameter_um", "pitch_um", "shape", "image_key", "mpp", "key_added"},
    "pp.gene_panel": {"n_genes", "by", "min_spots", "among", "table_name", "layer", "target", "min_counts"},
    "pl.expression": {"layer", "gene", "shapes_key", "table_name", "image_key", "alpha", "cmap", "vmin", "vmax"},
    "pl.compare": {"layer", "gene", "measured", "table_name", "min_counts", "alpha", "cmap", "coordinate_system"},
}  # fmt: skip
GOOD = {
    "tl.predict": {"overwrite": True, "progress": False, "device": "cpu"},
    "tl.embed": {"overwrite": True, "progress": False, "device": "cpu"},
    "tl.evaluate": {"key": "ridge"},
    "tl.aggregate": {"raster_key": "image", "shapes_key": "spots", "overwrite": True, "table_added": "read"},
    "tl.query": {"latent_key": "image", "genes": ["red"]},
    "pp.tile_grid": {"diameter_um": 50.0},
    "pp.gene_panel": {"n_genes": 2},
    "pl.expression": {"layer": "ridge", "gene": "red"},
    "pl.compare": {"layer": "ridge", "gene": "red"},
}
CALLS = st.sampled_from(sorted(VERBS)).flatmap(
    lambda verb: st.tuples(
        st.just(verb), st.dictionaries(st.sampled_from(sorted(VERBS[verb])), JUNK, min_size=1, max_size=2)
    )
)


def _fuzz_arguments(make, model, *, n: int, first: int) -> Counter:
    import matplotlib.pyplot as plt

    import stpredict as stp

    counts, sdata = Counter(), make(4, n=12)
    stp.tl.predict(sdata, model, progress=False)

    def check(call):
        verb, arguments = call
        room, name = verb.split(".")
        first = [sdata] if verb in ("tl.evaluate", "pp.gene_panel") else sdata
        given = [first, model] if verb in ("tl.predict", "tl.embed") else [first]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                getattr(getattr(stp, room), name)(*given, **GOOD[verb] | arguments)
                counts["done"] += 1
            except (*REFUSALS, ImportError) as error:
                named = (*arguments, *(str(value) for value in arguments.values() if len(str(value)) > 3))
                assert any(each in str(error) for each in named), (call, error)
                counts[f"refused by {type(error).__name__}"] += 1
            except Exception as error:
                raise AssertionError(f"{call}: {type(error).__name__} {error}") from error
        plt.close("all")

    _drawn(check, n=n, first=first, of=CALLS)
    return counts


def test_arguments_that_mean_nothing_are_refused_by_name(make, ridge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = _fuzz_arguments(make, ridge, n=50, first=0)
    assert counts["refused by ValueError"] > 20


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(1, 5))
def test_thousands_of_them_are(make, ridge, tmp_path, monkeypatch, batch):
    monkeypatch.chdir(tmp_path)
    counts = _fuzz_arguments(make, ridge, n=1000, first=batch)
    print(f"\nbatch {batch}: {json.dumps(dict(sorted(counts.items())))}")
