"""Where do the workers come from? A local cluster by default, a running one by address or scheduler file, or none at all."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
from distributed import CancelledError, Client, WorkerPlugin
from distributed.comm import CommClosedError
from distributed.system import MEMORY_LIMIT

from pipeline.errors import ClusterLostError, PipelineError, SpecError
from pipeline.memory import UNKNOWN_BYTES
from workflows.dask_executor import DaskExecutor, register
from workflows.events import ignore
from workflows.local_workers import (
    Staffing,
    close_cluster,
    count_cores,
    most_processes,
    settings,
    start_cluster,
    usable_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workflows.events import Listener
    from workflows.executor import Executor
    from workflows.local_workers import ClusterSpec, EarlyWorkers

WORKER_TTL_HINT = "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='30 minutes'"
"""What a scheduler that is not ours should be told, because pydensecrf holds the GIL."""

_CONNECT_S, _RETRY_S = 20.0, 2.0

_SILENT_SETTINGS: dict[str, Any] = {"distributed.scheduler.worker-ttl": "30 minutes"}
"""For pydensecrf, which holds the GIL; without it, a worker that says nothing for 5 minutes is given up."""


def staff(spec: ClusterSpec, *, n_blocks: int, bytes_of: Callable[[int], int]) -> Staffing:
    """Work out workers and threads for ``n_blocks`` blocks, on this machine or on the cluster of ``spec``.

    Parameters
    ----------
    spec
        What the user fixed.
    n_blocks
        Blocks that are left; there is no use for more workers.
    bytes_of
        The memory bound of a worker with so many threads, bytes.
    """
    if spec.scheduler is not None:
        return staff_of_cluster(spec, spec.scheduler)
    cores = count_cores()
    usable = usable_bytes()
    if is_serial(spec, n_blocks=n_blocks):
        n_workers = 1
    else:
        n_workers = spec.n_workers or max(1, min(most_processes(spec, cores), n_blocks, usable // bytes_of(1)))
    limit = usable // n_workers
    threads = spec.threads or max(1, cores // n_workers)
    while spec.threads is None and threads > 1 and bytes_of(threads) > limit:
        threads -= 1
    return Staffing(n_workers=n_workers, threads=threads, limit_bytes=limit)


def is_serial(spec: ClusterSpec, *, n_blocks: int) -> bool:
    """Tell whether this process does the work itself: when asked to, and when a single block leaves nothing to share."""
    return spec.scheduler is None and (spec.cluster == "serial" or (spec.cluster == "local" and n_blocks <= 1))


@contextmanager
def executor_for(
    spec: ClusterSpec,
    staffing: Staffing,
    *,
    n_blocks: int,
    silent: bool = False,
    listen: Listener = ignore,
    early: EarlyWorkers | None = None,
) -> Iterator[Executor]:
    """Start (or connect to) the workers, yield the executor over them, and shut down what was started.

    Parameters
    ----------
    spec, staffing
        Who works.
    n_blocks
        Blocks that are left.
    silent
        Whether a healthy worker can miss heartbeats for minutes, and is waited for.
    listen
        Hears of workers that are left out or restarted.
    early
        Workers that have been started for this job already.

    Raises
    ------
    ClusterLostError
        The scheduler of a running cluster went away.
    """
    if is_serial(spec, n_blocks=n_blocks):
        from workflows.serial_executor import SerialExecutor  # noqa: PLC0415  (imports torch)

        yield SerialExecutor()
        return
    begun = early.take(staffing) if early and not silent else None
    with dask.config.set({**settings(), **(_SILENT_SETTINGS if silent else {})}):
        if spec.scheduler is not None:
            with _connect(spec.scheduler) as client, _losses(client):
                yield DaskExecutor(client, listen=listen, timeout_s=spec.block_timeout_s, foreign=True)
            return
        with _closing(begun or start_cluster(spec, staffing)) as cluster, Client(cluster) as client:
            register(client, _LeaveInterruptToClient())
            yield DaskExecutor(client, listen=listen, timeout_s=spec.block_timeout_s)


@contextmanager
def _closing(cluster: Any) -> Iterator[Any]:
    try:
        yield cluster
    finally:
        close_cluster(cluster)


@contextmanager
def _losses(client: Client) -> Iterator[None]:
    """Raise ClusterLostError for whatever distributed raises after its scheduler went away."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as cause:
        if client.status == "running" and not isinstance(cause, (CommClosedError, CancelledError)):
            raise
        raise ClusterLostError(
            f"the Dask scheduler went away ({type(cause).__name__}: {cause}); start it, and run again to go on"
        ) from cause


def wait_for_scheduler(scheduler: str, *, patience_s: float) -> bool:
    """Wait until a Dask scheduler answers at an address, or at that in a scheduler file; tell whether one did."""
    deadline = time.monotonic() + patience_s
    while True:
        with suppress(SpecError), _connect(scheduler, timeout_s=_RETRY_S):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_RETRY_S)


def staff_of_cluster(spec: ClusterSpec, scheduler: str) -> Staffing:
    """Look at the workers of a running cluster: each computes one block at a time, on as many threads as Dask gave it."""
    with _connect(scheduler) as client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    limits = [int(worker["memory_limit"] or MEMORY_LIMIT) for worker in workers]
    threads = spec.threads or min((int(worker["nthreads"]) for worker in workers), default=1)
    return Staffing(n_workers=max(1, len(workers)), threads=threads, limit_bytes=min(limits, default=UNKNOWN_BYTES))


class _LeaveInterruptToClient(WorkerPlugin):  # type: ignore[misc]
    """Makes our own workers deaf to Ctrl-C, which a terminal sends to all of them: the client decides, and drains."""

    def setup(self, worker: Any) -> None:
        """Run in the worker process, whose event loop is its main thread."""
        del worker
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _connect(scheduler: str, *, timeout_s: float | None = None) -> Client:
    is_file = "://" not in scheduler and Path(scheduler).suffix == ".json"
    try:
        # Read here: distributed would wait for ever for a file that does not exist.
        address = json.loads(Path(scheduler).read_text())["address"] if is_file else scheduler
        return Client(address, timeout=timeout_s or _CONNECT_S)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise SpecError(
            f"--scheduler {scheduler} was asked for; no Dask scheduler answers there ({type(cause).__name__}: {cause}): give an address "
            "such as tcp://host:8786, or the scheduler file that 'dask scheduler --scheduler-file' wrote"
        ) from cause
