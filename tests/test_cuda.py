"""On a real CUDA device: the checks of benchmarks/device.py, at their smallest sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RIGHT = ("every_model", "raster", "out_of_memory", "two_processes", "training", "compiled", "through_spatialdata")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("default"),  # of kernels that are not deterministic, and of packages about one another
]


@pytest.fixture
def parts(monkeypatch):
    """The parts of the device benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return pytest.importorskip("_device_parts")


def test_every_part_that_is_right_or_wrong_is_a_test_here(parts):
    assert {name for name, part in parts.PARTS.items() if part.kind == parts.RIGHT} == set(RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_the_answers_are_those_of_the_cpu(parts, tmp_path, name):
    before = torch.cuda.get_per_process_memory_fraction()
    try:
        rows = parts.PARTS[name].function(name)(parts.Setting("cuda:0", True, tmp_path))
    except parts.Skipped as reason:
        pytest.skip(str(reason))
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(before)
    assert rows
    assert [row for row in rows if row.ok is False] == []
    assert any(row.ok for row in rows)
