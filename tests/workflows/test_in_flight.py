"""A block's clock runs only while it is on a worker, and what is too long follows from the blocks before it."""

from types import SimpleNamespace

import pytest

from workflows.in_flight import InFlight, TimeLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def futures(*keys: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(key=key) for key in keys]


@pytest.fixture
def clock():
    return Clock()


def overdue(flight: InFlight, clock: Clock, until: float, places: dict, *, limit: float = 10.0) -> dict:
    """Look every second, as an executor does."""
    while clock.now < until:
        clock.now += 1.0
        found = flight.overdue(limit, lambda: places)
        if found:
            return {worker: [future.key for future in late] for worker, late in found.items()}
    return {}


def test_a_block_that_stays_too_long_is_found_with_its_worker(clock):
    flight = InFlight(clock)
    flight.add([(0, 0), (0, 1)], futures("a", "b"))
    assert overdue(flight, clock, 10, {"tcp://one": ("a", "b")}) == {}
    flight.pop("b")
    assert overdue(flight, clock, 99, {"tcp://one": ("a",)}) == {"tcp://one": ["a"]}
    assert clock.now == 12


def test_a_block_that_waits_for_a_worker_is_not_late(clock):
    flight = InFlight(clock)
    flight.add([(0, 0)], futures("a"))
    assert overdue(flight, clock, 500, {}) == {}
    assert overdue(flight, clock, 999, {"tcp://one": ("a",)}) == {"tcp://one": ["a"]}
    assert clock.now == 512


def test_on_another_worker_the_clock_starts_again(clock):
    flight = InFlight(clock)
    flight.add([(0, 0)], futures("a"))
    assert overdue(flight, clock, 9, {"tcp://one": ("a",)}) == {}
    assert overdue(flight, clock, 18, {"tcp://two": ("a",)}) == {}
    assert overdue(flight, clock, 99, {"tcp://two": ("a",)}) == {"tcp://two": ["a"]}


def test_a_key_that_was_taken_out_is_no_block_any_more(clock):
    flight = InFlight(clock)
    flight.add([(2, 3)], futures("a"))
    assert len(flight) == 1
    assert flight.pop("a") == (2, 3)
    assert flight.pop("a") is None
    assert len(flight) == 0


def test_the_scheduler_is_asked_a_few_times_within_the_limit(clock):
    flight, looks = InFlight(clock), []
    flight.add([(0, 0)], futures("a"))
    for _ in range(1000):
        clock.now += 0.1
        flight.overdue(1000.0, lambda: looks.append(1) or {})
    assert len(looks) <= 1


@pytest.mark.parametrize(
    ("given", "seen", "expected"),
    [
        pytest.param(None, [], 3600, id="before the first block"),
        pytest.param(None, [3.0, 2.0], 300, id="short blocks"),
        pytest.param(None, [50.0, 90.0, 20.0], 900, id="long blocks"),
        pytest.param(7.0, [50.0], 7, id="as asked"),
    ],
)
def test_what_is_too_long(given, seen, expected):
    limit = TimeLimit(given)
    for seconds in seen:
        limit.learn(seconds)
    assert limit.seconds == expected
