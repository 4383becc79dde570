"""Where do the workers come from? A local cluster by default, a running one by address or scheduler file, or none at all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask.config
import torch
from distributed import CancelledError, Client, LocalCluster, WorkerPlugin
from distributed.comm import CommClosedError
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.system import MEMORY_LIMIT
from psutil import virtual_memory

from pipeline.errors import ClusterLostError, MissingDependencyError, PipelineError, SpecError
from pipeline.memory import BLOCKS_AT_ONCE, UNKNOWN_BYTES
from workflows.choose_grid import LARGEST_BLOCK_PX
from workflows.dask_executor import DaskExecutor, register
from workflows.events import ignore
from workflows.executor import Executor, SerialExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from workflows.events import Listener

Cluster = Literal["local", "cuda", "serial"]

WORKER_TTL_HINT = "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='30 minutes'"
"""What a scheduler that is not ours should be told, because pydensecrf holds the GIL."""

_USABLE = 0.8
"""Share of the free memory that workers may plan with."""

_CORES_PER_PROCESS = 16
"""One process keeps so many busy: its blocks share the windows on their edges, and compute without the GIL. More processes would compute
those windows again, and hold the weights again."""

_CONNECT_S, _RETRY_S, _CLOSE_S = 20.0, 2.0, 5.0

_SETTINGS: dict[str, Any] = {
    # A killed worker blames every block it held; few are held, and suspects are tried again alone.
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.no-workers-timeout": "10 minutes",
    # So long after a worker died, a cluster that is its own looks once whether there is another in its place, and ends the nanny for good
    # where there is none: that worker has just died again, or starts slowly. Nannies go on starting workers instead.
    "distributed.deploy.lost-worker-timeout": "365 days",
    # Results are tiny: spilling could only hide a leak.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # The plan's bound lies below the limit. A worker that passes it leaks, and must die before the system picks a process to kill.
    "distributed.worker.memory.terminate": 1.0,
    "distributed.worker.profile.enabled": False,
    # Logs of messages, for those who look for faults in Dask: with 1000 they take 20 MB of the client.
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.tick.limit": "1 hour",
    "distributed.nanny.pre-spawn-environ.GDAL_CACHEMAX": "128",
    "distributed.nanny.pre-spawn-environ.GDAL_NUM_THREADS": "ALL_CPUS",  # decodes the tiles of one read side by side
    # What a tile has used is kept for the next one: mapped anew each time, clearing its pages takes a fifth of the CRF's time.
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": "1",
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
}
_SILENT_SETTINGS: dict[str, Any] = {"distributed.scheduler.worker-ttl": "30 minutes"}
"""For pydensecrf, which holds the GIL; without it, a worker that says nothing for 5 minutes is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Who does the work. Nothing here changes the result."""

    cluster: Cluster = "local"
    """``local``: processes on this machine; ``cuda``: one process per CUDA device (dask-cuda); ``serial``: this process."""
    scheduler: str | None = None
    """Address (``tcp://host:8786``) or scheduler file of a running Dask cluster; wins over ``cluster``."""
    n_workers: int | None = None
    """Worker processes; None: one per 16 cores, as many as fit into memory."""
    threads: int | None = None
    """Network windows at once per worker; None: the cores divided by the workers, as memory allows."""
    block_timeout_s: float | None = None
    """How long a block may take before its worker is restarted, s; None: ten times the slowest so far, at least five minutes."""

    def __post_init__(self) -> None:
        if self.cluster not in get_args(Cluster):
            raise SpecError(f"cluster {self.cluster!r} was asked for; choose one of {', '.join(get_args(Cluster))}")
        for name in ("n_workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} = {value} was asked for; it must be 1 or more")
        if self.block_timeout_s is not None and not self.block_timeout_s > 0:
            raise SpecError(f"a block timeout of {self.block_timeout_s} s was asked for; it must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """How many processes share this machine, and what each of them has."""

    n_workers: int
    """Processes."""
    threads: int
    """Threads of each."""
    limit_bytes: int
    """Memory of each, bytes."""


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
    usable = _usable_bytes()
    if is_serial(spec, n_blocks=n_blocks):
        n_workers = 1
    else:
        n_workers = spec.n_workers or max(1, min(_most_processes(spec, cores), n_blocks, usable // bytes_of(1)))
    limit = usable // n_workers
    threads = spec.threads or max(1, cores // n_workers)
    while spec.threads is None and threads > 1 and bytes_of(threads) > limit:
        threads -= 1
    return Staffing(n_workers=n_workers, threads=threads, limit_bytes=limit)


def share_here(spec: ClusterSpec) -> tuple[int, int, int]:
    """Return (workers, threads of each, bytes for all) that a large job would get on this machine."""
    cores = count_cores()
    n_workers = 1 if spec.cluster == "serial" else spec.n_workers or _most_processes(spec, cores)
    return n_workers, spec.threads or max(1, cores // n_workers), _usable_bytes()


def _usable_bytes() -> int:
    return int(_USABLE * min(virtual_memory().available, MEMORY_LIMIT))


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_serial(spec: ClusterSpec, *, n_blocks: int) -> bool:
    """Tell whether this process does the work itself: when asked to, and when a single block leaves nothing to share."""
    return spec.scheduler is None and (spec.cluster == "serial" or (spec.cluster == "local" and n_blocks <= 1))


class EarlyWorkers:
    """Workers on this machine that start while their job is still being planned: importing their libraries takes them two seconds.

    They are those that a large job would get (`share_here`); a plan that wants others does without.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        n_workers, threads, usable = share_here(spec)
        self._staffing = Staffing(n_workers=n_workers, threads=threads, limit_bytes=usable // n_workers)
        self._pool = ThreadPoolExecutor(1)
        self._cluster: Future[LocalCluster] | None = self._pool.submit(self._begin, spec)

    def _begin(self, spec: ClusterSpec) -> LocalCluster:
        with dask.config.set(_SETTINGS):
            return _start(spec, self._staffing)

    def take(self, staffing: Staffing) -> LocalCluster | None:
        """Return the cluster, which the caller closes; None where the plan wants another one, or it did not start."""
        if self._cluster is None or self._staffing.n_workers != staffing.n_workers:
            return None
        begun, self._cluster = self._cluster, None
        return None if begun.exception() else begun.result()

    def close(self) -> None:
        """End the workers that nobody took."""
        if self._cluster is not None and not self._cluster.exception():
            _close(self._cluster.result())
        self._pool.shutdown()


@contextmanager
def started_early(spec: ClusterSpec, *, n_pixels: int) -> Iterator[EarlyWorkers | None]:
    """Start the workers of a large job before its plan is made; None where it has a cluster of others, or is small."""
    if spec.cluster != "local" or spec.scheduler is not None or n_pixels <= LARGEST_BLOCK_PX**2:
        yield None
        return
    with closing(EarlyWorkers(spec)) as early:
        yield early


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
        yield SerialExecutor()
        return
    begun = early.take(staffing) if early and not silent else None
    with dask.config.set({**_SETTINGS, **(_SILENT_SETTINGS if silent else {})}):
        if spec.scheduler is not None:
            with _connect(spec.scheduler) as client, _losses(client):
                yield DaskExecutor(client, listen=listen, timeout_s=spec.block_timeout_s, foreign=True)
            return
        with _closing(begun or _start(spec, staffing)) as cluster, Client(cluster) as client:
            register(client, _LeaveInterruptToClient())
            yield DaskExecutor(client, listen=listen, timeout_s=spec.block_timeout_s)


@contextmanager
def _closing(cluster: Any) -> Iterator[Any]:
    try:
        yield cluster
    finally:
        _close(cluster)


def _close(cluster: Any) -> None:
    """End the processes of a cluster of ours.

    What they wrote is durable, and what they were writing counts for nothing: left to end by themselves, they would take a second to give
    back memory piece by piece.
    """
    with suppress(Exception), Client(cluster, timeout=_CLOSE_S) as client:
        client.run(_end_for_good, nanny=True, on_error="ignore")
    cluster.close()


def _end_for_good(dask_worker: Any) -> None:
    """Run on a nanny: end its worker, and start no other."""
    dask_worker.auto_restart = False
    if dask_worker.pid:
        os.kill(dask_worker.pid, signal.SIGKILL)


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


class _FlatSpans(SpansSchedulerExtension):  # type: ignore[misc]
    """Dask's timings of spans, without their list of submissions: that grows by 300 bytes with each, and a million blocks are many."""

    def observe_tasks(self, *args: Any, **kwargs: Any) -> Any:
        """Take in the tasks of one submission, whatever arguments this version of Dask gives."""
        observed = super().observe_tasks(*args, **kwargs)
        for span in self.spans.values():
            (getattr(span, "metadata", None) or {}).get("collections", []).clear()
        return observed


def _most_processes(spec: ClusterSpec, cores: int) -> int:
    if spec.cluster == "cuda":
        return max(1, torch.cuda.device_count())
    return -(-cores // _CORES_PER_PROCESS)


def _start(spec: ClusterSpec, staffing: Staffing) -> Any:
    if spec.cluster == "cuda":
        return _start_cuda(staffing)
    return LocalCluster(
        n_workers=staffing.n_workers,
        threads_per_worker=BLOCKS_AT_ONCE,
        memory_limit=staffing.limit_bytes,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs="CRITICAL",
        preload="workflows.dask_executor",  # takes a second, which the plan takes meanwhile
        scheduler_kwargs={"extensions": {**DEFAULT_EXTENSIONS, "spans": _FlatSpans}},
    )


def _start_cuda(staffing: Staffing) -> Any:
    try:
        from dask_cuda import LocalCUDACluster  # type: ignore[import-not-found]  # noqa: PLC0415  (optional, needs CUDA)
    except ImportError as cause:
        raise MissingDependencyError(
            "--cluster cuda was asked for; it needs dask-cuda, which is not installed here: pip install dask-cuda"
        ) from cause
    return LocalCUDACluster(
        n_workers=staffing.n_workers,
        threads_per_worker=BLOCKS_AT_ONCE,
        memory_limit=staffing.limit_bytes,
        device_memory_limit=None,
    )


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
