"""What is computed again at seams is what the run computes, where no seam is near; what differs is found, and where."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from factories import tiny_model_spec

from pipeline.crf.energy import CrfSpec
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import SourceError, SpecError, StoreMismatchError
from pipeline.network.receptive_field import margin_px
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.store import read_labels, write_block
from pipeline.stretch import Stretch
from pipeline.window import Window
from workflows import seams
from workflows.refinement import Refinement
from workflows.run_state import RunPaths, read_record
from workflows.seam_places import choose_places
from workflows.segment_scene import refine, segment

MARGIN = margin_px(tiny_model_spec().network, MultiScaleSpec()) or 0
EXACT = GridSpec(window_px=2 * MARGIN + 160, overlap_px=2 * MARGIN, blend="exact", block_px=128)
LARGE = dataclasses.replace(EXACT, block_px=288)
WIDER = (2 * MARGIN + 170, 2 * MARGIN + 190)
"""The shape of a scene that is more than one such window."""
CRF = CrfSpec(theta_alpha=3, theta_gamma=1, n_steps=2, tile_px=64)


@pytest.fixture
def run_of(raster, request_for, execution, tmp_path):
    """Return ``make(**fields of Request) -> Path`` of a finished output of 230 x 301 px, or of another shape."""

    def make(name="out.zarr", shape=(230, 301), **changes):
        out = tmp_path / name
        scene = raster(height=shape[0], width=shape[1])
        assert segment(request_for(scene, **changes), out, execution()).succeeded
        return out

    return make


def spoil(out, window):
    """Store another class everywhere in a window of whole chunks."""
    labels = read_labels(out, window)
    write_block(out, window, {"labels": (labels + 1) % 3, "confidence": np.full_like(labels, 9)})


def spec_of(*, window=64, overlap=16, block=64, **changes):
    return SegmentSpec(
        scene=SceneSpec(uri="scene", bands=(1, 2, 3)),
        model_path="model",
        model_sha256="",
        stretch=Stretch(low=(0.0,) * 3, high=(255.0,) * 3),
        grid=GridSpec(window_px=window, overlap_px=overlap, block_px=block),
        output=OutputSpec(chunk_px=16),
        **changes,
    )


def places_of(spec, shape, *, n_places=3, done=None, square_px=16):
    n_blocks = tuple(-(-length // spec.grid.block_px) for length in shape)
    done = np.ones(n_blocks, bool) if done is None else done
    places = choose_places(spec, shape=shape, done=done, square_px=square_px, n_places=n_places)
    return {
        kind: [(place.row, place.col) for place in places if place.kind == kind] for kind in ("block", "tile", "window", "inside")
    }


# Which places


def test_places_are_where_things_meet_and_inside():
    found = places_of(spec_of(block=128), (200, 270), n_places=100)
    assert found["block"] == [(128, 128), (128, 256)]
    assert found["window"] == [(row, col) for row in (56, 104, 152) for col in (56, 104, 152, 200, 248)]
    assert found["inside"] == [(row, col) for row in (32, 80, 176) for col in (32, 80, 176, 224)]  # not 128, where blocks meet
    assert found["tile"] == []


def test_crf_tiles_meet_too_and_what_is_inside_lies_inside_one():
    found = places_of(spec_of(block=128, crf=dataclasses.replace(CRF, tile_px=48)), (200, 270), n_places=100)
    assert found["tile"] == [(row, col) for row in (48, 96, 144, 192) for col in (48, 96, 144, 192, 240)]
    assert found["inside"] == [(row, col) for row in (32, 80, 176) for col in (32, 80, 176, 224)]


def test_of_many_places_some_are_taken_evenly_and_always_the_same():
    few = places_of(spec_of(), (640, 640), n_places=4)
    assert few == places_of(spec_of(), (640, 640), n_places=4)
    assert [len(few[kind]) for kind in ("block", "window", "inside")] == [4, 4, 4]
    rows = [row for row, _ in few["block"]]
    assert np.ptp(rows) > 320


def test_one_row_of_blocks_has_edges_in_place_of_corners():
    assert places_of(spec_of(window=256, block=64), (60, 110), n_places=2)["block"] == [(15, 64), (45, 64)]


def test_what_is_not_finished_is_not_looked_at():
    done = np.ones((4, 4), bool)
    done[0, 0] = False
    found = places_of(spec_of(), (256, 256), done=done, n_places=100)
    assert (64, 64) not in found["block"]
    assert (64, 128) in found["block"]
    assert all(row >= 72 or col >= 72 for row, col in found["inside"])


def test_where_nothing_meets_there_is_nothing_to_compare():
    assert not any(places_of(spec_of(window=256, block=256), (200, 200)).values())


# What is found


def test_with_exact_blending_nothing_differs_anywhere(run_of):
    found = seams.run(run_of(grid=LARGE, shape=WIDER), n_places=4)
    assert [found.share(kind) for kind in ("block", "window", "inside")] == [0, 0, 0]
    assert [len(found.of(kind)) for kind in ("block", "window", "inside")] == [4, 1, 1]
    assert found.displaced_px > 0
    assert (found.engine, found.changed) == ("openvino fp32 on cpu", ())


def test_without_overlap_windows_differ_where_they_meet(run_of):
    found = seams.run(run_of(grid=GridSpec(window_px=64, overlap_px=0, block_px=128)), n_places=8)
    assert (found.share("window") or 0) > 0
    assert found.share("tile") is None


def test_labels_that_are_wrong_around_one_corner_are_found_there(run_of):
    out = run_of(grid=EXACT)
    spoil(out, Window(row_off=64, col_off=64, height=128, width=128))
    found = seams.run(out, n_places=6)
    assert [(place.row, place.col, place.n_differ) for place in found.of("block")] == [
        (128, 128, found.square_px**2),
        (128, 256, 0),
    ]
    assert found.share("block") == 0.5


def test_with_a_crf_tiles_are_put_around_the_place(run_of):
    found = seams.run(run_of(grid=EXACT, crf=CRF), n_places=4)
    assert len(found.of("tile")) == 4
    assert [(found.share(kind) or 0) < 0.02 for kind in ("block", "tile", "inside")] == [True] * 3


def test_the_crf_is_that_of_the_run(run_of, monkeypatch):
    seen = []

    def watch(shares, guide, valid, crf, *, offset_px, processor):
        seen.append((crf, offset_px))
        return shares

    monkeypatch.setattr(seams, "refine_tile", watch)
    found = seams.run(run_of(grid=EXACT, crf=CRF), n_places=1)
    assert [crf for crf, _ in seen] == [CRF] * len(found.places)
    place = found.of("tile")[0]
    side = CRF.tile_px + 2 * CRF.halo_px
    assert (max(0, place.row - side // 2), max(0, place.col - side // 2)) in [offset for _, offset in seen]


def test_stored_probabilities_that_were_refined_are_refined_again_around_the_place(stored, raster, tmp_path, execution):
    source = stored(raster(height=150, width=203))
    out = tmp_path / "refined.zarr"
    assert refine(Refinement(store=source, crf=CRF), out, execution()).succeeded
    found = seams.run(out, n_places=3)
    assert (found.engine, found.of("window")) == ("", ())
    assert found.of("tile")
    assert max(found.share(kind) or 0 for kind in ("tile", "inside")) < 0.02


def test_pixels_without_data_are_not_compared(raster, request_for, execution, tmp_path):
    out, hole = tmp_path / "holes.zarr", (120, 128, 16, 16)
    scene = raster(height=230, width=301, nodata=0, holes=(hole,))
    segment(request_for(scene, grid=EXACT), out, execution())
    found = seams.run(out, n_places=6)
    place = next(place for place in found.of("block") if (place.row, place.col) == (128, 128))
    assert place.n_pixels < found.square_px**2
    assert place.n_differ == 0


def test_an_output_of_one_window_has_no_seams(raster, request_for, execution, tmp_path):
    out = tmp_path / "one.zarr"
    segment(request_for(raster(height=60, width=50)), out, execution())
    assert seams.run(out, n_places=3).places == ()


# Refusals


def test_another_scene_is_refused_by_name(run_of, raster):
    out = run_of()
    raster(height=230, width=301, seed=5)
    with pytest.raises(StoreMismatchError, match=r"input\.sample_sha256 was"):
        seams.run(out, n_places=1)


def test_a_scene_that_is_gone_is_named(run_of, tmp_path):
    out = run_of()
    (tmp_path / "scene.tif").unlink()
    with pytest.raises(SourceError, match=r"scene\.tif does not exist"):
        seams.run(out, n_places=1)


def test_another_model_is_refused_by_name(run_of, other_model, model, tmp_path):
    own = tmp_path / "own.safetensors"
    shutil.copyfile(model, own)
    out = run_of(model=str(own))
    shutil.copyfile(other_model, own)
    with pytest.raises(StoreMismatchError, match=r"model\.sha256 was"):
        seams.run(out, n_places=1)


def test_no_places_are_refused(run_of):
    with pytest.raises(SpecError, match="1 or more"):
        seams.run(run_of(), n_places=0)


def test_what_this_machine_does_not_have_is_replaced_and_told(run_of):
    out = run_of()
    paths = RunPaths(out=out)
    record = read_record(paths)
    other = {**record.soft, "device": "cuda", "engine": "torch", "precision": "fp16"}
    paths.record.write_text(dataclasses.replace(record, soft=other).to_json())
    changed = " ".join(seams.run(out, n_places=1).changed)
    for sentence in ("device was cuda, is cpu", "engine was torch, is openvino", "precision was fp16, is fp32"):
        assert sentence in changed


def test_the_engine_is_that_of_the_run(run_of, execution, raster, request_for, tmp_path):
    out = tmp_path / "torch.zarr"
    request = request_for(raster(height=130, width=140))
    segment(request, out, execution(engine=EngineSpec(device="cpu", engine="torch")))
    found = seams.run(out, n_places=1)
    assert (found.engine, found.changed) == ("torch fp32 on cpu", ())


# The command


def test_the_command_tells_shares_and_keeps_its_exit_code(atrous, run_of):
    out = run_of(grid=EXACT)
    code, stdout, _ = atrous("verify", out, "--seams", "3")
    assert code == 0
    assert "places where blocks meet: 0.000 % of labels differ\n" in stdout
    assert "away from all of these: 0.000 % of labels differ, computed with a window" in stdout
    code, stdout, _ = atrous("verify", out, "--seams", "3", "--json")
    told = json.loads(stdout)["seams"]
    assert told["shares"] == {"block": 0, "tile": None, "window": None, "inside": 0}  # of one window
    assert [place["kind"] for place in told["places"]] == ["block", "block", "inside"]


def test_the_command_does_not_compare_what_is_damaged(atrous, run_of):
    out = run_of()
    spoil(out, Window(row_off=64, col_off=64, height=64, width=64))
    code, stdout, _ = atrous("verify", out, "--seams", "3")
    assert (code, "seams    not looked at: the output is damaged" in stdout) == (4, True)
    assert json.loads(atrous("verify", out, "--seams", "3", "--json")[1])["seams"] is None


def test_the_command_says_where_there_are_no_seams(atrous, raster, request_for, execution, tmp_path):
    out = tmp_path / "one.zarr"
    segment(request_for(raster(height=60, width=50)), out, execution())
    assert "seams    none in what is finished" in atrous("verify", out, "--seams", "1")[1]
    assert "seams" not in atrous("verify", out)[1]
