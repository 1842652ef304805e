"""Examples in docstrings of what is public: they run, after the lines that docs/api.md begins with."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
NAMESPACES = ("datasets", "io", "metrics", "models", "pl", "pp", "tables", "tl")
SHARE = 0.75  # of what is public has an example
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public(namespace: str) -> dict[str, Any]:
    module = importlib.import_module(f"stpredict.{namespace}")
    return {name: value for name in module.__all__ if callable(value := getattr(module, name))}


def examples(name: str, value: Any) -> doctest.DocTest | None:
    """The example of a docstring of its own."""
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    found = doctest.DocTestParser().get_doctest(doc or "", {}, name, None, 0)
    return found if found.examples else None


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Any]:
    """What the first lines of docs/api.md make."""
    import matplotlib

    matplotlib.use("agg")
    code = re.search(r"^```python\n(.*?)^```", API.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("api"))
        exec(compile(code[1], str(API), "exec"), names)
    return names


def fresh(world: dict[str, Any]) -> dict[str, Any]:
    """The same names, with sections that an example may write into."""
    from spatialdata import SpatialData

    def section(sdata: SpatialData) -> SpatialData:
        elements = {name: element for kind, name, element in sdata.gen_elements() if kind != "tables"}
        tables = {name: table.copy() for name, table in sdata.tables.items()}
        return SpatialData.init_from_elements(elements | tables, attrs=copy.deepcopy(sdata.attrs))

    return {name: section(value) if isinstance(value, SpatialData) else value for name, value in world.items()}


@pytest.mark.parametrize("namespace", ["", *NAMESPACES])
def test_the_examples_run(world, namespace, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    import stpredict
    from stpredict.models import _registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_registry, "_registered", {})
    values = public(namespace) if namespace else {"clear_caches": stpredict.clear_caches}
    said: list[str] = []
    for name, value in values.items():
        if (found := examples(name, value)) is not None:
            found.globs = fresh(world)
            doctest.DocTestRunner(optionflags=FLAGS).run(found, out=said.append, clear_globs=True)
            plt.close("all")
    assert not said, "".join(said)


def test_most_of_what_is_public_has_an_example():
    found = {
        f"{namespace}.{name}": examples(name, value) is not None
        for namespace in NAMESPACES
        for name, value in public(namespace).items()
    }
    assert sum(found.values()) >= SHARE * len(found), [name for name, has in found.items() if not has]
