"""Blocks on a Dask cluster, a bounded number at a time.

Tasks carry the job's digest and a block index; the job itself, with paths only, reaches every worker once through a plugin, which also
loads the model. What goes wrong with one block stays with it::

    raises             tried again after a pause, three times in all
    kills its worker   set aside until all others are through, then tried alone; so is one that takes too long, whose worker is restarted
    worker not fit     handed to another worker, and that one gets none any more
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed, get_worker

from pipeline.engine.choose import choose_device, is_healthy
from pipeline.errors import ClusterLostError, UnfitWorkersError
from pipeline.grid import BLOCKS_AT_ONCE, blocks_at_once
from workflows.events import BlockFailure, Notice, ignore
from workflows.executor import MAX_ATTEMPTS, failure_of, pause_s
from workflows.fitness import examine, with_model
from workflows.in_flight import InFlight, TimeLimit
from workflows.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from workflows.block_job import BlockJob
    from workflows.events import BlockIndex, BlockReceipt, Listener, Outcome
    from workflows.executor import Outcomes
    from workflows.fitness import Conditions

    Suspects = dict[BlockIndex, str]
    """Blocks that were at work when a worker died or was restarted, and why."""

_log = logging.getLogger(__name__)
_jobs: dict[str, BlockJob] = {}
"""The jobs that this worker process knows, by digest."""
_unfit: dict[str, str] = {}
"""Why this worker process cannot do a job, by digest."""
_LOOK_S = 1.0
"""How long the number of workers is believed."""
_AHEAD_S, _MOST_AHEAD = 0.1, 16
"""Blocks that take less than this are handed out several at a time, but no more than so many: the way to a worker and back takes 10 ms."""
_PACE = 0.02
"""Weight of the newest block in the mean of their times."""
_BROKEN_DEVICE = 75
"""Exit code of a worker whose device is of no use any more."""
_WAIT_S = 0.1
_FETCH_S, _FETCH_ONE_S = 10.0, 1.0
"""How long to wait for receipts: a worker whose Python is stuck keeps them to itself."""
_MOST_SUSPECTS = 20
"""With so many set aside they are tried before any new block: where every block kills its worker, that ends the run soon."""
_REGISTER_TRIES, _REGISTER_PAUSE_S = 5, 1.0
_DIED = "the worker process died each time it worked on this block"


class JobPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives every worker, also one that joins later, the job; looks whether it can do it, and loads the model."""

    def __init__(self, job: BlockJob, conditions: Conditions | None = None, weights: bytes | None = None) -> None:
        self._job = job
        self._conditions = conditions
        self._weights = weights
        self.digest = job.digest()
        self.name = f"atrous-{self.digest[:12]}"  # of this job: runs that share a cluster must not unregister each other's

    def setup(self, worker: Any) -> None:
        """Run on the worker when it starts or when the plugin is registered."""
        job = self._job
        _unfit.pop(self.digest, None)
        if self._conditions is not None:
            found = examine(job, self._conditions)
            if found.problems.keys() == {"model"} and self._weights is not None:
                job = with_model(job, self._weights, Path(worker.local_directory))
            elif found.problems:
                _unfit[self.digest] = found.reason
                return
        _jobs[self.digest] = job
        from workflows.worker import make_ready  # noqa: PLC0415  (what only workers need)

        threading.Thread(target=make_ready, args=(job,), name="make-ready", daemon=True).start()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a worker that is not fit returns in place of a receipt."""

    worker: str
    """Its address."""
    reason: str
    """What it lacks."""


def run_task(digest: str, index: BlockIndex, attempt: int) -> BlockReceipt | Refusal:
    """Do one block; runs on a worker."""
    if digest in _unfit:
        return Refusal(worker=get_worker().address, reason=_unfit[digest])
    from workflows.worker import process_block  # noqa: PLC0415  (what only workers need)

    try:
        return process_block(_jobs[digest], index, attempt=attempt, scratch=get_worker().local_directory)
    except Exception:
        if not is_healthy(choose_device(_jobs[digest].engine)):
            os._exit(_BROKEN_DEVICE)  # alive, it would let all blocks fail that it is given; its nanny starts another one
        raise


def register(client: Client, plugin: WorkerPlugin) -> None:
    """Give all workers a plugin, again where one of them dies meanwhile: then the request fails, though the others have it."""
    for n_left in reversed(range(_REGISTER_TRIES)):
        try:
            client.register_plugin(plugin)
        except Exception as error:  # it comes as it was raised in the scheduler, or as its text
            if n_left == 0 or client.status != "running":
                raise
            _log.info("the plugin %s could not be registered: %s", plugin, error)
            time.sleep(_REGISTER_PAUSE_S)
        else:
            return


def end_process(dask_worker: Any) -> None:
    """End the process of a worker that may not listen; runs on its nanny, which starts another one."""
    os.kill(dask_worker.pid, signal.SIGKILL)


class DaskExecutor:
    """Runs blocks on the workers of a client.

    Parameters
    ----------
    client
        Connected to the cluster.
    listen
        Hears of workers that are left out or restarted.
    timeout_s
        How long a block may take, s; None: ten times the slowest so far, and at least five minutes.
    foreign
        Whether workers may be other machines with other software, which are looked at first.
    """

    def __init__(
        self, client: Client, *, listen: Listener = ignore, timeout_s: float | None = None, foreign: bool = False
    ) -> None:
        self._client = client
        self._listen = listen
        self._limit = TimeLimit(timeout_s)
        self._foreign = foreign
        self._digest = ""
        self._tries: Counter[BlockIndex] = Counter()  # of blocks that have failed
        self._handed_out: Counter[BlockIndex] = Counter()  # of blocks that were handed out again: names their tasks
        self._unsent: list[Future] = []  # of blocks that have ended, but whose results are not here
        self._threads: dict[str, int] = {}
        self._left_out: set[str] = set()
        self._restarting: set[str] = set()
        self._looked_s = -_LOOK_S
        self._block_s = 1.0
        self._at_once = BLOCKS_AT_ONCE

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard."""
        return str(self._client.dashboard_link)

    @property
    def n_workers(self) -> int:
        """Workers that the scheduler knows now."""
        return len(self._client.nthreads())

    def outcomes(self, job: BlockJob, blocks: Iterable[BlockIndex], stop: Callable[[], bool]) -> Outcomes:
        """Yield outcomes as blocks end.

        Raises
        ------
        UnfitWorkersError
            No worker can do the job.
        ClusterLostError
            The scheduler went away.
        """
        plugin = JobPlugin(job, *self._look_at_workers(job))
        self._digest = plugin.digest
        register(self._client, plugin)
        try:
            waiting = iter(blocks)
            suspects: Suspects = {}
            yield from self._drain(waiting, stop, suspects)
            while suspects:
                for index in list(suspects):
                    del suspects[index]
                    yield from self._alone(index, stop)
                yield from self._drain(waiting, stop, suspects)
        finally:
            with suppress(Exception):  # the cluster may be gone
                self._client.unregister_worker_plugin(plugin.name)

    def _look_at_workers(self, job: BlockJob) -> tuple[Conditions | None, bytes | None]:
        if not self._foreign:
            return None, None
        found = survey(self._client.run, job, self._listen)
        self._left_out.update(found.unfit)
        return found.conditions, found.weights

    def _drain(self, waiting: Iterator[BlockIndex], stop: Callable[[], bool], suspects: Suspects) -> Outcomes:
        """Do blocks until there are none, or too many suspects, and none is at work any more."""
        again: list[tuple[float, BlockIndex]] = []
        at_work = InFlight()
        running = as_completed(raise_errors=False, loop=self._client.loop)

        def fill() -> None:
            free = 0 if stop() else max(0, self._width() - len(at_work))
            indices = list(itertools.islice(waiting, free)) if len(suspects) < _MOST_SUSPECTS else []
            while again and len(indices) < free and again[0][0] <= time.monotonic():
                indices.append(heapq.heappop(again)[1])
            futures = self._submit(indices)
            at_work.add(indices, futures)
            running.update(futures)

        fill()
        while len(at_work) or (again and not stop()):
            outcomes: list[Outcome] = []
            ended = self._await(running)
            asked = [*self._unsent, *ended]
            results = self._fetch(ended)
            for future in asked:
                if future in self._unsent:
                    continue
                index = at_work.pop(future.key)
                if index is not None:
                    outcomes += self._judge(index, future, results.get(future.key), again=again, suspects=suspects)
                future.release()
            if outcomes:
                yield outcomes
            self._restart_stuck(at_work, suspects)
            fill()

    @staticmethod
    def _await(running: as_completed) -> list[Future]:
        """Return what has ended; wait a moment where nothing has."""
        if not running.has_ready():
            with running.thread_condition:
                running.thread_condition.wait(_WAIT_S)
        ended: list[Future] = running.next_batch(block=False)
        return ended

    def _fetch(self, ended: list[Future]) -> dict[str, BlockReceipt | Refusal]:
        """Return the results of finished blocks by key; one whose worker dies meanwhile has none.

        What a worker does not send has to wait, and so has what was lost with one: the scheduler has it done again.
        """
        groups = [([future], _FETCH_ONE_S) for future in self._unsent] + [(ended, _FETCH_S)]
        self._unsent = [future for future in (*self._unsent, *ended) if future.status in ("lost", "pending")]
        results: dict[str, BlockReceipt | Refusal] = {}
        for futures, timeout_s in groups:
            finished = {future.key: future for future in futures if future.status == "finished"}
            try:
                results |= self._gather(finished, timeout_s) if finished else {}
            except TimeoutError:  # a worker is stuck: what others have sent is not to wait for it again
                self._unsent += finished.values()
        for receipt in results.values():
            if not isinstance(receipt, Refusal):
                self._block_s += _PACE * (receipt.seconds - self._block_s)
                self._limit.learn(receipt.seconds)
                self._at_once = max(self._at_once, blocks_at_once(receipt.device))
        return results

    def _gather(self, finished: dict[str, Future], timeout_s: float) -> dict[str, BlockReceipt | Refusal]:
        async def gather() -> dict[str, BlockReceipt | Refusal | None]:
            found: dict[str, BlockReceipt | Refusal | None]
            found = await self._client.gather(finished, errors="skip", asynchronous=True)
            return found

        found = self._client.sync(gather, callback_timeout=timeout_s)
        return {key: result for key, result in found.items() if result is not None}

    def _judge(
        self,
        index: BlockIndex,
        future: Future,
        result: BlockReceipt | Refusal | None,
        *,
        again: list[tuple[float, BlockIndex]],
        suspects: Suspects,
    ) -> list[Outcome]:
        """Return the outcome of a block that ended, or set it aside to try it again."""
        if isinstance(result, Refusal):
            self._leave_out(result)
            self._try_again(index, again, wait_s=0.0)
            return []
        if result is not None:
            return [result]
        if future.status == "cancelled":
            raise ClusterLostError("the Dask scheduler went away; start it, and run again to go on")
        error = (
            future.exception() if future.status == "error" else ConnectionError("its worker died before it had told the result")
        )
        self._tries[index] += 1
        failure = failure_of(index, error, attempts=self._tries[index])
        if isinstance(error, KilledWorker):
            self._handed_out[index] += 1
            suspects[index] = _DIED
        elif self._tries[index] < MAX_ATTEMPTS and not failure.fatal:
            _log.info("block %s, attempt %d failed: %s", index, self._tries[index], error)
            self._try_again(index, again, wait_s=pause_s(self._tries[index]))
        else:
            return [failure]
        return []

    def _try_again(self, index: BlockIndex, again: list[tuple[float, BlockIndex]], *, wait_s: float) -> None:
        self._handed_out[index] += 1
        heapq.heappush(again, (time.monotonic() + wait_s, index))

    def _leave_out(self, refusal: Refusal) -> None:
        """Hand no more blocks to a worker that cannot do them; UnfitWorkersError where it was the last one."""
        if refusal.worker in self._left_out:
            return
        self._left_out.add(refusal.worker)
        self._listen(Notice(text=f"worker {refusal.worker} gets no blocks: {refusal.reason}"))
        if not self._client.nthreads().keys() - self._left_out:
            raise UnfitWorkersError(f"no worker of the cluster can do this job; {refusal.worker}: {refusal.reason}")

    def _restart_stuck(self, at_work: InFlight, suspects: Suspects) -> None:
        """Restart the workers on which a block takes too long, and set their blocks aside."""
        limit_s = self._limit.seconds
        for worker, futures in at_work.overdue(limit_s, self._client.processing).items():
            if worker in self._restarting:
                continue
            indices = [index for future in futures if (index := at_work.pop(future.key)) is not None]
            blocks = ", ".join(map(str, indices))
            self._listen(Notice(text=f"block {blocks} takes more than {limit_s:.0f} s on {worker}: the worker is restarted"))
            for index in indices:
                self._tries[index] += 1
                self._handed_out[index] += 1
                suspects[index] = f"it took longer than {limit_s:.0f} s each time, and its worker was restarted"
            self._client.cancel(futures)
            self._restart(worker)

    def _restart(self, worker: str) -> None:
        """End a worker process, whatever it is doing; its nanny starts another one, or nobody does where it has none."""
        nannies = self._client.scheduler_info(n_workers=-1)["workers"]
        has_nanny = worker not in nannies or nannies[worker].get("nanny")

        self._restarting.add(worker)

        async def end() -> None:
            with suppress(Exception):  # it is gone already, or takes its time
                if has_nanny:  # not `Client.restart_workers`: it asks first, and was seen to leave no worker behind
                    await self._client.run(end_process, workers=[worker], nanny=True)
                else:
                    await self._client.run(os._exit, 1, workers=[worker], wait=False)
            self._restarting.discard(worker)

        self._client.loop.add_callback(end)  # not waited for: the other workers go on

    def _alone(self, index: BlockIndex, stop: Callable[[], bool]) -> Outcomes:
        """Try a suspect with nothing beside it."""
        again: Suspects = {}
        yield from self._drain(iter([index]), stop, again)
        if index in again:
            yield [BlockFailure(block=index, error=f"{again[index]}, also alone", attempts=self._tries[index])]

    def _submit(self, indices: list[BlockIndex]) -> list[Future]:
        if not indices:
            return []
        name = f"atrous-{self._digest[:12]}"
        keys = [f"{name}-{row}-{col}-{self._handed_out.get((row, col), 0)}" for row, col in indices]
        attempts = [self._tries[index] + 1 if index in self._tries else 1 for index in indices]
        # Not by name alone: a worker that is restarted has another address.
        places = {"workers": list(self._threads), "allow_other_workers": True} if self._left_out else {}
        futures: list[Future] = self._client.map(
            run_task, [self._digest] * len(indices), indices, attempts, key=keys, pure=False, **places
        )
        return futures

    def _width(self) -> int:
        """Return how many blocks to have at work and waiting.

        Per worker one for each that it does at once, and one that waits: more would only be blamed together when it dies. Where blocks
        take no time, as many as keep it busy while the answers travel.
        """
        if time.monotonic() - self._looked_s >= _LOOK_S:
            threads = self._client.nthreads()
            self._threads = {worker: n for worker, n in threads.items() if worker not in self._left_out}
            self._looked_s = time.monotonic()
        ahead = min(_MOST_AHEAD, math.ceil(_AHEAD_S / max(self._block_s, 1e-9)))
        return sum(max(min(n, self._at_once) + 1, ahead) for n in self._threads.values()) or 2
