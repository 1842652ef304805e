"""Changes are made whole or not at all, wherever they are interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel

from stpredict._sdata import _results, _store, _store_element, _store_raster, _store_table

from .samples import (
    GENES,
    RASTER,
    backed,
    disk,
    fill,
    holds,
    make_layer,
    make_sdata,
    make_table,
    make_target,
    memory,
    predict,
    run_changes,
)  # fmt: skip

Change = Callable[..., object]
Run = Callable[[SpatialData, bool], None]


class Injected(RuntimeError):
    """What a test raises inside a step."""


class Killed(BaseException):
    """Stands for the end of the process: nothing is undone or cleaned up after it."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the n-th step of every journal raise, before or after it has done its work; returns the steps seen."""
    original = _store.Journal.step

    def arm(n: int, error: type[BaseException], *, after: bool = False) -> list[str]:
        seen: list[str] = []

        def step(self: _store.Journal, what: str, do: Change, undo: Change) -> None:
            seen.append(what)

            def broken() -> None:
                if after:
                    do()
                raise error(what)

            original(self, what, broken if len(seen) == n else do, undo)

        monkeypatch.setattr(_store.Journal, "step", step)
        if error is Killed:
            monkeypatch.setattr(_store.Journal, "_back", lambda self, error: False)
            monkeypatch.setattr(_store_raster, "remove", lambda folder: None)
        return seen

    return arm


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores ``fresh`` and ``run0``, and what run 1 would write, built once, which is most of the work of a change."""
    folder = tmp_path_factory.mktemp("ready")
    backed(folder / "fresh")
    first = backed(folder / "run0")
    predict(first)
    with make_target(first, overwrite=True) as target:
        fill(target, RASTER + np.float16(1.0))
        for change in run_changes(first, target, plus=1.0):
            (folder / type(change).__name__).mkdir()
            change.build(folder / type(change).__name__)
        shutil.copytree(target.image({}).built, folder / "raster")  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run1(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SpatialData, bool], None]:
    """Commits run 1 from what was built before."""
    for kind in (_results.Entry, _results.Table, _results.Image):
        source = ready / kind.__name__
        monkeypatch.setattr(
            kind, "build", lambda self, to, source=source: shutil.copytree(source, to, dirs_exist_ok=True)
        )

    def run(sdata: SpatialData, overwrite: bool) -> None:
        built = None if sdata.path is None else tmp_path / "scratch" / "raster"
        if built is not None:
            shutil.rmtree(built, ignore_errors=True)
            shutil.copytree(ready / "raster", built)
        parsed = Image2DModel.parse(RASTER + np.float16(1.0), dims=("c", "y", "x"), c_coords=GENES)
        image = _results.Image("pixnet", element=None if built else parsed, built=built, record={"run": 1.0})
        new = [make_layer(sdata, plus=1.0), make_table(sdata, plus=1.0), image]
        _results.commit(sdata, new, overwrite=overwrite)

    return run


@pytest.mark.parametrize(
    ("place", "every"),
    [
        ("memory", 1),
        ("run0", 3),
        pytest.param("run0", 1, marks=pytest.mark.slow),
        pytest.param("fresh", 1, marks=pytest.mark.slow),
    ],
)
def test_an_error_at_any_step_changes_nothing(
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Run, place: str, every: int
) -> None:
    folder = tmp_path / "s"
    if place == "memory":
        sdata = make_sdata()
        predict(sdata)
        folder.mkdir()
    else:
        shutil.copytree(ready / place, folder)
        sdata = read_zarr(folder / "slide.zarr")
    before, stored = memory(sdata), disk(folder)
    for n in range(1, 100, every):
        # in turns before the step's work and after it, so that a way back has to know whether it happened
        seen = interrupt(n, Injected, after=n % 2 == 0)
        try:
            run1(sdata, place != "fresh")
        except Injected:
            assert memory(sdata) == before, seen[-1]
            assert disk(folder) == stored, seen[-1]
        else:
            break
    assert n > len(seen) > {"memory": 7, "fresh": 17, "run0": 25}[place]
    assert all(holds(sdata, 1.0))


def test_an_error_while_a_missing_group_is_made_changes_nothing(
    tmp_path: Path, interrupt: Callable[..., list[str]]
) -> None:
    sdata = backed(tmp_path, table=False)
    before, stored = memory(sdata), disk(tmp_path)
    for n in range(1, 100):
        interrupt(n, Injected)
        try:
            _results.commit(sdata, [make_table(sdata)])
        except Injected:
            assert (memory(sdata), disk(tmp_path)) == (before, stored)
        else:
            break
    assert n > 4
    assert list(read_zarr(sdata.path).tables) == ["spots_pixnet"]


@pytest.mark.parametrize(
    ("place", "every"),
    [
        ("run0", 3),
        pytest.param("run0", 1, marks=pytest.mark.slow),
        pytest.param("fresh", 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_killed_at_any_step_leaves_a_store_that_opens_with_whole_results_only(
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Run, place: str, every: int
) -> None:
    path = tmp_path / "copy" / "slide.zarr"
    shutil.copytree(ready / place, path.parent)
    sdata = read_zarr(path)
    counts = sdata.tables["table"].X.copy()
    for n in range(1, 100, every):
        seen = interrupt(n, Killed)
        with pytest.raises(Killed):
            run1(sdata, place == "run0")
        left = read_zarr(path)
        there = "pixnet" in left.tables["table"].layers, "spots_pixnet" in left.tables, "pixnet" in left.images
        whole = zip(holds(left, 0.0), holds(left, 1.0), strict=True)
        assert there == tuple(old or new for old, new in whole), seen[-1]
        np.testing.assert_array_equal(left.tables["table"].X, counts)
        if there[0]:  # the layer comes last, so that what belongs to it is there
            table = left.tables["table"]
            assert {"pixnet", "pixnet_val_pcc"} <= set(table.var), seen[-1]
            assert "pixnet_coverage" in table.obs, seen[-1]
            assert table.uns["stpredict"]["pixnet"]["model"] == "PixNet", seen[-1]
        if n % 9 == 4:
            interrupt(0, Injected)
            run1(left, True)
            assert all(holds(read_zarr(path), 1.0)), seen[-1]
        if seen[-1].startswith("set"):
            break  # the store is done, and the steps in memory that follow are lost with the process
        shutil.rmtree(path.parent)
        shutil.copytree(ready / place, path.parent)
    assert n > 10
    assert all(holds(read_zarr(path), 1.0))


def test_a_way_back_that_fails_keeps_what_was_there_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    rename = os.rename

    def broken(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "slide.zarr" / "images" / "pixnet":
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        predict(sdata, plus=1.0, overwrite=True)
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith(".slide.zarr.stpredict-")]
    assert str(kept) in "".join(caught.value.__notes__)
    assert [p for p in kept.rglob("zarr.json") if '"omero"' in p.read_text()]


@pytest.mark.parametrize("module", [_store_element, _store_table])
def test_an_error_while_results_are_built_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    sdata = backed(tmp_path)
    before, stored = memory(sdata), disk(tmp_path)

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "read_zarr" if module is _store_element else "write_elem", full)
    with pytest.raises(OSError, match="no space left"):
        predict(sdata)
    assert memory(sdata) == before
    assert disk(tmp_path) == stored
