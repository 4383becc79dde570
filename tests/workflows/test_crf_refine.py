"""Stored probabilities refined again: the job that segments, without the network."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from factories import lively_network, tiny_model_spec

from pipeline import memory, scene_means
from pipeline.blended import BlendedHere
from pipeline.crf.energy import CrfSpec
from pipeline.errors import SourceError, SpecError, StoreError, StoreMismatchError
from pipeline.labels import dequantise
from pipeline.locate import BlockWindows, crf_lattice
from pipeline.network.checkpoint import save_checkpoint
from pipeline.network.model_file import copy_with_spec, read_model_spec
from pipeline.scene import SceneSpec, open_scene
from pipeline.segment import refine, segment_block
from pipeline.spec import OutputSpec
from pipeline.store import open_layout, read_array, read_labels
from pipeline.window import Window
from workflows import export, segment_scene, serial_executor, worker
from workflows.local_workers import ClusterSpec
from workflows.refinement import Refinement, prepare_refinement
from workflows.run_state import RunPaths, read_record
from workflows.segment_scene import resume

HEIGHT, WIDTH = 70, 100
N_BLOCKS = 4
SCENE = Window.of_shape((HEIGHT, WIDTH))
CRF = CrfSpec(theta_alpha=8, theta_beta=20, theta_gamma=2, n_steps=3, tile_px=40)


@pytest.fixture
def scene(raster):
    return raster(height=HEIGHT, width=WIDTH, nodata=0, holes=((10, 20, 9, 31),))


@pytest.fixture
def first(stored, scene):
    """Return ``run(name, **request) -> Path`` of an output of ``scene`` with its probabilities."""
    return functools.partial(stored, scene)


@pytest.fixture
def store(first):
    return first()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "refined" / "again.zarr"


@pytest.fixture
def run(store, out, execution):
    """Return ``run(crf, source=, dest=, scene=, overwrite=) -> Summary``."""

    def go(crf=CRF, *, source=store, dest=out, scene=None, overwrite=False):
        return segment_scene.refine(Refinement(store=source, crf=crf, scene=scene), dest, execution(overwrite=overwrite))

    return go


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What comes out


def test_the_labels_are_those_that_the_crf_makes_of_the_stored_probabilities(run, store, out, scene):
    summary = run()
    assert (summary.n_done, summary.n_new, summary.succeeded) == (N_BLOCKS, N_BLOCKS, True)
    spec = prepare_refinement(Refinement(store=store, crf=CRF)).spec
    with open_scene(spec.scene) as opened:
        tile = opened.read(SCENE)
    whole = BlockWindows(
        shape=SCENE.shape,
        write=SCENE,
        predict=SCENE,
        network=(),
        shared={},
        crf=tuple(crf_lattice(SCENE.shape, CRF).touching(SCENE)),
        read=SCENE,
    )
    probabilities = dequantise(read_array(store, "probabilities", SCENE))
    labels, confidence = refine(BlendedHere(probabilities), tile, whole, spec=spec, crf=CRF)
    np.testing.assert_array_equal(read_labels(out, SCENE), labels)
    np.testing.assert_array_equal(read_array(out, "confidence", SCENE), confidence)
    assert (labels == 255).sum() == 9 * 31
    assert (labels != read_labels(store, SCENE)).any()


def test_rounded_probabilities_change_few_labels(run, first, out):
    run()
    together = first("together.zarr", crf=CRF)
    assert (read_labels(out, SCENE) != read_labels(together, SCENE)).mean() < 0.005


def test_the_network_is_not_loaded(run, out, monkeypatch):
    monkeypatch.setattr(worker, "_load_engine", lambda *_: pytest.fail("the network was loaded"))
    assert run().succeeded


def test_a_scene_mean_is_not_measured_again(tiny_model, first, run, monkeypatch):
    pooled = first("pooled.zarr", model=str(tiny_model(image_pooling="window", name="pooling")), image_pooling="global")
    monkeypatch.setattr(scene_means, "measure_scene_means", lambda *_, **__: pytest.fail("the network was run"))
    assert run(source=pooled).succeeded


def test_memory_is_asked_for_what_is_read_and_refined_only(store):
    prepared = prepare_refinement(Refinement(store=store, crf=CRF))
    bound = memory.bound(prepared.spec, prepared.scene, prepared.model, n_at_once=1)
    names = {term.name for term in bound.terms}
    assert "stored probabilities" in names
    assert "CRF tile" in names
    assert not {name for name in names if name.startswith(("network", "window"))}
    with_network = dataclasses.replace(prepared.spec, probabilities_from=None)
    assert bound.total_bytes < memory.bound(with_network, prepared.scene, prepared.model, n_at_once=1).total_bytes


def test_the_output_has_the_layout_and_the_provenance_of_both_runs(run, store, out, model):
    run()
    before, after = open_layout(store), open_layout(out)
    assert after.array_names == ("labels", "confidence")
    assert (after.classes, after.georef, after.chunk, after.window) == (
        before.classes,
        before.georef,
        before.chunk,
        before.window,
    )
    shared = {name: value for name, value in before.provenance.items() if not name.startswith(("crf", "output.probabilities"))}
    assert shared.items() <= after.provenance.items()
    assert after.provenance["refined"] == "first.zarr"
    assert after.provenance["crf.theta_alpha"] == 8.0
    assert "/" not in json.dumps([after.provenance["refined"], after.provenance["model"], after.provenance["scene"]])


def test_the_output_can_be_exported(run, out, tmp_path):
    run()
    summary = export.run(out, tmp_path / "map.tif", scene=segment_scene.scene_of(out))
    assert sum(summary.n_pixels.values()) == HEIGHT * WIDTH - 9 * 31


# Running again


def test_running_again_and_resuming_do_nothing(run, out, execution):
    first = run()
    before = files_of(out.parent)
    for again in (run(), resume(out, execution())):
        assert dataclasses.replace(again, seconds=0, n_new=N_BLOCKS) == dataclasses.replace(first, seconds=0)
        assert again.n_new == 0
    assert files_of(out.parent) == before


def test_blocks_that_failed_are_done_later_and_the_bytes_are_those_of_an_undisturbed_run(
    run, out, execution, monkeypatch, tmp_path
):
    undisturbed = tmp_path / "undisturbed.zarr"
    run(dest=undisturbed)
    real = serial_executor.process_block

    def fail_once(job, index, *, attempt=1):
        if index == (1, 0):
            raise SourceError("damaged there")
        return real(job, index, attempt=attempt)

    with monkeypatch.context() as patched:
        patched.setattr(serial_executor, "process_block", fail_once)
        assert [failure.block for failure in run().failures] == [(1, 0)]
    summary = resume(out, execution(retry_failed=True))
    assert (summary.n_new, summary.succeeded) == (1, True)
    assert files_of(out) == files_of(undisturbed)


@pytest.mark.cluster
@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(run, store, execution, out, tmp_path):
    run()
    other = tmp_path / "distributed.zarr"
    workers = execution(cluster=ClusterSpec(cluster="local", n_workers=2, threads=1))
    assert segment_scene.refine(Refinement(store=store, crf=CRF), other, workers).succeeded
    assert files_of(other) == files_of(out)


@pytest.mark.slow
def test_a_killed_job_is_finished_by_the_same_command_with_the_same_bytes(stored, raster, tmp_path):
    store = stored(raster(height=320, width=384, name="larger.tif"), "larger.zarr")
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    words = [
        sys.executable,
        "-m",
        "cli",
        "crf",
        "refine",
        str(store),
        "--cluster",
        "serial",
        "--threads",
        "1",
        "-q",
        "--no-progress",
    ]
    settings = [word for name in ("theta_alpha=8", "tile_px=40", "n_steps=3") for word in ("--crf-param", name)]
    subprocess.run([*words, str(whole), *settings], check=True)
    journal = RunPaths(out=killed).journal
    with subprocess.Popen([*words, str(killed), *settings], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.002)
        process.kill()
    n_before = journal.read_bytes().count(b"\n")
    assert 5 <= n_before < 30
    subprocess.run([*words, str(killed), *settings], check=True)
    assert journal.read_bytes().count(b"\n") == 30
    assert files_of(killed) == files_of(whole)


def test_another_crf_is_refused_by_name(run):
    run()
    with pytest.raises(StoreMismatchError, match=r"crf\.w_appearance was 4\.0, is 5\.0"):
        run(dataclasses.replace(CRF, w_appearance=5))


def test_other_probabilities_are_refused_by_name(run, first, other_model):
    run()
    first(model=str(other_model))
    with pytest.raises(StoreMismatchError, match=r"model\.sha256 was"):
        run()
    assert run(overwrite=True).succeeded


def test_a_store_and_a_scene_may_move(run, store, scene, out, execution, tmp_path):
    run()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (store, RunPaths(out=store).folder, scene):
        shutil.move(path, moved / path.name)
    with pytest.raises(StoreError, match="is no Zarr group"):
        resume(out, execution())
    with pytest.raises(SourceError, match="give its place with --scene"):
        run(source=moved / store.name)
    assert run(source=moved / store.name, scene=str(moved / scene.name)).n_new == 0


def test_a_description_added_to_the_model_does_not_matter(first, tmp_path, run):
    spec = tiny_model_spec(name="own")
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, lively_network(spec.network), spec)
    store = first(model=str(path))
    copy_with_spec(path, path, dataclasses.replace(read_model_spec(path), licence="CC0"))
    assert run(source=store).succeeded
    assert read_record(RunPaths(out=store)).hard["model.sha256"] == open_layout(store).provenance["model.sha256"]


# What is refused


def test_a_store_without_probabilities(run, first):
    bare = first("bare.zarr", output=OutputSpec(chunk_px=32))
    with pytest.raises(StoreError, match=r"holds no probabilities.*with --probabilities"):
        run(source=bare)


def test_a_store_that_is_not_finished(run, store):
    journal = RunPaths(out=store).journal
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(StoreError, match=r"3 of 4 blocks finished.*atrous resume"):
        run()


def test_a_store_with_a_lost_chunk(run, store, out):
    (store / "0" / "probabilities" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="is damaged: missing: 0/probabilities/c/1/0/0"):
        run()
    assert not out.parent.exists()


def test_a_store_whose_run_is_gone(run, store):
    shutil.rmtree(RunPaths(out=store).folder)
    with pytest.raises(StoreError, match="has no state of a run"):
        run()


def test_a_scene_that_is_not_the_one_that_was_segmented(run, raster):
    other = raster(height=HEIGHT, width=WIDTH, seed=1, nodata=0, name="other.tif")
    with pytest.raises(StoreMismatchError, match=r"other\.tif is not the scene that was segmented: input\."):
        run(scene=str(other))


def test_a_scene_that_was_written_again_in_its_place(run, raster):
    raster(height=HEIGHT, width=WIDTH, nodata=0, holes=((10, 20, 9, 30),))
    with pytest.raises(StoreMismatchError, match="is not the scene that was segmented"):
        run()


def test_the_store_itself_is_no_output(run, store):
    before = files_of(store)
    with pytest.raises(SpecError, match="as source and as output"):
        run(dest=store, overwrite=True)
    assert files_of(store) == before


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_probabilities_that_go_missing_under_way_fail_their_block_and_no_other(store, how):
    prepared = prepare_refinement(Refinement(store=store, crf=CRF))
    chunk = store / "0" / "probabilities" / "c" / "1" / "0" / "0"
    for path in chunk.parent.parent.parent.glob("*/0/0") if how == "lost" else ():
        path.unlink()
    if how == "damaged":
        chunk.write_bytes(chunk.read_bytes()[:-3])
    with (
        open_scene(SceneSpec(uri=prepared.spec.scene.uri, bands=(1, 2, 3))) as scene,
        pytest.raises(SourceError, match="atrous resume"),
    ):
        segment_block((0, 0), scene=scene, engine=None, model=prepared.model, spec=prepared.spec)
