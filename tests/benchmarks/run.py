"""Measure the parts of one block side by side, and print ratios (``make bench``).

    python tests/benchmarks/run.py [--rounds 5]

Every round runs each candidate once, in turn, so that a drift of the machine hits all alike; the table has medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.crf import pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.network.checkpoint import load_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.stretch import Stretch
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

SCENE = "examples/dubai-tile2.tif"
WINDOW = Window(row_off=256, col_off=256, height=1024, width=1024)
MPX = WINDOW.n_pixels / 1e6


def candidates() -> dict[str, Callable[[], object]]:
    """Return what is timed: every one handles the same window (the two-thread engine two of them)."""
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    with open_scene(SceneSpec(uri=SCENE)) as scene:
        tile = read_reflected(scene, WINDOW)
    stretch = Stretch.identity(3)
    window = normalise(tile, WINDOW, stretch=stretch, model=model)[np.newaxis]
    engines = {n: TorchEngine(load_network(resolve_model(DEFAULT_MODEL))[1], EngineSpec(threads=n)) for n in (1, 2)}
    probabilities = engines[1].predict(window)[0]
    guide, crf = stretch.apply(tile.pixels), CrfSpec()

    def eager() -> object:
        torch.set_num_threads(os.cpu_count() or 1)
        with torch.inference_mode():
            result = torch.softmax(network(torch.from_numpy(window)), 1)
        torch.set_num_threads(1)
        return result

    return {
        "eager torch, NCHW, all cores, per window": eager,
        "TorchEngine, 1 thread, per window": lambda: engines[1].predict(window),
        "TorchEngine, 2 threads, per 2 windows": lambda: engines[2].predict(np.concatenate([window, window])),
        "pydensecrf, per window": lambda: pydensecrf.refine(probabilities, guide, tile.valid, crf),
    }


def main() -> None:
    """Time all candidates in turn and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    timed = candidates()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 1):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds))
    sys.stdout.write(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {rounds} rounds\n")
    sys.stdout.write(f"{'':<42}{'s':>8}{'Mpx/s':>8}{'ratio':>8}\n")
    for name, values in seconds.items():
        mpx = MPX * (2 if "2 windows" in name else 1)
        ratio = statistics.median(mpx * eager / (MPX * own) for eager, own in zip(seconds[first], values, strict=True))
        median = statistics.median(values)
        sys.stdout.write(f"{name:<42}{median:>8.2f}{mpx / median:>8.2f}{ratio:>8.2f}\n")


if __name__ == "__main__":
    main()
