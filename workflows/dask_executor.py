"""Blocks on a Dask cluster, a bounded number at a time.

Tasks carry the job's digest and a block index; the job itself, with paths only, reaches every worker once through a plugin, which also
loads the model. A block whose worker died is set aside until all others are through and then tried alone, so that one that kills its worker
harms no neighbour.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed

from pipeline.memory import BLOCKS_AT_ONCE
from workflows.events import BlockFailure
from workflows.executor import MAX_ATTEMPTS, failure_of
from workflows.worker import BlockJob, make_ready, process_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from workflows.events import BlockIndex, BlockReceipt, Outcome
    from workflows.executor import Outcomes

_log = logging.getLogger(__name__)
_jobs: dict[str, BlockJob] = {}
"""The jobs that this worker process knows, by digest."""
_LOOK_S = 1.0
"""How long the number of workers is believed."""
_AHEAD_S, _MOST_AHEAD = 0.1, 16
"""Blocks that take less than this are handed out several at a time, but no more than so many: the way to a worker and back takes 10 ms."""
_PACE = 0.02
"""Weight of the newest block in the mean of their times."""


class JobPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives every worker, also one that joins later, the job; loads the model while the first block is read."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self.digest = job.digest()
        self.name = f"atrous-{self.digest[:12]}"  # of this job: runs that share a cluster must not unregister each other's

    def setup(self, worker: Any) -> None:
        """Run on the worker when it starts or when the plugin is registered."""
        del worker
        _jobs[self.digest] = self._job
        threading.Thread(target=make_ready, args=(self._job,), name="make-ready", daemon=True).start()


def run_task(digest: str, index: BlockIndex, attempt: int) -> BlockReceipt:
    """Do one block; runs on a worker."""
    return process_block(_jobs[digest], index, attempt=attempt)


class DaskExecutor:
    """Runs blocks on the workers of a client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._digest = ""
        self._tries: Counter[BlockIndex] = Counter()  # of blocks that have failed
        self._threads: dict[str, int] = {}
        self._looked_s = -_LOOK_S
        self._block_s = 1.0

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard."""
        return str(self._client.dashboard_link)

    @property
    def n_workers(self) -> int:
        """Workers that the scheduler knows now."""
        return len(self._client.nthreads())

    def outcomes(self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool]) -> Outcomes:
        """Yield outcomes as blocks end."""
        plugin = JobPlugin(job)
        self._digest = plugin.digest
        self._client.register_plugin(plugin)
        try:
            suspects: list[BlockIndex] = []
            yield from self._drain(blocks, stop, suspects)
            for index in suspects:
                yield from self._alone(index, stop)
        finally:
            self._client.unregister_worker_plugin(plugin.name)

    def _drain(self, blocks: Iterable[BlockIndex], stop: Callable[[], bool], suspects: list[BlockIndex]) -> Outcomes:
        waiting = iter(blocks)
        again: deque[BlockIndex] = deque()
        begun: dict[str, BlockIndex] = {}
        running = as_completed(raise_errors=False)

        def fill() -> None:
            free = 0 if stop() else max(0, self._width() - len(begun))
            indices = list(itertools.islice(waiting, free))
            indices += [again.popleft() for _ in range(min(len(again), free - len(indices)))]
            futures = self._submit(indices)
            begun.update({future.key: index for future, index in zip(futures, indices, strict=True)})
            running.update(futures)

        fill()
        for ended in running.batches():
            receipts = self._fetch(ended)
            outcomes: list[Outcome] = list(receipts.values())
            for future in ended:
                index = begun.pop(future.key)
                if future.key not in receipts:
                    outcomes += self._judge(index, future.exception(), again=again, suspects=suspects)
                future.release()
            if outcomes:
                yield outcomes
            fill()

    def _fetch(self, ended: list[Future]) -> dict[str, BlockReceipt]:
        """Return the receipts of finished blocks by key, in one request; one whose worker dies meanwhile is done again, or has none."""
        finished = {future.key: future for future in ended if future.status == "finished" or future.exception() is None}
        found = self._client.gather(finished, errors="skip") if finished else {}
        receipts = {key: receipt for key, receipt in found.items() if receipt is not None}
        for receipt in receipts.values():
            self._block_s += _PACE * (receipt.seconds - self._block_s)
        return receipts

    def _judge(
        self, index: BlockIndex, error: BaseException, *, again: deque[BlockIndex], suspects: list[BlockIndex]
    ) -> list[Outcome]:
        """Set a block that failed aside to try it again; return its failure where it was tried often enough."""
        self._tries[index] += 1
        failure = failure_of(index, error, attempts=self._tries[index])
        if isinstance(error, KilledWorker):
            suspects.append(index)
        elif self._tries[index] < MAX_ATTEMPTS and not failure.fatal:
            _log.info("block %s, attempt %d failed: %s", index, self._tries[index], error)
            again.append(index)
        else:
            return [failure]
        return []

    def _alone(self, index: BlockIndex, stop: Callable[[], bool]) -> Outcomes:
        """Try a block that was at work when a worker died, with nothing beside it."""
        again: list[BlockIndex] = []
        yield from self._drain([index], stop, again)
        if again:
            failure = BlockFailure(
                block=index,
                error="the worker process died each time it worked on this block, also alone",
                attempts=self._tries[index],
            )
            yield [failure]

    def _submit(self, indices: list[BlockIndex]) -> list[Future]:
        if not indices:
            return []
        attempts = [self._tries[index] + 1 if index in self._tries else 1 for index in indices]
        keys = [
            f"atrous-{self._digest[:12]}-{row}-{col}-{attempt}" for (row, col), attempt in zip(indices, attempts, strict=True)
        ]
        digests = [self._digest] * len(indices)
        futures: list[Future] = self._client.map(run_task, digests, indices, attempts, key=keys, pure=False)
        return futures

    def _width(self) -> int:
        """Return how many blocks to have at work and waiting.

        Per worker one for each that it does at once, and one that waits: more would only be blamed together when it dies. Where blocks
        take no time, as many as keep it busy while the answers travel.
        """
        if time.monotonic() - self._looked_s >= _LOOK_S:
            self._threads, self._looked_s = self._client.nthreads(), time.monotonic()
        ahead = min(_MOST_AHEAD, math.ceil(_AHEAD_S / max(self._block_s, 1e-9)))
        return sum(max(min(n, BLOCKS_AT_ONCE) + 1, ahead) for n in self._threads.values()) or 2
