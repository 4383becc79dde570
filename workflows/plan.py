"""What will a run do, and what will it cost? Worked out from headers alone; only `calibrate` runs network and CRF, on a piece."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import memory
from pipeline.engine.choose import choose_device, choose_engine, choose_precision, windows_at_once
from pipeline.grid import Blocks, blocks_at_once
from pipeline.locate import locate
from pipeline.staging import needs_staging
from workflows.cluster import staff
from workflows.local_workers import ClusterSpec, Staffing, share_here

if TYPE_CHECKING:
    from pipeline.crf.energy import CrfSpec
    from pipeline.engine.protocol import EngineSpec
    from pipeline.locate import BlockWindows
    from pipeline.memory import MemoryBound
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import SceneInfo
    from pipeline.spec import SegmentSpec
    from workflows.prepare import Fits, Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that can be said of a run before it starts."""

    prepared: Prepared
    """What is run."""
    n_blocks: int
    """Blocks."""
    n_windows: int
    """Network windows that are run: each once where one process does all blocks, else those on the edges of blocks once per block."""
    n_crf_pixels: int
    """Pixels that go through the CRF, halos included."""
    memory: MemoryBound
    """Of one worker."""
    staffing: Staffing
    """Workers, threads and memory here."""
    stages: bool
    """Whether the scene is copied to a tiled file first."""
    engine: str
    """What runs the network: ``torch`` or ``openvino``."""

    def describe_engine(self, engine: EngineSpec) -> str:
        """Return what runs the network, in words."""
        return f"{self.engine} {choose_precision(engine)} on {choose_device(engine)}"

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
            "engine": self.engine,
            "reasons": list(self.prepared.reasons),
            "workers": {"n": self.staffing.n_workers, "threads": self.staffing.threads, "limit_bytes": self.staffing.limit_bytes},
            "memory": {
                "bytes_per_worker": self.memory.total_bytes,
                "terms": {term.name: term.n_bytes for term in self.memory.terms},
            },
        }


def fits_here(cluster: ClusterSpec, engine: EngineSpec) -> Fits:
    """Return what tells whether a worker on this machine could hold a block; a running cluster is asked when the plan is made."""
    if cluster.scheduler is not None:
        return lambda *_: True
    n_workers, threads, limit_bytes = share_here(cluster)
    return lambda spec, scene, model: (
        _bound(spec, scene, model, dataclasses.replace(engine, threads=threads)).total_bytes <= limit_bytes // n_workers
    )


def _bound(spec: SegmentSpec, scene: SceneInfo, model: ModelSpec, engine: EngineSpec) -> MemoryBound:
    """Return the memory bound of a worker that runs ``engine``."""
    return memory.bound(
        spec,
        scene,
        model,
        n_at_once=windows_at_once(engine, window_px=spec.grid.window_px),
        engine=choose_engine(engine),
        blocks_at_once=blocks_at_once(choose_device(engine)),
    )


def make_plan(prepared: Prepared, cluster: ClusterSpec, engine: EngineSpec, *, n_blocks_left: int | None = None) -> Plan:
    """Plan a run; MemoryBudgetError where a worker cannot hold a block."""
    spec, scene = prepared.spec, prepared.scene
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    left = len(blocks) if n_blocks_left is None else n_blocks_left

    def bound_of(threads: int) -> MemoryBound:
        return _bound(spec, scene, prepared.model, dataclasses.replace(engine, threads=threads))

    staffing = staff(cluster, n_blocks=left, bytes_of=lambda threads: bound_of(threads).total_bytes)
    bound = bound_of(staffing.threads)
    bound.check(staffing.limit_bytes)
    n_windows, n_crf_pixels = _count(blocks, prepared, once=staffing.n_workers == 1)
    return Plan(
        prepared=prepared,
        n_blocks=len(blocks),
        n_windows=n_windows,
        n_crf_pixels=n_crf_pixels,
        memory=bound,
        staffing=staffing,
        stages=needs_staging(scene),
        engine=choose_engine(engine),
    )


def _count(blocks: Blocks, prepared: Prepared, *, once: bool) -> tuple[int, int]:
    """Count windows and CRF pixels over all blocks; rows and columns are independent, so a million blocks take two short loops.

    ``once``: windows on the edges of blocks are kept for the next block.
    """
    spec, shape = prepared.spec, prepared.scene.shape
    rows = [locate((row, 0), shape=shape, spec=spec) for row in range(blocks.n_rows)]
    cols = [locate((0, col), shape=shape, spec=spec) for col in range(blocks.n_cols)]
    n_windows = _n_indices(rows, 0, once=once) * _n_indices(cols, 1, once=once)
    if spec.crf is None:
        return n_windows, 0
    crf_rows = sum(_refined_px(row, shape[0], spec.crf) for one in rows for row in {index[0] for index in one.crf})
    crf_cols = sum(_refined_px(col, shape[1], spec.crf) for one in cols for col in {index[1] for index in one.crf})
    return n_windows, crf_rows * crf_cols


def _refined_px(index: int, n_pixels: int, crf: CrfSpec) -> int:
    """Return how many of ``n_pixels`` in a row or column a CRF tile takes in, with its halo."""
    start = index * crf.tile_px
    return min(start + crf.tile_px + crf.halo_px, n_pixels) - max(start - crf.halo_px, 0)


def _n_indices(blocks: list[BlockWindows], axis: int, *, once: bool) -> int:
    """Count the rows (columns) of network windows that a column (row) of blocks touches."""
    touched = [{index[axis] for index in windows.network} for windows in blocks]
    return len(set().union(*touched)) if once else sum(map(len, touched))
