from __future__ import annotations

from importlib import metadata

import pytest


@pytest.fixture
def doctor():
    import importlib

    return importlib.import_module("stpredict.cli._doctor")


def test_a_healthy_machine_has_no_problems(run):
    status, said, _ = run("doctor")
    assert status == 0
    assert said.splitlines()[-1] == "no problems"
    for word in (f"torch {metadata.version('torch')}", "cpu: ", "GiB memory", "disk free", "threads", "HF_HUB_OFFLINE"):
        assert word in said, word
    assert "FAIL" not in said


def test_a_missing_package_fails(doctor, run, monkeypatch):
    have = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else have(name))
    status, said, _ = run("doctor")
    assert status == 1
    assert "FAIL timm is not installed" in said


def test_a_missing_extra_is_no_problem_and_says_how_to_get_it(doctor, run, monkeypatch):
    have = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "squidpy" else have(name))
    status, said, _ = run("doctor")
    assert status == 0
    assert "analysis: not installed (lacks squidpy): pip install 'stpredict[analysis]'" in said


def test_a_shipped_model_that_does_not_load_fails(doctor, run, monkeypatch, tmp_path):
    (tmp_path / "card.json").write_text("{}")
    monkeypatch.setattr(doctor, "shipped", lambda: {"broken": tmp_path})
    status, said, _ = run("doctor")
    assert status == 1
    assert "FAIL broken" in said
