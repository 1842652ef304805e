"""Docstrings of everything public are numpydoc, and say all that the signature and the body say."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from numpydoc.docscrape import NumpyDocString

NAMESPACES = ("datasets", "io", "metrics", "models", "nn", "pl", "pp", "tables", "tl")
# what authors of models are given (docs/api.md), beside what the namespaces export
OF_AUTHORS = (
    "_card.Card", "_section.ImageView", "_section.Section", "_window.Tile", "_window.Window", "models._samples.Batch",
    "models._samples.Samples", "models.mean.MeanConfig", "models.ridge.RidgeConfig",
)  # fmt: skip
# classes whose methods are called or overridden; those of concrete models say in a line how they answer
WITH_METHODS = (
    "Model", "Recipe", "GeneEmbeddings", "Section", "ImageView", "Window", "Tile", "Card", "Samples", "Batch",
    "Encoder", "Pooling", "TextEncoder",
)  # fmt: skip


def public() -> dict[str, Any]:
    """Name -> function or class."""
    found = {}
    for namespace in NAMESPACES:
        module = importlib.import_module(f"stpredict.{namespace}")
        for name in module.__all__:
            if callable(value := getattr(module, name)):
                found[f"{namespace}.{name}"] = value
    for path in OF_AUTHORS:
        module_name, _, name = path.rpartition(".")
        found[path] = getattr(importlib.import_module(f"stpredict.{module_name}"), name)
    for path, value in list(found.items()):
        if inspect.isclass(value) and value.__name__ in WITH_METHODS:
            methods = {name: each for name, each in vars(value).items() if not name.startswith("_")}
            found |= {f"{path}.{name}": each for name, each in methods.items() if is_method(each)}
    return found


def is_method(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod)


def bodies(value: Any) -> Iterator[ast.FunctionDef]:
    """The functions that run when it is called: of a class, its constructor and the check behind it."""
    if inspect.isclass(value):
        for name in ("__init__", "__post_init__"):
            own = inspect.unwrap(vars(value).get(name, value))
            if inspect.isfunction(own) and not own.__code__.co_filename.startswith("<"):  # that of a dataclass is none
                yield from bodies(own)
        return
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value))))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    yield function


def raised(value: Any) -> set[str]:
    """Errors that its body raises by name; `check_arguments` and `@constructor` raise ValueError."""
    found = set()
    for body in bodies(value):
        for node in ast.walk(body):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(ast.unparse(node.exc.func))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "check_arguments":
                found.add("ValueError")
        if "constructor" in map(ast.unparse, body.decorator_list):
            found.add("ValueError")
    return {name for name in found if name.endswith("Error")}


def arguments(value: Any) -> list[str]:
    if isinstance(value, property):
        return []
    ours = getattr(getattr(value, "__init__", None), "__module__", "").startswith("stpredict")
    if inspect.isclass(value) and not ours and not hasattr(value, "_fields"):  # an abstract class
        return []
    function = getattr(value, "__func__", value)
    names = list(inspect.signature(function).parameters)
    return names[1:] if names and names[0] in ("self", "cls") else names


def returns(value: Any) -> bool:
    if inspect.isclass(value) or isinstance(value, property):
        return False
    return inspect.signature(getattr(value, "__func__", value)).return_annotation not in (None, "None")


def problems(value: Any) -> list[str]:
    """What is wrong with a docstring; nothing where it is whole."""
    doc = inspect.getdoc(value) or ""
    if not doc or not doc.splitlines()[0].strip():
        return ["the first line is empty"]
    parsed = NumpyDocString(doc)  # a section twice or of another name is an error
    named = [name.strip() for entry in parsed["Parameters"] for name in entry.name.split(",")]
    wanted = arguments(value)
    found = [f"no parameter {name}" for name in wanted if name not in named]
    found += [f"{name} is no parameter" for name in named if name not in wanted]
    found += [f"{name} is there twice" for name in sorted(set(named)) if named.count(name) > 1]
    found += [f"{entry.name} is not described" for entry in parsed["Parameters"] if not "".join(entry.desc).strip()]
    if returns(value) != bool(parsed["Returns"]):
        found.append("Returns is missing" if returns(value) else "Returns of what returns nothing")
    found += ["Returns says nothing" for entry in parsed["Returns"] if not "".join(entry.desc).strip()]
    documented = [entry.type for entry in parsed["Raises"]]
    found += [f"{name} is raised and not documented" for name in sorted(raised(value) - set(documented))]
    found += [f"{entry.type} without a reason" for entry in parsed["Raises"] if not "".join(entry.desc).strip()]
    prose = [line for key in ("Extended Summary", "Notes") for line in parsed[key]]
    found += [f"prose in place of a section: {line}" for line in prose if line.startswith(("Raises ", "Source: "))]
    return found


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return public()


def test_what_is_public_is_found(everything):
    assert {"tl.predict", "metrics.pcc", "models.PixNet", "models.Model.save", "_section.ImageView.read"} <= set(
        everything
    )
    configs = {path for path in everything if path.endswith("Config") and dataclasses.is_dataclass(everything[path])}
    assert {"models.PixNetConfig", "models.ridge.RidgeConfig"} <= configs


@pytest.mark.parametrize("namespace", ["authors", *NAMESPACES])
def test_docstrings_are_whole(everything, namespace: str):
    belong = {path: value for path, value in everything.items() if path.split(".")[0].startswith("_")}
    if namespace != "authors":
        belong = {path: value for path, value in everything.items() if path.split(".")[0] == namespace}
    wrong = {path: found for path, value in belong.items() if (found := problems(value))}
    assert belong and wrong == {}


def whole(a: int, *, b: int = 1) -> int:
    """The sum.

    Parameters
    ----------
    a, b : int
        Two numbers.

    Returns
    -------
    int
        Their sum.

    Raises
    ------
    ValueError
        For a negative number.
    """
    if a < 0 or b < 0:
        raise ValueError("negative")
    return a + b


def bad(a: int, *, b: int = 1) -> int:
    """The sum.

    Parameters
    ----------
    a : int
        A number.
    c : int

    Raises ValueError for a negative number.
    """
    if a < 0 or b < 0:
        raise ValueError("negative")
    return a + b


def prose(a: int) -> None:
    """Nothing.

    Raises ValueError for a negative number.
    """


def silent() -> None: ...


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (whole, []),
        (
            bad,
            [
                "no parameter b", "Raises ValueError for a negative number. is no parameter", "c is no parameter",
                "c is not described", "Raises ValueError for a negative number. is not described",
                "Returns is missing", "ValueError is raised and not documented",
            ],
        ),
        (prose, ["no parameter a", "prose in place of a section: Raises ValueError for a negative number."]),
        (silent, ["the first line is empty"]),
    ],
)  # fmt: skip
def test_a_bad_docstring_is_found(function: Callable[..., Any], wrong: list[str]):
    assert sorted(problems(function)) == sorted(wrong)
