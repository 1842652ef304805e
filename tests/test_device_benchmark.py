"""benchmarks/device.py: it runs without a card, and what fails in it stops nothing else."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COPIED = ("device.py", "_device_run.py", "device_wheels.py")
PARTS = """
import os, time
from dataclasses import dataclass
SMALL_SECONDS, START_SECONDS, RIGHT, FAST = 8.0, 300.0, "right", "fast"
class Skipped(Exception): ...
@dataclass
class Setting:
    device: str
    small: bool
    folder: object
@dataclass
class Row:
    what: str
    value: object
    unit: str = ""
    goal: str = ""
    ok: object = None
def fine(s): return [Row("one", 1.0, "s", "<= 2", True), Row("a | b", "text")]
def wrong(s): return [Row("two", 3.0, "", "<= 2", False)]
def raises(s): raise KeyError("what went wrong")
def dies(s): os._exit(9)
def hangs(s): time.sleep(100)
def cannot(s): raise Skipped("no reason")
@dataclass
class Part:
    title: str
    kind: str = RIGHT
    seconds: float = 8.0
    alone: bool = False
    door: bool = False
    def function(self, name): return globals()[name]
PARTS = {name: Part(name.title()) for name in ("fine", "raises", "wrong", "dies", "cannot", "hangs", "fine2")}
fine2 = fine
PARTS["fine2"].alone = True
"""


def _run(*given, folder=BENCHMARKS):
    command = [sys.executable, str(Path(folder) / "device.py"), *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _table(text):
    """The rows of all Markdown tables, as cells."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports one of its modules."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.slow
def test_every_part_runs_without_a_card_or_says_why_not(tmp_path, benchmark):
    done = _run("--device", "cpu", "--small", "--out", tmp_path, "--limit", 3000)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    content = json.loads((tmp_path / "results.json").read_text())
    parts = benchmark("_device_parts").PARTS
    assert list(content["parts"]) == list(parts)
    assert {name for name, part in content["parts"].items() if part["state"] != "ran"} == {"out_of_memory", "compiled"}
    for name, part in content["parts"].items():
        if part["state"] == "ran":
            assert part["rows"], name
            assert all(row["what"] and isinstance(row["value"], int | float | str) for row in part["rows"])
        else:
            assert part["state"] == "skipped"
            assert part["reason"], name
        if parts[name].kind == "right" and part["state"] == "ran":
            assert any(row["ok"] for row in part["rows"]), name
        assert not any(row["ok"] is False for row in part["rows"])
    table = _table((tmp_path / "results.md").read_text())
    assert {len(line) for line in table} == {5}
    assert {parts[name].title for name in parts} <= {line[0] for line in table}


@pytest.mark.slow
def test_what_fails_dies_or_hangs_stands_in_the_table_and_stops_nothing_else(tmp_path):
    for name in COPIED:
        shutil.copy(BENCHMARKS / name, tmp_path)
    (tmp_path / "_device_parts.py").write_text(PARTS)
    out = tmp_path / "out"
    done = _run("--device", "cpu", "--small", "--out", out, folder=tmp_path)
    assert done.returncode == 1
    assert "failed, or not as wanted: raises, wrong, dies, hangs" in done.stderr
    found = json.loads((out / "results.json").read_text())["parts"]
    states = {name: part["state"] for name, part in found.items()}
    assert states == {
        "fine": "ran", "raises": "failed", "wrong": "ran", "dies": "failed", "cannot": "skipped", "hangs": "failed",
        "fine2": "ran",
    }  # fmt: skip
    assert "KeyError: 'what went wrong'" in found["raises"]["reason"]
    assert "its process ended with 9" in found["dies"]["reason"]
    assert found["hangs"]["reason"] == "took longer than its limit of 8 s"
    assert found["cannot"]["reason"] == "no reason"
    table = _table((out / "results.md").read_text())
    assert ["Fine", "one", "1 s", "<= 2", "yes"] in table
    assert ["Wrong", "two", "3", "<= 2", "**no**"] in table
    assert {len(line) for line in table} == {5}


def test_parts_that_no_longer_fit_are_said_not_to_have_run(tmp_path):
    done = _run("--device", "cpu", "--small", "--out", tmp_path, "--limit", 1, "--parts", "ceilings", "raster")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {part["state"] for part in found.values()} == {"not run"}
    assert list(found) == ["ceilings", "raster"]
    assert "the 1 s of the whole run were over" in (tmp_path / "results.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_card_that_is_not_there_is_refused(tmp_path):
    done = _run("--device", "cuda", "--out", tmp_path)
    assert done.returncode == 2
    assert "--device cuda, but there is no such CUDA device: torch" in done.stderr
    assert "finds 0 of them. Use --device cpu --small." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_wheels_that_are_missing_are_named(tmp_path, benchmark, monkeypatch, capsys):
    device = benchmark("device")
    absent = {"zarr", "dask"}
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name in absent else object())
    assert device.packages(tmp_path, tmp_path / "site") == ["dask", "zarr"]
    assert "going on below it: dask, zarr" in capsys.readouterr().out
    absent.add("shapely")
    for wheels, said in ((tmp_path, f"{tmp_path} has no wheel of them"), (None, "no folder of wheels was given")):
        with pytest.raises(SystemExit) as ended:
            device.packages(wheels, tmp_path / "site")
        assert ended.value.code == 2
        assert f"missing packages: shapely; {said}" in capsys.readouterr().err


def test_a_folder_of_wheels_that_is_none_is_refused(tmp_path):
    done = _run("--device", "cpu", "--small", "--out", tmp_path, "--wheels", tmp_path / "nothing")
    assert done.returncode == 2
    assert "is no folder. benchmarks/device_wheels.py makes one." in done.stderr


def test_a_card_too_small_for_a_tile_is_told_how_much_it_takes_and_what_fits(benchmark):
    published = benchmark("_device_published")
    genes = ("a", "b")
    model = benchmark("_device_simulated").published(genes, small=True)
    model.config = benchmark("dataclasses").replace(model.config, core_px=1792, halo_px=896)
    need = published.at_side([1.0, 2.5], (448, 896), 3584)
    assert need == pytest.approx(0.5 + 0.5 * 64)
    said = published.what_fits(model, need, 20.0)
    assert (
        said
        == "one tile of 1792 px (3584 px with its halo) takes about 32.5 GiB, and 20.0 GiB are free; core_px=896 fits"
    )
    assert published.what_fits(model, need, 5.0).endswith("no core_px fits with a halo of 896 px")


def test_neighbours_are_fixed_and_those_that_would_be_others_are_counted(benchmark):
    right = benchmark("_device_right")
    seen = right.Neighbours()
    first = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    with seen:
        assert first.topk(2, dim=1).indices.tolist() == [[0, 1], [2, 1]]
    other = torch.tensor([[2.0, 3.0, 1.0], [3.0, 2.0, 1.0]])  # the same two in another order; others
    with seen.replay():
        values, index = other.topk(2, dim=1)
    assert index.tolist() == [[0, 1], [2, 1]]
    assert values.tolist() == [[2.0, 3.0], [1.0, 2.0]]
    assert (seen.apart, seen.n) == (1, 2)


def test_flat_genes_are_left_out_and_counted(benchmark):
    right, np = benchmark("_device_right"), benchmark("numpy")
    wanted = np.array([[0.0, 5.0], [2.0, 5.0]])
    apart, flat = right.worst(wanted + np.array([0.1, 9.0]), wanted)
    assert (round(apart, 6), flat) == (0.1, 1)
    assert right.worst(np.full((2, 2), np.nan), wanted)[0] == float("inf")
    assert right.least_correlation(-wanted, wanted) == pytest.approx(-1)
