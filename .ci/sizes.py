"""The limits of the house: modules under 350 lines, models under 600, functions under 60, our imports at the top.

Run as ``python .ci/sizes.py [folder ...]``; prints what is too large and ends with status 1 if anything is.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 350
MODEL_LINES = 600  # a model is read in one file, with the blocks that serve it alone
FUNCTION_LINES = 60
TRAINING_LINES = 80  # the training loop may be longer: it is read from top to bottom
DEFERRED = ("tl", "models/__init__.py", "__init__.py")  # where the package may import itself inside functions


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body from its first statement to its last, the docstring left out."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def imports_package(node: ast.AST, package: str) -> bool:
    """Whether a statement imports `package` or something inside it."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == package
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == package for alias in node.names)


def problems(path: Path, root: Path) -> Iterator[str]:
    """What in one module is beyond the limits, one line each."""
    text = path.read_text(encoding="utf-8")
    n_lines = len(text.splitlines())
    inside = path.relative_to(root).as_posix()
    is_model = inside.startswith("models/")
    if n_lines >= (most := MODEL_LINES if is_model else MODULE_LINES):
        yield f"{path}: {n_lines} lines, must be under {most}"
    limit = TRAINING_LINES if inside.split("/")[0].removesuffix(".py") == "_training" else FUNCTION_LINES
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (n_body := body_lines(node)) >= limit:
            yield f"{path}:{node.lineno}: {node.name} has {n_body} lines, must be under {limit}"
        deferred = [child.lineno for child in ast.walk(node) if imports_package(child, root.name)]
        if deferred and not (inside in DEFERRED or inside.split("/")[0] in DEFERRED):
            yield f"{path}:{deferred[0]}: {node.name} imports {root.name} inside a function"


def main(folders: list[str]) -> int:
    found = [
        line
        for folder in folders or ["src/stpredict"]
        for path in sorted(Path(folder).rglob("*.py"))
        for line in problems(path, Path(folder))
    ]
    print("\n".join(found) if found else "sizes: all modules and functions are within the limits")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
