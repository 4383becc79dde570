"""One block after another, in this process: the reference of `workflows.executor.Executor` in tests."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from workflows.executor import MAX_ATTEMPTS, failure_of, pause_s
from workflows.worker import close_scene, process_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from workflows.block_job import BlockJob
    from workflows.events import BlockIndex, Outcome
    from workflows.executor import Outcomes

_log = logging.getLogger(__name__)


class SerialExecutor:
    """One block after another, in this process."""

    @property
    def dashboard(self) -> str | None:
        """None: there is no dashboard."""
        return None

    @property
    def n_workers(self) -> int:
        """One: this process."""
        return 1

    def outcomes(self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool]) -> Outcomes:
        """Yield the outcomes in the order of ``blocks``, one by one."""
        try:
            for index in blocks:
                if stop():
                    return
                yield [_attempt(job, index)]
        finally:
            close_scene()


def _attempt(job: BlockJob, index: BlockIndex) -> Outcome:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return process_block(job, index, attempt=attempt)
        except Exception as error:  # noqa: BLE001  (the block boundary: any cause fails this block and no other)
            _log.info("block %s, attempt %d failed", index, attempt, exc_info=True)
            failure = failure_of(index, error, attempts=attempt)
            if failure.fatal:
                break
            if attempt < MAX_ATTEMPTS:
                time.sleep(pause_s(attempt))
    return failure
