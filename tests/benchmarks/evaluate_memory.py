"""Measure the peak memory and the time of `atrous evaluate` on a large raster and on a part of it with a sixteenth of its pixels.

    python tests/benchmarks/evaluate_memory.py WORLD.tif [--side 25600]

WORLD is compared with itself. Then comes a scene that is made for it, ``--side`` px on a side, eight classes in small squares, a fifth of
the pixels wrong. Prints one row for each: pixels, those that were counted, wall time, highest resident memory of the process, mean IoU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

_STEP_PX = 1024
_N_CLASSES = 8
_SQUARE_PX = 32


class Measured(NamedTuple):
    """What one evaluation took."""

    n_pixels: int
    n_counted: int
    seconds: float
    peak_bytes: int
    mean_iou: float


def measure(predicted: Path, labels: Path) -> Measured:
    """Run `atrous evaluate` in a process of its own."""
    command = [sys.executable, "-m", "cli", "evaluate", str(predicted), str(labels), "--json", "-q"]
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        output.seek(0)
        found = json.loads(output.read())["all"]
    return Measured(found["n_pixels"], found["n_counted"], seconds, usage.ru_maxrss * 1024, found["mean_iou"])


def cut(source: Path, target: Path, *, share: float = 0.25) -> Path:
    """Write the middle of ``source``, ``share`` of its height and width."""
    with rasterio.open(source) as read:
        height, width = int(read.height * share), int(read.width * share)
        row_off, col_off = (read.height - height) // 2, (read.width - width) // 2
        profile = read.profile | {"height": height, "width": width}
        with rasterio.open(target, "w", **profile) as write:
            for row in range(0, height, _STEP_PX):
                n_rows = min(_STEP_PX, height - row)
                pixels = read.read(window=Window(col_off, row_off + row, width, n_rows))
                write.write(pixels, window=Window(0, row, width, n_rows))
    return target


def make(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a prediction and labels of ``side`` x ``side`` px."""
    generator = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1, "nodata": 255}
    paths = folder / f"predicted-{side}.tif", folder / f"labels-{side}.tif"
    with rasterio.open(paths[0], "w", **profile) as predicted, rasterio.open(paths[1], "w", **profile) as labels:
        for row in range(0, side, _STEP_PX):
            squares = generator.integers(0, _N_CLASSES, (_STEP_PX // _SQUARE_PX, -(-side // _SQUARE_PX)), dtype=np.uint8)
            true = squares.repeat(_SQUARE_PX, 0).repeat(_SQUARE_PX, 1)[: side - row, :side]
            guess = np.where(generator.random(true.shape, np.float32) < 0.2, (true + 1) % _N_CLASSES, true).astype(np.uint8)
            window = Window(0, row, side, true.shape[0])
            labels.write(true[None], window=window)
            predicted.write(guess[None], window=window)
    return paths


def show(name: str, found: Measured) -> None:
    """Print a row."""
    sys.stdout.write(
        f"{name:<16} {found.n_pixels / 1e6:>8.1f} {found.n_counted / 1e6:>12.1f} {found.seconds:>7.1f} "
        f"{found.peak_bytes >> 20:>9} {found.mean_iou:>8.4f}\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("world", type=Path)
    parser.add_argument("--side", type=int, default=25_600, help="Of the scene that is made, px.")
    arguments = parser.parse_args()
    sys.stdout.write(f"{'scene':<16} {'Mpx':>8} {'counted Mpx':>12} {'wall s':>7} {'peak MiB':>9} {'mIoU':>8}\n")
    with tempfile.TemporaryDirectory() as folder:
        part = cut(arguments.world, Path(folder) / "part.tif")
        show("part of world", measure(part, part))
        show("world", measure(arguments.world, arguments.world))
        for name, side in (("made, part", arguments.side // 4), ("made", arguments.side)):
            show(name, measure(*make(Path(folder), side)))


if __name__ == "__main__":
    main()
