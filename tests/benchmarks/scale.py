"""Measure what a block costs the coordinator, and whether its memory stays flat: a scene of many blocks, and no work in them.

    python tests/benchmarks/scale.py [--blocks 1000000] [--workers 2] [--only-resume]

The coordinator is the real one: plan, Dask cluster with worker processes, journal with fsync, ledger, progress. The workers do nothing.
Then the journal is cut to its first half, empty chunk files are put where it says so, and a fresh process resumes: the time from its
start until it hands out the first block. At last ``atrous status``. Prints a table in Markdown. With ``--only-resume`` the blocks are not
run, which takes most of the time: the journal's first half is written with the receipts that they would have given.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import noop_block
import psutil
import rasterio
from rich.console import Console

from pipeline.engine.protocol import EngineSpec
from pipeline.grid import Blocks
from pipeline.spec import GridSpec, OutputSpec
from workflows import dask_executor, segment_scene
from workflows.events import BlockReceipt, Event, RunStarted
from workflows.journal import Journal
from workflows.local_workers import ClusterSpec
from workflows.prepare import Request
from workflows.progress import ProgressView
from workflows.run_state import RunPaths, read_record
from workflows.segment_scene import Execution, resume, segment

BLOCK_PX = 16
SAMPLE_S = 0.5
POLL_S = 0.05
BATCH = 1000
"""Receipts that are synced together."""
MIB = 2**20


class FirstBlockError(Exception):
    """Raised to stop a run where it would hand out its first block."""


def stop_at_start(event: Event) -> None:
    """Stop a run where it would hand out its first block."""
    if isinstance(event, RunStarted):
        raise FirstBlockError


@dataclass
class Watch:
    """What was seen of the run, by a thread that looks at this process twice a second."""

    n_blocks: int = 0
    journal_s: float = 0.0
    n_syncs: int = 0
    started_s: float = 0.0
    cpu_s: float = 0.0
    samples: list[tuple[int, int]] = field(default_factory=list)

    def listen(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.started_s, self.cpu_s = time.perf_counter(), time.process_time()
        self.n_blocks += isinstance(event, BlockReceipt)

    def sample(self, ended: threading.Event) -> None:
        process = psutil.Process()
        while not ended.wait(SAMPLE_S):
            self.samples.append((self.n_blocks, process.memory_info().rss))

    def rss_at(self, share: float) -> float:
        """Return the resident memory when so many of the blocks were through, MiB."""
        wanted = share * self.n_blocks
        return min(self.samples, key=lambda sample: abs(sample[0] - wanted))[1] / MIB


def timed_journal(watch: Watch) -> type[segment_scene.Journal]:
    """Return the journal, with a clock."""

    class Timed(segment_scene.Journal):
        def append(self, *outcomes: object) -> None:
            started = time.perf_counter()
            super().append(*outcomes)
            watch.journal_s += time.perf_counter() - started
            watch.n_syncs += 1

    return Timed


def write_scene(path: Path, n_blocks: int) -> tuple[int, int]:
    """Write an empty sparse GeoTIFF of at least so many blocks; return their (rows, columns)."""
    cols = math.isqrt(n_blocks - 1) + 1
    rows = -(-n_blocks // cols)
    shape = {"height": rows * BLOCK_PX, "width": cols * BLOCK_PX, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, tiled=True, blockxsize=512, blockysize=512, **shape):
        pass
    return rows, cols


def execution(workers: int) -> Execution:
    """Return two real worker processes."""
    return Execution(engine=EngineSpec(device="cpu"), cluster=ClusterSpec(n_workers=workers, threads=1))


def measure_run(scene: Path, out: Path, workers: int) -> list[tuple[str, str]]:
    """Run all blocks; return rows of the table."""
    watch, ended = Watch(), threading.Event()
    dask_executor.run_task = noop_block.noop_task
    segment_scene.Journal = timed_journal(watch)
    view = ProgressView(Console(stderr=True))

    def listen(event: Event) -> None:
        watch.listen(event)
        view(event)

    sampler = threading.Thread(target=watch.sample, args=(ended,))
    sampler.start()
    try:
        with view:
            summary = segment(request_of(scene), out, execution(workers), listen)
    finally:
        ended.set()
        sampler.join()
    seconds, cpu_s = time.perf_counter() - watch.started_s, time.process_time() - watch.cpu_s
    assert summary.succeeded
    n = summary.n_blocks
    return [
        ("blocks", f"{n:,}"),
        ("blocks per second", f"{n / seconds:.0f}"),
        ("a block takes", f"{1e3 * seconds / n:.2f} ms"),
        ("of it the coordinator's CPU", f"{1e3 * cpu_s / n:.2f} ms"),
        ("of it journal, synced", f"{1e3 * watch.journal_s / n:.2f} ms"),
        ("lines per fsync", f"{n / watch.n_syncs:.1f}"),
        *((f"memory at {share:.0%}", f"{watch.rss_at(share):.0f} MiB") for share in (0.1, 0.5, 1)),
        ("highest memory", f"{max(rss for _, rss in watch.samples) / MIB:.0f} MiB"),
    ]


def request_of(scene: Path) -> Request:
    """Return what is run: small blocks with one chunk each."""
    return Request(
        scene=str(scene),
        grid=GridSpec(window_px=64, overlap_px=16, block_px=BLOCK_PX),
        output=OutputSpec(chunk_px=BLOCK_PX),
    )


def write_journal(scene: Path, out: Path, workers: int) -> None:
    """Begin the run, end it before its first block, and write the receipts of all blocks."""
    with contextlib.suppress(FirstBlockError):
        segment(request_of(scene), out, execution(workers), stop_at_start)
    paths = RunPaths(out=out)
    record = read_record(paths)
    blocks = Blocks(shape=(record.scene["height"], record.scene["width"]), block_px=BLOCK_PX)
    with Journal(paths.journal, run_id=record.run_id) as journal:
        left = iter(blocks)
        while some := list(itertools.islice(left, BATCH)):
            journal.append(*(noop_block.noop_task("", index, 1) for index in some))


def halve_journal(out: Path) -> int:
    """Keep the first half of the lines, and put the files there that they name; return their number."""
    paths = RunPaths(out=out)
    lines = paths.journal.read_bytes().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    paths.journal.write_bytes(b"".join(kept))
    made = set()
    for line in kept:
        for key, _, _ in json.loads(line)["chunks"]:
            folder = out / key.rpartition("/")[0]
            if folder not in made:
                folder.mkdir(parents=True, exist_ok=True)
                made.add(folder)
            os.close(os.open(out / key, os.O_CREAT | os.O_WRONLY))
    return len(kept)


def probe(out: Path, workers: int, begun_s: float) -> None:
    """Resume, and print the seconds from ``begun_s`` until all is ready for the first block, and what was finished before."""

    def listen(event: Event) -> None:
        if isinstance(event, RunStarted):
            sys.stdout.write(f"{time.time() - begun_s} {event.n_finished}\n")
        stop_at_start(event)

    try:
        resume(out, execution(workers), listen)
    except FirstBlockError:
        return


def measure_command(words: list[str]) -> tuple[float, float, str]:
    """Run a command; return (wall time in s, peak memory in MiB, what it printed)."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(POLL_S)
        assert process.returncode == 0
        assert process.stdout is not None
        return time.perf_counter() - started, peak / MIB, process.stdout.read()


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-resume", action="store_true", help="Do not run the blocks.")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        probe(arguments.probe, arguments.workers, arguments.begun)
        return
    with tempfile.TemporaryDirectory() as folder:
        scene, out = Path(folder) / "scene.tif", Path(folder) / "out.zarr"
        write_scene(scene, arguments.blocks)
        rows = []
        if arguments.only_resume:
            write_journal(scene, out, arguments.workers)
        else:
            rows = measure_run(scene, out, arguments.workers)
        status_s, status_mib, _ = measure_command(["-m", "cli", "status", str(out), "--json"])
        n_kept = halve_journal(out)
        words = [__file__, "--probe", str(out), "--workers", str(arguments.workers), "--begun", str(time.time())]
        _, resume_mib, printed = measure_command(words)
        seconds, n_finished = printed.split()
        assert int(n_finished) == n_kept, f"{n_finished} blocks were taken as finished, {n_kept} are"
    rows += [
        ("`atrous status`, all done", f"{status_s:.1f} s, {status_mib:.0f} MiB"),
        ("resume, half done: until the first block", f"{float(seconds):.1f} s, {resume_mib:.0f} MiB"),
    ]
    sys.stdout.write("| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows))


if __name__ == "__main__":
    main()
