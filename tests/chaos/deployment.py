"""What is a cluster made of that was started apart? A scheduler and workers, each its own process, that can be killed one by one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import psutil
from jobs import ROOT, kill_group

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 60.0
WORKER = ("--nworkers", "1", "--nthreads", "2", "--memory-limit", "2GiB", "--no-dashboard", "--death-timeout", "20")


class Deployment:
    """A scheduler on a port of this machine, and workers by name.

    Parameters
    ----------
    folder
        Where the scheduler file is, and the workers' own files.
    environment
        Of all processes.
    protocol
        What they speak: ``tcp`` or ``tls``.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, *, protocol: str = "tcp") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "scheduler.json"
        self._folder = folder
        self._environment = {**(environment or os.environ), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        self._port = _free_port()
        self._protocol = protocol
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def start_scheduler(self) -> None:
        """Start the scheduler, always on the same port."""
        self.file.unlink(missing_ok=True)
        place = ("--protocol", self._protocol, "--host", "127.0.0.1", "--port", str(self._port))
        words = ("scheduler", *place, "--no-dashboard", "--scheduler-file", str(self.file))
        self._scheduler = self._start(words)
        wait_until(self.file.exists)

    def start_worker(self, name: str, *, prefix: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> None:
        """Start a worker and its nanny; ``prefix``: a command that starts it elsewhere, such as ``unshare``."""
        words = ("worker", "--scheduler-file", str(self.file), "--name", name, *WORKER, *more)
        self._workers[name] = self._start((*words, "--local-directory", str(self._folder / name)), prefix=prefix)

    def wait_for_worker(self, name: str) -> None:
        """Wait until the worker's process is there."""
        wait_until(lambda: self._children(name) != [])

    def kill(self, what: str, name: str = "") -> None:
        """SIGKILL the ``scheduler``, a ``nanny`` (its worker is left alone), or a ``worker`` (its nanny starts another one)."""
        if what == "scheduler" and self._scheduler is not None:
            self._scheduler.kill()
            self._scheduler.wait()
        elif what == "nanny":
            self._workers[name].kill()
            self._workers[name].wait()
        else:
            for child in self._children(name):
                with suppress(psutil.NoSuchProcess):
                    child.kill()

    def heal(self) -> None:
        """Start again what is not there, as whoever deployed it would."""
        if self._scheduler is None or self._scheduler.poll() is not None:
            self.start_scheduler()
        for name, process in list(self._workers.items()):
            if process.poll() is not None:
                kill_group(process)
                self.start_worker(name)

    @property
    def workers(self) -> list[str]:
        """Their names."""
        return list(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._workers.values(), self._scheduler):
            if process is not None:
                kill_group(process)

    def _children(self, name: str) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._workers[name].pid).children(recursive=True)
            return [child for child in children if "spawn_main" in " ".join(_words_of(child))]
        return []

    def _start(self, words: tuple[str, ...], prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "dask", *words],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            cwd=ROOT,
        )


def wait_until(condition: object, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until a function returns true; TimeoutError where it does not."""
    assert callable(condition)
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true in {patience_s:.0f} s")
        time.sleep(0.02)


def _words_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
