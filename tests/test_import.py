"""The front door: what `import stpredict` loads, and what it offers."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

HEAVY = ["anndata", "dask", "lightning", "matplotlib", "pandas", "scanpy", "spatialdata", "squidpy", "timm", "torch"]
NAMESPACES = ["datasets", "io", "metrics", "models", "nn", "pl", "pp", "tables", "tl"]
STEPS = [
    "import stpredict, stpredict as stp; stp.__version__; dir(stp)",
    "stp.metrics; stp.tables",
    "stp.io; stp.datasets; stp.pp; stp.pl; stp.Section",
    "stp.tl.evaluate; stp.tl.GeneEmbeddings; dir(stp.tl); import stpredict.tl.evaluate, stpredict.tl._cache",
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter says when it runs `code`."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """Which heavy packages one fresh interpreter has loaded after each of STEPS, run one after the other."""
    code = f"""
import json, sys
space, seen = {{}}, []
for step in {STEPS!r}:
    exec(step, space)
    seen.append(sorted(set({HEAVY!r}) & set(sys.modules)))
print(json.dumps(seen))
"""
    return [set(names) for names in json.loads(python(code).stdout)]


def test_import_loads_nothing_heavy(loaded):
    assert loaded[0] == set()


def test_metrics_load_no_container_and_no_torch(loaded):
    assert not loaded[1] & {"anndata", "dask", "lightning", "spatialdata", "timm", "torch"}


def test_data_and_plots_load_no_torch(loaded):
    """Neither spatialdata nor spatialdata-plot loads torch, so what builds on them has no reason to."""
    assert not loaded[2] & {"lightning", "timm", "torch"}


def test_scoring_loads_no_torch(loaded):
    assert not loaded[3] & {"lightning", "timm", "torch"}


def test_the_probe_sees_what_is_loaded(loaded):
    assert "spatialdata" in loaded[2]


@pytest.fixture
def stp():
    import stpredict

    return stpredict


def test_version_is_the_installed_one(stp):
    assert stp.__version__ == importlib.metadata.version("stpredict")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_namespaces_resolve_and_say_what_they_offer(stp, namespace: str):
    module = getattr(stp, namespace)
    assert module.__name__ == f"stpredict.{namespace}"
    assert module.__all__, f"{module.__name__} offers nothing"
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_dir_lists_the_namespaces(stp):
    assert {*NAMESPACES, "__version__", "Section", "clear_caches"} <= set(dir(stp))


@pytest.mark.parametrize(
    "first", ["stp.tl.evaluate", "import stpredict.tl.evaluate", "from stpredict.tl import evaluate"]
)
def test_a_verb_is_a_function_whoever_imports_its_file_first(first: str):
    code = f"""
import stpredict as stp
{first}
from stpredict.tl.evaluate import nulls
import pickle
assert pickle.loads(pickle.dumps(stp.tl.evaluate)) is stp.tl.evaluate
print(type(stp.tl.evaluate).__name__, stp.tl.evaluate.__module__, sorted(set(stp.tl.__all__) - set(dir(stp.tl))))
"""
    assert python(code).stdout.strip() == "function stpredict.tl.evaluate []"


def test_an_unknown_verb_names_those_that_there_are(stp):
    with pytest.raises(AttributeError, match=r"'stpredict.tl' has no attribute 'fit'; it has .*\btrain\b"):
        stp.tl.fit  # noqa: B018


def test_section_is_that_of_models(stp):
    from stpredict._section import Section

    assert stp.Section is Section


def test_unknown_attribute_names_what_exists(stp):
    with pytest.raises(AttributeError, match=r"no attribute 'tools'; it has .*\btl\b"):
        stp.tools  # noqa: B018


def test_library_logger_is_silent_by_default():
    done = python(
        "import stpredict, logging; logging.getLogger('stpredict').error('heard'); print(logging.root.handlers)"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
