"""How long will a run take? Network and CRF are timed on a piece of the scene, on this machine."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.choose import choose_device, windows_at_once
from pipeline.engine.engines import loader_for, open_engine, predict_loaded
from pipeline.network.late import late_network
from pipeline.scene import open_scene, read_reflected
from pipeline.window import Window
from workflows.block_job import conversion_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.engine.protocol import EngineSpec
    from pipeline.scene import Tile
    from workflows.plan import Plan

_SAMPLE_PX = 768
"""Side of the piece of the scene that is timed: from here on the time per pixel stays about the same."""
_SAMPLE_WINDOWS = 4
"""Windows that each thread is timed on."""
_WARM_UP_PX = 32
_START_S = 3.0
"""What a run takes beside its network and CRF: imports, workers, model, the end. Measured 2.4 to 3 s on 2 cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a run will take, from a piece of the scene that was timed."""

    network_s: float
    """Network and blending, all windows, over all workers, s."""
    crf_s: float
    """CRF, all tiles, over all workers, s."""
    start_s: float = _START_S
    """Until the first block is begun, s."""

    @property
    def total_s(self) -> float:
        """All of them, s; reading and writing go on beside the computing."""
        return self.network_s + self.crf_s + self.start_s

    def to_dict(self) -> dict[str, float]:
        """Return the parts and the total, s."""
        return {"start": self.start_s, "network": self.network_s, "crf": self.crf_s, "total": self.total_s}


def calibrate(plan: Plan, engine: EngineSpec) -> Estimate:
    """Time the network and the CRF on a piece from the middle of the scene, on this machine, and scale up; about ten seconds."""
    prepared, threads = plan.prepared, plan.staffing.threads
    spec = prepared.spec
    engine = dataclasses.replace(engine, threads=threads)
    mode = prepared.network.image_pooling
    mode = "window" if mode == "global" else mode  # they cost the same
    model, network = late_network(Path(spec.model_path), spec.multiscale, mode=mode)
    runner = open_engine(network, engine, window_px=spec.grid.window_px, cache_key=conversion_key(spec))
    with open_scene(spec.scene) as scene:
        tile = read_reflected(scene, _middle(prepared.scene.shape, max(_SAMPLE_PX, spec.grid.window_px)))
    side = spec.grid.window_px
    window = dataclasses.replace(tile.window, height=side, width=side)
    load = loader_for(runner, tile, stretch=spec.stretch, model=model)(window)
    n_windows = _SAMPLE_WINDOWS * windows_at_once(engine, window_px=side)
    probabilities = next(predict_loaded(runner, [load], side_px=side)).probabilities()
    started = time.perf_counter()
    for one in predict_loaded(runner, [load] * n_windows, side_px=side):
        last = one
    last.classify((slice(None), slice(None)), np.ones((side, side), bool))  # a device has done all of them by then
    window_s = (time.perf_counter() - started) / n_windows
    return Estimate(
        network_s=plan.n_windows * window_s / plan.staffing.n_workers,
        crf_s=plan.n_crf_pixels * _crf_seconds_per_pixel(plan, tile, probabilities, engine) / plan.staffing.n_workers,
    )


def _middle(shape: tuple[int, int], side_px: int) -> Window:
    """Return the square in the middle of a scene; it may reach past a small one."""
    return Window(row_off=(shape[0] - side_px) // 2, col_off=(shape[1] - side_px) // 2, height=side_px, width=side_px)


def _crf_seconds_per_pixel(plan: Plan, tile: Tile, probabilities: NDArray[np.float32], engine: EngineSpec) -> float:
    spec = plan.prepared.spec
    if spec.crf is None:
        return 0.0
    crf = dataclasses.replace(spec.crf, absent_below=0.0, skip_above=1.0)  # what they save differs from place to place
    processor = Processor(threads=plan.staffing.threads, device=choose_device(engine))
    side = _SAMPLE_PX
    repeats = -(-side // probabilities.shape[1])
    sample = np.ascontiguousarray(np.tile(probabilities, (1, repeats, repeats))[:, :side, :side])
    guide, valid = spec.stretch.apply(tile.pixels[:, :side, :side]), np.ones((side, side), bool)
    small = np.s_[..., :_WARM_UP_PX, :_WARM_UP_PX]
    refine_tile(sample[small], guide[small], valid[small], crf, processor=processor)  # compiles
    refine_tile(sample, guide, valid, crf, processor=processor)  # takes the memory that later tiles get for nothing
    started = time.perf_counter()
    refine_tile(sample, guide, valid, crf, processor=processor)
    elapsed = time.perf_counter() - started
    return elapsed / float(side**2)
