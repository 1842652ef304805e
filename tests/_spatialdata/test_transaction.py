"""Changes are made whole or not at all, wherever they are interrupted."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from anndata.io import read_elem, write_elem
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel

from stpredict._spatialdata._store import _commit, _element, _raster, _results, _table, _transaction
from stpredict._spatialdata._store._transaction import InlineStore

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
Checkpoint = Callable[[SpatialData, bool], None]


class Injected(RuntimeError):
    """What a test raises inside a step."""


class Killed(BaseException):
    """Stands for the end of the process: nothing is undone or cleaned up after it."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the n-th step of every journal raise, before or after it has done its work; returns the steps seen."""
    original = _transaction.Transaction.apply_step

    def arm(n: int, error: type[BaseException], *, after: bool = False) -> list[str]:
        seen: list[str] = []

        def apply_step(self: _transaction.Transaction, what: str, do: Change, undo: Change) -> None:
            seen.append(what)

            def broken() -> None:
                if after:
                    do()
                raise error(what)

            original(self, what, broken if len(seen) == n else do, undo)

        monkeypatch.setattr(_transaction.Transaction, "apply_step", apply_step)
        if error is Killed:
            monkeypatch.setattr(_transaction.Transaction, "_rollback", lambda self, error: False)
            monkeypatch.setattr(_raster, "remove", lambda folder: None)
        return seen

    return arm


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores ``fresh`` and ``run0``, and what run 1 would write, built once, which is most of the work of a change."""
    folder = tmp_path_factory.mktemp("ready")
    backed(folder / "fresh")
    first = backed(folder / "run0")
    predict(first)
    with make_target(first) as target:
        fill(target, RASTER + np.float16(1.0))
        for change in run_changes(first, target, plus=1.0):
            (folder / type(change).__name__).mkdir()
            change.build(folder / type(change).__name__)
        shutil.copytree(target.image({}).built, folder / "raster")  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run1(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SpatialData, bool], None]:
    """Commits run 1 from what was built before."""
    for kind in (_results.TableEntry, _results.TableElement, _results.ImageElement):
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
        image = _results.ImageElement("pixnet", element=None if built else parsed, built=built, record={"run": 1.0})
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
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Checkpoint, place: str, every: int
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
    assert n > len(seen) > {"memory": 7, "fresh": 25, "run0": 30}[place]
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


def _seen(path: Path) -> tuple[bool, ...]:
    """For layer, new table and raster, whether the whole of run 0 and of run 1 is there; and their record's run."""
    left = read_zarr(path)
    table = left.tables["table"]
    columns = {"pixnet", "pixnet_val_pcc"} <= set(table.var), "pixnet_coverage" in table.obs
    record = "pixnet" in table.uns.get("stpredict", {}), "images/pixnet" in left.attrs.get("stpredict", {})
    there = "pixnet" in table.layers, "spots_pixnet" in left.tables, "pixnet" in left.images
    return *columns, *record, *there, *holds(left, 0.0), *holds(left, 1.0)


NOTHING, RUN0, RUN1 = (False,) * 13, (True,) * 10 + (False,) * 3, (True,) * 7 + (False,) * 3 + (True,) * 3


@pytest.mark.parametrize(
    ("place", "every"),
    [
        ("run0", 4),
        ("fresh", 4),
        pytest.param("run0", 1, marks=pytest.mark.long),
        pytest.param("fresh", 1, marks=pytest.mark.long),
    ],
)
def test_a_process_killed_at_any_step_shows_all_that_was_there_or_all_that_is_new(
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Checkpoint, place: str, every: int
) -> None:
    path, old = tmp_path / "copy" / "slide.zarr", RUN0 if place == "run0" else NOTHING
    whole = _unbroken(ready, tmp_path, run1, place)
    before = disk(ready / place / "slide.zarr")
    for n in range(1, 100, every):
        shutil.copytree(ready / place, path.parent)
        sdata = read_zarr(path)
        seen = interrupt(n, Killed, after=n % 2 == 0)
        with pytest.raises(Killed):
            run1(sdata, place == "run0")
        turned = "switch to the new state" in (seen if n % 2 == 0 else seen[:-1])
        assert _seen(path) == (RUN1 if turned else old), seen[-1]
        interrupt(0, Injected)
        _transaction.Store(path).recover()
        assert disk(path) == (whole if turned else before), seen[-1]
        left = read_zarr(path)
        run1(left, True)
        assert disk(path) == whole, seen[-1]
        if seen[-1].startswith("set"):
            break  # the store is done, and the steps in memory that follow are lost with the process
        shutil.rmtree(path.parent)
    assert n > 20


def _unbroken(ready: Path, tmp_path: Path, run1: Checkpoint, place: str) -> dict[str, bytes | None]:
    path = tmp_path / "whole" / "slide.zarr"
    shutil.copytree(ready / place, path.parent)
    run1(read_zarr(path), place == "run0")
    assert _seen(path) == RUN1
    return disk(path)


def test_where_the_system_cannot_exchange_two_names_a_kill_at_any_rename_is_mended(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run1: Checkpoint
) -> None:
    monkeypatch.setattr(_commit, "_renameat2", lambda: None)
    whole = _unbroken(ready, tmp_path, run1, "run0")
    before, rename, path = disk(ready / "run0" / "slide.zarr"), os.rename, tmp_path / "copy" / "slide.zarr"
    monkeypatch.setattr(_transaction.Transaction, "_rollback", lambda self, error: False)
    ends = []
    for n in range(0, 300, 5):
        shutil.copytree(ready / "run0", path.parent)
        sdata, left = read_zarr(path), [n]

        def counted(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted)
            try:
                run1(sdata, True)
            except Killed:
                pass
            else:
                break
        _transaction.Store(path).recover()
        ends.append(disk(path) == whole)
        assert disk(path) in (before, whole), n
        shutil.rmtree(path.parent)
    assert len(ends) > 10
    assert len(set(ends)) == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_member_may_have_the_name_of_another_with_more_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """What waits beside the place of a member while two are exchanged must be no other member."""
    if not at_once:
        monkeypatch.setattr(_commit, "_exchanged_at_once", lambda a, b: False)
    sdata = make_sdata()
    obs = sdata.tables["table"].obs
    for suffix in ("", ".aside", ".new", ".aside.aside"):
        obs[f"score{suffix}"] = np.arange(10.0)
    sdata.write(tmp_path / "slide.zarr")
    sdata = read_zarr(tmp_path / "slide.zarr")
    for key in ("pixnet", "pixnet.aside", "zarr.json.aside", "view", "new", "old"):
        _results.commit(sdata, [make_layer(sdata, key)])
        _results.commit(sdata, [make_layer(sdata, key, plus=1.0)], overwrite=True)
    again = read_zarr(sdata.path).tables["table"]
    assert {"pixnet", "pixnet.aside", "zarr.json.aside", "view", "new", "old"} < set(again.layers)
    assert [name for name in again.obs if name.startswith("score")] == [
        name for name in obs if name.startswith("score")
    ]
    np.testing.assert_array_equal(again.X, sdata.tables["table"].X)
    assert not (Path(sdata.path) / _commit.FOLDER).exists()


def test_a_way_back_that_fails_is_gone_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    before, exchange, calls = disk(tmp_path), _commit.exchange, []

    def broken(ours: Path, theirs: Path, aside: Path) -> None:
        calls.append(theirs)
        if len(calls) > 2:
            raise OSError("the disk is gone")
        exchange(ours, theirs, aside)

    with monkeypatch.context() as patch:
        patch.setattr(_commit, "exchange", broken)
        with pytest.raises(OSError, match="the disk is gone") as caught:
            predict(sdata, plus=1.0, overwrite=True)
    assert "the next call that writes there tries again" in "".join(caught.value.__notes__)
    assert all(holds(read_zarr(sdata.path), 0.0))
    _transaction.Store(Path(sdata.path)).recover()
    kept = {path: content for path, content in disk(tmp_path).items() if "stpredict-scratch" not in path}
    assert kept == before
    predict(sdata, plus=1.0, overwrite=True)
    assert all(holds(read_zarr(sdata.path), 1.0))


def test_members_that_do_not_change_keep_their_files(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    path = Path(sdata.path)

    def inodes(place: str) -> dict[str, int]:
        return {str(p.relative_to(path)): p.stat().st_ino for p in sorted((path / place).rglob("*")) if p.is_file()}

    before = {place: inodes(place) for place in ("images/image", "shapes", "tables/table")}
    _results.commit(sdata, [make_layer(sdata, "other")])
    for place, known in before.items():
        now = inodes(place)
        changed = {file for file in known if now[file] != known[file]}
        assert changed == ({f"tables/table/{axis}/zarr.json" for axis in ("obs", "var")} if place[0] == "t" else set())


@pytest.mark.parametrize("module", [_element, _table])
def test_an_error_while_results_are_built_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    sdata = backed(tmp_path)
    before, stored = memory(sdata), disk(tmp_path)

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "read_zarr" if module is _element else "write_dispatched", full)
    with pytest.raises(OSError, match="no space left"):
        predict(sdata)
    assert memory(sdata) == before
    assert disk(tmp_path) == stored


@pytest.mark.parametrize("sharded", [False, True])
def test_elements_are_written_as_anndata_writes_them(tmp_path: Path, sharded: bool) -> None:
    record: dict[str, Any] = {"a": "x", "b": {"c": "yy", "n": 1, "m": 2, "e": ""}, "f": 0.5, "g": -0.0, "on": True}
    record |= {"none": None, "nothing": None, "names": ["p", "q"], "large": 2**60, "small": -(2**63), "ü": "µm"}
    record |= {"infinite": np.inf, "empty": {}, "array": np.arange(3), "numpy": np.float32(2), "nan": np.nan}
    record |= {"none of three": np.zeros((0, 3)), "big": np.arange(4, dtype=">i4"), "columns": np.eye(3, 2, order="F")}
    record |= {"half": np.ones(2, np.float16), "bool": np.array([True]), "0-d": np.array(3), "zeros": np.zeros(9)}
    record |= {"complex": np.ones(2, complex), "U": np.array(["ä", ""]), "O": np.array([["a"], ["b"]], object)}
    record |= {"z": "abc\0", "zero": "\0", "within": "a\0b", "µ": "\U0001f9ec"}
    record |= {"T": np.array(["x", "y"], np.dtypes.StringDType()), "list": [1, 2]}
    obs = pd.DataFrame({"region": pd.Categorical(["a", "b"]), "n": [1, 2], "s": ["x", "y"]}, index=["p", "q"])
    table = AnnData(np.ones((2, 1), np.float32), obs=obs, uns={"stpredict": {"key": record}})
    for name, how in (("ours", _table.write_element), ("theirs", write_elem)):
        group = zarr.open_group(InlineStore(tmp_path / name), mode="w", zarr_format=3)
        with anndata.settings.override(auto_shard_zarr_v3=sharded):
            how(group, "table", table)
            how(group, "odd", {"a": "x", "z\\b": "y"})
    written = {name: disk(tmp_path / name) for name in ("ours", "theirs")}
    assert len(written["ours"]) > 60
    assert written["ours"] == written["theirs"]
    assert read_elem(group["table"]).uns["stpredict"]["key"]["b"]["m"] == 2


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70])
def test_integers_that_zarr_does_not_know_are_refused(tmp_path: Path, value: int) -> None:
    group = zarr.open_group(InlineStore(tmp_path), mode="w", zarr_format=3)
    with pytest.raises((ValueError, OverflowError)):
        _table.write_element(group, "uns", {"first": 1, "second": value})


def test_garbage_is_collected_again_after_a_commit_also_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata, seen = backed(tmp_path), []
    _results.commit(sdata, [make_layer(sdata, "well")])
    assert gc.isenabled()
    write = _table.write_dispatched

    def watched(*args: Any, **options: Any) -> None:
        seen.append(gc.isenabled())
        pid = os.fork()
        if pid == 0:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitpid(pid, 0)[1] == 0
        if len(seen) > 3:
            raise OSError("no space left on device")
        write(*args, **options)

    monkeypatch.setattr(_table, "write_dispatched", watched)
    with pytest.raises(OSError, match="no space left"):
        predict(sdata)
    assert seen == [False] * 4
    assert gc.isenabled()
