"""Configuration of the documentation; `sphinx-build -W docs docs/_build/html` builds it without a network."""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# The main job, executed in every build; `sphinx-build -t slow` executes the others too.
MAIN = ("quickstart", "samples_and_scales")
NOT_EXECUTED = """
:::{{note}}
This page takes longer than a build of the documentation should, and was not executed: its code stands here without
results. `sphinx-build -t slow docs docs/_build/html` executes it, and so does
`jupytext --to notebook --execute tutorials/{name}.md`.
:::
"""


def executed(src: Path, cache: Path) -> Path:
    """The folder of what was executed with the files of `src` as they are; those of other files are removed."""
    files = sorted(path for path in src.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(src).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    folder = cache / digest.hexdigest()[:16]
    for other in cache.glob("*/"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def slow_tutorials() -> list[str]:
    """Names of the tutorials that a build does not execute unless it is asked to."""
    return sorted(path.stem for path in (HERE.parent / "tutorials").glob("*.md") if path.stem not in MAIN)


info = metadata("stpredict")
project = info["Name"]
author = "The stpredict developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "cyclopts.ext.sphinx",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# The first one is that of the generated API pages.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"
smartquotes = False  # it would turn the -- of options into a dash

# Names of ours must resolve; those of other packages cannot without their inventories, and the build fetches nothing.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!stpredict\b).*")]
nitpick_ignore = [
    ("py:class", "stpredict._coverage._shapes.Shapes")
]  # what `Section.shapes` is made of, no page of its own

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Executed tutorials are kept by their own code (jupyter-cache) in a folder named by a hash of `src`: while neither
# changes they are not executed again. An error in a cell ends the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(executed(HERE.parent / "src", HERE / "_build" / ".jupyter_cache"))
nb_execution_excludepatterns = [] if tags.has("slow") else [f"tutorials/{name}.md" for name in slow_tutorials()]  # noqa: F821
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "stpredict"
html_theme_options = {"navigation_with_keys": False}

# Sphinx reads nothing outside its own folder, and the tutorials stand at the top of the repository.
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", dirs_exist_ok=True)


def say_not_executed(app: Any, name: str, source: list[str]) -> None:
    """Say below the title of a tutorial that it was not executed."""
    if f"{name}.md" in app.config.nb_execution_excludepatterns:
        note = NOT_EXECUTED.format(name=Path(name).name)
        source[0] = re.sub(r"^# .+\n", lambda title: title[0] + note, source[0], count=1, flags=re.MULTILINE)


def write_pages(app: Any) -> None:
    """Two parts of the page on models are what the package says of itself."""
    sys.path.insert(0, str(HERE))
    importlib.import_module("_pages").write(HERE / "generated")


def setup(app: Any) -> None:
    app.connect("builder-inited", write_pages)
    app.connect("source-read", say_not_executed)
