"""How far a run is, from its record and its journal alone."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pipeline.errors import StoreError
from pipeline.window import Window
from workflows import journal
from workflows.events import BlockFailure
from workflows.journal import Journal
from workflows.prepare import prepare
from workflows.report import status_lines, unreadable_lines
from workflows.run_state import RunPaths, RunRecord, locked, write_record
from workflows.status import status


@pytest.fixture
def begun(tmp_path, raster, request_for):
    """Return the paths of a run of 3 x 4 blocks of which none is done."""
    prepared = prepare(request_for(raster()))
    paths = RunPaths(out=tmp_path / "labels.zarr")
    paths.folder.mkdir()
    write_record(paths, RunRecord(run_id="a", hard={}, soft={}, spec=prepared.spec.to_dict(), scene=prepared.scene.to_dict()))
    return paths


@pytest.fixture
def record_at(begun, monkeypatch):
    def append(*pairs) -> None:
        with Journal(begun.journal, run_id="a") as book:
            for time_s, outcome in pairs:
                monkeypatch.setattr(journal.time, "time", lambda now=time_s: now)
                book.append(outcome)

    return append


def test_a_run_that_has_done_nothing(begun):
    now = status(begun.out)
    assert (now.n_blocks, now.n_left, now.n_done, now.n_nodata, now.n_failed) == (12, 12, 0, 0, 0)
    assert now.n_pixels == 150 * 203
    assert (now.pixels_per_s, now.eta_s, now.running) == (None, None, False)


def test_blocks_are_counted_by_their_last_outcome(begun, record_at, receipt):
    failure = BlockFailure(block=(0, 1), error="x", attempts=3)
    record_at(
        (0.0, receipt(0, 0, n_pixels=4096)),
        (1.0, failure),
        (2.0, receipt(0, 2, n_pixels=4096, state="nodata", chunks=(), class_counts=())),
        (3.0, dataclasses.replace(failure, block=(0, 0))),
        (4.0, receipt(0, 0, n_pixels=4096)),
    )
    now = status(begun.out)
    assert (now.n_done, now.n_nodata, now.n_failed, now.n_left) == (1, 1, 1, 9)
    assert now.failures == (failure,)
    assert now.n_pixels_finished == 8192


def test_speed_leaves_out_the_pause_between_two_runs(begun, record_at, receipt):
    record_at(*((time_s, receipt(0, col, n_pixels=1000)) for col, time_s in enumerate((0.0, 10.0, 90_000.0, 90_010.0))))
    now = status(begun.out)
    assert now.pixels_per_s == pytest.approx(100)
    assert now.eta_s == pytest.approx((150 * 203 - 4000) / 100)


def test_the_time_of_the_stages_is_summed(begun, record_at, receipt):
    record_at(
        (0.0, receipt(0, 0, stage_s={"read": 0.5, "crf": 3.0})),
        (1.0, receipt(0, 1, stage_s={"read": 0.25, "crf": 1.0, "wait": 0.25})),
        (2.0, receipt(0, 1, stage_s={"read": 0.5, "crf": 1.0})),
    )
    now = status(begun.out)
    assert {name: seconds for name, seconds in now.stage_s.items() if seconds} == {"read": 1.0, "crf": 4.0}
    assert "stages   read 20 % (1.0 s), CRF 80 % (4.0 s)" in status_lines(now)


def test_a_finished_run_has_nothing_left_and_no_wait(begun, record_at, receipt):
    record_at(*((0.0, receipt(row, col)) for row in range(3) for col in range(4)))
    now = status(begun.out)
    assert (now.n_left, now.eta_s) == (0, 0.0)


def test_a_run_at_work_is_seen_and_not_disturbed(begun, record_at, receipt):
    record_at((0.0, receipt(0, 0)))
    before = begun.journal.read_bytes()
    begun.journal.write_bytes(before + b'{"v":1,"run":"a"')
    with locked(begun):
        now = status(begun.out)
    assert now.running
    assert now.n_done == 1
    assert begun.journal.read_bytes() == before + b'{"v":1,"run":"a"'


def test_all_of_it_is_json(begun, record_at, receipt):
    record_at((0.0, receipt()), (1.0, BlockFailure(block=(0, 1), error="x", attempts=3)))
    assert json.loads(json.dumps(dataclasses.asdict(status(begun.out)), allow_nan=False))["n_failed"] == 1


def test_no_run_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="has no state of a run"):
        status(tmp_path / "nothing.zarr")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_places_are_those_of_the_last_lines_joined_over_blocks(begun, record_at, receipt):
    record_at(
        (0.0, receipt(0, 0, unreadable=((10, 0, 5, 64),))),
        (1.0, receipt(0, 1, unreadable=((10, 64, 5, 64),))),
        (2.0, receipt(1, 1, unreadable=((70, 70, 1, 1),))),
        (3.0, receipt(1, 1)),
    )
    now = status(begun.out)
    assert now.unreadable == (Window(row_off=10, col_off=0, height=5, width=128),)
    assert "unreadable 640 pixels of the scene, which are nodata for that reason:" in status_lines(now)
    assert "           rows 10 to 14, columns 0 to 127" in status_lines(now)


def test_only_the_first_twenty_places_are_listed():
    places = [Window(row_off=2 * row, col_off=0, height=1, width=3) for row in range(23)]
    head, *named, last = unreadable_lines(places)
    assert head.startswith("unreadable 69 pixels")
    assert len(named) == 20
    assert last.strip() == "and 3 more, in failed.geojson"
    assert unreadable_lines([]) == []
