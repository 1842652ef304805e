"""Work in a thread of its own, beside what makes its items and what uses its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


def prefetch[Item, Done](work: Callable[[Item], Done], items: Iterable[Item], *, depth: int) -> Generator[Done]:
    """What `work` makes of every item, in order; before a result is given, `depth` further items are handed over.

    Items are made, and results used, in the caller's thread. An error of `work` or of the items is raised in its
    turn, when the results before it are given. Closing waits for the item that is worked on and drops the others.
    """
    source = iter(items)
    begun: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            while True:
                try:
                    begun.append(thread.submit(work, next(source)))
                except StopIteration:
                    break
                except Exception:
                    while begun:
                        yield begun.popleft().result()
                    raise
                if len(begun) > depth:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
