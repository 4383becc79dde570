"""How does a run stop cleanly? The first Ctrl-C (or SIGTERM) lets blocks at work finish; the second one ends at once."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(on_first: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event that the first signal sets, after calling ``on_first``; outside the main thread no signal is caught."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(_number: int, _frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        on_first()

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
