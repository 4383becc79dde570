"""What a worker does before its first block: load network and compiled code, and say nothing of what fails before a block does."""

import contextlib
import dataclasses
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.crf.energy import CrfSpec
from pipeline.engine.device_engine import DeviceEngine
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import BlockError, StoreError, WeightsError
from pipeline.grid import Blocks
from pipeline.seen_windows import SeenWindows
from pipeline.spec import SegmentSpec
from pipeline.store import read_array
from pipeline.window import Window
from workflows import dask_executor, worker
from workflows.block_job import BlockJob
from workflows.prepare import prepare
from workflows.run_state import RunPaths, read_record
from workflows.worker import load_engine, make_ready, process_block


@pytest.fixture
def job(raster, request_for, tmp_path):
    spec = prepare(request_for(raster(), crf=CrfSpec(theta_alpha=7, tile_px=48, n_steps=1))).spec
    return BlockJob(spec=spec, engine=EngineSpec(device="cpu"), source=spec.scene, out=str(tmp_path / "out.zarr"), run_id="one")


def test_the_network_is_loaded_before_the_first_block_asks_for_it(job, monkeypatch):
    make_ready(job)
    monkeypatch.setattr(worker, "open_engine", lambda *_, **__: pytest.fail("it was loaded again"))
    engine, model = load_engine(job.spec, job.engine)
    assert engine.device == "cpu"
    assert model.name == "tiny"


def test_what_fails_is_told_by_the_block_and_not_before(job):
    other = dataclasses.replace(job, spec=dataclasses.replace(job.spec, model_sha256="0" * 64))
    make_ready(other)
    with pytest.raises(WeightsError, match="the run was planned with 000000000000"):
        process_block(other, (0, 0))


def test_an_engine_on_demand_is_the_engine(job):
    on_demand, (engine, _) = worker._EngineOnDemand(job), load_engine(job.spec, job.engine)
    assert (on_demand.name, on_demand.device, on_demand.cells) == (engine.name, engine.device, engine.cells)


def test_windows_for_later_blocks_wait_where_dask_would_spill(job, monkeypatch, tmp_path):
    folders = []

    def noted(limit_bytes, *, folder):
        folders.append(folder)
        return SeenWindows(limit_bytes, folder=folder)

    monkeypatch.setattr(worker, "SeenWindows", noted)
    monkeypatch.setattr(dask_executor, "get_worker", lambda: SimpleNamespace(local_directory=str(tmp_path)))
    job = dataclasses.replace(job, run_id="another")
    monkeypatch.setitem(dask_executor._jobs, "digest", job)
    with pytest.raises(StoreError, match=r"out\.zarr"):  # it is not there
        dask_executor.run_task("digest", (0, 0), 1)
    assert folders == [str(tmp_path)]


@pytest.mark.parametrize("chained", [False, True])
def test_a_block_that_fails_leaves_nothing_in_memory_while_its_error_is_kept(job, monkeypatch, chained):
    held = []

    def use_memory():
        array = np.zeros(1000)
        held.append(weakref.ref(array))
        raise OSError("gone")

    def segment_block(*_, **__):
        own = np.zeros(1000)
        held.append(weakref.ref(own))
        try:
            use_memory()
        except OSError as cause:
            later = BlockError("no pixels")
            if chained:
                cause.__context__ = later  # whoever follows the chain comes back to where it began
                raise later from cause
            raise

    monkeypatch.setattr(worker, "segment_block", segment_block)
    with pytest.raises((OSError, BlockError)) as failed:
        process_block(job, (0, 0))
    assert [reference() is None for reference in held] == [True, True]
    assert failed.value.__traceback__ is not None  # where it happened can still be told


# --- a device, for which torch's CPU stands


class Rooms:
    """Room for two blocks, without streams."""

    def __init__(self):
        self.free = threading.Semaphore(2)

    @contextlib.contextmanager
    def taken(self, order):
        with order:
            self.free.acquire()
        try:
            yield
        finally:
            self.free.release()


@pytest.fixture
def on_device(monkeypatch):
    """Whoever asks for the device is told one."""
    there, rooms = torch.device("cpu", 0), Rooms()

    def open_there(network, spec, *, window_px, **_):
        return DeviceEngine(network.load(), spec, device=there, window_px=window_px)

    worker._load_engine.cache_clear()
    monkeypatch.setattr("pipeline.engine.device_engine._MOST_AT_ONCE", 4)
    monkeypatch.setattr(worker, "choose_device", lambda _: str(there))
    monkeypatch.setattr(worker, "open_engine", open_there)
    monkeypatch.setattr(worker, "_rooms", lambda _device: rooms)
    monkeypatch.setitem(worker._slots, str(there), threading.BoundedSemaphore(8))
    yield
    worker._load_engine.cache_clear()


@pytest.mark.parametrize("crf", [None, CrfSpec(theta_alpha=7, tile_px=48, n_steps=1)])
def test_blocks_that_share_a_device_give_what_each_gives_on_the_cpu(on_device, raster, stored, crf):
    scene = raster(height=230, width=310)
    out = stored(scene, crf=crf)
    expected = {name: read_array(out, name, Window.of_shape((230, 310))) for name in ("labels", "probabilities")}
    record = read_record(RunPaths(out=out))
    spec = SegmentSpec.from_dict(record.spec)
    job = BlockJob(spec=spec, engine=EngineSpec(), source=spec.scene, out=str(out), run_id=record.run_id)
    make_ready(job)
    blocks = list(Blocks(shape=(230, 310), block_px=64))
    with ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(lambda index: process_block(job, index), blocks, timeout=60))
    assert {receipt.device for receipt in receipts} == {"cpu:0"}
    found = {name: read_array(out, name, Window.of_shape((230, 310))) for name in expected}
    assert np.abs(found["probabilities"].astype(int) - expected["probabilities"]).max() <= 1
    assert (found["labels"] == expected["labels"]).mean() > 0.999
    assert not worker._queue.waiting
