"""How would a job scale over more workers than this machine has? Measured from one worker to two, simulated from there.

    python tests/benchmarks/scaling.py [--coordinator-ms 1.0] [--chart docs/img/scaling.png]

Measured here: every stage of every block with one worker and with two, of one thread each; the bytes of a block; what storage takes when
every file is synced. ``scale.py`` measures what a block costs the coordinator. The model has three kinds of servers, each with a queue that
is first come, first served::

    coordinator (one) -> storage: read (one) -> compute (one per worker) -> storage: write (one) -> coordinator ...

A worker has two blocks at a time: one computes, the other reads, writes or waits. Blocks take the measured times, drawn with a fixed seed.
What the model leaves out: workers on one machine share its memory bandwidth, workers start at different times, and workers fail.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from compose_scene import compose

from pipeline.chart import BLUE, GREY, INK, ORANGE, Panel, Series, draw_chart
from pipeline.engine.protocol import EngineSpec
from pipeline.grid import BLOCKS_AT_ONCE
from pipeline.spec import GridSpec, OutputSpec
from workflows.crf_request import CrfRequest
from workflows.local_workers import ClusterSpec
from workflows.prepare import Request
from workflows.run_state import RunPaths
from workflows.segment_scene import Execution, segment

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STRONG_GPX = (1, 10, 100)
WEAK_BLOCKS = 64
"""Blocks per worker, where the scene grows with the workers."""
SYNCED_FILES, SYNCED_BYTES = 64, 2**20
PIXEL_BYTES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a block takes."""

    compute_s: tuple[float, ...]
    """Network, CRF and labels of each measured block, s."""
    read_bytes: float
    """Read from storage, halo included."""
    write_bytes: float
    """Written to storage."""
    storage_bytes_per_s: float
    """Of the storage that all workers share."""
    coordinator_s: float
    """Time of the coordinator: hand out, take in, journal."""
    block_px: int
    """Side, px."""

    @property
    def ideal_s(self) -> float:
        """Mean time of a block on a worker that waits for nobody."""
        return float(np.mean(self.compute_s))


def simulate(costs: Costs, *, n_workers: int, n_blocks: int, seed: int = 0) -> tuple[float, float]:
    """Return the seconds that so many workers take for so many blocks, and the share of that time in which they compute."""
    compute_s = np.random.default_rng(seed).choice(costs.compute_s, n_blocks).tolist()
    total_s = sum(compute_s)
    read_s, write_s = (n / costs.storage_bytes_per_s for n in (costs.read_bytes, costs.write_bytes))
    coordinator, storage, workers = 0.0, 0.0, [0.0] * n_workers
    events = [(0.0, slot, 0) for slot in range(min(n_blocks, BLOCKS_AT_ONCE * n_workers))]  # (when, slot, stage that comes)
    n_begun, ended = 0, 0.0
    while events:
        now, slot, stage = heapq.heappop(events)
        worker = slot % n_workers
        if stage == 0:
            if n_begun == n_blocks:
                continue
            n_begun += 1
            coordinator = now = max(now, coordinator) + costs.coordinator_s
        elif stage == 2:
            workers[worker] = now = max(now, workers[worker]) + compute_s.pop()
        else:
            storage = now = max(now, storage) + (read_s if stage == 1 else write_s)
            ended = max(ended, now)
        heapq.heappush(events, (now, slot, (stage + 1) % 4))
    return ended, total_s / (n_workers * ended)


def strong(costs: Costs, gpx: float) -> list[tuple[int, float]]:
    """Return (workers, speed over one worker) for a scene of that size."""
    n_blocks = math.ceil(gpx * 1e9 / costs.block_px**2)
    one, _ = simulate(costs, n_workers=1, n_blocks=n_blocks)
    return [(n, one / simulate(costs, n_workers=n, n_blocks=n_blocks)[0]) for n in WORKERS]


def weak(costs: Costs) -> list[tuple[int, float]]:
    """Return (workers, share of the time in which they compute) where each has the same number of blocks."""
    return [(n, simulate(costs, n_workers=n, n_blocks=n * WEAK_BLOCKS)[1]) for n in WORKERS]


def measure(scene: Path, folder: Path, *, n_workers: int, block_px: int) -> tuple[float, list[dict[str, float]], float]:
    """Segment ``scene``; return (seconds over which blocks ended, stages of every block, bytes that a block writes)."""
    out = folder / f"{n_workers}.zarr"
    cluster = ClusterSpec(n_workers=n_workers, threads=1)
    output = OutputSpec(chunk_px=min(block_px, OutputSpec().chunk_px))
    request = Request(scene=str(scene), grid=GridSpec(block_px=block_px), crf=CrfRequest(), output=output)
    assert segment(request, out, Execution(engine=EngineSpec(device="cpu"), cluster=cluster)).succeeded
    lines = [json.loads(line) for line in RunPaths(out=out).journal.read_text().splitlines()]
    # The first block of each worker also compiles and warms up: what counts is the time from the end of these to the end of the last.
    ends = sorted(line["time_s"] for line in lines)
    per_block = (ends[-1] - ends[n_workers - 1]) / (len(ends) - n_workers)
    n_bytes = np.mean([sum(chunk[1] for chunk in line["chunks"]) for line in lines])
    return per_block, [line["stage_s"] for line in lines[n_workers:]], float(n_bytes)


def measure_storage(folder: Path) -> float:
    """Return bytes per second of small files, each synced as chunks are."""
    piece = os.urandom(SYNCED_BYTES)
    started = time.perf_counter()
    for i in range(SYNCED_FILES):
        with (folder / f"piece-{i}").open("wb") as file:
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    return SYNCED_FILES * SYNCED_BYTES / (time.perf_counter() - started)


def measure_costs(scene: Path, side_px: int, block_px: int, coordinator_s: float) -> tuple[Costs, float]:
    """Return the costs, and the speed of two workers here over one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "scene.tif"
        compose(scene, path, height=side_px, width=side_px)
        one_s, stages, n_bytes = measure(path, folder, n_workers=1, block_px=block_px)
        two_s, _, _ = measure(path, folder, n_workers=2, block_px=block_px)
        bandwidth = measure_storage(folder)
    compute = tuple(sum(stage_s.get(name, 0.0) for name in ("network", "recall", "crf", "label")) for stage_s in stages)
    halo = GridSpec().overlap_px
    costs = Costs(
        compute_s=compute,
        read_bytes=PIXEL_BYTES * (block_px + 2 * halo) ** 2,
        write_bytes=n_bytes,
        storage_bytes_per_s=bandwidth,
        coordinator_s=coordinator_s,
        block_px=block_px,
    )
    sys.stdout.write(
        f"a block of {block_px} px: {one_s:.2f} s with one worker, {two_s:.2f} s with two: {one_s / two_s:.2f} times as fast; "
        f"of it computing {costs.ideal_s:.2f} s\n"
        f"reads {costs.read_bytes / 1e6:.1f} MB, writes {n_bytes / 1e6:.2f} MB; storage {bandwidth / 1e6:.0f} MB/s with a sync per MiB; "
        f"coordinator {1e3 * coordinator_s:.2f} ms per block\n"
    )
    return costs, one_s / two_s


def write_chart(costs: Costs, measured: float, path: Path) -> None:
    """Draw speed and efficiency over the workers."""

    def on_log(points: list[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
        return tuple((math.log10(n), value) for n, value in points)

    scenes = zip(STRONG_GPX, (ORANGE, BLUE, INK), strict=True)
    speed = [
        Series(points=tuple((x, math.log10(y)) for x, y in on_log(strong(costs, gpx))), name=f"{gpx} Gpx", colour=colour)
        for gpx, colour in scenes
    ]
    ideal = Series(points=((0.0, 0.0), (3.0, 3.0)), name="", colour=GREY, dots=False)
    here = Series(points=((0.0, 0.0), (math.log10(2), math.log10(measured))), name="measured", colour=GREY)
    storages = ((0.1, ORANGE), (1, BLUE), (10, INK))
    efficiency = [
        Series(
            points=tuple((x, 100 * y) for x, y in on_log(weak(replace(costs, storage_bytes_per_s=rate * 1e9)))),
            name=f"{rate} GB/s",
            colour=colour,
        )
        for rate, colour in storages
    ]
    panels = [
        Panel(title="times as fast, 10^", x_label="10^ workers", series=(ideal, *speed, here)),
        Panel(title="efficiency, %", x_label=f"10^ workers, {WEAK_BLOCKS} blocks each", series=tuple(efficiency)),
    ]
    draw_chart(panels).save(path)


def write_table(costs: Costs) -> None:
    """Print speeds and efficiencies."""
    strongs = [dict(strong(costs, gpx)) for gpx in STRONG_GPX]
    rates = (costs.storage_bytes_per_s, 1e9, 10e9)
    weaks = [dict(weak(replace(costs, storage_bytes_per_s=rate))) for rate in rates]
    heads = [f"{gpx} Gpx" for gpx in STRONG_GPX] + [f"{rate / 1e9:.1f} GB/s" for rate in rates]
    sys.stdout.write(f"| workers | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}\n")
    for n in WORKERS:
        cells = [f"{table[n]:.1f}" for table in strongs] + [f"{table[n]:.0%}".replace("%", " %") for table in weaks]
        sys.stdout.write(f"| {n} | {' | '.join(cells)} |\n")


def main() -> None:
    """Measure, simulate, print and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", type=Path, default=Path("examples/dubai-tile2.tif"))
    parser.add_argument("--side", type=int, default=3072, help="Side of the scene that is measured, px.")
    parser.add_argument("--block", type=int, default=1024, help="Side of a block, px.")
    parser.add_argument("--coordinator-ms", type=float, default=1.0, help="Coordinator's time per block, from scale.py.")
    parser.add_argument("--storage-mb-s", type=float, help="Bandwidth of the shared storage; default: as measured here.")
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    costs, measured = measure_costs(arguments.scene, arguments.side, arguments.block, arguments.coordinator_ms / 1e3)
    if arguments.storage_mb_s:
        costs = replace(costs, storage_bytes_per_s=arguments.storage_mb_s * 1e6)
    write_table(costs)
    if arguments.chart:
        write_chart(costs, measured, arguments.chart)


if __name__ == "__main__":
    main()
