"""A plan tells the truth before the run: counts against brute force, memory against the limit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pipeline.crf.energy import CrfSpec
from pipeline.errors import MemoryBudgetError
from pipeline.grid import Blocks
from pipeline.locate import crf_lattice, locate
from pipeline.spec import GridSpec
from workflows import calibrate as calibration
from workflows import local_workers
from workflows.calibrate import Estimate, calibrate
from workflows.crf_request import CrfRequest
from workflows.plan import _count, make_plan
from workflows.prepare import prepare
from workflows.report import plan_lines


@pytest.fixture
def plan_for(raster, request_for, execution):
    def build(scene=None, *, n_blocks_left=None, **request):
        how = execution()
        prepared = prepare(request_for(scene or raster(), **request))
        return make_plan(prepared, how.cluster, how.engine, n_blocks_left=n_blocks_left)

    return build


@pytest.fixture
def free_bytes(monkeypatch):
    def pretend(n_bytes: int) -> None:
        monkeypatch.setattr(local_workers, "MEMORY_LIMIT", n_bytes)

    return pretend


CRF = CrfSpec(theta_alpha=7, tile_px=48)


@pytest.mark.parametrize("crf", [None, CRF], ids=["no CRF", "CRF"])
@pytest.mark.parametrize("grid", [(64, 16, 64), (64, 32, 96), (96, 0, 32), (512, 256, 64)], ids=str)
@pytest.mark.parametrize("size", [(150, 203), (1, 1), (16, 300), (64, 128)], ids=str)
def test_windows_are_counted_as_by_brute_force(plan_for, raster, size, grid, crf):
    window, overlap, block = grid
    scene = raster(height=size[0], width=size[1])
    plan = plan_for(scene, grid=GridSpec(window_px=window, overlap_px=overlap, block_px=block), crf=crf)
    spec = plan.prepared.spec
    located = [locate(index, shape=size, spec=spec) for index in Blocks(shape=size, block_px=block)]
    assert plan.n_blocks == len(located)
    assert plan.n_windows == len({index for windows in located for index in windows.network}), (
        "one process keeps those on the edges"
    )
    apart = _count(Blocks(shape=size, block_px=block), plan.prepared, once=False)[0]
    assert apart == sum(len(windows.network) for windows in located)
    assert plan.redundancy == pytest.approx(plan.n_windows * window**2 / (size[0] * size[1]))
    seen = 0
    if crf is not None:
        lattice = crf_lattice(size, crf)
        tiles = [lattice.window(tile).grow(crf.halo_px).clip(size) for windows in located for tile in windows.crf]
        seen = sum(tile.n_pixels for tile in tiles)
    assert plan.n_crf_pixels == seen


def test_a_plan_is_json_and_says_what_will_be_run(plan_for):
    plan = plan_for(crf=CRF)
    told = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert told["scene"] == {"height": 150, "width": 203, "bands": [1, 2, 3], "dtype": "uint8", "staged": False}
    assert told["model"]["name"] == "tiny"
    assert (told["n_blocks"], told["n_windows"]) == (plan.n_blocks, plan.n_windows)
    assert told["crf"] == {
        "backend": "cpu",
        "from": "given value by value",
        "tile_px": 48,
        "halo_px": 16,
        "pixels": plan.n_crf_pixels,
    }
    assert told["memory"]["bytes_per_worker"] == sum(told["memory"]["terms"].values())
    assert told["workers"]["n"] == 1


@pytest.mark.parametrize(
    ("request_changes", "term", "knob"),
    [
        ({"block": 4096}, "block probabilities|labels and chunks|pixels read", r"--block \(now 4096\)"),
        ({"window": 1024, "block": 64}, "network activations|windows in flight", r"--window \(now 1024\)"),
    ],
    ids=["block", "window"],
)
def test_an_impossible_plan_names_the_largest_term_and_its_knob(plan_for, raster, free_bytes, request_changes, term, knob):
    free_bytes(100 * 2**20)
    scene = raster(pixels=np.zeros((3, 1024, 1024), np.uint8))
    with pytest.raises(MemoryBudgetError, match=f"has 0.1 GiB; the largest term is ({term}) with .*: use a smaller {knob}"):
        plan_for(scene, **request_changes)


def test_what_fits_exactly_is_planned(plan_for, free_bytes, monkeypatch):
    need = plan_for().memory.total_bytes
    monkeypatch.setattr(local_workers, "_USABLE", 1)
    free_bytes(need)
    assert plan_for().staffing.limit_bytes == need
    free_bytes(need - 1)
    with pytest.raises(MemoryBudgetError):
        plan_for()


def test_memory_does_not_grow_with_the_scene(plan_for, raster):
    small = plan_for(raster(height=300, width=300, name="small.tif"))
    large = plan_for(raster(height=1500, width=1500, name="large.tif"))
    assert small.memory == large.memory


def test_a_plan_tells_a_person_which_crf_it_is(plan_for):
    plan = plan_for(crf=CrfRequest(preset="v2", changes={"theta_alpha": 7.0, "guide_bands": (2,), "stop_below": 0.01}))
    text = "\n".join(plan_lines(plan, Estimate(network_s=1, crf_s=2)))
    assert "CRF        w_appearance 4 (theta_alpha 7 px, theta_beta 3), w_smoothness 3 (theta_gamma 3 px), 10 steps, " in text
    assert "guided by band(s) 2, stop_below 0.01; backend cpu\n" in text
    assert "from: preset v2, with other guide_bands, stop_below, theta_alpha\n" in text
    assert "CRF        none\n" in "\n".join(plan_lines(plan_for(), Estimate(network_s=1, crf_s=0)))


@pytest.mark.parametrize("backend", ["cpu", "torch", "pydensecrf"])
def test_the_chosen_backend_is_timed_after_it_was_warmed_up(plan_for, execution, monkeypatch, backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    seen = []
    real = calibration.refine_tile

    def spy(probabilities, guide, valid, crf, *, processor):
        seen.append((valid.shape, len(guide), crf.backend, crf.skip_above, processor.threads))
        return real(probabilities, guide, valid, crf, processor=processor)

    monkeypatch.setattr(calibration, "refine_tile", spy)
    plan = plan_for(crf=dataclasses.replace(CRF, backend=backend, n_steps=1, skip_above=0.5))
    assert calibrate(plan, execution().engine).crf_s > 0
    assert seen == [((32, 32), 3, backend, 1.0, 1), *[((768, 768), 3, backend, 1.0, 1)] * 2], (
        "once to compile, once to take memory"
    )


def test_one_timed_window_is_scaled_up(plan_for, execution):
    plan = plan_for(crf=CRF)
    estimate = calibrate(plan, execution().engine)
    assert 0 < estimate.network_s < 600
    assert 0 < estimate.crf_s < 600
    assert estimate.total_s == estimate.network_s + estimate.crf_s + estimate.start_s
    assert calibrate(plan_for(), execution().engine).crf_s == 0
