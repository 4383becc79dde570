"""What if the disk fills up, fails, or cannot be written? At every page, every inode and every call: nothing that counts as done is lost.

Each attempt ends with the code for "cannot write" and a message, or did its work; what the journal counts as done then is there, byte by
byte; and when the disk is well again, the same command ends with the bytes of a run that nothing happened to.
"""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from disk import Step, Watch
from jobs import (
    CANNOT_WRITE,
    COMPLETE,
    HERE,
    Ended,
    Job,
    copy_run,
    done_blocks,
    files_of,
    lost_blocks,
    make_job,
    reference,
    remove_run,
    run_folder,
    run_here,
)
from tables import parser, publish

from workflows import serial_executor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

PAGE = 4096
AMPLE = "size=16m,nr_inodes=10000"
COLUMNS = ("attack", "positions", "exit codes", "blocks done before", "of these lost", "ended with the same bytes afterwards")
STATE = {"run.json", "journal.jsonl", "lock"}


@dataclass(slots=True, kw_only=True)
class Finding:
    """What one kind of attack showed."""

    attack: str
    codes: Counter[int] = field(default_factory=Counter)
    n_done: int = 0
    n_lost: int = 0
    n_same: int = 0
    broken: list[str] = field(default_factory=list)
    """Every promise that was not kept, in words."""

    def row(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        n = self.codes.total()
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        return (self.attack, n, codes, self.n_done, self.n_lost, f"{self.n_same} of {n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A job, where it writes, and what it should write."""

    job: Job
    out: Path
    expected: dict[str, bytes]
    more: tuple[str, ...] = ()

    def run(self) -> Ended:
        """Begin the job, or go on with it."""
        return run_here(*self.job.segment(self.out, *HERE, "-q", *self.more))

    def judge(self, ended: Ended, finding: Finding, place: str, cure: Callable[[], None]) -> None:
        """Look at what an attack left, cure the disk, run again, and compare."""
        finding.codes[ended.code] += 1
        lost = lost_blocks(self.out, self.expected)
        finding.n_done += len(done_blocks(self.out))
        finding.n_lost += len(lost)
        cure()
        again = self.run()
        same = files_of(self.out) == self.expected and set(files_of(run_folder(self.out))) <= STATE
        finding.n_same += again.code == COMPLETE and same
        if ended.code not in {CANNOT_WRITE, COMPLETE} or (ended.code and "error: " not in ended.stderr):
            finding.broken.append(f"{place}: exit code {ended.code}, {ended.stderr[-300:]!r}")
        if lost:
            finding.broken.append(f"{place}: blocks {lost} count as done and are not there")
        if again.code != COMPLETE or not same:
            finding.broken.append(f"{place}: exit code {again.code} afterwards, same bytes: {same}; {again.stderr[-300:]!r}")


def fill(job: Job, expected: dict[str, bytes], disk: Path, *, what: str, every: int) -> Finding:
    """Run on disks that are full after 1, 2, 3 ... pages (or inodes), up to the first that is large enough."""
    finding = Finding(attack=f"disk full, at every {what}" if every == 1 else f"disk full, at every {every}th {what}")
    target = Target(job=job, out=disk / "out.zarr", expected=expected)
    for n in itertools.count(1, every):
        limit = f"size={n * PAGE}" if what == "page" else f"size=16m,nr_inodes={n + 1}"
        with tmpfs(disk, limit):
            ended = target.run()
            target.judge(ended, finding, f"{n} {what}s", lambda: mount(disk, f"remount,{AMPLE}"))
        if ended.code == COMPLETE:
            break
    return finding


def fail_calls(target: Target, begun: Path | None, *, lasting: bool, every: int) -> Finding:
    """Let the n-th call on the output fail with EIO, for every n: once, or from then on. ``begun`` is what a run finds."""
    words = "all calls from one on fail with EIO" if lasting else "one call fails with EIO"
    run = "an overwrite" if target.more else "a resume" if begun else "a first run"
    finding = Finding(attack=f"{words}, at {'every call' if every == 1 else f'every {every}th call'} of {run}")
    folder = target.out.parent
    for n in itertools.count(0, every):
        seen: list[Step] = []

        def fail(number: int, step: Step, n: int = n, seen: list[Step] = seen) -> None:
            if number >= n and (lasting or not seen):
                seen.append(step)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        remove_run(target.out)
        if begun:
            copy_run(begun, target.out)
        with Watch(folder, before=fail):
            ended = target.run()
        if not seen:
            break
        place = f"call {n}: {seen[0].kind} {seen[0].path.relative_to(folder)}"
        target.judge(ended, finding, place, lambda: None)
        if seen[0].kind == "fsync" and ended.code != CANNOT_WRITE:
            finding.broken.append(f"{place}: what was not synced was taken for synced")
    return finding


def read_only(job: Job, expected: dict[str, bytes], disk: Path) -> Finding:
    """Begin, and go on with, a run on a disk that can only be read: nothing is computed."""
    finding = Finding(attack="read-only disk, to begin and to go on")
    target = Target(job=job, out=disk / "out.zarr", expected=expected)
    for n_before in (0, 2):
        with tmpfs(disk, AMPLE):
            if n_before:
                with stopped_after(n_before):
                    target.run()
            mount(disk, "remount,ro")
            with patch.object(serial_executor, "process_block") as work:
                ended = target.run()
            target.judge(ended, finding, f"with {n_before} blocks", lambda: mount(disk, "remount,rw"))
            if work.called or ended.code != CANNOT_WRITE:
                finding.broken.append(f"{n_before} blocks done before: exit code {ended.code}, computed: {work.called}")
    return finding


@contextmanager
def stopped_after(n_blocks: int) -> Iterator[None]:
    """Let a run in this process end, as by a second Ctrl-C, before it begins another block than the first ``n_blocks``."""
    real, n_begun = serial_executor.process_block, 0

    def work(*given: object, **options: object) -> object:
        nonlocal n_begun
        n_begun += 1
        if n_begun > n_blocks:
            raise KeyboardInterrupt
        return real(*given, **options)

    with patch.object(serial_executor, "process_block", work):
        yield


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a disk in memory."""
    folder.mkdir(exist_ok=True)
    mount(folder, options)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(folder: Path, options: str) -> None:
    """Mount, or remount, a disk in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def can_mount() -> bool:
    """Tell whether this process may mount."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tmpfs(Path(folder), "size=4k"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def attack(folder: Path, *, quick: bool) -> list[Finding]:
    """Make all attacks."""
    job = make_job(folder / "job", height=100, width=170, options=("--chunk", "64"))
    expected = reference(job)
    every = 9 if quick else 1
    (folder / "files").mkdir()
    out = folder / "files" / "out.zarr"
    begun = folder / "begun.zarr"
    with stopped_after(3):
        run_here(*job.segment(begun, *HERE, "-q"))
    starts = ((None, ()), (begun, ()), (begun, ("--overwrite",)))
    findings = [
        fail_calls(Target(job=job, out=out, expected=expected, more=more), start, lasting=lasting, every=every)
        for start, more in starts
        for lasting in (False, True)
    ]
    if can_mount():
        findings += [fill(job, expected, folder / "disk", what=what, every=every) for what in ("page", "inode")]
        findings.append(read_only(job, expected, folder / "disk"))
    else:
        print("no disk can be mounted here: full and read-only disks are left out", file=sys.stderr)  # noqa: T201
    return findings


def main(options: argparse.Namespace) -> int:
    """Attack, and print the table."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        findings = attack(Path(folder), quick=options.quick)
    broken = [f"{finding.attack}: {text}" for finding in findings for text in finding.broken]
    publish(options, name="storage", columns=COLUMNS, rows=[finding.row() for finding in findings])
    print("\n".join(broken[:40]), file=sys.stderr)  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    if os.getuid() and "ATROUS_UNSHARED" not in os.environ:  # a name space of its own lets anybody mount
        os.environ["ATROUS_UNSHARED"] = "1"
        if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0:
            os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    sys.exit(main(parser(__doc__ or "", command="storage.py").parse_args()))
