"""Packages reach each other by their package-level names: `stpredict.A`, not `stpredict.A._x`, and no `_name`.

Inside package A one may import `stpredict.A._x`; from outside only `stpredict.A`, its public modules, and names without
an underscore. The private modules at the top (`stpredict._x`) are for the whole package, but only as that: what lies in
a private folder `stpredict._x` is reached from outside through its `__init__`.

Run as ``python .ci/private_imports.py [folder]``; prints what breaks the rule and ends with status 1 if anything does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

# What is not mended yet, as (importing package, private module). It only shrinks: an entry that is not needed any more
# is an error, too. `models` is to offer what training, inference and the verbs need of it.
ALLOWED = {
    ("stpredict._inference", "stpredict.models._base"),
    ("stpredict._inference", "stpredict.models._patches"),
    ("stpredict._inference", "stpredict.models._samples"),
    ("stpredict._training", "stpredict.models._base"),
    ("stpredict._training", "stpredict.models._samples"),
    ("stpredict.tl", "stpredict.models._base"),
    ("stpredict.tl", "stpredict.models._patches"),
}


def module_of(path: Path, root: Path) -> tuple[str, ...]:
    """The name of a module, from its file: ("stpredict", "tl", "_cache"); a package is named without `__init__`."""
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(node: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    """Everything of the package that a statement imports, as ("stpredict", "io", "_grid", "pitch_px")."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == package:
        for alias in node.names:
            yield (*(node.module or "").split("."), alias.name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == package:
                yield tuple(alias.name.split("."))


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore; `__version__` is public."""
    return name.startswith("_") and not name.startswith("__")


def reached_into(importer: tuple[str, ...], target: tuple[str, ...], root: Path) -> str | None:
    """The private module or name of another package that is imported; None where all is well."""
    if target[1:2] in ((), importer[1:2]):  # `import stpredict`, or a package and its own rooms
        return None
    for n, part in enumerate(target[2:], start=3):
        is_room = n == 3 and is_private(target[1]) and is_module(root.joinpath(*target[1:3]))
        if is_private(part) or is_room:
            return ".".join(target[:n])
    return None


def is_module(path: Path) -> bool:
    """Whether there is a module or a package there."""
    return path.with_suffix(".py").is_file() or path.is_dir()


def problems(root: Path, allowed: Collection[tuple[str, str]] = frozenset(ALLOWED)) -> Iterator[str]:
    """What breaks the rule, one line each, and what is allowed for nothing."""
    used = set()
    for path in sorted(root.rglob("*.py")):
        importer = module_of(path, root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in imported(node, root.name):
                pair = (".".join(importer[:2]), reached_into(importer, target, root))
                if pair in allowed:
                    used.add(pair)
                elif pair[1] is not None:
                    yield f"{path}:{node.lineno}: {pair[0]} imports {pair[1]}, which is private to its package"
    for who, what in sorted(set(allowed) - used):
        yield f"{Path(__file__).name}: ALLOWED lets {who} import {what}, which it does not: take the entry out"


def main(folders: list[str]) -> int:
    found = list(problems(Path(folders[0] if folders else "src/stpredict")))
    print("\n".join(found) if found else "private imports: none")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
