"""Configuration of the documentation; `sphinx-build -W docs docs/_build/html` builds it, with or without a network."""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

BUILD = HERE / "_build"
# The main job, executed in every build beside docs/index.md; `sphinx-build -t slow` executes the others too.
MAIN = ("quickstart",)
NOT_EXECUTED = """
:::{{note}}
This page takes longer than a build of the documentation should, and was not executed: its code stands here without
results. From a clone `uv run sphinx-build -t slow docs docs/_build/html` executes it, and so does
`uv run --with nbconvert --with ipykernel jupytext --to notebook --execute tutorials/{name}.md`.
:::
"""
PAPERS = """
from stpredict import models
classes = models.list_models(trained=False)
print(*[models.cite(name) for name in classes.loc[classes["title"].notna(), "name"]], sep="\\n")
"""
INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "xarray": "https://docs.xarray.dev/en/stable/",
}


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


def fetched(folder: Path) -> dict[str, tuple[str, str]]:
    """Intersphinx' mapping to local copies of the inventories, of those that could be fetched, now or before.

    Sphinx itself would warn of one that cannot be reached, which ends a build with -W; without a network links to other
    packages are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(name: str) -> None:
        path = folder / f"{name}.inv"
        if path.is_file():
            return
        try:
            with urllib.request.urlopen(f"{INVENTORIES[name]}objects.inv", timeout=5) as answer:
                content = answer.read()
        except OSError:  # no network, or a site that is down
            return
        if content.startswith(b"# Sphinx inventory version 2"):
            path.write_bytes(content)

    with ThreadPoolExecutor(len(INVENTORIES)) as pool:
        list(pool.map(fetch, INVENTORIES))
    paths = {name: folder / f"{name}.inv" for name in INVENTORIES}
    return {name: (INVENTORIES[name], str(path)) for name, path in paths.items() if path.is_file()}


def papers_of_models(path: Path) -> str:
    """The file, from here, of BibTeX entries of the papers behind the model classes; made where it is missing.

    In a process of its own: autodoc must be the first to import the package, or names that are there for type checkers
    alone are not found.
    """
    if not path.is_file():
        path.write_bytes(subprocess.run([sys.executable, "-c", PAPERS], check=True, stdout=subprocess.PIPE).stdout)
    return path.relative_to(HERE).as_posix()


EXECUTED = executed(HERE.parent / "src", BUILD / ".jupyter_cache")

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
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
# The first one is that of the generated API pages.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"
smartquotes = False  # it would turn the -- of options into a dash

intersphinx_mapping = fetched(BUILD / "inventories")
intersphinx_disabled_reftypes = ["std:doc"]

bibtex_bibfiles = ["references.bib", papers_of_models(EXECUTED / "models.bib")]
bibtex_reference_style = "author_year"

# Names of ours must resolve; those of other packages cannot where their inventories could not be fetched.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!stpredict\b).*")]
# what `Section.shapes` is made of: it has no page of its own
nitpick_ignore = [("py:class", "stpredict._coverage._shapes.Shapes")]

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
nb_execution_cache_path = str(EXECUTED)
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
