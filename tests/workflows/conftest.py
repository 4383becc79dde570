"""What the tests of the jobs share: requests for small grids, a checkpoint that is built once, hand-made receipts."""

from __future__ import annotations

import resource
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.engine.protocol import EngineSpec
from pipeline.receipt import ChunkReceipt
from pipeline.spec import GridSpec, OutputSpec
from workflows.events import BlockReceipt
from workflows.local_workers import ClusterSpec
from workflows.prepare import Request
from workflows.segment_scene import Execution, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def other_model(tmp_path: Path, model: Path) -> Path:
    """Return a checkpoint that differs from ``model`` in one bit of one weight."""
    weights = bytearray(model.read_bytes())
    weights[-1] ^= 1
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(weights)
    return path


@pytest.fixture
def request_for(model: Path) -> Callable[..., Request]:
    """Return ``build(scene, block=64, window=64, **fields of Request)``: windows of 64 px, chunks of 32 px."""

    def build(scene: Path, *, block: int = 64, window: int = 64, **changes: Any) -> Request:
        given = {
            "model": str(model),
            "grid": GridSpec(window_px=window, overlap_px=16, block_px=block),
            "output": OutputSpec(chunk_px=32),
        }
        return Request(scene=str(scene), **{**given, **changes})

    return build


@pytest.fixture
def execution() -> Callable[..., Execution]:
    """Return ``build(**fields of Execution)``: in this process, on the CPU, with one thread."""

    def build(**changes: Any) -> Execution:
        given = {"engine": EngineSpec(device="cpu"), "cluster": ClusterSpec(cluster="serial", threads=1)}
        return Execution(**{**given, **changes})

    return build


@pytest.fixture
def stored(request_for: Callable[..., Request], execution: Callable[..., Execution], tmp_path: Path) -> Callable[..., Path]:
    """Return ``run(scene, name, **fields of Request) -> Path`` of a finished output with its probabilities."""

    def run(scene: Path, name: str = "first.zarr", **changes: Any) -> Path:
        out = tmp_path / name
        given = {"output": OutputSpec(chunk_px=32, probabilities=True), **changes}
        assert segment(request_for(scene, **given), out, execution(overwrite=True)).succeeded
        return out

    return run


@pytest.fixture
def receipt() -> Callable[..., BlockReceipt]:
    """Return ``build(row, col, **fields of BlockReceipt)``."""

    def build(row: int = 0, col: int = 0, **changes: Any) -> BlockReceipt:
        given = {
            "block": (row, col),
            "state": "done",
            "chunks": (ChunkReceipt(key=f"0/labels/c/{row}/{col}", n_bytes=17, crc32c=2**32 - 1),),
            "class_counts": (5, 0, 7),
            "n_pixels": 12,
            "seconds": 0.25,
            "device": "cpu",
            "host": "here",
        }
        return BlockReceipt(**{**given, **changes})

    return build


@pytest.fixture
def full_disk() -> Callable[[int], Any]:
    """Return a context manager in which no file can grow beyond so many bytes, as on a full disk."""

    @contextmanager
    def limit(n_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def fresh() -> Callable[[Path], None]:
    """Return what removes an output and the state of its run."""

    def remove(out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.with_name(out.name + ".run"), ignore_errors=True)

    return remove
