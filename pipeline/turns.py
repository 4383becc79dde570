"""Who goes first? Threads pass gates one at a time, in the order in which they came.

What a block leaves for the blocks behind it is there when they look for it only if they look later, however long each of them reads.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Queue:
    """Those that came and have not left, first come first."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: list[Place] = []

    @contextlib.contextmanager
    def joined(self) -> Iterator[Place]:
        """Stand at the end of the queue, and leave it in the end, whatever happens."""
        place = Place(self)
        with self.changed:
            self.waiting.append(place)
        try:
            yield place
        finally:
            with self.changed:
                self.waiting.remove(place)
                self.changed.notify_all()


class Place:
    """One place in a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._passed: set[str] = set()

    @contextlib.contextmanager
    def turn(self, gate: str) -> Iterator[None]:
        """Wait until all that stand before have passed a gate or left, and hold it; this place passes it with the end."""
        with self._queue.changed:
            self._queue.changed.wait_for(lambda: self._is_next(gate))
        try:
            yield
        finally:
            with self._queue.changed:
                self._passed.add(gate)
                self._queue.changed.notify_all()

    def _is_next(self, gate: str) -> bool:
        before = self._queue.waiting[: self._queue.waiting.index(self)]
        return all(gate in place._passed for place in before)  # noqa: SLF001 - the same class
