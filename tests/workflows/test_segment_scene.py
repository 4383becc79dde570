"""The main job end to end on a tiny scene: run, resume, refuse, clean up."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.crf.energy import CrfSpec
from pipeline.errors import ClusterLostError, LockedError, SourceError, StoreError, StoreMismatchError
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.store import open_layout, read_labels
from pipeline.window import Window
from workflows import cluster, executor, local_workers, segment_scene, serial_executor, worker
from workflows.choose_grid import GridRequest
from workflows.events import BlockFailure, BlockReceipt, Notice, RunStarted, Staging
from workflows.local_workers import ClusterSpec, Staffing, started_early
from workflows.report import summary_lines
from workflows.run_state import RunPaths, locked, read_record
from workflows.segment_scene import resume, segment

HEIGHT, WIDTH = 70, 100
N_BLOCKS = 4


@pytest.fixture
def scene(raster):
    return raster(height=HEIGHT, width=WIDTH)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "labels.zarr"


@pytest.fixture
def events():
    return []


@pytest.fixture
def run(request_for, execution, scene, out, events):
    """Return ``run(scene, out, overwrite=..., **request)``."""

    def go(source=scene, dest=out, *, overwrite=False, strict=False, **request):
        how = execution(overwrite=overwrite, strict=strict)
        return segment(request_for(source, **request), dest, how, events.append)

    return go


@pytest.fixture
def broken(monkeypatch):
    """Return a set of blocks that fail; empty it to mend them."""
    blocks: set[tuple[int, int]] = set()
    real = serial_executor.process_block

    def process(job, index, *, attempt=1) -> BlockReceipt:
        if index in blocks:
            raise SourceError("damaged there")
        return real(job, index, attempt=attempt)

    monkeypatch.setattr(serial_executor, "process_block", process)
    return blocks


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labels_of(out, height=HEIGHT, width=WIDTH) -> np.ndarray:
    return read_labels(out, Window.of_shape((height, width)))


def notices(events) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_a_run_labels_every_pixel(run, out, events):
    summary = run()
    assert summary.succeeded
    assert (summary.n_blocks, summary.n_done, summary.n_nodata, summary.n_new) == (N_BLOCKS, N_BLOCKS, 0, N_BLOCKS)
    labels = labels_of(out)
    assert summary.class_counts == tuple(np.bincount(labels.ravel(), minlength=3))
    assert sum(summary.class_counts) == HEIGHT * WIDTH
    assert min(summary.class_counts) > 0
    assert summary.class_names == ("class 0", "class 1", "class 2")
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert sum(isinstance(event, BlockReceipt) for event in events) == N_BLOCKS


def test_running_again_does_nothing(run, out, execution, events, monkeypatch):
    first = run()
    before, n_events = files_of(out.parent), len(events)
    monkeypatch.setattr(worker, "load_engine", lambda *_: pytest.fail("the network was loaded"))
    again = run()
    resumed = resume(out, execution(), events.append)
    for summary in (again, resumed):
        assert dataclasses.replace(summary, seconds=0, n_new=N_BLOCKS) == dataclasses.replace(first, seconds=0)
        assert summary.n_new == 0
    assert files_of(out.parent) == before
    assert len(events) == n_events


def test_resume_takes_a_relative_path_and_the_folder_itself(run, out, execution, monkeypatch):
    run()
    monkeypatch.chdir(out)
    for path in ("../labels.zarr", "."):
        assert resume(type(out)(path), execution()).succeeded


@pytest.mark.parametrize("how", ["truncated", "deleted", "emptied"])
def test_a_damaged_chunk_is_done_again(run, out, execution, events, how):
    run()
    before = files_of(out)
    chunk = out / "0" / "labels" / "c" / "2" / "3"
    if how == "deleted":
        chunk.unlink()
    else:
        os.truncate(chunk, 0 if how == "emptied" else chunk.stat().st_size - 1)
    summary = resume(out, execution(), events.append)
    assert summary.succeeded
    assert summary.n_new == 1
    assert any(
        "1 finished blocks are damaged and will be done again" in text and "labels/c/2/3" in text for text in notices(events)
    )
    assert files_of(out) == before


def test_an_output_that_was_removed_is_made_again(run, out, execution):
    run()
    before = files_of(out)
    shutil.rmtree(out)
    assert resume(out, execution()).n_new == N_BLOCKS
    assert files_of(out) == before


def test_quarantined_blocks_stay_until_they_are_asked_for(run, out, execution, broken):
    broken |= {(0, 1), (1, 0)}
    summary = run()
    assert not summary.succeeded
    assert (summary.n_done, summary.n_new) == (N_BLOCKS - 2, N_BLOCKS - 2)
    assert {failure.block for failure in summary.failures} == broken
    assert (labels_of(out)[:64, 64:128] == 255).all()
    assert (labels_of(out)[:64, :64] != 255).all()
    broken.clear()
    again = resume(out, execution())
    assert (again.n_new, len(again.failures), again.succeeded) == (0, 2, False)
    mended = resume(out, execution(retry_failed=True))
    assert (mended.n_new, mended.failures, mended.succeeded) == (2, (), True)
    assert not RunPaths(out=out).failures.exists()


def test_failed_blocks_are_polygons_over_the_scene(run, out, broken):
    broken.add((1, 1))
    run()
    collection = json.loads(RunPaths(out=out).failures.read_text())
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32640"
    (feature,) = collection["features"]
    assert feature["properties"] == {"kind": "failed", "row": 1, "col": 1, "error": "SourceError: damaged there", "attempts": 3}
    (ring,) = feature["geometry"]["coordinates"]
    left, right = 500_000 + 64 * 0.5, 500_000 + WIDTH * 0.5
    top, bottom = 2_800_000 - 64 * 0.5, 2_800_000 - HEIGHT * 0.5
    assert ring == [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def test_failed_blocks_of_a_scene_without_place_are_in_pixels(raster, run, out, broken):
    broken.add((0, 0))
    run(raster(height=HEIGHT, width=WIDTH, crs=None, name="bare.tif"))
    collection = json.loads(RunPaths(out=out).failures.read_text())
    assert "crs" not in collection
    assert collection["features"][0]["geometry"]["coordinates"] == [[[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]]


@pytest.mark.parametrize(
    ("request_change", "field"),
    [
        ({"block": 32}, "grid.block_px was 64, is 32"),
        ({"bands": (3, 2, 1)}, "input.bands was [1, 2, 3], is [3, 2, 1]"),
        ({"nodata": 3.0}, "input.nodata was None, is 3.0"),
        ({"output": OutputSpec(chunk_px=64)}, "output.chunk_px was 32, is 64"),
        ({"crf": CrfSpec(theta_alpha=5, tile_px=48)}, "crf.theta_alpha"),
    ],
    ids=["block", "bands", "nodata", "chunk", "crf"],
)
def test_another_setting_is_refused_and_touches_nothing(run, out, request_change, field):
    run()
    before = files_of(out.parent)
    before.pop("labels.zarr.run/lock")
    with pytest.raises(StoreMismatchError) as caught:
        run(**request_change)
    assert field in str(caught.value)
    after = files_of(out.parent)
    after.pop("labels.zarr.run/lock")
    assert after == before


def test_another_model_is_refused(run, other_model):
    run()
    with pytest.raises(StoreMismatchError, match=r"another run: model\.sha256 was"):
        run(model=str(other_model))


def test_an_output_that_is_gone_is_said_to_be_gone(run, out):
    run()
    shutil.rmtree(out)
    with pytest.raises(
        StoreMismatchError, match=r"labels\.zarr was made by another run and is not there any more, but its state is"
    ):
        run(bands=(3, 2, 1))
    again = run()
    assert again.n_new == again.n_done > 0


def test_a_moved_scene_goes_on_with_a_notice(run, scene, events, tmp_path):
    run()
    moved = tmp_path / "moved.tif"
    shutil.copyfile(scene, moved)
    summary = run(moved)
    assert (summary.n_new, summary.succeeded) == (0, True)
    assert any(text.startswith("resuming although input.uri was") for text in notices(events))
    with pytest.raises(StoreMismatchError, match="--strict was asked for"):
        run(moved, strict=True)


def test_a_changed_scene_is_refused_by_name(run, raster):
    run()
    raster(height=HEIGHT, width=WIDTH, seed=1)
    with pytest.raises(StoreMismatchError, match=r"input\.mtime_ns.*input\.sample_sha256"):
        run()


def test_nan_as_nodata_is_the_same_again(run, raster, out):
    scene = raster(height=HEIGHT, width=WIDTH, dtype="float32", nodata=float("nan"), holes=((0, 0, 30, 30),))
    request = {"nodata": float("nan")}
    assert run(scene, **request).succeeded
    assert (labels_of(out)[:30, :30] == 255).all()
    assert run(scene, **request).n_new == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads((out / "zarr.json").read_text(), parse_constant=refuse)


def test_overwrite_begins_another_run(run, out):
    run()
    first = read_record(RunPaths(out=out))
    summary = run(overwrite=True, output=OutputSpec(chunk_px=64))
    assert (summary.n_new, summary.succeeded) == (N_BLOCKS, True)
    assert open_layout(out).chunk == 64
    assert read_record(RunPaths(out=out)).run_id != first.run_id
    assert (labels_of(out) != 255).all()


def make_directory(path) -> None:
    path.mkdir(parents=True)
    (path / "precious").write_text("data")


def make_foreign_group(path) -> None:
    path.mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"mine": 1}}))


def make_file(path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("data")


def make_dangling_link(path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to("nowhere")


@pytest.mark.parametrize("overwrite", [False, True], ids=["plain", "overwrite"])
@pytest.mark.parametrize("make", [make_directory, make_foreign_group, make_file, make_dangling_link])
def test_what_is_not_ours_is_left_alone(run, out, make, overwrite):
    make(out)
    before = files_of(out.parent)
    with pytest.raises(StoreError, match="exists and is no output of atrous; it was left as it is"):
        run(overwrite=overwrite)
    assert files_of(out.parent) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_output_without_its_state_is_not_gone_on_with(run, out):
    run()
    shutil.rmtree(RunPaths(out=out).folder)
    with pytest.raises(StoreError, match=r"the state of its run .* is gone"):
        run()
    assert run(overwrite=True).n_new == N_BLOCKS


def test_an_output_below_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        run(dest=tmp_path / "file" / "labels.zarr")
    assert (tmp_path / "file").read_text() == ""


def test_a_locked_output_is_refused(run, out):
    with locked(RunPaths(out=out)), pytest.raises(LockedError, match="wait until it ends"):
        run()
    assert not out.exists()


@pytest.mark.parametrize("what", ["write_record", "create_store"])
def test_a_disk_that_is_full_from_the_start_leaves_nothing(run, out, monkeypatch, what):
    def fail(*_args) -> None:
        raise StoreError("No space left on device")

    monkeypatch.setattr(segment_scene, what, fail)
    with pytest.raises(StoreError, match="No space left"):
        run()
    assert list(out.parent.iterdir()) == []


def test_a_disk_that_fills_up_stops_the_run_and_a_resume_ends_it(run, out, tmp_path, execution):
    small = tmp_path / "small"
    small.mkdir()
    size = ["-o", "size=256k,nr_inodes=40"]
    if subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(small)], check=False, capture_output=True).returncode:
        pytest.skip("mounting needs rights")
    try:
        with pytest.raises(StoreError, match=r"could not be written, and the run stopped.*Run again to go on"):
            run(dest=small / "labels.zarr", block=32)
        subprocess.run(["mount", "-o", "remount,size=8m,nr_inodes=2000", str(small)], check=True)
        summary = resume(small / "labels.zarr", execution())
        assert summary.succeeded
        assert 0 < summary.n_new < summary.n_blocks
        run(block=32)
        assert files_of(out) == files_of(small / "labels.zarr")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_outcome_is_announced_when_it_is_durable_and_not_before(run, out, events, monkeypatch):
    durable = []
    real = os.fsync

    def fsync(handle) -> None:
        real(handle)
        journal = RunPaths(out=out).journal
        if journal.exists() and os.path.samestat(os.fstat(handle), journal.stat()):
            durable.append((journal.read_bytes().count(b"\n"), sum(isinstance(event, BlockReceipt) for event in events)))

    monkeypatch.setattr(os, "fsync", fsync)
    run()
    assert durable == [(n + 1, n) for n in range(N_BLOCKS)]


def test_outcomes_that_end_with_a_fatal_one_are_kept(run, out, execution, monkeypatch):
    def outcomes(_self, job, blocks, _stop):
        first, second, third, _ = list(blocks)
        failure = BlockFailure(block=second, error="StoreError: No space left", attempts=1, fatal=True)
        yield [serial_executor.process_block(job, first), failure, serial_executor.process_block(job, third)]

    with monkeypatch.context() as patched:
        patched.setattr(serial_executor.SerialExecutor, "outcomes", outcomes)
        with pytest.raises(StoreError, match=r"block \(0, 1\) could not be written, and the run stopped"):
            run()
    assert resume(out, execution()).n_new == N_BLOCKS - 2


def test_a_summary_says_where_the_time_went(run):
    summary = run()
    assert {"read", "network", "write"} <= set(summary.stage_s)
    assert min(summary.stage_s.values()) >= 0
    (line,) = (line for line in summary_lines(summary) if line.startswith("stages   "))
    assert "read " in line
    assert not any(line.startswith("stages") for line in summary_lines(dataclasses.replace(summary, stage_s={})))


def test_a_scene_of_nodata_is_complete_and_empty(run, raster, out):
    summary = run(raster(height=HEIGHT, width=WIDTH, nodata=0, holes=((0, 0, HEIGHT, WIDTH),)))
    assert summary.succeeded
    assert (summary.n_done, summary.n_nodata, summary.class_counts) == (0, N_BLOCKS, (0, 0, 0))
    assert (labels_of(out) == 255).all()


@pytest.fixture
def png(tmp_path, scene):
    import rasterio

    with rasterio.open(scene) as source:
        pixels = source.read()
    path = tmp_path / "scene.png"
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(path)
    return path


def test_a_png_is_staged_once_and_the_copy_removed_at_the_end(run, png, out, execution, events, broken):
    scratch = RunPaths(out=out).scratch
    broken.add((1, 1))
    run(png)
    assert scratch.exists()
    assert any(isinstance(event, Staging) for event in events)
    broken.clear()
    events.clear()
    assert resume(out, execution(retry_failed=True), events.append).succeeded
    assert not any(isinstance(event, Staging) for event in events)
    assert not scratch.exists()
    assert list(png.parent.glob("scene.png*")) == [png]


def test_a_staged_scene_gives_the_labels_of_the_scene(run, png, out, tmp_path):
    run()
    run(png, tmp_path / "staged.zarr")
    np.testing.assert_array_equal(labels_of(out), labels_of(tmp_path / "staged.zarr"))


@pytest.mark.parametrize("crf", [None, CrfSpec(theta_alpha=4, n_steps=3, tile_px=48)], ids=["no CRF", "CRF"])
def test_the_bytes_depend_on_neither_folder_nor_block(run, out, tmp_path, crf):
    run(crf=crf)
    run(dest=tmp_path / "again.zarr", crf=crf)
    assert files_of(out) == files_of(tmp_path / "again.zarr")
    run(dest=tmp_path / "small.zarr", crf=crf, block=32)
    ours = {name: data for name, data in files_of(out).items() if "/c/" in name}
    assert ours == {name: data for name, data in files_of(tmp_path / "small.zarr").items() if "/c/" in name}


def test_the_crf_changes_labels_and_is_recorded(run, out, tmp_path):
    run()
    run(dest=tmp_path / "crf.zarr", crf=CrfSpec(theta_alpha=4, tile_px=48))
    assert 0 < (labels_of(out) != labels_of(tmp_path / "crf.zarr")).mean() < 0.5
    assert open_layout(tmp_path / "crf.zarr").provenance["crf.theta_alpha"] == 4


def test_probabilities_and_shards(run, tmp_path, out):
    run()
    other = tmp_path / "sharded.zarr"
    assert run(dest=other, output=OutputSpec(chunk_px=32, shard_px=64, probabilities=True)).succeeded
    np.testing.assert_array_equal(labels_of(out), labels_of(other))


def test_one_window_larger_than_the_scene(run, raster, out):
    grid = GridSpec(window_px=256, overlap_px=64, block_px=64)
    assert run(raster(height=20, width=33), grid=grid).n_new == 1
    assert (labels_of(out, 20, 33) != 255).all()


def test_a_worker_of_an_overwritten_run_writes_no_more(run, out, monkeypatch):
    real = worker.segment_block

    def segment_meanwhile(index, **given):
        result = real(index, **given)
        paths = RunPaths(out=out)
        paths.record.write_text(dataclasses.replace(read_record(paths), run_id="another one").to_json())
        return result

    monkeypatch.setattr(worker, "segment_block", segment_meanwhile)
    summary = run()
    assert summary.n_done == 0
    assert "now belongs to run another one" in summary.failures[0].error
    assert (labels_of(out) == 255).all()


def test_a_worker_that_lives_on_reads_a_scene_that_was_replaced(run, raster, out, tmp_path, monkeypatch):
    monkeypatch.setattr(serial_executor, "close_scene", lambda: None)  # as in the worker of a cluster that outlives the run
    run()
    raster(height=HEIGHT, width=WIDTH, seed=1)
    try:
        run(dest=tmp_path / "warm.zarr")
    finally:
        worker.close_scene()
    run(dest=tmp_path / "cold.zarr")
    worker.close_scene()
    assert (labels_of(tmp_path / "warm.zarr") == labels_of(tmp_path / "cold.zarr")).all()
    assert (labels_of(out) != labels_of(tmp_path / "cold.zarr")).any()


def test_what_was_chosen_when_a_run_began_stays_when_the_memory_is_another(run, scene, out, monkeypatch):
    grid = GridRequest(block_px=64)
    assert run(grid=grid).succeeded
    window = SegmentSpec.from_dict(read_record(RunPaths(out=out)).spec).grid.window_px
    assert window == 112, "the scene fits into one"
    monkeypatch.setattr(segment_scene, "fits_here", lambda *_: lambda spec, *_: spec.grid.window_px < window)
    assert run(grid=grid).n_new == 0
    with pytest.raises(StoreMismatchError, match=r"grid\.overlap_px"):
        run(grid=GridRequest(block_px=64, overlap_px=16))


class Scheduled:
    """Workers on a scheduler that goes away after some blocks, ``n_losses`` times."""

    dashboard, n_workers = None, 1

    def __init__(self, n_losses: int) -> None:
        self.n_losses = n_losses

    @contextmanager
    def __call__(self, *_arguments, **_options):
        yield self

    def outcomes(self, job, blocks, stop):
        for ended in serial_executor.SerialExecutor().outcomes(job, blocks, stop):
            yield ended
            if self.n_losses:
                self.n_losses -= 1
                raise ClusterLostError("the Dask scheduler went away")


@pytest.fixture
def on_scheduler(monkeypatch, request_for, execution, scene, out, events):
    """Return ``run(n_losses, comes_back)`` on a cluster of somebody else."""

    def go(n_losses: int, *, comes_back: bool):
        monkeypatch.setattr(segment_scene, "executor_for", Scheduled(n_losses))
        monkeypatch.setattr(segment_scene, "wait_for_scheduler", lambda *_, **__: comes_back)
        monkeypatch.setattr(cluster, "staff_of_cluster", lambda *_: Staffing(n_workers=1, threads=1, limit_bytes=2**40))
        how = execution(cluster=ClusterSpec(scheduler="tcp://host:1", threads=1))
        return segment(request_for(scene), out, how, events.append)

    return go


def test_a_large_run_starts_its_workers_once_and_leaves_none(out, scene, monkeypatch, execution, request_for):
    pids, start = [], local_workers.start_cluster

    def noted(*given):
        started = start(*given)
        pids.extend(nanny.pid for nanny in started.workers.values())
        return started

    monkeypatch.setattr(local_workers, "start_cluster", noted)
    how = execution(cluster=ClusterSpec(cluster="local", n_workers=1))
    with started_early(how.cluster, n_pixels=5000**2) as early:
        assert segment(request_for(scene), out, how, early=early).succeeded
    (pid,) = pids
    assert not psutil.pid_exists(pid)


def test_a_run_waits_for_its_scheduler_and_goes_on(on_scheduler, events):
    assert on_scheduler(2, comes_back=True).succeeded
    assert sum(isinstance(event, RunStarted) for event in events) == 3
    assert sum(isinstance(event, Notice) and "waiting 5 minutes for it at tcp://host:1" in event.text for event in events) == 2


def test_a_scheduler_that_stays_away_ends_the_run_and_a_resume_goes_on(on_scheduler, out, execution):
    with pytest.raises(ClusterLostError):
        on_scheduler(1, comes_back=False)
    assert resume(out, execution()).n_new == N_BLOCKS - 1


def test_a_run_in_which_most_blocks_fail_stops(raster, run, out, monkeypatch, execution, events):
    monkeypatch.setattr(executor, "_PAUSE_S", 0.0)
    monkeypatch.setattr(
        serial_executor, "process_block", lambda *_, **__: (_ for _ in ()).throw(SourceError("the disk is broken"))
    )
    many = raster(height=64 * 6, width=64 * 6)
    summary = run(many)
    assert (len(summary.failures), summary.succeeded) == (20, False)
    assert any(isinstance(event, Notice) and "20 of the last 20 blocks failed" in event.text for event in events)
    monkeypatch.undo()
    assert resume(out, execution(retry_failed=True)).succeeded


def test_what_killed_workers_left_is_removed_when_a_run_is_complete(run, out, monkeypatch):
    real = serial_executor.process_block

    def leaves(job, index, **more):
        receipt = real(job, index, **more)
        (out / "0" / "labels" / "c" / f"7.{'a' * 32}.partial").write_bytes(b"half a chunk")
        return receipt

    monkeypatch.setattr(serial_executor, "process_block", leaves)
    assert run().succeeded
    assert list(out.rglob("*.partial")) == []
