"""Who works on the blocks, in which order, and what happens when one fails?

An executor yields one outcome per block that it was given, in any order, and fewer only when it was told to stop. Those that are there at
the same time come in one list, so that one write makes them durable. `workflows.serial_executor` does the work in this process and is the
reference in tests; `workflows.dask_executor` does the same on a cluster.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import StoreError
from workflows.events import BlockFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from workflows.block_job import BlockJob
    from workflows.events import BlockIndex, Outcome

    Outcomes = Generator[list[Outcome], None, None]

MAX_ATTEMPTS = 3
"""Tries per block before it is quarantined."""
_PAUSE_S = 0.5
"""Before the second try; four times as long before the third: what was in the way may be gone by then."""

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs blocks."""

    @property
    def dashboard(self) -> str | None:
        """Address of a page that shows the work, if there is one."""

    @property
    def n_workers(self) -> int:
        """Processes that work now."""

    def outcomes(self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool]) -> Outcomes:
        """Yield an outcome per block, those that are there together; after ``stop()`` is true, begin no new one and finish those begun."""


def pause_s(n_failed: int) -> float:
    """Return how long to wait before the next try of a block that failed ``n_failed`` times, s."""
    return _PAUSE_S * 4.0 ** (n_failed - 1)


def failure_of(index: BlockIndex, error: BaseException, *, attempts: int) -> BlockFailure:
    """Describe a failed block; an output that cannot be written is fatal to the whole run."""
    text = " ".join(str(error).split()) or type(error).__name__
    return BlockFailure(
        block=index,
        error=f"{type(error).__name__}: {text}",
        attempts=attempts,
        fatal=isinstance(error, StoreError),
    )
