"""How is work done by several threads, and taken in its own order, a few pieces ahead?"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, with at most ``ahead`` of them begun and not yet yielded.

    `Executor.map` would begin them all at once, and hold all results. When the consumer stops or one fails, what has not begun is dropped.
    """
    rest = iter(items)
    begun: deque[Future[Result]] = deque(pool.submit(function, item) for item in itertools.islice(rest, ahead))
    try:
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
            yield result
    finally:
        for future in begun:
            future.cancel()
