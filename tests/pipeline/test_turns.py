"""Threads pass gates in the order in which they came, however long each of them takes before."""

import threading
import time

import pytest

from pipeline.turns import Queue


def test_all_pass_in_the_order_in_which_they_came():
    queue, passed, places = Queue(), [], threading.Barrier(5)
    come = [threading.Event() for _ in range(5)]

    def work(number):
        if number:
            come[number - 1].wait()
        with queue.joined() as place:
            come[number].set()
            places.wait()
            time.sleep(0.01 * (5 - number))  # the last is ready first
            with place.turn("one"):
                passed.append(("one", number))
            with place.turn("two"):
                passed.append(("two", number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for gate in ("one", "two"):
        assert [number for name, number in passed if name == gate] == list(range(5))
    assert not queue.waiting


def test_one_at_a_time_holds_a_gate_and_others_may_hold_another():
    queue = Queue()
    with queue.joined() as first, queue.joined() as second:
        with first.turn("one"):
            waiting = threading.Thread(target=lambda: second.turn("one").__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()
        with first.turn("two"):
            pass


def test_who_fails_or_leaves_without_passing_keeps_nobody_waiting():
    queue = Queue()
    with queue.joined() as last_alive, queue.joined() as behind:
        with pytest.raises(ZeroDivisionError), last_alive.turn("one"):
            raise ZeroDivisionError
        with behind.turn("one"):
            pass
    first, second = queue.joined(), queue.joined()
    first.__enter__()
    place = second.__enter__()
    first.__exit__(None, None, None)
    with place.turn("one"):
        assert queue.waiting == [place]
