"""What the allocator setting is for, seen in the page faults of this process, and that it ends where it began."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
BLOCK = 64 * 2**20
FILE = Path(__file__).parents[1] / "src" / "stpredict" / "_malloc.py"


CODE = f"""
import importlib.util, json, resource
import numpy as np, psutil

# the module by itself: its package would bring torch, which takes seconds
spec = importlib.util.spec_from_file_location("allocator", {str(FILE)!r})
allocator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocator)
plain, told = allocator._set, []

def recorded(libc, values):
    told.append({{str(name): value for name, value in values.items()}})
    plain(libc, values)

allocator._set = recorded

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones({BLOCK // 8})
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def rss():
    return psutil.Process().memory_info().rss

found = {{"outside": faults(), "before": rss()}}
try:
    with allocator.keep_freed_memory():
        with allocator.keep_freed_memory():
            np.ones({BLOCK // 8})
        found |= {{"inside": faults(), "kept": rss()}}
        raise InterruptedError
except InterruptedError:
    found |= {{"after": rss(), "running": allocator._running, "told": told}}
print(json.dumps(found))
"""


def measured(**variables: str) -> dict[str, Any]:
    """Page faults, resident bytes and what glibc was told, of a fresh interpreter, whose heap has no past."""
    ours = ("STPREDICT_ALLOCATOR", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


def test_a_block_is_mapped_once_kept_inside_and_given_back_after_an_error():
    from stpredict import _malloc as allocator

    found = measured()
    assert found["inside"] < 0.05 * found["outside"]
    assert found["kept"] - found["before"] > 0.9 * BLOCK
    assert found["after"] - found["before"] < 0.1 * BLOCK
    assert found["running"] == 0
    assert found["told"] == [_by_name(allocator.KEPT), _by_name(allocator.USUAL)]


def _by_name(values: dict[int, int]) -> dict[str, int]:
    return {str(name): value for name, value in values.items()}


def test_what_dask_sets_for_its_workers_is_no_wish_of_the_user():
    """Its nannies start every worker with this value, and leave it in the environment of the client."""
    import dask
    import distributed  # noqa: F401  # brings its settings

    from stpredict import _malloc as allocator

    set_by_nannies = dask.config.get("distributed.nanny.pre-spawn-environ")
    assert {name: str(value) for name, value in set_by_nannies.items() if name.startswith("MALLOC")} == allocator.DASKS
    found = measured(**allocator.DASKS)
    assert found["inside"] < 0.05 * found["outside"]
    assert found["kept"] - found["before"] > 0.9 * BLOCK
    assert found["after"] - found["before"] < 0.1 * BLOCK
    assert found["told"] == [_by_name(allocator.KEPT), _by_name(allocator.USUAL_OF_DASK)]


def test_in_a_client_that_dask_told_too_late_glibc_goes_back_to_its_own_rule(monkeypatch):
    from stpredict import _malloc as allocator

    for each in ("STPREDICT_ALLOCATOR", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(each, raising=False)
    calls = []
    monkeypatch.setattr(allocator, "_set", lambda _, values: calls.append(values))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    with allocator.keep_freed_memory():
        pass
    assert calls == [allocator.KEPT, allocator.USUAL]


@pytest.mark.parametrize(
    ("name", "value"),
    [("STPREDICT_ALLOCATOR", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000"), ("GLIBC_TUNABLES", "glibc.malloc.check=1")],
)
def test_it_is_off_on_request_and_where_the_user_has_set_the_allocator(monkeypatch, name, value):
    from stpredict import _malloc as allocator

    for each in ("STPREDICT_ALLOCATOR", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(each, raising=False)
    calls = []
    monkeypatch.setattr(allocator, "_set", lambda _, values: calls.append(values))
    with allocator.keep_freed_memory():
        assert calls == [allocator.KEPT]
    monkeypatch.setenv(name, value)
    with allocator.keep_freed_memory():
        pass
    assert calls == [allocator.KEPT, allocator.USUAL]


def test_a_switch_of_another_value_is_refused(monkeypatch):
    from stpredict._malloc import keep_freed_memory

    monkeypatch.setenv("STPREDICT_ALLOCATOR", "off")
    with pytest.raises(ValueError, match="STPREDICT_ALLOCATOR='off' is neither 1"), keep_freed_memory():
        pass


def test_training_and_prediction_run_inside(build, colour_section, monkeypatch):
    from stpredict import _inference, _training
    from stpredict import _malloc as allocator

    seen = []
    model = build("Ridge")
    for name in ("prepare", "finish", "query"):
        plain = getattr(model, name)

        def watched(*args, name=name, plain=plain):
            seen.append((name, allocator._running))
            return plain(*args)

        monkeypatch.setattr(model, name, watched)
    _training.fit(model, [colour_section(0)], [], _training.TrainOptions(progress=False))
    _inference.predict(
        model, colour_section(1), ["red"], runtime=_inference.RuntimeOptions(progress=False).resolve(model.output)
    )
    assert {name for name, _ in seen} == {"prepare", "finish", "query"}
    assert all(running >= 1 for _, running in seen)
