"""Does a job end with the same bytes, whatever is killed and however often? SIGKILL, at random moments, until it ends.

Half of the jobs start their own workers, half use a scheduler and two workers that were started apart. After each kill, what a deployment
would start again is started again: the scheduler, a nanny, and the client by the same command.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from deployment import Deployment
from faults import Faults
from jobs import APART, COMPLETE, ROOT, TRY_AGAIN, command, files_of, journal_blocks, kill_group, make_job, reference
from tables import parser, publish

if TYPE_CHECKING:
    import argparse

    from jobs import Job

SIDE_PX = 18 * 64 - 7
N_BLOCKS = 18 * 18
PER_JOB = 8
"""Kills of one job, at most: one that is killed for ever never ends."""


@dataclass(slots=True)
class Tally:
    """What was killed, and what it cost."""

    kills: Counter[str] = field(default_factory=Counter)
    n_jobs: int = 0
    n_equal: int = 0
    n_calls: int = 0
    seconds: list[float] = field(default_factory=list)


class Attack:
    """One job that is killed again and again."""

    def __init__(self, job: Job, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.out = folder / "out.zarr"
        self.faults = Faults.make(folder / "faults")
        self.words = command(*job.segment(self.out, "-q"))
        self.client: subprocess.Popen[bytes] | None = None
        self.clients: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "log").open("wb")

    def run(self, n_kills: int, tally: Tally) -> bool:
        """Kill ``n_kills`` times, then let the job end; tell whether it ended by itself before."""
        for _ in range(n_kills):
            if self.lives_until(len(journal_blocks(self.out)) + self.rng.randint(1, 2 * N_BLOCKS // PER_JOB)):
                return True
            what = self.kill()
            tally.kills[what] += 1
            killed = time.monotonic()
            done = len(journal_blocks(self.out))
            if self.lives_until(done + 1):
                return True
            tally.seconds.append(time.monotonic() - killed)
        return self.lives_until(N_BLOCKS + 1)

    def lives_until(self, n_blocks: int) -> bool:
        """Keep the job going until so many blocks are done; tell whether it is complete."""
        deadline = time.monotonic() + 300
        while len(journal_blocks(self.out)) < n_blocks:
            assert time.monotonic() < deadline, "no progress"
            self.heal()
            if self.client is None:
                self.client = subprocess.Popen(
                    self.words,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=self.log,
                    env=self.faults.environment(),
                    cwd=ROOT,
                )
                self.clients.append(self.client)
            code = self.client.poll()
            if code == COMPLETE:
                return True
            if code is not None:
                assert code in (TRY_AGAIN, -9), f"exit code {code}: {Path(self.log.name).read_text()}"
                self.client = None
            time.sleep(0.01)
        return False

    def kill(self) -> str:
        """Kill something and tell what."""
        raise NotImplementedError

    def heal(self) -> None:
        """Start again what was not started by the client."""

    def kill_client(self, *, alone: bool) -> None:
        """Kill the client; its workers, too, or let them find out."""
        assert self.client is not None
        if alone:
            self.client.kill()
        else:
            os.killpg(self.client.pid, signal.SIGKILL)
        self.client.wait()

    def end(self) -> None:
        """Leave nothing behind."""
        self.log.close()
        for client in self.clients:
            kill_group(client)


class LocalAttack(Attack):
    """On a job that started its own workers."""

    def __init__(self, job: Job, folder: Path, rng: random.Random) -> None:
        super().__init__(job, folder, rng)
        self.words += APART

    def kill(self) -> str:
        """Kill the client, one of its workers, or all."""
        what = self.rng.choice(["client alone", "client and workers", "worker"])
        if what == "worker":
            assert self.client is not None
            with suppress(psutil.NoSuchProcess, IndexError):
                children = psutil.Process(self.client.pid).children(recursive=True)
                self.rng.choice([one for one in children if "spawn_main" in " ".join(one.cmdline())]).kill()
        else:
            self.kill_client(alone=what == "client alone")
        return what


class ClusterAttack(Attack):
    """On a job that uses a scheduler and two workers that were started apart."""

    def __init__(self, job: Job, folder: Path, rng: random.Random) -> None:
        super().__init__(job, folder, rng)
        self.cluster = Deployment(folder / "cluster", self.faults.environment())
        self.cluster.start_scheduler()
        for name in ("one", "two"):
            self.cluster.start_worker(name)
        self.words += ["--device", "cpu", "--threads", "1", "--scheduler", str(self.cluster.file)]

    def kill(self) -> str:
        """Kill the client, the scheduler, a nanny or a worker."""
        what = self.rng.choice(["client alone", "scheduler", "nanny", "worker"])
        if what == "client alone":
            self.kill_client(alone=True)
        else:
            self.cluster.kill(what, self.rng.choice(self.cluster.workers))
        return what

    def heal(self) -> None:
        """Start again what was killed of the cluster."""
        self.cluster.heal()

    def end(self) -> None:
        """Leave nothing behind."""
        super().end()
        self.cluster.__exit__()


def run(n_kills: int, *, seed: int = 0) -> Tally:
    """Kill so many times, over as many jobs as it takes."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), height=SIDE_PX, width=SIDE_PX)
        expected = reference(job)
        while tally.kills.total() < n_kills:
            rng = random.Random(seed + tally.n_jobs)
            kind = (ClusterAttack, LocalAttack)[tally.n_jobs % 2]
            attack = kind(job, Path(name) / str(tally.n_jobs), rng)
            try:
                complete = attack.run(min(PER_JOB, n_kills - tally.kills.total()), tally)
            finally:
                attack.end()
            tally.n_jobs += 1
            tally.n_calls += sum(attack.faults.calls().values())
            lines = journal_blocks(attack.out)
            found = files_of(attack.out)
            other = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
            tally.n_equal += complete and not other and len(set(lines)) == len(lines) == N_BLOCKS
            if other or len(set(lines)) != len(lines):
                print(other, [line for line, n in Counter(lines).items() if n > 1], file=sys.stderr)  # noqa: T201
            print(kind.__name__, dict(tally.kills), tally.n_calls, tally.n_equal, file=sys.stderr, flush=True)  # noqa: T201
    return tally


def main(options: argparse.Namespace) -> int:
    """Print the table; 1 where a byte differs."""
    tally = run(6 if options.quick else options.kills, seed=options.seed)
    n_blocks = N_BLOCKS * tally.n_jobs
    seconds = sorted(tally.seconds)
    publish(
        options,
        name="kills",
        columns=("", "figure"),
        rows=[
            ("SIGKILLs", f"{tally.kills.total()}: {', '.join(f'{n} {what}' for what, n in sorted(tally.kills.items()))}"),
            ("jobs that ended byte-identical, each block in the journal once", f"{tally.n_equal} of {tally.n_jobs}"),
            (
                "blocks begun again",
                f"{tally.n_calls - n_blocks}, {(tally.n_calls - n_blocks) / max(1, tally.kills.total()):.1f} per kill",
            ),
            ("from a kill to the next finished block", f"median {seconds[len(seconds) // 2]:.1f} s, at most {seconds[-1]:.1f} s"),
        ],
    )
    return 0 if tally.n_equal == tally.n_jobs else 1


if __name__ == "__main__":
    made = parser(__doc__ or "", command="kills.py")
    made.add_argument("--kills", type=int, default=100, help="SIGKILLs in all")
    made.add_argument("--seed", type=int, default=0, help="of the moments and of what is killed")
    sys.exit(main(made.parse_args()))
