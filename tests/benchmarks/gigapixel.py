"""Does a scene of a gigapixel go through, killed once in the middle, in flat memory, and is the output sound?

    python tests/benchmarks/gigapixel.py --side 32768 --data /work/shared/data/dubai --folder DIR [--png memory.png] [--csv memory.csv]
                                         [-- further options of atrous segment, --crf by default]

The scene is composed of pieces of real tiles, or of mirrored copies of the sample scene where ``--data`` is left out. ``atrous segment`` is
killed with all its processes (SIGKILL) as soon as half of the blocks are in the journal, ``atrous resume`` goes on, ``atrous verify``
checks the output. Prints a table, and keeps the memory of coordinator and workers over time as CSV and as a chart.

A piece of the scene of 33 Mpx is segmented before, so that the memory of a small and a large run can be compared within one run. Memory
follows detail as well (the CRF's vertices), so it is the piece that has the scene's CRF tile of most detail.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from compose_scene import busiest, compose, compose_mosaic, cut
from rasterio.errors import NotGeoreferencedWarning
from watch import Watched, checked, watch

import cli
from pipeline.chart import BLUE, GREY, ORANGE, Panel, Series, draw_chart
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from watch import Look

ATROUS = [sys.executable, "-m", "cli"]
EXIT_USAGE = 2
MIB = 2**20
PIECE_SHAPE = (4096, 8192)
"""Of the piece that is segmented for comparison, px."""
TILE_PX = 2048
"""Side of a CRF tile."""
MOST_POINTS = 2000
"""Of a line in the chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One look at one of the two runs."""

    part: str
    """``segment`` or ``resume``."""
    seconds: float
    """Of both runs together so far."""
    look: Look
    """Memory."""
    n_blocks: int
    """Lines in the journal."""


class Curve:
    """Memory and progress over both runs."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self.moments: list[Moment] = []
        self._before_s = 0.0

    def watch(self, part: str, words: list[str], *, kill_at: int | None = None) -> Watched:
        """Run a command and note every look; kill it once the journal has ``kill_at`` blocks."""

        def note(look: Look) -> bool:
            n_blocks = count_lines(self._journal)
            moment = Moment(part=part, seconds=self._before_s + look.seconds, look=look, n_blocks=n_blocks)
            self.moments.append(moment)
            return kill_at is not None and n_blocks >= kill_at

        done = watch(words, poll_s=3.0, stop_when=note)
        self._before_s += done.seconds
        return done

    def write_csv(self, path: Path) -> None:
        """Write one line a look."""
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["part", "seconds", "blocks", "coordinator_mib", "largest_worker_mib", "workers", "all_mib"])
            for one in self.moments:
                largest = max(one.look.worker_bytes, default=0)
                sizes = (one.look.coordinator_bytes, largest, one.look.total_bytes)
                coordinator, worker, total = (f"{size / MIB:.1f}" for size in sizes)
                rows.writerow(
                    [one.part, f"{one.seconds:.1f}", one.n_blocks, coordinator, worker, len(one.look.worker_bytes), total]
                )

    def write_png(self, path: Path) -> None:
        """Draw memory and progress over time."""
        memory = (
            self._line("all", GREY, lambda look: look.total_bytes),
            self._line("largest worker", BLUE, lambda look: max(look.worker_bytes, default=0)),
            self._line("coordinator", ORANGE, lambda look: look.coordinator_bytes),
        )
        done = tuple((one.seconds / 60, float(one.n_blocks)) for one in self._thinned())
        panels = [
            Panel(title="memory, GiB", x_label="minutes", series=memory),
            Panel(title="blocks finished", x_label="minutes", series=(Series(points=done, dots=False),)),
        ]
        draw_chart(panels).save(path, format="PNG", optimize=True)

    def _line(self, name: str, colour: tuple[int, int, int], size: Callable[[Look], int]) -> Series:
        points = tuple((one.seconds / 60, size(one.look) / 2**30) for one in self._thinned())
        return Series(points=points, colour=colour, name=name, dots=False)

    def _thinned(self) -> list[Moment]:
        return self.moments[:: 1 + len(self.moments) // MOST_POINTS]

    def growth(self) -> str:
        """Tell whether memory is flat: the highest size of all processes in the second tenth of the time, and in the last."""
        end = self.moments[-1].seconds
        second = [one.look.total_bytes for one in self.moments if 0.1 * end <= one.seconds < 0.2 * end]
        last = [one.look.total_bytes for one in self.moments if one.seconds >= 0.9 * end]
        if not second or not last:
            return "too short to tell"
        return f"{max(second) / MIB:.0f} MiB in the second tenth of the time, {max(last) / MIB:.0f} MiB in the last"


def count_lines(journal: Path) -> int:
    """Return how many lines the journal has."""
    try:
        with journal.open("rb") as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def segment_piece(scene: Path, options: list[str], folder: Path) -> Watched:
    """Segment the piece of the scene that has its busiest tile."""
    piece, tile = folder / "piece.tif", busiest(scene, TILE_PX)
    rows, cols = (start // size * size for start, size in zip((tile.row_off, tile.col_off), PIECE_SHAPE, strict=True))
    cut(scene, piece, Window(row_off=rows, col_off=cols, height=PIECE_SHAPE[0], width=PIECE_SHAPE[1]))
    words = [*ATROUS, "segment", str(piece), str(folder / "piece.zarr"), "--quiet", *options]
    return checked(watch(words), words)


def compose_square(given: argparse.Namespace, scene: Path) -> float:
    """Write the scene; return the seconds that took."""
    started = time.perf_counter()
    if given.data:
        compose_mosaic(given.data, scene, height=given.side, width=given.side)
    else:
        compose(Path("examples/dubai-tile2.tif"), scene, height=given.side, width=given.side)
    return time.perf_counter() - started


def plan_of(scene: Path, options: list[str]) -> dict[str, Any]:
    """Return what ``atrous plan`` says."""
    plan: dict[str, Any] = json.loads(
        subprocess.run([*ATROUS, "plan", str(scene), "--json", *options], check=True, capture_output=True).stdout
    )
    return plan


def verify(out: Path) -> str:
    """Return what ``atrous verify`` says of the output."""
    started = time.perf_counter()
    done = subprocess.run([*ATROUS, "verify", str(out)], check=False, capture_output=True, text=True)
    if done.returncode == EXIT_USAGE and "No such command" in done.stderr:
        return "not checked: this version has no command verify"
    seconds = time.perf_counter() - started
    said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
    return f"exit code {done.returncode}, in {seconds:.1f} s: {said}"


def execution(options: list[str]) -> list[str]:
    """Return those of the options that ``atrous resume`` knows too, each with its value."""
    known = {
        name: bool(option.is_flag) for option in cli.resume.params for name in option.opts if isinstance(option, click.Option)
    }
    pairs = zip(options, [*options[1:], ""], strict=True)
    return [word for name, value in pairs if name in known for word in ([name] if known[name] else [name, value])]


def measure(given: argparse.Namespace, folder: Path) -> tuple[list[tuple[str, str]], Curve]:
    """Compose, segment, kill, resume, verify; return the table and the curve."""
    scene, out, options = folder / "scene.tif", folder / "out.zarr", given.options or ["--crf"]
    journal = folder / "out.zarr.run" / "journal.jsonl"
    composed_s = compose_square(given, scene)
    small = segment_piece(scene, options, folder) if given.side > max(PIECE_SHAPE) else None
    plan, curve = plan_of(scene, options), Curve(journal)
    n_blocks, n_workers = plan["n_blocks"], plan["workers"]["n"]
    words = [*ATROUS, "segment", str(scene), str(out), "--quiet", "--json", *options]
    runs = [curve.watch("segment", words, kill_at=max(1, n_blocks // 2))]
    n_before = count_lines(journal)
    if runs[0].code == -signal.SIGKILL:
        words = [*ATROUS, "resume", str(out), "--quiet", "--json", *execution(options)]
        runs.append(curve.watch("resume", words))
    checked(runs[-1], words)
    summary = json.loads(runs[-1].stdout)
    wall_s, mpx = sum(run.seconds for run in runs), given.side**2 / 1e6
    predicted_s = plan["seconds"]["total"]
    worker_bytes, all_bytes = max(run.worker_peak_bytes for run in runs), max(run.peak_bytes for run in runs)
    again = n_before + summary["n_new"] - n_blocks if len(runs) == 2 else 0
    killed = f"after {runs[0].seconds:.0f} s" if len(runs) == 2 else "not killed: it ended first"
    rows = [
        (
            "scene",
            f"{given.side} x {given.side} px, {mpx:.0f} Mpx, {scene.stat().st_size / 1e9:.2f} GB, composed in {composed_s:.0f} s",
        ),
        ("options", " ".join(options)),
        ("workers", f"{n_workers} x {plan['workers']['threads']} thread(s)"),
        ("killed (SIGKILL, all processes)", f"{killed}, with {n_before} of {n_blocks} blocks in the journal"),
        ("finished by resume", f"{summary['n_new']} blocks" if len(runs) == 2 else "-"),
        ("blocks finished twice", str(again)),
        ("lost with the kill", f"at most {n_workers} blocks, those that were being worked on" if len(runs) == 2 else "-"),
        ("wall time of both runs", f"{wall_s:.0f} s; the plan said {predicted_s:.0f} s without a kill"),
        ("speed", f"{mpx / wall_s:.2f} Mpx/s"),
        ("peak of a worker (resident)", f"{worker_bytes / MIB:.0f} MiB"),
        ("bound of the plan for a worker", f"{plan['memory']['bytes_per_worker'] / MIB:.0f} MiB"),
        ("peak of the coordinator (resident)", f"{max(run.coordinator_peak_bytes for run in runs) / MIB:.0f} MiB"),
        ("peak of all processes (proportional)", f"{all_bytes / MIB:.0f} MiB"),
        ("growth", curve.growth()),
        *beside(small, worker_bytes, all_bytes),
        ("stages", stages(summary)),
        ("output", f"{size_of(out) / 1e9:.2f} GB"),
        ("verify", verify(out)),
    ]
    return rows, curve


def beside(small: Watched | None, worker_bytes: int, all_bytes: int) -> list[tuple[str, str]]:
    """Tell how much more memory the whole scene took than a piece of it."""
    if small is None:
        return []
    height, width = PIECE_SHAPE
    return [
        (
            f"a piece of {height} x {width} px, {height * width / 1e6:.1f} Mpx, with its busiest tile",
            f"{small.seconds:.1f} s; worker {small.worker_peak_bytes / MIB:.0f} MiB, all {small.peak_bytes / MIB:.0f} MiB",
        ),
        (
            "more memory than the piece",
            f"worker {100 * (worker_bytes / small.worker_peak_bytes - 1):+.1f} %, all {100 * (all_bytes / small.peak_bytes - 1):+.1f} %",
        ),
    ]


def stages(summary: dict[str, Any]) -> str:
    """Return the seconds of each stage over all workers, where the summary has them."""
    seconds: dict[str, float] = summary.get("stage_s") or {}
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{name} {value:.0f} s ({100 * value / total:.0f} %)" for name, value in seconds.items()) or "-"


def size_of(folder: Path) -> int:
    """Return the size of all files below a folder, bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Measure, print the table, write the curve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=4096, help="Of the scene, px.")
    parser.add_argument("--data", type=Path, help="Folder of the dubai tiles. [default: mirrored copies of the sample scene]")
    parser.add_argument("--folder", type=Path, help="Where scene and output are kept. [default: a scratch folder]")
    parser.add_argument("--csv", type=Path, help="Write the memory curve.")
    parser.add_argument("--png", type=Path, help="Draw the memory curve.")
    parser.add_argument("options", nargs="*", help="Further options of atrous segment, after --. [default: --crf]")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        rows, curve = measure(given, folder)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    sys.stdout.write(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n\n| | |\n|---|---|\n")
    sys.stdout.write("".join(f"| {name} | {value} |\n" for name, value in rows))
    if given.folder is not None:
        sys.stdout.write(f"\nscene and output are kept in {folder}\n")
    if given.csv:
        curve.write_csv(given.csv)
    if given.png:
        curve.write_png(given.png)


if __name__ == "__main__":
    main()
