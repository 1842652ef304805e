"""Freed memory that stays with the process while a network runs (Linux, glibc).

A network frees and asks for the same large blocks at every layer. glibc maps such blocks from the kernel one by one and
gives them back at once, so every activation is paid for in page faults: nearly half of the time of a prediction on the
virtual machine of benchmarks/README.md (Speed and memory).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SWITCH = "STPREDICT_ALLOCATOR"
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block is mapped alone, and the heap never shrinks
# What glibc's own rule arrives at after a block of 32 MiB was freed once; the rule itself cannot be switched on again.
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
# Dask's nannies start workers with this, whatever the user wants, and leave it in the environment of the client.
DASKS = {"MALLOC_TRIM_THRESHOLD_": "65536"}
USUAL_OF_DASK = {MMAP_MAX: 65536, MMAP_THRESHOLD: 128 * 2**10, TRIM_THRESHOLD: 65536}

_lock = threading.Lock()
_running = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep what is freed inside the block for what is asked for next; give it back at the end of the outermost block.

    It is a setting of the whole process, nests, and may be entered from several threads. Nothing is done on other
    systems, where the user has set glibc's allocator (`MALLOC_*_`, `GLIBC_TUNABLES`), and with STPREDICT_ALLOCATOR=0.
    What dask sets for its workers is not the user's, and holds again after the block.
    """
    libc = _glibc() if _wanted() else None
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def give_back() -> None:
    """Give what is freed back to the system now, on Linux with glibc: many small objects leave a heap full of holes."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _wanted() -> bool:
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{SWITCH}={value!r} is neither 1 (freed memory is kept while a network runs) nor 0 (off).")
    malloc = {name: each for name, each in os.environ.items() if name.startswith("MALLOC_") and name.endswith("_")}
    theirs = malloc not in ({}, DASKS)
    return value == "1" and not theirs and "glibc.malloc" not in os.environ.get("GLIBC_TUNABLES", "")


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


@cache
def _started_by_dask() -> bool:
    """Whether glibc began with dask's value; what is put into the environment later, as in a client, it never reads."""
    first = Path("/proc/self/environ")
    given = first.read_bytes().split(b"\0") if first.is_file() else []
    return all(f"{name}={value}".encode() in given for name, value in DASKS.items())


def _enter(libc: ctypes.CDLL | None) -> None:
    global _running
    if libc is None:
        return
    with _lock:
        _running += 1
        if _running == 1:
            _set(libc, KEPT)


def _leave(libc: ctypes.CDLL | None) -> None:
    global _running
    if libc is None:
        return
    with _lock:
        _running -= 1
        if _running == 0:
            _set(libc, USUAL_OF_DASK if _started_by_dask() else USUAL)
            libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)
