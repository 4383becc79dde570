"""What will a run do, and what will it cost? Worked out from headers alone; only `calibrate` runs the network, once."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import memory
from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine, batch_size, choose_device
from pipeline.grid import Blocks
from pipeline.network.checkpoint import load_network
from pipeline.network.image_pooling import assemble
from pipeline.segment import locate
from pipeline.staging import needs_staging
from workflows.cluster import ClusterSpec, Staffing, staff

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.memory import MemoryBound
    from workflows.prepare import Prepared

_CRF_SAMPLE_PX = 512
"""Side of the tile that is timed: from here on the time per pixel stays about the same."""
_CRF_WARM_UP_PX = 32
_GUIDE_PATCH_PX = 8
_GUIDE_NOISE = 2.0
"""The guide of the timed tile: patches of one colour, with noise of this deviation. pydensecrf takes as long for it as for imagery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that can be said of a run before it starts."""

    prepared: Prepared
    """What is run."""
    n_blocks: int
    """Blocks."""
    n_windows: int
    """Network windows that are run, those on the edges of blocks once per block."""
    n_crf_pixels: int
    """Pixels that go through the CRF, halos included."""
    memory: MemoryBound
    """Of one worker."""
    staffing: Staffing
    """Workers, threads and memory here."""
    stages: bool
    """Whether the scene is copied to a tiled file first."""

    @property
    def n_pixels(self) -> int:
        """Pixels of the scene."""
        return self.prepared.scene.height * self.prepared.scene.width

    @property
    def redundancy(self) -> float:
        """Times that a pixel of the scene is in a network window."""
        return self.n_windows * self.prepared.spec.grid.window_px**2 / self.n_pixels

    @property
    def network_cost(self) -> float:
        """Pixels that the network sees, over all scales and mirror images, per pixel of the scene."""
        return self.redundancy * self.prepared.spec.multiscale.relative_cost

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able values."""
        spec, scene = self.prepared.spec, self.prepared.scene
        return {
            "scene": {
                "height": scene.height,
                "width": scene.width,
                "bands": spec.scene.bands,
                "dtype": scene.dtype,
                "staged": self.stages,
            },
            "model": {"name": self.prepared.model.name, "sha256": spec.model_sha256},
            "grid": {
                "window_px": spec.grid.window_px,
                "overlap_px": spec.grid.overlap_px,
                "block_px": spec.grid.block_px,
                "blend": spec.grid.blend,
            },
            "crf": None
            if spec.crf is None
            else {
                "backend": spec.crf.backend,
                "from": self.prepared.crf_origin,
                "tile_px": spec.crf.tile_px,
                "halo_px": spec.crf.halo_px,
                "pixels": self.n_crf_pixels,
            },
            "n_blocks": self.n_blocks,
            "n_windows": self.n_windows,
            "redundancy": round(self.redundancy, 3),
            "multiscale": {**spec.multiscale.to_dict(), "relative_cost": round(spec.multiscale.relative_cost, 3)},
            "image_pooling": self.prepared.network.image_pooling,
            "network_cost": round(self.network_cost, 3),
            "workers": {"n": self.staffing.n_workers, "threads": self.staffing.threads, "limit_bytes": self.staffing.limit_bytes},
            "memory": {
                "bytes_per_worker": self.memory.total_bytes,
                "terms": {term.name: term.n_bytes for term in self.memory.terms},
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a run will take, from one timed window."""

    network_s: float
    """Network, all windows, over all workers, s."""
    crf_s: float
    """CRF, all tiles, over all workers, s."""

    @property
    def total_s(self) -> float:
        """Both, s; reading and writing are small beside them."""
        return self.network_s + self.crf_s


def make_plan(prepared: Prepared, cluster: ClusterSpec, engine: EngineSpec, *, n_blocks_left: int | None = None) -> Plan:
    """Plan a run; MemoryBudgetError where a worker cannot hold a block."""
    spec, scene = prepared.spec, prepared.scene
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    left = len(blocks) if n_blocks_left is None else n_blocks_left

    def bound_of(threads: int) -> MemoryBound:
        windows = batch_size(dataclasses.replace(engine, threads=threads))
        return memory.bound(spec, scene, prepared.model, batch_size=windows)

    staffing = staff(cluster, n_blocks=left, bytes_of=lambda threads: bound_of(threads).total_bytes)
    bound = bound_of(staffing.threads)
    bound.check(staffing.limit_bytes)
    n_windows, n_crf_pixels = _count(blocks, prepared)
    return Plan(
        prepared=prepared,
        n_blocks=len(blocks),
        n_windows=n_windows,
        n_crf_pixels=n_crf_pixels,
        memory=bound,
        staffing=staffing,
        stages=needs_staging(scene),
    )


def calibrate(plan: Plan, engine: EngineSpec) -> Estimate:
    """Time one network window and one small CRF tile on this machine, and scale up."""
    prepared, threads = plan.prepared, plan.staffing.threads
    model, network = load_network(Path(prepared.spec.model_path))
    mode = prepared.network.image_pooling
    system = assemble(network, prepared.spec.multiscale, mode="window" if mode == "global" else mode)  # they cost the same
    runner = TorchEngine(system, EngineSpec(device=engine.device, precision=engine.precision, threads=threads))
    side = prepared.spec.grid.window_px
    noise = np.random.default_rng(0).normal(size=(runner.batch_size, len(model.bands), side, side)).astype(np.float32)
    runner.predict(noise)
    started = time.perf_counter()
    probabilities = runner.predict(noise)
    window_s = (time.perf_counter() - started) / runner.batch_size
    return Estimate(
        network_s=plan.n_windows * window_s / plan.staffing.n_workers,
        crf_s=plan.n_crf_pixels * _crf_seconds_per_pixel(plan, probabilities[0], engine) / plan.staffing.n_workers,
    )


def _crf_seconds_per_pixel(plan: Plan, probabilities: NDArray[np.float32], engine: EngineSpec) -> float:
    crf = plan.prepared.spec.crf
    if crf is None:
        return 0.0
    crf = dataclasses.replace(crf, absent_below=0.0, skip_above=1.0)  # what they save depends on the scene
    processor = Processor(threads=plan.staffing.threads, device=str(choose_device(engine)))
    side = _CRF_SAMPLE_PX
    repeats = -(-side // probabilities.shape[1])
    sample = np.ascontiguousarray(np.tile(probabilities, (1, repeats, repeats))[:, :side, :side])
    guide = _sample_guide(len(plan.prepared.model.bands), side)
    valid = np.ones((side, side), bool)
    small = np.s_[..., :_CRF_WARM_UP_PX, :_CRF_WARM_UP_PX]
    refine_tile(sample[small], guide[small], valid[small], crf, processor=processor)  # compiles
    started = time.perf_counter()
    refine_tile(sample, guide, valid, crf, processor=processor)
    return (time.perf_counter() - started) / side**2


def _sample_guide(n_bands: int, side: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    n_patches = side // _GUIDE_PATCH_PX
    patches = rng.uniform(0, 255, (n_bands, n_patches, n_patches)).repeat(_GUIDE_PATCH_PX, 1).repeat(_GUIDE_PATCH_PX, 2)
    return (patches + rng.normal(0, _GUIDE_NOISE, patches.shape)).clip(0, 255).astype(np.float32)


def _count(blocks: Blocks, prepared: Prepared) -> tuple[int, int]:
    """Count windows and CRF pixels over all blocks; rows and columns are independent, so a million blocks take two short loops."""
    spec, shape = prepared.spec, prepared.scene.shape
    rows = [locate((row, 0), shape=shape, spec=spec) for row in range(blocks.n_rows)]
    cols = [locate((0, col), shape=shape, spec=spec) for col in range(blocks.n_cols)]
    n_rows = sum(len({index[0] for index in windows.network}) for windows in rows)
    n_cols = sum(len({index[1] for index in windows.network}) for windows in cols)
    if spec.crf is None:
        return n_rows * n_cols, 0
    side = spec.crf.tile_px + 2 * spec.crf.halo_px
    crf_rows = sum(len({index[0] for index in windows.crf}) * min(side, shape[0]) for windows in rows)
    crf_cols = sum(len({index[1] for index in windows.crf}) * min(side, shape[1]) for windows in cols)
    return n_rows * n_cols, crf_rows * crf_cols
