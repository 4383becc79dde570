"""How do workers start on this machine? As processes of a cluster of our own, which can begin while the job is still being planned.

Nothing here imports torch: the command line starts the workers of a large job first of all, and then imports what plans it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask.config
from distributed import Client, LocalCluster
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.system import MEMORY_LIMIT
from psutil import virtual_memory

from pipeline.engine.choose import may_have_cuda
from pipeline.errors import MissingDependencyError, SpecError
from pipeline.grid import BLOCKS_AT_ONCE, BLOCKS_AT_ONCE_CUDA
from workflows.fork_server import ENVIRONMENT, start_method
from workflows.scene_size import wants_workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

Cluster = Literal["local", "cuda", "serial"]

_USABLE = 0.8
"""Share of the free memory that workers may plan with."""

_CORES_PER_PROCESS = 16
"""One process keeps so many busy: its blocks share the windows on their edges, and compute without the GIL. More processes would compute
those windows again, and hold the weights again."""

_CLOSE_S = 5.0
_BEGIN_S = 1.0
"""How long the plan waits at most for the first worker to begin."""
_LOOK_S = 0.01

SETTINGS: dict[str, Any] = {
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
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ENVIRONMENT.items()},
}


def settings() -> dict[str, Any]:
    """Return Dask's settings while workers of ours are there, also for those that take the place of dead ones."""
    return {**SETTINGS, "distributed.worker.multiprocessing-method": start_method()}


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


def share_here(spec: ClusterSpec) -> tuple[int, int, int]:
    """Return (workers, threads of each, bytes for all) that a large job would get on this machine."""
    cores = count_cores()
    n_workers = 1 if spec.cluster == "serial" else spec.n_workers or most_processes(spec, cores)
    return n_workers, spec.threads or max(1, cores // n_workers), usable_bytes()


def usable_bytes() -> int:
    """Return how much memory workers may plan with."""
    return int(_USABLE * min(virtual_memory().available, MEMORY_LIMIT))


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EarlyWorkers:
    """Workers on this machine that start while their job is still being planned: importing their libraries takes them two seconds.

    They are those that a large job would get (`share_here`); a plan that wants others does without.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        n_workers, threads, usable = share_here(spec)
        self._staffing = Staffing(n_workers=n_workers, threads=threads, limit_bytes=usable // n_workers)
        self._pool = ThreadPoolExecutor(1)
        self._cluster: Future[LocalCluster] | None = self._pool.submit(self._begin, spec)

    def wait_for_process(self) -> None:
        """Return when the first process has begun: whatever the caller imports meanwhile would keep this one from beginning it.

        With the fork server, which has begun, there is nothing to wait for.
        """
        if start_method() == "forkserver":
            return
        give_up = time.monotonic() + _BEGIN_S
        while not multiprocessing.active_children() and self._cluster is not None and not self._cluster.done():
            if time.monotonic() > give_up:
                return
            time.sleep(_LOOK_S)

    def _begin(self, spec: ClusterSpec) -> LocalCluster:
        with dask.config.set(settings()):
            return start_cluster(spec, self._staffing)

    def take(self, staffing: Staffing) -> LocalCluster | None:
        """Return the cluster, which the caller closes; None where the plan wants another one, or it did not start."""
        if self._cluster is None or self._staffing.n_workers != staffing.n_workers:
            return None
        begun, self._cluster = self._cluster, None
        return None if begun.exception() else begun.result()

    def close(self) -> None:
        """End the workers that nobody took."""
        if self._cluster is not None and not self._cluster.exception():
            close_cluster(self._cluster.result())
        self._pool.shutdown()


@contextmanager
def started_early(spec: ClusterSpec, *, n_pixels: int) -> Iterator[EarlyWorkers | None]:
    """Start the workers of a large job before its plan is made; None where it has a cluster of others, or is small."""
    if not wants_workers(cluster=spec.cluster, scheduler=spec.scheduler, n_pixels=n_pixels):
        yield None
        return
    with closing(EarlyWorkers(spec)) as early:
        early.wait_for_process()
        yield early


def close_cluster(cluster: Any) -> None:
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


class _FlatSpans(SpansSchedulerExtension):  # type: ignore[misc]
    """Dask's timings of spans, without their list of submissions: that grows by 300 bytes with each, and a million blocks are many."""

    def observe_tasks(self, *args: Any, **kwargs: Any) -> Any:
        """Take in the tasks of one submission, whatever arguments this version of Dask gives."""
        observed = super().observe_tasks(*args, **kwargs)
        for span in self.spans.values():
            (getattr(span, "metadata", None) or {}).get("collections", []).clear()
        return observed


def most_processes(spec: ClusterSpec, cores: int) -> int:
    """Return how many worker processes so many cores are worth."""
    if spec.cluster == "cuda":
        import torch  # noqa: PLC0415

        return max(1, torch.cuda.device_count())
    return -(-cores // _CORES_PER_PROCESS)


def start_cluster(spec: ClusterSpec, staffing: Staffing) -> Any:
    """Start worker processes on this machine."""
    if spec.cluster == "cuda":
        return _start_cuda(staffing)
    return LocalCluster(
        n_workers=staffing.n_workers,
        threads_per_worker=BLOCKS_AT_ONCE_CUDA if may_have_cuda() else BLOCKS_AT_ONCE,
        memory_limit=staffing.limit_bytes,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs="CRITICAL",
        preload="workflows.worker",  # takes a second, which the plan takes meanwhile
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
        threads_per_worker=BLOCKS_AT_ONCE_CUDA,
        memory_limit=staffing.limit_bytes,
        device_memory_limit=None,
    )
