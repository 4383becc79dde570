"""What happens to one block in the process that works on it: segment, write durably, hand back a receipt.

A process keeps one loaded model per job and one open scene per thread (GDAL handles are not shared between threads).
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.choose import choose_device
from pipeline.engine.engines import open_engine
from pipeline.errors import BlockError, PipelineError, WeightsError
from pipeline.grid import Blocks, blocks_at_once
from pipeline.memory import seen_windows_bytes
from pipeline.network.late import late_network
from pipeline.network.model_file import file_sha256, read_model_spec
from pipeline.network.models import find_model
from pipeline.scene import Scene, SceneInfo, SceneSpec, open_scene, unreadable_in
from pipeline.seen_windows import SeenWindows
from pipeline.segment import segment_block, warm_up
from pipeline.store import write_block
from pipeline.turns import Queue
from pipeline.workplace import Workplace
from workflows.block_job import conversion_key
from workflows.events import BlockIndex, BlockReceipt
from workflows.run_state import RunPaths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.engine.on_device import DeviceRooms
    from pipeline.engine.protocol import Engine, EngineSpec, Load
    from pipeline.network.cells import Cells
    from pipeline.network.choices import ImagePooling
    from pipeline.network.spec import ModelSpec, MultiScaleSpec
    from pipeline.segment import BlockResult
    from pipeline.spec import SegmentSpec
    from pipeline.turns import Place
    from workflows.block_job import BlockJob

    _System = tuple[MultiScaleSpec, ImagePooling | None, tuple[tuple[float, ...], ...]]

_local = threading.local()
_WARM_UP_PX = 32
_loading = threading.Lock()
_keeping = threading.Lock()
_queue = Queue()
"""Blocks take their turns in the order in which they came. One computes at a time: its stages use all threads of the process. Where a CRF
follows, one at a time is between reading and the end of its network: the CRF takes longer, and the next block is read meanwhile."""
_slots = {device: threading.BoundedSemaphore(blocks_at_once(device)) for device in ("cpu", "cuda")}
_SWITCH_S = 0.0001
"""How long a thread of this process computes in Python before another may, s, where a device waits for one of them: its calls are short."""
_ROOMS = 2
"""Blocks that lie on a device at a time: one computes, another is copied there or back."""


def process_block(job: BlockJob, index: BlockIndex, *, attempt: int = 1, scratch: str | None = None) -> BlockReceipt:
    """Segment the block ``index``, write it, and return when its bytes are durable; ``scratch`` is a folder for what lives no longer.

    Of several threads of a process a few do a block at a time: one computes, the others read or write.
    """
    with _slots[choose_device(job.engine)], _queue.joined() as place:
        try:
            return _process(job, index, place, attempt=attempt, scratch=scratch)
        except Exception as error:
            _give_back_locals(error)
            raise


def _give_back_locals(error: BaseException) -> None:
    """Forget what the functions that an error passed had in hand: whoever keeps it, as Dask does, would keep a block's arrays with it."""
    known: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in known:
        known.append(following)
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def _process(job: BlockJob, index: BlockIndex, place: Place, *, attempt: int, scratch: str | None) -> BlockReceipt:
    started = time.perf_counter()
    model = _read_model(job.spec.model_path)
    engine = None if job.spec.probabilities_from is not None else _EngineOnDemand(job)
    scene = _scene(job)
    processor = _processor(job)
    workplace = Workplace(
        processor=processor,
        seen=_seen_windows(job, scene.info, scratch),
        turn=place.turn("turn"),
        entry=contextlib.nullcontext() if job.spec.crf is None else place.turn("entry"),
        room=contextlib.nullcontext()
        if engine is None or engine.device == "cpu"
        else _rooms(engine.device).taken(place.turn("room")),
    )
    result = segment_block(index, scene=scene, engine=engine, model=model, spec=job.spec, workplace=workplace)
    with workplace.clock.stage("write"):
        window = Blocks(shape=scene.info.shape, block_px=job.spec.grid.block_px).window(index)
        chunks = (
            ()
            if result is None
            else write_block(Path(job.out), window, _arrays(result), check_ours=lambda: _check_still_ours(job))
        )
    return BlockReceipt(
        block=index,
        state="nodata" if result is None else "done",
        chunks=chunks,
        class_counts=() if result is None else _count(result, n_classes=len(model.classes)),
        n_pixels=window.n_pixels,
        seconds=round(time.perf_counter() - started, 3),
        device=processor.device if engine is None else engine.device,
        host=socket.gethostname(),
        attempt=attempt,
        stage_s=workplace.clock.seconds,
        unreadable=tuple((part.row_off, part.col_off, part.height, part.width) for part in unreadable_in(scene, window)),
    )


class _EngineOnDemand:
    """The network of a job, loaded when the first window needs it: a block is read meanwhile."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job

    @property
    def name(self) -> str:
        """As the loaded engine says."""
        return self._engine.name

    @property
    def device(self) -> str:
        """Where it runs; known before it is loaded."""
        return choose_device(self._job.engine)

    @property
    def cells(self) -> Cells:
        """As the loaded engine says."""
        return self._engine.cells

    def scores(self, windows: Iterable[Load]) -> Iterator[NDArray[np.float32]]:
        """As the loaded engine does."""
        return self._engine.scores(windows)

    @property
    def _engine(self) -> Engine:
        engine, _ = load_engine(self._job.spec, self._job.engine)
        assert engine is not None
        return engine


def make_ready(job: BlockJob) -> None:
    """Load the network and the compiled code of a job; what fails here fails again, and is told, with the first block."""
    with contextlib.suppress(PipelineError):
        engine, model = load_engine(job.spec, job.engine)
        n_classes, n_bands = len(model.classes), len(model.bands)
        if engine is None or engine.device == "cpu":
            warm_up(n_classes)
        else:
            sys.setswitchinterval(_SWITCH_S)
        if job.spec.crf is not None:
            side = _WARM_UP_PX
            shares = np.full((n_classes, side, side), 1 / n_classes, np.float32)
            guide, valid = np.zeros((n_bands, side, side), np.float32), np.ones((side, side), bool)
            refine_tile(shares, guide, valid, job.spec.crf, processor=_processor(job))


def load_engine(spec: SegmentSpec, engine: EngineSpec) -> tuple[Engine | None, ModelSpec]:
    """Return the running network (None where an earlier run's probabilities are refined) and its model, loading them at the first call."""
    if spec.probabilities_from is not None:
        return None, _read_model(spec.model_path)
    system = (spec.multiscale, spec.image_pooling, spec.scene_means)
    with _loading:
        return _load_engine(spec.model_path, spec.model_sha256, system, engine, (spec.grid.window_px, conversion_key(spec)))


@lru_cache(maxsize=1)
def _load_engine(
    given: str, sha256: str, system: _System, engine: EngineSpec, windows: tuple[int, str | None]
) -> tuple[Engine, ModelSpec]:
    path = find_model(given)
    if (found := file_sha256(path)) != sha256:
        raise WeightsError(
            f"the model {path} has SHA-256 {found[:12]}… on this machine; the run was planned with {sha256[:12]}…: "
            "make the same file available to all workers"
        )
    multiscale, mode, scene_means = system
    model, network = late_network(path, multiscale, mode=mode, scene_means=scene_means)
    window_px, cache_key = windows
    return open_engine(network, engine, window_px=window_px, cache_key=cache_key), model


@lru_cache(maxsize=1)
def _read_model(given: str) -> ModelSpec:
    return read_model_spec(find_model(given))


def _processor(job: BlockJob) -> Processor:
    """Return what the CRF runs on: its own threads, and the network's device where the backend can use it."""
    crf = job.spec.crf
    device = choose_device(job.engine) if crf is not None and crf.backend == "torch" else "cpu"
    return Processor(threads=job.engine.threads, device=device)


def _seen_windows(job: BlockJob, scene: SceneInfo, scratch: str | None) -> SeenWindows:
    """Return what this process keeps of the network windows of a run."""
    with _keeping:
        return _keep_seen_windows(job.run_id, seen_windows_bytes(job.spec, scene, _read_model(job.spec.model_path)), scratch)


@lru_cache(maxsize=1)
def _keep_seen_windows(_run_id: str, limit_bytes: int, scratch: str | None) -> SeenWindows:
    return SeenWindows(limit_bytes, folder=scratch)


@lru_cache(maxsize=1)
def _rooms(device: str) -> DeviceRooms:
    import torch  # noqa: PLC0415  (a second)

    from pipeline.engine.on_device import DeviceRooms  # noqa: PLC0415  (torch)

    return DeviceRooms(torch.device(device), n_blocks=_ROOMS)


def _scene(job: BlockJob) -> Scene:
    """Return this thread's open scene; another run opens it anew, for the file may have been replaced since."""
    key = (job.run_id, job.source)
    held: tuple[tuple[str, SceneSpec], Scene] | None = getattr(_local, "scene", None)
    if held is None or held[0] != key:
        close_scene()
        held = (key, open_scene(job.source))
        _local.scene = held
    return held[1]


def close_scene() -> None:
    """Close the scene that this thread holds open, if any."""
    held: tuple[tuple[str, SceneSpec], Scene] | None = getattr(_local, "scene", None)
    _local.scene = None
    if held is not None:
        held[1].close()


def _check_still_ours(job: BlockJob) -> None:
    """Raise BlockError where the output was overwritten meanwhile: an orphan of a dead client must not write into another run."""
    record = RunPaths(out=Path(job.out)).record
    try:
        run_id = json.loads(record.read_text())["run_id"]
    except (OSError, ValueError, KeyError) as cause:
        raise BlockError(f"the run's record {record} is gone or damaged; the block was not written") from cause
    if run_id != job.run_id:
        raise BlockError(f"{job.out} now belongs to run {run_id}, not {job.run_id}; the block was not written")


def _arrays(result: BlockResult) -> dict[str, NDArray[np.uint8]]:
    arrays = {"labels": result.labels, "confidence": result.confidence}
    return arrays if result.probabilities is None else {**arrays, "probabilities": result.probabilities}


def _count(result: BlockResult, *, n_classes: int) -> tuple[int, ...]:
    """Count the pixels of each class, without the GIL, for which other threads may wait."""
    from pipeline.classify import count_labels  # noqa: PLC0415  (numba)

    return tuple(count_labels(result.labels)[:n_classes].tolist())
