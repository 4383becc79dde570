"""What if several want the same output at once? One works, the others leave; and what a dead client left at work does no harm.

Every client is a process that waits at a gate after its imports, so that all of them begin at the same moment; the one that gets to work
waits in its first block until the others have left. An orphan is a worker that was stopped between its look at the run's record and the
rename of its first chunk, and goes on when another run owns the output.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import (
    COMPLETE,
    HERE,
    TRY_AGAIN,
    Job,
    files_of,
    journal_blocks,
    make_job,
    reference,
    remove_run,
    run_folder,
    run_here,
    started,
)
from storage import stopped_after
from tables import parser, publish

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Iterator

COLUMNS = ("attack", "rounds", "exit codes", "worked at once", "files touched by the others", "same bytes")
CLIENTS = """
import json, os, sys, time, traceback
from pathlib import Path
gate, clients = Path(sys.argv[1]), json.loads(sys.argv[2])
import cli
import workflows.segment_scene
from workflows import serial_executor

def wait_for(name):
    while not (gate / name).exists():
        time.sleep(0.001)

def work(*given, real=serial_executor.process_block, **options):
    (gate / f"at-work-{os.getpid()}").touch()
    wait_for("go-on")
    return real(*given, **options)

def run(words):
    serial_executor.process_block = work
    sys.argv = ["atrous", *words]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
    return 1

children = []
for number, (name, words) in enumerate(clients):
    child = os.fork()
    if child == 0:
        wait_for(name)
        code = run(words)
        (gate / f"{number}").write_text(str(code))
        (gate / f"{number}").rename(gate / f"code-{number}")
        os._exit(0)
    children.append(child)
(gate / "ready").touch()
for child in children:
    os.waitpid(child, 0)
"""
"""Clients, each a process that waits for its gate: FOLDER [[GATE, WORDS], ...]. They share one import."""
ORPHAN = """
import os, signal, sys
sys.argv = ["atrous", *sys.argv[1:]]
import cli
from pipeline import durable_store
real = durable_store.replace_durably
def replace(target, data):
    if target.parent.parent.name == "c":
        os.kill(os.getpid(), signal.SIGSTOP)
    real(target, data)
durable_store.replace_durably = replace
cli.main()
"""
"""A client that stops between its look at the record and the rename of every chunk."""


@dataclass(slots=True, kw_only=True)
class Finding:
    """What one kind of attack showed."""

    attack: str
    n: int = 0
    codes: list[list[int]] = field(default_factory=list)
    at_work: list[int] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    n_same: int = 0
    broken: list[str] = field(default_factory=list)

    def row(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        flat = sorted(code for codes in self.codes for code in codes)
        words = ", ".join(f"{code}: {flat.count(code)}" for code in sorted(set(flat)))
        return (
            self.attack,
            self.n,
            words,
            f"{min(self.at_work)} to {max(self.at_work)}",
            len(self.touched),
            f"{self.n_same} of {self.n}",
        )


def race(job: Job, folder: Path, expected: dict[str, bytes], finding: Finding, *, n_clients: int, begun: bool) -> None:
    """Let clients begin at the same moment, and as many again while the one that got to work is at it."""
    out = _new(folder, job, begun=begun)
    words = ["resume", str(out), *HERE, "-q"] if begun else [*job.segment(out), *HERE, "-q"]
    with _clients([("first", words)] * n_clients + [("late", words)] * (n_clients - 1)) as gate:
        (gate / "first").touch()
        _wait(lambda: len(_codes(gate)) == n_clients - 1)
        before = _state(out)
        (gate / "late").touch()
        _wait(lambda: len(_codes(gate)) == 2 * (n_clients - 1))
        after = _state(out)
        touched = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        codes = _end(gate, finding, n_clients=2 * n_clients - 1)
    finding.touched += touched
    _conclude(finding, out, expected, codes, should=[COMPLETE, *[TRY_AGAIN] * (2 * n_clients - 2)], touched=touched)


def overwrite_race(job: Job, folder: Path, expected: dict[str, bytes], finding: Finding, *, n_clients: int) -> None:
    """Let one client overwrite the output, while others go on with it."""
    out = _new(folder, job, begun=True)
    resume = ["resume", str(out), *HERE, "-q"]
    overwrite = [*job.segment(out), *HERE, "-q", "--overwrite"]
    with _clients([("first", resume if number else overwrite) for number in range(n_clients)]) as gate:
        (gate / "first").touch()
        _wait(lambda: len(_codes(gate)) == n_clients - 1)
        codes = _end(gate, finding, n_clients=n_clients)
    _conclude(finding, out, expected, codes, should=[COMPLETE, *[TRY_AGAIN] * (n_clients - 1)])


def orphan(job: Job, folder: Path, finding: Finding, *, option: tuple[str, ...]) -> None:
    """Let a worker of an overwritten run go on, chunk by chunk, when the next run owns the output."""
    out = _new(folder, job, begun=False)
    other = Job(scene=job.scene, model=job.model, options=(*job.options, *option))
    expected = reference(other)
    with started([sys.executable, "-c", ORPHAN, *job.segment(out), *HERE, "-q"]) as process:
        _wait_stopped(process)
        # Its lock goes with the client in earnest; here the orphan is the client, and the lock is moved aside with its folder.
        run_folder(out).rename(folder / f"moved-{process.pid}")
        _put_back(folder / f"moved-{process.pid}", run_folder(out))
        codes = [run_here(*other.segment(out, *HERE, "-q", "--overwrite")).code]
        touched = _let_go_on(process, out, expected)
    finding.touched += touched
    finding.at_work.append(1)
    _conclude(finding, out, expected, codes, should=[COMPLETE], touched=touched)


def _put_back(moved: Path, folder: Path) -> None:
    """Copy the state of a run, so that its lock is not held."""
    folder.mkdir()
    for path in moved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _let_go_on(process: subprocess.Popen[bytes], out: Path, expected: dict[str, bytes]) -> list[str]:
    """Let an orphan do all that it can, and return the files of the output that are not as they should be."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    found = files_of(out)
    return [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]


def _wait_stopped(process: subprocess.Popen[bytes]) -> None:
    _wait(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")


def _conclude(
    finding: Finding,
    out: Path,
    expected: dict[str, bytes],
    codes: list[int],
    *,
    should: list[int],
    touched: list[str] | None = None,
) -> None:
    """Compare the codes and the output with what they should be."""
    finding.n += 1
    finding.codes.append(codes)
    blocks = journal_blocks(out)
    same = files_of(out) == expected and len(blocks) == len(set(blocks))
    finding.n_same += same
    if not same:
        finding.broken.append(f"other bytes than a run alone, or blocks done twice: {blocks}")
    if codes != should or finding.at_work[-1] != 1 or touched:
        finding.broken.append(f"exit codes {codes}, {finding.at_work[-1]} at work, touched: {touched}")


def _new(folder: Path, job: Job, *, begun: bool) -> Path:
    """Return the path of an output that is not there yet, or of which two blocks are done."""
    out = folder / "out.zarr"
    remove_run(out)
    if begun:
        with stopped_after(2):
            run_here(*job.segment(out, *HERE, "-q"))
    return out


def _state(out: Path) -> dict[str, tuple[object, ...]]:
    """Return inode, times and bytes of every file and directory of an output and its run."""
    paths = [path for folder in (out, run_folder(out)) for path in (folder, *folder.rglob("*"))]
    stats = {path: path.stat() for path in paths}
    return {
        str(path): (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, path.read_bytes() if path.is_file() else None)
        for path, stat in stats.items()
    }


@contextmanager
def _clients(clients: list[tuple[str, list[str]]]) -> Iterator[Path]:
    """Start clients, each of which waits for a file of its gate's name in the folder that is given."""
    with tempfile.TemporaryDirectory() as name, started([sys.executable, "-c", CLIENTS, name, json.dumps(clients)]):
        _wait((Path(name) / "ready").exists)
        yield Path(name)


def _codes(gate: Path) -> list[int]:
    return sorted(int(path.read_text()) for path in gate.glob("code-*"))


def _end(gate: Path, finding: Finding, *, n_clients: int) -> list[int]:
    """Let the one at work do its work; return all exit codes."""
    finding.at_work.append(len(list(gate.glob("at-work-*"))))
    (gate / "go-on").touch()
    _wait(lambda: len(_codes(gate)) == n_clients)
    return _codes(gate)


def _wait(done: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "this should not take so long"
        time.sleep(0.01)


def attack(folder: Path, *, n_rounds: int, n_clients: int) -> list[Finding]:
    """Make all attacks, some rounds of each."""
    job = make_job(folder / "job", height=100, width=170)
    expected = reference(job)
    n_all = 2 * n_clients - 1
    findings = {
        "first": Finding(attack=f"{n_all} clients begin an output"),
        "resume": Finding(attack=f"{n_all} clients resume an output"),
        "overwrite": Finding(attack=f"a client overwrites an output that {n_clients - 1} others resume"),
        "orphan": Finding(attack="an orphan goes on after --overwrite with other settings"),
    }
    for _ in range(n_rounds):
        race(job, folder, expected, findings["first"], n_clients=n_clients, begun=False)
        race(job, folder, expected, findings["resume"], n_clients=n_clients, begun=True)
        overwrite_race(job, folder, expected, findings["overwrite"], n_clients=n_clients)
        orphan(job, folder, findings["orphan"], option=("--overlap", "32"))
    return list(findings.values())


def main(options: argparse.Namespace) -> int:
    """Attack, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        findings = attack(Path(folder), n_rounds=1 if options.quick else 10, n_clients=8)
    publish(options, name="concurrency", columns=COLUMNS, rows=[finding.row() for finding in findings])
    broken = [f"{finding.attack}: {text}" for finding in findings for text in finding.broken]
    print("\n".join(broken), file=sys.stderr)  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="concurrency.py").parse_args()))
