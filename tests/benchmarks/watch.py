"""How long does a command take, and how much memory do its processes hold meanwhile?

``watch`` starts a command in a process group of its own and looks at its whole tree of processes every two seconds. Two kinds of figures:
proportional size (PSS: memory shared by processes is divided among them, so that it can be summed) at each look, and the highest
resident size of each process (VmHWM, kept by the kernel, so that nothing between two looks is missed).

To tell the proportional size of some GiB the kernel walks a million pages, and meanwhile the process waits for memory that it asks for. So
it is asked only where the resident size of a process changed by more than a hundredth.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 2.0
_SAME = 0.01
"""Resident sizes that differ by less are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The tree of processes at one moment; sizes are proportional ones."""

    seconds: float
    """Since the start, s."""
    coordinator_bytes: int
    """The command itself."""
    worker_bytes: tuple[int, ...]
    """Each worker process, the largest first."""
    total_bytes: int
    """All processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A command that ended."""

    code: int
    """Its exit code; negative where a signal ended it."""
    stdout: str
    """What it printed."""
    seconds: float
    """Wall time, from before the process started to its end, s."""
    looks: tuple[Look, ...]
    """What was seen, in order."""
    coordinator_peak_bytes: int
    """Highest resident size of the command itself."""
    worker_peak_bytes: int
    """Highest resident size of any worker process; 0: there was none."""

    @property
    def peak_bytes(self) -> int:
        """The largest proportional size of the whole tree."""
        return max((look.total_bytes for look in self.looks), default=0)


def watch(words: list[str], *, poll_s: float = POLL_S, stop_when: Callable[[Look], bool] = lambda _look: False) -> Watched:
    """Run a command to its end, or kill its whole process group at the first look for which ``stop_when`` is true."""
    looks, seen = [], _Seen()
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(words, stdout=output, start_new_session=True, env=_environment()) as process,
    ):
        try:
            while (code := process.poll()) is None:
                look = _look(process.pid, time.perf_counter() - started, seen)
                looks.append(look)
                if stop_when(look):
                    os.killpg(process.pid, signal.SIGKILL)
                _wait(process, poll_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    return Watched(
        code=code,
        stdout=text,
        seconds=seconds,
        looks=tuple(looks),
        coordinator_peak_bytes=seen.coordinator_peak,
        worker_peak_bytes=seen.worker_peak,
    )


def checked(watched: Watched, words: list[str]) -> Watched:
    """Return ``watched``; end this program where the command failed, whose messages are on stderr already."""
    if watched.code:
        raise SystemExit(f"exit code {watched.code} of: {' '.join(words)}")
    return watched


class _Seen:
    """What was seen of the processes so far; sizes in bytes."""

    def __init__(self) -> None:
        self.coordinator_peak = 0
        """Highest resident size of the command itself."""
        self.worker_peak = 0
        """The same of any worker."""
        self._known: dict[int, tuple[int, int]] = {}

    def proportional(self, pid: int) -> int:
        """Return the proportional size of a process, as it was when its resident size was last as it is now."""
        resident = _kib(pid, "status", "VmRSS:")
        then, size = self._known.get(pid, (0, 0))
        if abs(resident - then) > _SAME * resident:
            size = _kib(pid, "smaps_rollup", "Pss:")
            self._known[pid] = (resident, size)
        return size


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Sleep, but not beyond the end of the process: a run's wall time is not rounded up to the next look."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _look(pid: int, seconds: float, seen: _Seen) -> Look:
    coordinator, workers, others = 0, [], 0
    for process in _tree(pid):
        size = seen.proportional(process.pid)
        high = _kib(process.pid, "status", "VmHWM:")
        if process.pid == pid:
            coordinator = size
            seen.coordinator_peak = max(seen.coordinator_peak, high)
        elif is_worker(process):
            workers.append(size)
            seen.worker_peak = max(seen.worker_peak, high)
        else:
            others += size
    return Look(
        seconds=seconds,
        coordinator_bytes=coordinator,
        worker_bytes=tuple(sorted(workers, reverse=True)),
        total_bytes=coordinator + sum(workers) + others,
    )


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def is_worker(process: psutil.Process) -> bool:
    """Tell a worker of multiprocessing, which Dask's are, from its tracker of resources and the fork server, whose words it shares."""
    try:
        if "spawn_main" in " ".join(process.cmdline()):
            return True
        parent = process.parent()
        return parent is not None and all("multiprocessing.forkserver" in " ".join(one.cmdline()) for one in (process, parent))
    except psutil.Error:
        return False


def _kib(pid: int, file: str, field: str) -> int:
    """Return a size that the kernel writes in kB, bytes; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _environment() -> dict[str, str]:
    """Return the environment in which `pipeline` and `cli` are found, whatever the folder."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
