"""What must be green and which tutorials a build executes: `.ci/run` with stand-ins for its tools, docs/conf.py."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = {
    "tests": "pytest",
    "lint": "ruff check",
    "format": "ruff format",
    "floors": "lint-imports",
    "sizes": "sizes.py",
    "private imports": "private_imports.py",
    "version": "version.py",
    "types": "mypy",
    "docs and tutorials": "sphinx-build",
}
UV = """#!/bin/sh
echo "uv $*"
case "$*" in *"$FAILING"*) exit 3 ;; esac
"""


@pytest.fixture
def ci(tmp_path):
    """A function that runs a copy of `.ci/run` in which the command with the words `failing` fails."""
    script = tmp_path / "repository" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"uv": UV, "pip": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(failing: str) -> subprocess.CompletedProcess:
        env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "FAILING": failing}
        return subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, timeout=60)

    return run


def test_every_step_is_run_once(ci):
    done = ci("nothing fails")
    assert done.returncode == 0, done.stderr
    assert "all green" in done.stdout
    for name, command in STEPS.items():
        assert done.stdout.count(f"=== {name}\n") == 1
        assert done.stdout.count(command) >= 1


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_fails_fails_the_run_and_is_named(ci, name):
    done = ci(STEPS[name])
    assert done.returncode != 0
    assert "all green" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f": {name}")
    for other in STEPS:  # the others are run to their end
        assert (f"--- {other} FAILED:" in done.stdout) == (other == name)


def test_without_an_environment_nothing_is_green(ci):
    done = ci("sync")
    assert done.returncode != 0
    assert "all green" not in done.stdout


@pytest.fixture
def private_imports():
    return runpy.run_path(str(ROOT / ".ci" / "private_imports.py"))["problems"]


def test_no_package_reaches_into_another(private_imports):
    assert list(private_imports(ROOT / "src" / "stpredict")) == []


@pytest.mark.parametrize(
    ("statement", "private"),
    [
        ("from stpredict.io._grid import pitch_px", "stpredict.io._grid"),
        ("from stpredict.io import _grid", "stpredict.io._grid"),
        ("import stpredict.io._grid as grid", "stpredict.io._grid"),
        ("from stpredict.io.read_st import _check", "stpredict.io.read_st._check"),
        ("from stpredict._store._table import write", "stpredict._store._table"),
        ("from stpredict._store import _table", "stpredict._store._table"),
        ("from stpredict._store import public", "stpredict._store.public"),
        ("from stpredict._card import _read", "stpredict._card._read"),
        ("def f():\n    from stpredict.io._grid import pitch_px", "stpredict.io._grid"),
        ("from stpredict.tl._cache import stable_hash", None),
        ("from stpredict.io import pitch_px", None),
        ("from stpredict.io.read_st import read_st", None),
        ("from stpredict import _store, __version__", None),
        ("from stpredict._store import write", None),
        ("from stpredict._card import Card", None),
        ("import stpredict as stp", None),
        ("from numpy._core import _x", None),
    ],
)
def test_what_is_private_to_a_package_is_told_apart(private_imports, tmp_path, statement, private):
    root = tmp_path / "stpredict"
    for folder in ("io", "_store", "tl"):
        (root / folder).mkdir(parents=True)
    for file in ("io/_grid", "io/read_st", "_store/_table", "_store/public", "_card", "tl/_cache"):
        (root / f"{file}.py").touch()
    (root / "tl" / "verb.py").write_text(statement + "\n")
    found = list(private_imports(root, set()))
    assert [line.split(": ")[1] for line in found] == (
        [] if private is None else [f"stpredict.tl imports {private}, which is private to its package"]
    )
    if private is not None:
        assert list(private_imports(root, {("stpredict.tl", private)})) == []
    unused = list(private_imports(root, {("stpredict.pl", "stpredict.io._grid")}))
    assert unused[-1].endswith("take the entry out")


@pytest.fixture
def versions(tmp_path):
    """A function of texts for the files that name the version, and of a tag: what does not agree."""
    problems = runpy.run_path(str(ROOT / ".ci" / "version.py"))["problems"]

    def compare(tag, *, package="1.2.3", citation="1.2.3", heading="## [1.2.3] - 2026-12-01"):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{package}"\n')
        (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {citation}\n")
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n{heading}\n")
        return list(problems(tmp_path, tag))

    return compare


def test_a_version_is_the_same_everywhere(versions):
    assert versions("v1.2.3") == []
    assert versions(None, heading="## [1.2.3]") == []
    assert versions(None, citation="1.2.2") == ["CITATION.cff has version 1.2.2, pyproject.toml has 1.2.3"]
    assert versions("v1.2.4") == ["the tag is v1.2.4, pyproject.toml has 1.2.3: it must be v1.2.3"]
    assert "has no date" in versions("v1.2.3", heading="## [1.2.3]")[0]
    assert "has no section [1.2.3]" in versions(None, heading="## [1.2.2]")[0]


def test_the_version_of_this_repository_agrees():
    assert list(runpy.run_path(str(ROOT / ".ci" / "version.py"))["problems"](ROOT, None)) == []


def test_workflows_pin_every_action_by_its_commit():
    files = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
    uses = [
        line.split("uses:")[1].strip() for file in files for line in file.read_text().splitlines() if "uses:" in line
    ]
    assert len(uses) > 10
    assert [each for each in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", each)] == []


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A function of Sphinx tags: docs/conf.py in a tree of its own, which has one more tutorial, without a network."""

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    # the papers of the models, which a process of its own lists, are not what these tests look at
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout=b""))
    for folder in ("docs", "src", "tutorials"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "src" / "code.py").write_text("x = 1\n")
    for path in (ROOT / "tutorials").glob("*.md"):
        shutil.copy(path, tmp_path / "tutorials")
    (tmp_path / "tutorials" / "long.md").write_text("# A long one\n")

    class Tags(set):
        def has(self, tag):
            return tag in self

    return lambda *tags: runpy.run_path(str(tmp_path / "docs" / "conf.py"), {"tags": Tags(tags)})


def test_those_that_show_the_main_job_are_executed_and_the_others_on_demand(configured):
    conf = configured()
    assert all((ROOT / "tutorials" / f"{name}.md").is_file() for name in conf["MAIN"])
    assert "tutorials/long.md" in conf["nb_execution_excludepatterns"]
    assert not {f"tutorials/{name}.md" for name in conf["MAIN"]} & set(conf["nb_execution_excludepatterns"])
    assert configured("slow")["nb_execution_excludepatterns"] == []


def test_a_page_that_was_not_executed_says_so_below_its_title(configured):
    for tags, said in [((), True), (("slow",), False)]:
        conf = configured(*tags)
        app = type("App", (), {"config": type("Config", (), conf)})
        page = ["---\nkernelspec: {}\n---\n# A long one\n\n# not a title\n"]
        conf["say_not_executed"](app, "tutorials/long", page)
        assert ("\n# A long one\n\n:::{note}" in page[0]) == said
        assert page[0].count("was not executed") == said
        first = ["# A title\n"]
        conf["say_not_executed"](app, f"tutorials/{conf['MAIN'][0]}", first)
        assert first == ["# A title\n"]


def test_what_was_executed_is_kept_while_src_stays(configured, tmp_path):
    def cache() -> Path:
        return Path(configured()["nb_execution_cache_path"])

    first = cache()
    (first / "kept").touch()
    (tmp_path / "src" / "__pycache__").mkdir()
    (tmp_path / "src" / "__pycache__" / "code.pyc").touch()
    assert cache() == first
    assert (first / "kept").exists()
    (tmp_path / "src" / "code.py").write_text("x = 2\n")
    assert cache() != first
    assert not first.exists()
    (tmp_path / "src" / "code.py").rename(tmp_path / "src" / "other.py")
    assert len({first, cache()}) == 2
