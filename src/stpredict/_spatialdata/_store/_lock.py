"""Locks on stores: one writer at a time, across threads, processes and machines that share the files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_log = logging.getLogger("stpredict")
BEAT_S = 10.0  # between two signs of life of a holder
STALE_S = 120.0  # without one, after which a lock of another machine is taken over
POLL_S = 0.02
_ours: set[str] = set()  # tokens of the locks that this process holds or is about to


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process by its machine, number and start, and a token of this one time."""

    host: str
    namespace: int
    pid: int
    started: float
    token: str

    @classmethod
    def me(cls) -> Self:
        """The process that calls."""
        return cls(socket.gethostname(), namespace(), os.getpid(), started(os.getpid()) or 0, uuid.uuid4().hex)

    def is_dead(self) -> bool:
        """Whether it is a process of this machine that has ended; one of another machine is only known by its beat."""
        if (self.host, self.namespace) != (socket.gethostname(), namespace()):
            return False
        if (self.pid, self.started) == (os.getpid(), started(os.getpid())):
            return self.token not in _ours  # interrupted before it could let go
        return started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A file that says who is at work, a context manager; the holder touches it every `BEAT_S` seconds.

    Parameters
    ----------
    path : Path
        The file, in a folder in which one may write.
    what : str
        What is done under the lock, as messages call it.
    wait : bool
        Whether to wait for another holder; otherwise entering raises RuntimeError, which names the holder.

    Notes
    -----
    The lock of a process of this machine that has ended is taken over at once, and one of any machine that was not
    touched for `STALE_S` seconds; the log says from whom. Threads exclude each other as processes do.
    """

    def __init__(self, path: Path, what: str, *, wait: bool) -> None:
        self.path, self.what, self.wait = path, what, wait

    def __enter__(self) -> Self:
        self._me = Holder.me()
        _ours.add(self._me.token)
        try:
            self._acquire()
            self._ended = threading.Event()
            self._beat = threading.Thread(target=self._beats, name="stpredict-lock", daemon=True)
            self._beat.start()
        except BaseException:
            _ours.discard(self._me.token)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        if self._is_mine():
            self.path.unlink(missing_ok=True)
        _ours.discard(self._me.token)

    def check(self) -> None:
        """Raise RuntimeError where another process has taken the lock over, as it may after `STALE_S` seconds."""
        if not self._is_mine():
            raise RuntimeError(
                f"{read_holder(self.path) or 'another process'} has taken over the lock {self.path}, which showed no "
                f"sign of life for {STALE_S:g} seconds: was this process suspended? Nothing was written."
            )

    def _acquire(self) -> None:
        warned = False
        while not self._create():
            holder = read_holder(self.path)
            if holder is None and not self._is_stale():
                time.sleep(POLL_S)  # it is being written, or has just gone
            elif holder is None or holder.is_dead() or self._is_stale():
                self._take_over(holder)
            elif not self.wait:
                raise RuntimeError(
                    f"{holder} is {self.what} (its lock is {self.path}). Wait for it, or pass another key_added."
                )
            else:
                if not warned:
                    _log.info("waiting for %s, which is %s", holder, self.what)
                warned = True
                time.sleep(POLL_S)

    def _create(self) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(file, "w", encoding="utf-8") as text:
            json.dump(asdict(self._me), text)
        return True

    def _is_mine(self) -> bool:
        return read_holder(self.path) == self._me

    def _is_stale(self) -> bool:
        """Whether it was not touched for long, by the clock of its file system."""
        clock = self.path.with_name(f"{self.path.name}.{self._me.token}")
        try:
            clock.touch()
            return clock.stat().st_mtime - self.path.stat().st_mtime > STALE_S
        except FileNotFoundError:
            return False
        finally:
            clock.unlink(missing_ok=True)

    def _take_over(self, dead: Holder | None) -> None:
        aside = self.path.with_name(f"{self.path.name}.{self._me.token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return  # someone else did
        if read_holder(aside) == dead:
            _log.warning("taking over the lock of %s, which has ended (it was %s)", dead or "a process", self.what)
        else:  # someone else did, and is at work: it gets its lock back
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)


def release_dead(paths: Iterable[Path]) -> None:
    """Take away the locks of processes of this machine that have ended."""
    for path in paths:
        holder = read_holder(path)
        if holder is not None and holder.is_dead():
            with contextlib.suppress(RuntimeError), Lock(path, "at work", wait=False):
                pass


def read_holder(path: Path) -> Holder | None:
    """Who holds a lock; None where there is none, or it is just being written."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def started(pid: int) -> float | None:
    """When a process began, a number that no later process of the same id has; None for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if stat[0] == b"Z" else int(stat[19])  # in ticks since the machine began: no clock is set back
    except (OSError, IndexError):
        pass
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def namespace() -> int:
    """What numbers the processes: containers of one name may share files, but not their processes."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
