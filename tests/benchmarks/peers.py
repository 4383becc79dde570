"""Time `atrous segment` beside other tools: same weights, same scene, same cores, whole jobs from raster file to label file.

    python tests/benchmarks/peers.py [--rounds 3] [--size 4096x2048] [--only crf] [--peer-python tiatoolbox=PYTHON]
                                     [--png docs/img/peers.png] [-- further options of atrous segment]

Every candidate is a process of its own; its wall time has everything in it, from the start of Python to the last byte. Every round runs
each candidate once, in turn; ratios are medians over rounds. What the peers do is in `peer_jobs`. Agreement is with one pass of the same
network over the whole scene, and with one CRF (pydensecrf) over that. At the edges of the scene the whole pass sees zeros outside, atrous
mirrored pixels, so it is given twice: of all pixels, and of those at least 432 px from the edge, the exact margin of this network. Memory
is the highest proportional size of all processes of a job.

The scene is composed: mirrored copies of the sample scene. Peers that are not installed are named and left out. A peer that needs packages
of its own versions can have a Python of its own. They need ``monai``, ``segmentation-models-pytorch``, ``pydensecrf2``, and
``tiatoolbox`` (2.1.3 asks for torch below 2.13, and runs with 2.13: ``pip install --no-deps``, then what it imports).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import torch
import zarr
from bars import Bar, draw_bars
from compose_scene import compose
from peer_jobs import build_smp
from rasterio.errors import NotGeoreferencedWarning
from watch import checked, watch

if TYPE_CHECKING:
    from numpy.typing import NDArray

JOBS = str(Path(__file__).with_name("peer_jobs.py"))
EDGE = 432
"""The exact margin of the shipped network, px."""
KINDS = {
    "network": "network only",
    "crf": "network and CRF",
    "smp": "network only, a DeepLabV3+ of segmentation_models_pytorch with random weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way of doing the whole job."""

    kind: str
    """What it does: a key of ``KINDS``; only candidates of one kind are compared."""
    name: str
    """In the table."""
    words: tuple[str, ...]
    """The command, with SCENE and OUT for the files."""
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run."""

    @property
    def ours(self) -> bool:
        """Whether it is atrous."""
        return not self.needs


@dataclass(slots=True)
class Measured:
    """What was measured of a candidate so far."""

    seconds: list[float] = field(default_factory=list)
    """Wall time, by round."""
    peak_bytes: int = 0
    """Highest size of all its processes."""
    agreement: float | None = None
    """Share of labels that are those of the whole-scene result."""
    agreement_inside: float | None = None
    """The same away from the scene's edges; None: the scene has no such pixels."""


def candidates(given: argparse.Namespace, smp: Path) -> list[Candidate]:
    """Return all candidates, ours first of each kind."""
    ours = (sys.executable, "-m", "cli", "segment", "SCENE", "OUT", "--quiet", *given.options)

    def peer(tool: str, **options: str) -> tuple[str, ...]:
        flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return (python_of(tool, given), JOBS, tool, "SCENE", "OUT", *flags)

    loop, monai, batch = "plain loop", "MONAI sliding window", str(given.sw_batch or 1)
    found = [
        Candidate(kind="network", name="atrous", words=(*ours, "--no-crf")),
        Candidate(kind="network", name=monai, words=peer("monai", sw_batch=batch), needs=("monai",)),
        Candidate(kind="network", name=loop, words=peer("loop"), needs=("torch",)),
        Candidate(kind="network", name="TIAToolbox engine", words=peer("tiatoolbox"), needs=("tiatoolbox",)),
        Candidate(kind="crf", name="atrous --crf", words=(*ours, "--crf")),
        Candidate(kind="crf", name="atrous --crf --precision bf16", words=(*ours, "--crf", "--precision", "bf16")),
    ]
    for name, tool, more in ((monai, "monai", {"sw_batch": batch}), (loop, "loop", {})):
        for crf, how in (("tile", "tiles"), ("halo", "tiles with halo")):
            needs = ("pydensecrf", "monai") if tool == "monai" else ("pydensecrf",)
            words = peer(tool, crf=crf, **more)
            found.append(Candidate(kind="crf", name=f"{name} + pydensecrf, {how}", words=words, needs=needs))
    imported = ("--model", str(smp.with_suffix(".safetensors")), "--image-pooling", "window")
    needs = ("segmentation_models_pytorch",)
    return [
        *found,
        Candidate(kind="smp", name="atrous, imported model", words=(*ours, "--no-crf", *imported)),
        Candidate(kind="smp", name=f"{loop}, smp model", words=peer("loop", network=str(smp)), needs=needs),
    ]


def run(candidate: Candidate, scene: Path, folder: Path) -> tuple[float, int, Path]:
    """Do the job once: (wall time in s, peak memory in bytes, where the labels are)."""
    out = Path(tempfile.mkdtemp(dir=folder)) / ("out.zarr" if candidate.ours else "out.tif")
    words = [{"SCENE": str(scene), "OUT": str(out)}.get(word, word) for word in candidate.words]
    done = checked(watch(words, poll_s=1.0), words)
    return done.seconds, done.peak_bytes, out


def read_labels(out: Path) -> NDArray[np.uint8]:
    """Read the labels of a job: a GeoTIFF, our Zarr group, or TIAToolbox's in a folder."""
    if out.is_file():
        with rasterio.open(out) as labels:
            return labels.read(1)
    if (inner := list(out.glob("*.zarr"))) and not (out / "0").exists():
        return np.asarray(zarr.open_group(inner[0], mode="r")["predictions"])
    return np.asarray(zarr.open_group(out, mode="r")["0/labels"])


def installed(python: str, module: str) -> bool:
    """Tell whether the Python of the peers has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def choose(given: argparse.Namespace, smp: Path) -> list[Candidate]:
    """Return the candidates that can run here and were asked for; name those that cannot."""
    asked = [one for one in candidates(given, smp) if given.only in (None, one.kind)]
    absent = {one: [module for module in one.needs if not installed(one.words[0], module)] for one in asked}
    for one, modules in absent.items():
        if modules:
            sys.stdout.write(f"left out: {one.name} ({', '.join(modules)} not installed)\n")
    return [one for one in asked if not absent[one]]


def python_of(tool: str, given: argparse.Namespace) -> str:
    """Return the interpreter that runs a peer."""
    return dict(word.split("=", 1) for word in given.peer_python).get(tool, sys.executable)


def whole(kind: str) -> Candidate:
    """Return the job without windows and tiles that a kind is compared with."""
    words = (sys.executable, JOBS, "whole", "SCENE", "OUT", "--crf", "none" if kind == "network" else "tile")
    return Candidate(kind=kind, name="whole scene at once", words=words, needs=("torch",))


def agree(labels: NDArray[np.uint8], reference: NDArray[np.uint8], result: Measured) -> None:
    """Keep which share of labels is the reference's."""
    same = labels == reference
    inside = same[EDGE:-EDGE, EDGE:-EDGE]
    result.agreement = float(same.mean())
    result.agreement_inside = float(inside.mean()) if inside.size else None


def measure(chosen: list[Candidate], scene: Path, given: argparse.Namespace) -> dict[Candidate, Measured]:
    """Run all in turn, round by round; the references once."""
    results = {one: Measured() for one in chosen}
    references = {}
    for kind in ("network", "crf"):
        if any(one.kind == kind for one in chosen):
            reference = whole(kind)
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                seconds, peak, out = run(reference, scene, Path(folder))
                references[kind] = read_labels(out)
            results[reference] = Measured([seconds], peak)
    for turn in range(given.rounds):
        for one in list(chosen):
            try:
                measure_once(one, scene, results[one], references.get(one.kind), given)
            except SystemExit as error:
                if one.ours:
                    raise
                sys.stderr.write(f"left out from now on: {one.name}: {error}\n")
                chosen.remove(one)
                del results[one]
            else:
                sys.stderr.write(f"round {turn + 1}: {results[one].seconds[-1]:7.1f} s  {one.name}\n")
    return results


def measure_once(
    one: Candidate, scene: Path, result: Measured, reference: NDArray[np.uint8] | None, given: argparse.Namespace
) -> None:
    """Run a candidate once more; the first labels are compared."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        seconds, peak, out = run(one, scene, Path(folder))
        if reference is not None and not result.seconds:
            agree(read_labels(out), reference, result)
    result.seconds.append(seconds)
    result.peak_bytes = max(result.peak_bytes, peak)


def probe_batch(scene: Path, given: argparse.Namespace) -> int:
    """Return the batch with which MONAI is faster on this scene: 1 or 4."""
    seconds = {}
    for batch in (1, 4):
        words = (python_of("monai", given), JOBS, "monai", "SCENE", "OUT", "--sw-batch", str(batch))
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            seconds[batch] = run(Candidate(kind="network", name="", words=words, needs=("monai",)), scene, Path(folder))[0]
    sys.stdout.write(f"MONAI, sw_batch_size 1: {seconds[1]:.1f} s, 4: {seconds[4]:.1f} s; the faster one is taken\n")
    return min(seconds, key=seconds.__getitem__)


def import_smp(smp: Path) -> None:
    """Write an smp model with random weights, and what ``atrous models import`` makes of it."""
    torch.manual_seed(0)
    torch.save(build_smp().state_dict(), smp)
    words = [sys.executable, "-m", "cli", "models", "import", str(smp), "--out", str(smp.with_suffix(".safetensors"))]
    subprocess.run(words, check=True, capture_output=True)


def times_of(one: Candidate, results: dict[Candidate, Measured]) -> float | None:
    """Return how many times the time of atrous a candidate takes, the median over rounds."""
    ours = next((other for other in results if other.kind == one.kind and other.ours), None)
    if ours is None or len(results[one].seconds) != len(results[ours].seconds):
        return None
    return statistics.median(a / b for a, b in zip(results[one].seconds, results[ours].seconds, strict=True))


def table(results: dict[Candidate, Measured], mpx: float) -> list[str]:
    """Return the Markdown tables."""
    lines = []
    for kind, title in KINDS.items():
        rows = {one: result for one, result in results.items() if one.kind == kind}
        if not rows:
            continue
        columns = [title, "s", "Mpx/s", "times the time of atrous", "labels as whole scene", "away from edges", "peak memory"]
        lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for one, result in rows.items():
            seconds, times = statistics.median(result.seconds), times_of(one, results)
            cells = [
                one.name,
                f"{seconds:.1f}",
                f"{mpx / seconds:.2f}",
                "-" if times is None else f"{times:.2f}",
                *("-" if share is None else f"{100 * share:.2f} %" for share in (result.agreement, result.agreement_inside)),
                f"{result.peak_bytes / 2**20:.0f} MiB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def chart(results: dict[Candidate, Measured], mpx: float, png: Path) -> None:
    """Draw the speeds of the first two kinds."""
    groups: dict[str, list[Bar]] = {}
    for one, result in results.items():
        if one.kind in ("network", "crf") and "whole" not in one.words:
            speed = mpx / statistics.median(result.seconds)
            title = f"{KINDS[one.kind]}, Mpx/s"
            name = one.name.replace(" + pydensecrf, ", " + CRF, ")
            groups.setdefault(title, []).append(Bar(name=name, value=speed, text=f"{speed:.2f}", ours=one.ours))
    draw_bars(groups).save(png, format="PNG", optimize=True)


def main() -> None:
    """Measure, print the tables, draw the chart."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="4096x2048", help="Height x width of the scene, px; multiples of 32 from 1024 on.")
    parser.add_argument("--scene", type=Path, default=Path("examples/dubai-tile2.tif"), help="What the scene is composed of.")
    parser.add_argument("--only", choices=list(KINDS), help="Candidates of this kind only.")
    parser.add_argument("--peer-python", action="append", default=[], metavar="TOOL=PYTHON", help="The Python that has a peer.")
    parser.add_argument("--sw-batch", type=int, help="MONAI's sw_batch_size. [default: the faster one of 1 and 4]")
    parser.add_argument("--folder", type=Path, help="Where scratch files go. [default: the system's]")
    parser.add_argument("--png", type=Path, help="Draw a bar chart.")
    parser.add_argument("options", nargs="*", help="Further options of atrous segment, after --.")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    height, width = map(int, given.size.split("x"))
    mpx = height * width / 1e6
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        scene, smp = Path(folder) / "scene.tif", Path(folder) / "smp.pth"
        compose(given.scene, scene, height=height, width=width)
        chosen = choose(given, smp)
        if any(one.kind == "smp" for one in chosen):
            import_smp(smp)
        with tempfile.TemporaryDirectory(dir=given.folder) as scratch:  # compiles what is compiled once, and fills the file cache
            for one in [one for one in chosen if one.ours][:3]:
                run(one, scene, Path(scratch))
        if given.sw_batch is None and any("monai" in one.needs for one in chosen):
            given.sw_batch = probe_batch(scene, given)
            chosen = [replace(one, words=new.words) for one in chosen for new in candidates(given, smp) if new.name == one.name]
        results = measure(chosen, scene, given)
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {mpx:.1f} Mpx, {given.rounds} rounds"
        f"{', atrous with ' + ' '.join(given.options) if given.options else ''}\n"
    )
    sys.stdout.write("\n".join(table(results, mpx)) + "\n")
    if given.png:
        chart(results, mpx, given.png)


if __name__ == "__main__":
    main()
