"""How fast is the network stage of every member of the family, and what share of the machine's matrix rate is that?

    python tests/benchmarks/networks.py [--variants 'v3plus|largefov'] [--engines 'openvino fp32,openvino bf16,torch fp32']
                                        [--window 1024] [--rounds 3]

Eager torch is what most scripts do: float32, NCHW, BatchNorm not folded, all cores within one operation, one window a call. Engines are
ours, with as many windows at once as cores. Both end with probabilities of all pixels. Weights are random but those of the shipped model,
at scale 1, 21 classes. Every round runs each candidate once, in turn; speeds and ratios are medians over rounds. The matrix rate is the
best of torch's products of square matrices of several sizes, on all cores; an engine is held against the rate of its own precision. GFLOP
are counted in the network as it is written (two per multiplication with addition), whatever an engine does to compute it.

Eager torch asks the C library for the memory of every activation and gives it back, which maps it anew each time. Workers of atrous keep
freed memory, so candidates run in two processes: engines in one that is set up as a worker, eager torch in one that is set up as a script,
and once more beside the engines, to show what that setting alone does for it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.engine.engines import open_engine, predict_windows
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import PipelineError
from pipeline.network.checkpoint import load_network
from pipeline.network.counting import flop_per_pixel
from pipeline.network.deeplab import build_network
from pipeline.network.image_pooling import assemble
from pipeline.network.late import LateNetwork
from pipeline.network.model_file import read_model_spec
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.spec import MultiScaleSpec
from pipeline.network.variants import variant, variant_names
from workflows.fork_server import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.network.deeplab import DeepLab
    from pipeline.network.spec import NetworkSpec

THREADS = os.cpu_count() or 1
EAGER = "eager"
KEPT = "eager, freed memory kept"
MATRIX_SIDES = (1024, 2048, 4096)
MATRIX_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One network under one candidate."""

    mpx_per_s: float
    """Median speed."""
    times: float
    """Times the speed of eager torch; median."""


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the best rate at which torch multiplies square matrices on all cores, GFLOP/s."""
    best = 0.0
    with torch.inference_mode():
        for side in MATRIX_SIDES:
            left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
            for _ in range(MATRIX_TRIES):
                started = time.perf_counter()
                left @ right
                best = max(best, 2 * side**3 / (time.perf_counter() - started) / 1e9)
    return best


def engines(network: DeepLab, names: list[str], window_px: int) -> dict[str, Callable[[NDArray[np.float32]], object]]:
    """Return our engines by name ("openvino bf16"), each a function of normalised windows; one that cannot run here is named."""
    found: dict[str, Callable[[NDArray[np.float32]], object]] = {}
    mode = "window" if network.spec.image_pooling == "global" else None  # the same work, without means of a scene
    system = assemble(network, MultiScaleSpec(), mode=mode)
    for name in names:
        kind, precision = name.split()
        try:
            engine = open_engine(
                LateNetwork.loaded(system),
                EngineSpec(device="cpu", engine=kind, precision=precision, threads=THREADS),
                window_px=window_px,
            )
        except PipelineError as error:
            sys.stderr.write(f"left out: {name}: {error}\n")
            continue
        found[name] = lambda windows, engine=engine: predict_windows(engine, windows)
    return found


def eager(network: DeepLab, windows: NDArray[np.float32]) -> object:
    """Return the probabilities of windows, one after the other."""
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        return [torch.softmax(network(torch.from_numpy(window[np.newaxis])), 1) for window in windows]


class Candidates:
    """What one process runs: eager torch, and engines."""

    def __init__(self, network_name: str, engine_names: list[str], window_px: int) -> None:
        torch.manual_seed(0)
        network = network_of(network_name)
        rng = np.random.default_rng(0)
        self._windows = rng.normal(size=(2 * THREADS, network.spec.n_bands, window_px, window_px)).astype(np.float32)
        self._runs = {name: (len(self._windows), run) for name, run in engines(network, engine_names, window_px).items()}
        self._runs[EAGER] = (1, lambda windows: eager(network, windows))

    @property
    def names(self) -> list[str]:
        """Those that can run here."""
        return list(self._runs)

    def mpx_per_s(self, name: str) -> float:
        """Run one once."""
        n_windows, run = self._runs[name]
        windows = self._windows[:n_windows]
        started = time.perf_counter()
        run(windows)
        return windows[:, 0].size / 1e6 / (time.perf_counter() - started)


_here: list[Candidates] = []
"""Those of this process, if it is one that measures."""


def prepare(name: str, names: list[str], window_px: int) -> list[str]:
    """Make ready for a network, in a process that measures; return what can run."""
    _here.clear()
    gc.collect()
    _here.append(Candidates(name, names, window_px))
    return _here[0].names


def run_once(name: str) -> float:
    """Run a candidate once, in a process that measures: Mpx/s."""
    return _here[0].mpx_per_s(name)


def measure(
    name: str, as_script: ProcessPoolExecutor, as_worker: ProcessPoolExecutor, given: argparse.Namespace
) -> dict[str, Measured]:
    """Time one network under all candidates."""
    as_script.submit(prepare, name, [], given.window).result()
    found = as_worker.submit(prepare, name, given.engines.split(","), given.window).result()
    places = {EAGER: (as_script, EAGER), **{KEPT if one == EAGER else one: (as_worker, one) for one in found}}
    speeds: dict[str, list[float]] = {one: [] for one in places}
    for turn in range(given.rounds + 1):
        for one, (pool, candidate) in places.items():
            speed = pool.submit(run_once, candidate).result()  # the first round warms up
            if turn:
                speeds[one].append(speed)
    return {
        one: Measured(
            mpx_per_s=statistics.median(values),
            times=statistics.median(own / other for own, other in zip(values, speeds[EAGER], strict=True)),
        )
        for one, values in speeds.items()
    }


def started(environment: dict[str, str]) -> ProcessPoolExecutor:
    """Return a process that was started with some more settings, and none of those for malloc that this one has."""
    before = dict(os.environ)
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return pool


def spec_of(name: str) -> NetworkSpec:
    """Return what a network is: the shipped one, or a named variant."""
    return read_model_spec(resolve_model(name)).network if name == DEFAULT_MODEL else variant(name).network


def network_of(name: str) -> DeepLab:
    """Return the network itself; variants have random weights."""
    return load_network(resolve_model(name))[1] if name == DEFAULT_MODEL else build_network(spec_of(name)).eval()


def row(name: str, gflop: float, measured: dict[str, Measured], rates: dict[str, float], names: list[str]) -> str:
    """Return one line of the table."""
    cells = [name, f"{gflop:.1f}", f"{measured[EAGER].mpx_per_s:.3f}", share(gflop, measured[EAGER], rates["fp32"])]
    for candidate in (KEPT, *names):
        if candidate in measured:
            one, precision = measured[candidate], "fp32" if candidate == KEPT else candidate.split()[1]
            cells += [f"{one.mpx_per_s:.3f}", f"**{one.times:.1f}**", share(gflop, one, rates[precision])]
        else:
            cells += ["-"] * 3
    return f"| {' | '.join(cells)} |"


def share(gflop: float, one: Measured, rate: float) -> str:
    """Return the share of the matrix rate that a speed is."""
    return f"{100 * gflop * one.mpx_per_s / rate:.0f} %"


def main() -> None:
    """Measure every network and print the table line by line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", default="", help="Regular expression; networks whose name it is found in.")
    parser.add_argument("--engines", default="openvino fp32,openvino bf16,torch fp32")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rates = {"fp32": matrix_rate(torch.float32), "bf16": matrix_rate(torch.bfloat16)}
    sys.stdout.write(
        f"{platform.machine()}, {THREADS} cores, torch {torch.__version__}, windows of {given.window} px, {given.rounds} rounds; "
        f"matrix rate {rates['fp32']:.0f} GFLOP/s in fp32, {rates['bf16']:.0f} in bf16\n\n"
    )
    names = given.engines.split(",")
    columns = ["network", "GFLOP per Mpx", "eager, Mpx/s", "of the fp32 rate"]
    columns += [column for name in (KEPT, *names) for column in (f"{name}, Mpx/s", "times eager", "of the rate")]
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    kept = {name: value for name, value in ENVIRONMENT.items() if name.startswith("MALLOC_")}
    with started({}) as as_script, started(kept) as as_worker:
        for name in (DEFAULT_MODEL, *variant_names()):
            if re.search(given.variants, name):
                gflop = flop_per_pixel(spec_of(name)) / 1000
                sys.stdout.write(row(name, gflop, measure(name, as_script, as_worker, given), rates, names) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
