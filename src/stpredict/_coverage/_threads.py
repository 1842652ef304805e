"""Threads for work that leaves the interpreter lock: NumPy, SciPy's sparse products, GEOS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

MOST = 16  # more only wait for memory


def n_threads() -> int:
    """As many as the process may use processors, or as OMP_NUM_THREADS says, as for torch and BLAS."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if said.isdigit() and int(said) > 0:
        return min(int(said), MOST)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(there or 1, MOST)


def in_threads[Item, Result](do: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, some of them made at once."""
    items = list(items)
    n = min(n_threads(), len(items))
    if n < 2:
        yield from map(do, items)
        return
    with ThreadPoolExecutor(n) as pool:
        yield from pool.map(do, items)
