"""Locks: who holds one, who waits, and from whom one is taken over."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stpredict._spatialdata._store import _lock
from stpredict._spatialdata._store._lock import Holder, Lock, read_holder


def _held_by(path: Path, **other: object) -> Holder:
    holder = dataclasses.replace(Holder.me(), **other)  # type: ignore[arg-type]
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def test_a_lock_that_is_held_names_its_holder_and_is_gone_after_the_block(path: Path) -> None:
    with Lock(path, "writing", wait=False):
        with pytest.raises(RuntimeError, match=rf"process {os.getpid()} on .* is writing .*another key_added"):
            Lock(path, "writing", wait=False).__enter__()
        assert read_holder(path) is not None
    assert not list(path.parent.iterdir())


def test_threads_that_wait_come_one_after_the_other(path: Path) -> None:
    inside, most = 0, []

    def run() -> None:
        nonlocal inside
        for _ in range(5):
            with Lock(path, "writing", wait=True):
                inside += 1
                most.append(inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert not list(path.parent.iterdir())


def test_the_lock_of_a_process_that_has_ended_is_taken_over_and_the_log_says_from_whom(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    # one that has ended, one whose id another process has now, and a call of ours that was interrupted
    for dead in ({"pid": ended.pid}, {"started": 1.0}, {}):
        holder = _held_by(path, **dead)
        with caplog.at_level(logging.WARNING), Lock(path, "writing", wait=False) as lock:
            lock.check()
        assert f"taking over the lock of {holder}" in caplog.text
        assert not list(path.parent.iterdir())


def test_the_lock_of_another_machine_is_taken_over_when_its_heartbeat_is_old(path: Path) -> None:
    holder = _held_by(path, host="elsewhere", pid=1)
    with pytest.raises(RuntimeError, match="process 1 on elsewhere is writing"):
        Lock(path, "writing", wait=False).__enter__()
    os.utime(path, (0, time.time() - _lock.STALE_S + 30))
    with pytest.raises(RuntimeError, match="process 1 on elsewhere is writing"):
        Lock(path, "writing", wait=False).__enter__()
    assert read_holder(path) == holder
    os.utime(path, (0, time.time() - _lock.STALE_S - 30))
    with Lock(path, "writing", wait=False) as lock:
        lock.check()


def test_a_holder_shows_that_it_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "BEAT_S", 0.01)
    with Lock(path, "writing", wait=False):
        os.utime(path, (0, 0))
        end = time.monotonic() + 30
        while path.stat().st_mtime < 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_who_has_lost_its_lock_is_told_and_does_not_take_it_away(path: Path) -> None:
    with Lock(path, "writing", wait=False) as lock:
        other = _held_by(path, host="elsewhere", pid=1)
        with pytest.raises(RuntimeError, match=r"process 1 on elsewhere has taken over .* Nothing was written"):
            lock.check()
    assert read_holder(path) == other


def test_a_lock_that_is_half_written_is_waited_for_until_it_is_old(path: Path) -> None:
    path.write_text('{"host": ')
    threading.Timer(0.2, path.unlink).start()
    with Lock(path, "writing", wait=False):
        pass
    path.write_text('{"host": ')
    os.utime(path, (0, 0))
    with Lock(path, "writing", wait=False):
        pass
