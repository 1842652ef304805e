"""Prefetching: apply a function to items in a background thread, a few items ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


def prefetch[Item, Result](
    function: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Generator[Result]:
    """The results of `function` for every item, in order, computed in a thread of its own.

    Items are made, and results used, in the caller's thread. An error of the function or of the items is raised in its
    turn, when the results before it are given. Closing waits for the item that is worked on, drops the others, and
    closes the items where they are a generator.

    Parameters
    ----------
    depth : int
        Items that are handed over before a result is given, besides its own.
    """
    source = iter(items)
    pending: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(1) as thread:
            try:
                while True:
                    try:
                        pending.append(thread.submit(function, next(source)))
                    except StopIteration:
                        break
                    except Exception:
                        while pending:
                            yield pending.popleft().result()
                        raise
                    if len(pending) > depth:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
    finally:
        if isinstance(items, Generator):
            items.close()
