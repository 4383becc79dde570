"""What does a block find where it is worked on? What its process keeps from block to block, and a clock."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.crf.tile import ONE_THREAD, Processor
from pipeline.seen_windows import SeenWindows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class StageClock:
    """How long the stages of one block took."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of what is done inside to the stage ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, in the order in which they began to count."""
        return {name: round(seconds, 4) for name, seconds in self._seconds.items()}


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where one block is worked on. Nothing here changes its bytes."""

    processor: Processor = ONE_THREAD
    """What the CRF runs on."""
    seen: SeenWindows = field(default_factory=lambda: SeenWindows(0))
    """Network windows that an earlier block left."""
    turn: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    """Held while the block computes: others of the process read and write meanwhile."""
    room: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    """Held while the block lies on the network's device; a few do at a time."""
    entry: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    """Held from reading a block until its network is through: then no other block's pixels lie in memory beside the network's."""
    clock: StageClock = field(default_factory=StageClock)
    """Takes the time of the block's stages."""

    @contextlib.contextmanager
    def held(self, what: Literal["entry", "room", "turn"]) -> Iterator[Callable[[], None]]:
        """Wait for the entry, the room or the turn, hold it, and give what leaves it early."""
        with contextlib.ExitStack() as stack:
            with self.clock.stage("wait"):
                stack.enter_context(getattr(self, what))
            yield stack.close
