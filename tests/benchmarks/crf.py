"""Time our CRF against pydensecrf, whole calls side by side, and print tables (Markdown).

    python tests/benchmarks/crf.py [--rounds 5] [--classes 5,8,21] [--theta-beta 3,10,13]

1024 x 1024 px of the sample scene. Five classes are the shipped model's own probabilities. Eight and twenty-one are those, and smooth
random scores for the others, so that all of them occur. Every round runs each candidate once, in turn; ratios are medians over
rounds. Peak memory is the growth of the highest resident size of a fresh process.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf import cpu, pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.engines import predict_windows
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.network.checkpoint import load_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.stretch import Stretch
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SCENE = "examples/dubai-tile2.tif"
WINDOW = Window(row_off=300, col_off=250, height=1024, width=1024)
VALID = np.ones(WINDOW.shape, bool)
THREADS = os.cpu_count() or 1
LESS = {"stop_below": 0.01, "absent_below": 0.02}
"""The options that leave out work."""


def inputs(n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return probabilities (classes, height, width) and guide (3, height, width)."""
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    with open_scene(SceneSpec(uri=SCENE)) as scene:
        tile = read_reflected(scene, WINDOW)
    stretch = Stretch.identity(3)
    window = normalise(tile, WINDOW, stretch=stretch, model=model)[np.newaxis]
    real = predict_windows(TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu")), window)[0]
    guide = stretch.apply(tile.pixels)
    return (real if n_classes == len(real) else more_classes(real, n_classes)), guide


def more_classes(real: NDArray[np.float32], n_classes: int) -> NDArray[np.float32]:
    """Add classes of smooth random scores to real probabilities."""
    rng = np.random.default_rng(n_classes)
    scores = np.empty((n_classes, *real.shape[1:]), np.float32)
    ends = np.linspace(0, 31.99, real.shape[1])
    low, part = ends.astype(int), (ends % 1).astype(np.float32)
    for score in scores:
        coarse = 2 * rng.normal(size=(34, 34)).astype(np.float32)
        rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
        score[:] = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    scores[: len(real)] += np.log(real + 1e-2)
    likelihood = np.exp(scores - scores.max(axis=0))
    return np.asarray(likelihood / likelihood.sum(axis=0), np.float32)


def candidates(
    probabilities: NDArray[np.float32], guide: NDArray[np.float32], spec: CrfSpec
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Return what is timed, the reference first."""
    arguments = (probabilities, guide, VALID)
    theirs, less = dataclasses.replace(spec, backend="pydensecrf"), dataclasses.replace(spec, **LESS)
    return {
        "pydensecrf": lambda: refine_tile(*arguments, theirs),
        "cpu, 1 thread": lambda: refine_tile(*arguments, spec, processor=Processor(threads=1)),
        "cpu": lambda: refine_tile(*arguments, spec, processor=Processor(threads=THREADS)),
        "cpu, less work": lambda: refine_tile(*arguments, less, processor=Processor(threads=THREADS)),
    }


def measure(n_classes: int, theta_beta: float, rounds: int) -> str:
    """Return one row of the table."""
    timed = candidates(*inputs(n_classes), CrfSpec(theta_beta=theta_beta))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    labels = {name: run().argmax(axis=0) for name, run in timed.items()}  # warms up as well
    for _ in range(rounds):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    def agree(name: str) -> float:
        return 100 * float((labels[name] == labels["pydensecrf"]).mean())

    peaks = [peak_bytes(name, n_classes, theta_beta) / 2**20 for name in ("pydensecrf", "cpu")]
    cells = [
        f"{n_classes}",
        f"{theta_beta:g}",
        f"{statistics.median(seconds['pydensecrf']):.2f} s",
        f"{statistics.median(seconds['cpu']):.2f} s",
        f"**{ratio('pydensecrf', 'cpu'):.1f}**",
        f"{agree('cpu'):.2f} %",
        f"**{ratio('pydensecrf', 'cpu, less work'):.1f}**",
        f"{agree('cpu, less work'):.2f} %",
        f"{ratio('cpu, 1 thread', 'cpu'):.2f}",
        f"{peaks[0]:.0f} / {peaks[1]:.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def peak_bytes(backend: str, n_classes: int, theta_beta: float) -> int:
    """Measure the peak memory of one call in a process of its own, bytes."""
    words = [sys.executable, __file__, "--peak", backend, "--classes", str(n_classes), "--theta-beta", str(theta_beta)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def print_peak(backend: str, n_classes: int, theta_beta: float) -> None:
    """Print how far one call raises the resident size over what it was just before, bytes."""
    probabilities, guide = (np.load(path) for path in cached_inputs(n_classes))
    refine = cpu.refine if backend == "cpu" else pydensecrf.refine
    spec = CrfSpec(theta_beta=theta_beta, backend="cpu" if backend == "cpu" else "pydensecrf")
    refine(np.ascontiguousarray(probabilities[:, :64, :64]), np.ascontiguousarray(guide[:, :64, :64]), VALID[:64, :64], spec)
    before = resident_bytes("VmRSS")
    refine(probabilities, guide, VALID, spec)
    sys.stdout.write(str(resident_bytes("VmHWM") - before))


def resident_bytes(kind: str) -> int:
    """Return the resident size of this process, now (VmRSS) or at its highest (VmHWM), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def cached_inputs(n_classes: int) -> list[Path]:
    """Return the files with the inputs: a process that ran the network has a higher peak than the CRF's."""
    folder = Path(tempfile.gettempdir())
    paths = [folder / f"atrous-crf-{n_classes}-{name}.npy" for name in ("probabilities", "guide")]
    if not all(path.exists() for path in paths):
        for path, array in zip(paths, inputs(n_classes), strict=True):
            np.save(path, array)
    return paths


def main() -> None:
    """Measure every combination and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", default="5,8,21")
    parser.add_argument("--theta-beta", default="3,10,13")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    classes, thetas = [int(n) for n in given.classes.split(",")], [float(theta) for theta in given.theta_beta.split(",")]
    if given.peak:
        print_peak(given.peak, classes[0], thetas[0])
        return
    sys.stdout.write(
        f"{platform.machine()}, {THREADS} cores, numpy {np.__version__}, {given.rounds} rounds; less work: {LESS}\n\n"
    )
    columns = ["classes", "theta_beta", "pydensecrf", "`cpu`", "times faster", "labels agree", "less work", "labels agree"]
    columns += [f"{THREADS} threads against 1", "peak memory, pydensecrf / `cpu`"]
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for n_classes in classes:
        cached_inputs(n_classes)
        for theta in thetas:
            sys.stdout.write(measure(n_classes, theta, given.rounds) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
