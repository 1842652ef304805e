"""Order, overlap and errors of work that goes on beside the caller's."""

from __future__ import annotations

import threading

import pytest


@pytest.fixture(scope="module")
def prefetch():
    """Imported late, like all of stpredict."""
    from stpredict._prefetch import prefetch

    return prefetch


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_results_come_in_order_and_from_one_other_thread(prefetch, depth, n):
    found = list(prefetch(lambda i: (i, threading.get_ident()), range(n), depth=depth))
    assert [i for i, _ in found] == list(range(n))
    threads = {thread for _, thread in found}
    assert len(threads) == min(n, 1)
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_so_many_items_are_made_ahead_and_no_more(prefetch, depth):
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    for k in prefetch(lambda i: i, items(), depth=depth):
        assert len(made) == min(k + 1 + depth, 6)


def test_the_next_is_worked_on_while_a_result_is_used(prefetch):
    begun = threading.Event()

    def work(i):
        if i == 1:
            begun.set()
        return i

    results = prefetch(work, range(3), depth=1)
    assert next(results) == 0
    assert begun.wait(10)
    assert list(results) == [1, 2]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_errors_of_work_and_of_items_are_raised_in_their_turn(prefetch, depth):
    def third_fails(i):
        if i == 2:
            raise KeyError(i)
        return i

    def two_items():
        yield 0
        yield 1
        raise OSError

    for work, items, error in ((third_fails, range(5), KeyError), (lambda i: i, two_items(), OSError)):
        found = []
        with pytest.raises(error):
            found.extend(prefetch(work, items, depth=depth))
        assert found == [0, 1]


def test_closing_ends_its_thread_and_drops_what_was_not_begun(prefetch):
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work(i):
        if i:
            begun.set()
            go_on.wait(10)
        done.append(i)
        return i

    before = threading.active_count()
    results = prefetch(work, range(9), depth=4)
    assert next(results) == 0
    assert begun.wait(10)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    results.close()
    timer.join()
    assert done == [0, 1]
    assert threading.active_count() == before
