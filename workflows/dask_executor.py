"""Blocks on a Dask cluster, a bounded number at a time.

Tasks carry the job's digest and a block index; the job itself, with paths only, reaches every worker once through a plugin, which also
loads the model. A block whose worker died is set aside until all others are through and then tried alone, so that one that kills its worker
harms no neighbour.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed

from workflows.events import BlockFailure
from workflows.executor import MAX_ATTEMPTS, failure_of
from workflows.worker import BlockJob, load_engine, process_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from workflows.events import BlockIndex, BlockReceipt, Outcome

_log = logging.getLogger(__name__)
_jobs: dict[str, BlockJob] = {}
"""The jobs that this worker process knows, by digest."""
_IN_FLIGHT_PER_WORKER = 2
"""One at work and one waiting: more would only be blamed together when a worker dies."""


class JobPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives every worker, also one that joins later, the job; loads the model before the first block."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self.name = f"atrous-{job.digest()[:12]}"  # of this job: runs that share a cluster must not unregister each other's

    def setup(self, worker: Any) -> None:
        """Run on the worker when it starts or when the plugin is registered."""
        del worker
        _jobs[self._job.digest()] = self._job
        load_engine(self._job.spec, self._job.engine)


def run_task(digest: str, index: BlockIndex, attempt: int) -> BlockReceipt:
    """Do one block; runs on a worker."""
    return process_block(_jobs[digest], index, attempt=attempt)


class DaskExecutor:
    """Runs blocks on the workers of a client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tries: Counter[BlockIndex] = Counter()

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard."""
        return str(self._client.dashboard_link)

    @property
    def n_workers(self) -> int:
        """Workers that the scheduler knows now."""
        return len(self._client.nthreads())

    def outcomes(self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes as blocks end."""
        plugin = JobPlugin(job)
        self._client.register_plugin(plugin)
        try:
            suspects: list[BlockIndex] = []
            yield from self._drain(job, blocks, stop, suspects)
            for index in suspects:
                yield from self._alone(job, index, stop)
        finally:
            self._client.unregister_worker_plugin(plugin.name)

    def _drain(
        self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool], suspects: list[BlockIndex]
    ) -> Iterator[Outcome]:
        waiting = deque(blocks)
        begun: dict[str, BlockIndex] = {}
        running = as_completed(raise_errors=False)

        def fill() -> None:
            while waiting and len(begun) < self._width() and not stop():
                index = waiting.popleft()
                future = self._submit(job, index)
                begun[future.key] = index
                running.add(future)

        fill()
        for future in running:
            index = begun.pop(future.key)
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, KilledWorker):
                suspects.append(index)
            elif self._may_retry(index, error):
                _log.info("block %s, attempt %d failed: %s", index, self._tries[index], error)
                waiting.append(index)
            else:
                yield failure_of(index, error, attempts=self._tries[index])
            future.release()
            fill()

    def _alone(self, job: BlockJob, index: BlockIndex, stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Try a block that was at work when a worker died, with nothing beside it."""
        again: list[BlockIndex] = []
        yield from self._drain(job, [index], stop, again)
        if again:
            yield BlockFailure(
                block=index,
                error="the worker process died each time it worked on this block, also alone",
                attempts=self._tries[index],
            )

    def _submit(self, job: BlockJob, index: BlockIndex) -> Future:
        self._tries[index] += 1
        digest, attempt = job.digest(), self._tries[index]
        key = f"atrous-{digest[:12]}-{index[0]}-{index[1]}-{attempt}"
        return self._client.submit(run_task, digest, index, attempt, key=key, pure=False)

    def _may_retry(self, index: BlockIndex, error: BaseException) -> bool:
        tries = self._tries[index]
        return tries < MAX_ATTEMPTS and not failure_of(index, error, attempts=tries).fatal

    def _width(self) -> int:
        return _IN_FLIGHT_PER_WORKER * max(1, self.n_workers)
