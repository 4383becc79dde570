"""Does a run take as long as its network and its CRF, whatever the size of the scene, and in the same memory?

    python tests/benchmarks/end_to_end.py [--mpx 33.5,335] [--rounds 1] [-- options of atrous segment, --crf by default]

Runs ``atrous segment --json`` on composed scenes (mirrored copies of the sample scene, at most 8192 px wide) and prints one row a scene.
Network and CRF are the seconds that the workers spent in these stages (``stage_s`` of the summary), divided by the workers, so that they
can be compared with the wall time. The plan's time is ``atrous plan --json`` just before. Memory is the highest resident size (VmHWM) of
any worker and of the coordinator, and the largest proportional size of all processes. With several rounds every figure is the median.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from compose_scene import compose
from rasterio.errors import NotGeoreferencedWarning
from watch import checked, watch

ATROUS = [sys.executable, "-m", "cli"]
WIDEST_PX = 8192
COLUMNS = [
    "Mpx",
    "wall s",
    "network s",
    "CRF s",
    "wall / (network + CRF)",
    "Mpx/s",
    "plan s",
    "plan / wall",
    "worker peak MiB",
    "plan's bound MiB",
    "coordinator peak MiB",
    "all processes MiB",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run; None where the summary does not say."""

    mpx: float
    """Pixels of the scene, millions."""
    wall_s: float
    """From the start of Python to its end."""
    network_s: float | None
    """In the network, per worker."""
    crf_s: float | None
    """In the CRF, per worker."""
    times: float | None
    """Wall time over network and CRF."""
    mpx_per_s: float
    """Of the wall time."""
    plan_s: float
    """What the plan said."""
    plan_times: float
    """The plan's time over the wall time."""
    worker_mib: float
    """Peak of any worker."""
    bound_mib: float
    """What the plan said a worker needs at most."""
    coordinator_mib: float
    """Peak of the coordinator."""
    total_mib: float
    """Peak of all processes together."""


def shape_of(mpx: float) -> tuple[int, int]:
    """Return (height, width) of a scene of so many millions of pixels: twice as wide as high, never wider than 8192 px."""
    width = min(WIDEST_PX, 2 * math.isqrt(int(mpx * 1e6 / 2)))
    return round(mpx * 1e6 / width), width


def run(scene: Path, options: list[str], folder: str | None) -> Row:
    """Plan and segment one scene."""
    plan = json.loads(subprocess.run([*ATROUS, "plan", str(scene), "--json", *options], check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = [*ATROUS, "segment", str(scene), f"{out}/out.zarr", "--json", "--quiet", *options]
        done = checked(watch(words), words)
    summary = json.loads(done.stdout)
    mpx, plan_s = summary["n_pixels"] / 1e6, plan["seconds"]["total"]
    network_s, crf_s = (_stage(summary, plan, name) for name in ("network", "crf"))
    busy_s = None if network_s is None else network_s + (crf_s or 0.0)
    return Row(
        mpx=mpx,
        wall_s=done.seconds,
        network_s=network_s,
        crf_s=crf_s,
        times=done.seconds / busy_s if busy_s else None,
        mpx_per_s=mpx / done.seconds,
        plan_s=plan_s,
        plan_times=plan_s / done.seconds,
        worker_mib=done.worker_peak_bytes / 2**20,
        bound_mib=plan["memory"]["bytes_per_worker"] / 2**20,
        coordinator_mib=done.coordinator_peak_bytes / 2**20,
        total_mib=done.peak_bytes / 2**20,
    )


def _stage(summary: dict[str, Any], plan: dict[str, Any], name: str) -> float | None:
    """Return the seconds of a stage per worker; None where the summary has no stages."""
    seconds = (summary.get("stage_s") or {}).get(name)
    return None if seconds is None else seconds / plan["workers"]["n"]


def median(rows: list[Row]) -> list[float | None]:
    """Return the medians of several runs, column by column."""
    columns = zip(*(astuple(row) for row in rows), strict=True)
    return [None if None in column else statistics.median(column) for column in columns]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpx", default="2,8", help="Sizes of the scenes, millions of pixels.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scene", type=Path, default=Path("examples/dubai-tile2.tif"), help="What the scenes are composed of.")
    parser.add_argument("--folder", help="Where scratch files go. [default: the system's]")
    parser.add_argument("options", nargs="*", help="Further options of atrous segment, after --. [default: --crf]")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    sizes, options = [float(size) for size in given.mpx.split(",")], given.options or ["--crf"]
    sys.stdout.write(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {' '.join(options)}\n\n")
    rows: dict[float, list[Row]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        scenes = {size: Path(folder) / f"scene-{size:g}.tif" for size in sizes}
        for size, scene in scenes.items():
            height, width = shape_of(size)
            compose(given.scene, scene, height=height, width=width)
        for _ in range(given.rounds):
            for size, scene in scenes.items():
                rows[size].append(run(scene, options, given.folder))
                sys.stderr.write(f"{rows[size][-1]}\n")
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    for runs in rows.values():
        cells = ["-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in median(runs)]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
