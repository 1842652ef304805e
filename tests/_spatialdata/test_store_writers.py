"""Two writers of one store: results of both, or an error for one; and what a killed one leaves beside it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from spatialdata import read_zarr

from stpredict._spatialdata._store import _results, _transaction
from stpredict._spatialdata._store._lock import namespace

from .samples import RASTER, backed, fill, make_layer, make_target


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The first commit waits, where it has read the store's attributes, for the second event after it set the first."""
    change, read, go_on = _results._with_records, threading.Event(), threading.Event()

    def waits(attrs: Mapping[str, Any], changes: Sequence[_results.Change]) -> dict[str, Any]:
        out = change(attrs, changes)
        if not read.is_set():
            read.set()
            go_on.wait(30)
        return out

    monkeypatch.setattr(_results, "_with_records", waits)
    return read, go_on


def _beside(path: Path, keys: Sequence[str], paused: tuple[threading.Event, threading.Event]) -> list[Exception]:
    """What is raised by commits of a layer each by two threads, the second of which begins while the first writes."""
    read, go_on = paused
    errors: list[Exception] = []

    def run(key: str) -> None:
        sdata = read_zarr(path)
        try:
            _results.commit(sdata, [make_layer(sdata, key)])
        except ValueError as error:
            errors.append(error)

    one, two = (threading.Thread(target=run, args=(key,)) for key in keys)
    one.start()
    assert read.wait(30)
    two.start()
    two.join(0.5)
    assert two.is_alive()  # it waits
    go_on.set()
    one.join()
    two.join()
    return errors


def test_two_writers_of_different_names_both_leave_their_results_and_records(
    tmp_path: Path, paused: tuple[threading.Event, threading.Event]
) -> None:
    path = Path(backed(tmp_path).path)
    assert not _beside(path, ["a", "b"], paused)
    left = read_zarr(path)
    table = left.tables["table"]
    assert {"a", "b"} <= set(table.layers)
    assert set(left.attrs["stpredict"]) == {"tables/table/layers/a", "tables/table/layers/b"}
    assert {"a", "a_val_pcc", "b", "b_val_pcc"} <= set(table.var)
    assert set(table.uns["stpredict"]) == {"a", "b"}
    assert [each.name for each in tmp_path.iterdir()] == ["slide.zarr"]


def test_of_two_writers_of_one_name_the_second_is_told(
    tmp_path: Path, paused: tuple[threading.Event, threading.Event]
) -> None:
    path = Path(backed(tmp_path).path)
    (error,) = _beside(path, ["a", "a"], paused)
    assert "there is a layer of table 'table' called 'a' already" in str(error)
    assert set(read_zarr(path).attrs["stpredict"]) == {"tables/table/layers/a"}


def test_an_object_that_was_read_before_another_writer_keeps_that_ones_records(tmp_path: Path) -> None:
    early = backed(tmp_path)
    late = read_zarr(early.path)
    _results.commit(late, [make_layer(late, "a")])
    with make_target(early, "b") as target:
        fill(target, RASTER)
        _results.commit(early, [target.image({})])
    assert set(read_zarr(early.path).attrs["stpredict"]) == {"tables/table/layers/a", "images/b"}
    assert set(early.attrs["stpredict"]) == {"images/b"}  # what it has in memory


def test_scratch_folders_of_killed_processes_of_this_machine_are_deleted(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    here = f".slide.zarr.stpredict-scratch-{socket.gethostname()}-{namespace()}-"
    dead, alive = tmp_path / f"{here}4194999-abc", tmp_path / f"{here}{os.getppid()}-abc"
    elsewhere = tmp_path / ".slide.zarr.stpredict-scratch-other-1-4194999-abc"
    for each in (dead, alive, elsewhere):
        each.mkdir()
    _transaction.Store(Path(sdata.path)).scratch().rmdir()
    assert not dead.exists()
    assert alive.is_dir()
    assert elsewhere.is_dir()
