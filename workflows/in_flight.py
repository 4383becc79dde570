"""Which blocks are at work on a cluster, and has one of them been there too long?

The clock of a block starts when it is first seen on a worker, not when it is handed out: with no worker it may wait for hours for one. A
block that moves to another worker gets a new clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from workflows.events import BlockIndex

    Processing = Callable[[], Mapping[str, Iterable[str]]]

_SLOWEST = 10.0
"""A block may take so many times as long as the slowest one before it: others may be done before it on the same worker."""
_LEAST_S = 300.0
_FIRST_S = 3600.0
"""Until a block has ended, nobody knows what is long; the first one also compiles."""
_LOOKS = 10
"""How often a worker's blocks are looked at within the time that they may take."""


class TimeLimit:
    """How long a block may take."""

    def __init__(self, given_s: float | None = None) -> None:
        self._given_s = given_s
        self._slowest_s: float | None = None

    def learn(self, seconds: float) -> None:
        """Take in how long a block took, s."""
        self._slowest_s = max(seconds, self._slowest_s or 0.0)

    @property
    def seconds(self) -> float:
        """What the user gave, else ten times the slowest block so far and five minutes at least; an hour before the first one."""
        if self._given_s is not None:
            return self._given_s
        return _FIRST_S if self._slowest_s is None else max(_LEAST_S, _SLOWEST * self._slowest_s)


class Future(Protocol):
    """What Dask hands out for a block."""

    key: str
    """Its name, also on the worker."""


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One block that is at work."""

    index: BlockIndex
    """Which block."""
    future: Future
    """What stands for its receipt."""
    worker: str | None = None
    """Where it was seen; None while it waits for a worker."""
    since_s: float = 0.0
    """When it was first seen there, by the monotonic clock."""


class InFlight:
    """The blocks that were handed out and are not back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flights: dict[str, _Flight] = {}
        self._looked_s = clock()

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, indices: Iterable[BlockIndex], futures: Iterable[Future]) -> None:
        """Take in blocks that were handed out."""
        for index, future in zip(indices, futures, strict=True):
            self._flights[future.key] = _Flight(index=index, future=future)

    def pop(self, key: str) -> BlockIndex | None:
        """Take out the block whose future has this key; None where it was taken out before."""
        flight = self._flights.pop(key, None)
        return None if flight is None else flight.index

    def overdue(self, limit_s: float, processing: Processing) -> dict[str, list[Future]]:
        """Return, by worker, the futures of blocks that have been there for more than ``limit_s``.

        Parameters
        ----------
        limit_s
            How long a block may take, s.
        processing
            Returns the keys on each worker; asked a few times within ``limit_s``.
        """
        now = self._clock()
        if not self._flights or now - self._looked_s < limit_s / _LOOKS:
            return {}
        self._looked_s = now
        found: dict[str, list[Future]] = {}
        places = {str(key): worker for worker, keys in processing().items() for key in keys}
        for key, flight in self._flights.items():
            worker = places.get(key)
            if worker != flight.worker:
                flight.worker, flight.since_s = worker, now
            elif worker is not None and now - flight.since_s > limit_s:
                found.setdefault(worker, []).append(flight.future)
        return found
