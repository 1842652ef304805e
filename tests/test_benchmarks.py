"""`benchmarks/all.py`: one command makes every table, each once, of one commit."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def every(tmp_path, monkeypatch):
    """The script, with two tables of its own: one that can be made once, and one that fails half-way."""
    spec = importlib.util.spec_from_file_location("benchmarks_all", FOLDER / "all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "good.py").write_text(
        "import sys, pathlib\nassert len(sys.argv) == 2\npathlib.Path(sys.argv[1]).mkdir()\nprint('| a |')"
    )
    (scripts / "bad.py").write_text("print('| half')\nraise SystemExit(3)")
    given, module.real_commit = module.TABLES, module.commit
    tables = tuple(module.Table(n, "", f"{n}.py {{out}}", None) for n in ("good", "bad"))
    monkeypatch.setattr(module, "TABLES", tables)
    monkeypatch.setattr(module, "HERE", scripts)
    monkeypatch.setattr(module, "commit", lambda: "abc")
    module.given = given
    return module


def test_every_table_has_a_script_and_a_heading_of_the_page(every):
    page = (FOLDER / "README.md").read_text()
    headings = {line.lstrip("# ") for line in page.splitlines() if line.startswith("#")}
    for table in every.given:
        assert (FOLDER / table.command.split()[0]).is_file()
        assert table.heading in headings
    assert len({table.name for table in every.given}) == len(every.given)


def test_every_script_is_a_table_or_is_said_not_to_be(every):
    ran = {table.command.split()[0] for table in every.given}
    others = {"all.py", "device.py", "device_wheels.py", "ship.py", "nuclei.py", "tissue.py"}
    assert {path.name for path in FOLDER.glob("[!_]*.py")} == ran | others


def test_a_table_is_made_once_and_a_failed_one_is_named_and_made_again(every, tmp_path, capsys):
    out = tmp_path / "my results"
    assert every.main(["--out", str(out)]) == 1
    assert "failed: bad" in capsys.readouterr().out
    assert (out / "good.md").read_text() == "| a |\n"
    assert not (out / "bad.md").exists()
    assert "## good" in (out / "tables.md").read_text()
    assert "half" not in (out / "tables.md").read_text()
    assert every.main(["--out", str(out), "--only", "good"]) == 0  # its script would fail on a folder that is there
    assert "good: is there" in capsys.readouterr().out


def test_tables_of_two_commits_are_not_mixed(every, tmp_path, monkeypatch):
    every.main(["--out", str(tmp_path / "out"), "--only", "good"])
    monkeypatch.setattr(every, "commit", lambda: "def")
    with pytest.raises(ValueError, match="has tables of commit abc, and this is def"):
        every.main(["--out", str(tmp_path / "out")])


def test_results_of_an_unknown_commit_are_not_gone_on_from(every, tmp_path):
    out = tmp_path / "results"
    out.mkdir()
    (out / "C2.json").write_text("{}")
    with pytest.raises(ValueError, match="holds results whose commit is not known"):
        every.main(["--out", str(out)])
    assert [path.name for path in out.iterdir()] == ["C2.json"]


def test_a_table_that_saw_a_commit_is_none(every, tmp_path, monkeypatch):
    commits = iter(["abc", "def", "def"])
    monkeypatch.setattr(every, "commit", lambda: next(commits))
    with pytest.raises(ValueError, match="good: the code was changed while it was made, from abc to def"):
        every.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "good.md").exists()


def test_tables_have_to_go_somewhere(every, capsys):
    with pytest.raises(SystemExit):
        every.main(["--only", "good"])
    assert "--out: which folder" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_code_that_is_not_committed_makes_no_table(every, tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(every, "HERE", tmp_path / "benchmarks")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "x.py").write_text("")
    with pytest.raises(ValueError, match="is no git checkout"):
        every.real_commit()
    said = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "benchmarks"], [*said, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert len(every.real_commit()) == 40
    (tmp_path / "benchmarks" / "x.py").write_text("changed")
    with pytest.raises(ValueError, match=r"not committed:\n.*benchmarks/x.py"):
        every.real_commit()


def test_the_list_says_commands_and_minutes(every, capsys):
    every.TABLES = every.given
    assert every.main(["--list", "--only", "her2st", "patient"]) == 0
    said = capsys.readouterr().out
    assert "`python benchmarks/her2st.py --out OUT` | 40 |" in said
    assert "| not measured |" in said
