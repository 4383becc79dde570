"""Measure the peak memory of a worker against the bound of the plan, on a scene and on one ten times as large.

    python tests/benchmarks/memory.py [--scene examples/dubai-tile2.tif] [--pixels 33.5] [--crf]

Prints one row per scene: pixels, the plan's bound, the highest resident memory of any worker process, their ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from compose_scene import compose
from watch import is_worker

POLL_S = 0.2


def peak_worker_bytes(words: list[str]) -> int:
    """Run a command and return the highest peak resident memory (VmHWM) among its worker processes, bytes."""
    peak = 0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max([peak, *(_high_water_bytes(child) for child in _workers(process.pid))])
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def _workers(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if is_worker(child)]
    except psutil.Error:
        return []


def _high_water_bytes(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def measure(scene: Path, more: list[str]) -> tuple[int, int]:
    """Return (the plan's bound, the measured peak) of one worker, bytes."""
    atrous = [sys.executable, "-m", "cli"]
    options = ["--workers", "2", "--threads", "1", *more]
    plan = subprocess.run([*atrous, "plan", str(scene), "--json", *options], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        peak = peak_worker_bytes([*atrous, "segment", str(scene), f"{folder}/out.zarr", *options, "-q"])
    return int(json.loads(plan.stdout)["memory"]["bytes_per_worker"]), peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", type=Path, default=Path("examples/dubai-tile2.tif"))
    parser.add_argument("--pixels", type=float, default=33.5, help="Size of the smaller scene, Mpx.")
    parser.add_argument("options", nargs="*", help="Further options of atrous segment, after --.")
    arguments = parser.parse_args()
    side = math.isqrt(int(arguments.pixels * 1e6 / 2))
    sys.stdout.write(f"{'scene':>18} {'Mpx':>8} {'bound MiB':>10} {'peak MiB':>10} {'bound/peak':>11}\n")
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            scene = Path(folder) / f"scene-{times}.tif"
            height = side * times
            compose(arguments.scene, scene, height=height, width=2 * side)
            bound, peak = measure(scene, arguments.options)
            mpx = height * 2 * side / 1e6
            sys.stdout.write(f"{2 * side:>9}x{height:<8} {mpx:>8.1f} {bound >> 20:>10} {peak >> 20:>10} {bound / peak:>11.2f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
