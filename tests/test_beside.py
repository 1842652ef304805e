"""Order, overlap and errors of work that goes on beside the caller's."""

from __future__ import annotations

import threading

import pytest


@pytest.fixture(scope="module")
def beside():
    """Imported late, like all of stpredict."""
    from stpredict._beside import beside

    return beside


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_results_come_in_order_and_from_one_other_thread(beside, ahead, n):
    found = list(beside(lambda i: (i, threading.get_ident()), range(n), ahead=ahead))
    assert [i for i, _ in found] == list(range(n))
    threads = {thread for _, thread in found}
    assert len(threads) == min(n, 1)
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_so_many_items_are_made_ahead_and_no_more(beside, ahead):
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    for k in beside(lambda i: i, items(), ahead=ahead):
        assert len(made) == min(k + 1 + ahead, 6)


def test_the_next_is_worked_on_while_a_result_is_used(beside):
    begun = threading.Event()

    def work(i):
        if i == 1:
            begun.set()
        return i

    results = beside(work, range(3), ahead=1)
    assert next(results) == 0
    assert begun.wait(10)
    assert list(results) == [1, 2]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_errors_of_work_and_of_items_are_raised_in_their_turn(beside, ahead):
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
            found.extend(beside(work, items, ahead=ahead))
        assert found == [0, 1]


def test_closing_ends_its_thread_and_drops_what_was_not_begun(beside):
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work(i):
        if i:
            begun.set()
            go_on.wait(10)
        done.append(i)
        return i

    before = threading.active_count()
    results = beside(work, range(9), ahead=4)
    assert next(results) == 0
    assert begun.wait(10)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    results.close()
    timer.join()
    assert done == [0, 1]
    assert threading.active_count() == before
