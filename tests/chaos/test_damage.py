"""Damage is found by verify and mended by repair and resume, whatever was damaged and how."""

from __future__ import annotations

import json
import random

import damage
import pytest
from jobs import make_job

from pipeline.grid import Blocks
from workflows.journal_survey import read_outcomes, survey_journal
from workflows.replay import Replay


@pytest.fixture(scope="module", params=damage.LAYOUTS)
def bench(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    job = make_job(folder / "job", height=100, width=90, options=damage.LAYOUTS[request.param])
    return damage.Bench(folder, job, request.param, random.Random(1))


@pytest.mark.parametrize("kind", damage.FILES)
def test_a_chunk(bench, kind):
    row = damage.Row(damage=kind, output=bench.layout)
    bench.damage_file(row, damage.FILES[kind], "0/labels/c/1/0")
    assert (row.n, row.n_found, row.n_mended, row.broken) == (1, 1, 1, [])
    seen_by_length = kind in {"zero length", "truncated", "longer", "deleted"}
    assert row.n_found_by_resume == seen_by_length
    assert sum(row.zarr.values()) == 1


@pytest.mark.parametrize("kind", ["truncated", "zeros"])
def test_metadata_and_coordinates(bench, kind):
    row = damage.Row(damage=kind, output="metadata and coordinates")
    for key in ("zarr.json", "0/labels/zarr.json", "0/x/c/0"):
        bench.damage_file(row, damage.FILES[kind], key)
    assert (row.n, row.n_found, row.n_mended, row.broken) == (3, 3, 3, [])


@pytest.mark.parametrize("kind", damage.JOURNAL)
def test_the_journal(bench, kind):
    row = damage.Row(damage=kind, output="-")
    bench.damage_journal(row, damage.JOURNAL[kind])
    assert (row.n, row.n_mended, row.broken) == (1, 1, [])
    assert row.n_found == 1 or kind == "journal: one bit flipped"


def test_what_a_run_was_begun_with(bench):
    row = damage.Row(damage="run.json: one bit flipped", output="-")
    for _ in range(4):
        bench.damage_record(row, damage.flip_bit)
    assert (row.n, row.n_mended, row.broken) == (4, 4, [])


def test_a_promise_that_is_not_kept_is_told():
    row = damage.Row(damage="zeros", output="chunks", n=3, n_found=2, broken=["not mended"])
    assert damage.promises(row) == ["zeros, chunks: 1 of 3 were not found", "zeros, chunks: not mended"]


def test_no_bit_of_a_line_that_flips_keeps_the_journal_from_being_read(bench, tmp_path):
    lines = bench.state["journal.jsonl"].splitlines(keepends=True)
    run_id, blocks, path = json.loads(lines[0])["run"], Blocks(shape=(100, 90), block_px=64), tmp_path / "journal.jsonl"
    n_left = []
    for at in range(len(lines[1]) * 8):
        line = bytearray(lines[1])
        line[at // 8] ^= 1 << at % 8
        path.write_bytes(b"".join([lines[0], line, *lines[2:]]))
        replay = Replay(path, run_id=run_id, blocks=blocks, out=bench.out)
        survey = survey_journal(path, run_id=run_id, blocks=blocks)
        assert len(list(read_outcomes(path, survey, run_id=run_id))) >= 2
        n_left.append(replay.ledger.n_left)
    assert set(n_left) <= {0, 1, 2}, "the line itself, and the one that its newline joins to it"
    assert n_left.count(1) > n_left.count(0), "most bits matter"
