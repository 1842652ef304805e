"""What is kept between calls can be let go of, all of it at once and by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import shapely

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "stpredict"


@pytest.fixture
def registry(monkeypatch):
    """The registry without the caches of the modules that other tests have imported."""
    from stpredict import _caches

    monkeypatch.setattr(_caches, "_CACHES", {})
    return _caches


def test_all_are_cleared_and_said_with_their_bytes(registry):
    import stpredict as stp

    kept, other = [b"1234"], ["anything"]
    registry.register("bytes", kept.clear, lambda: sum(map(len, kept)))
    registry.register("things", other.clear)
    assert stp.clear_caches() == {"bytes": 4, "things": None}
    assert (kept, other) == ([], [])
    assert stp.clear_caches() == {"bytes": 0, "things": None}


def test_a_module_that_is_imported_anew_takes_its_place(registry):
    first, second = [1], [2]
    registry.register("one", first.clear)
    registry.register("one", second.clear)
    registry.clear_all()
    assert (first, second) == ([1], [])


def test_the_pixels_inside_shapes_are_let_go_of():
    import stpredict as stp
    from stpredict._coverage import Shapes
    from stpredict.tl import _readout

    shapes = Shapes([shapely.Point(8, 8)], [4.0])
    stp.clear_caches()
    with _readout.blocks_of(shapes, grid=(16, 16), block=(16, 16)) as blocks:
        assert len(list(blocks)) == 1
    assert stp.clear_caches()["pixels inside shapes"] > 100
    assert stp.clear_caches()["pixels inside shapes"] == 0


def test_every_registered_cache_has_a_name_of_its_own():
    names = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_caches.register":
                assert isinstance(node.args[0], ast.Constant), path
                names.append(node.args[0].value)
    assert names
    assert len(set(names)) == len(names)
