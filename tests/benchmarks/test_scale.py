"""The scale benchmark runs, and its model of many workers agrees with arithmetic where arithmetic is enough."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from scaling import Costs, simulate, write_chart

COSTS = Costs(
    compute_s=(2.0,), read_bytes=4e6, write_bytes=1e6, storage_bytes_per_s=1e9, coordinator_s=0.001, block_px=1024
)  # a block: 2 s computing, 5 ms of storage, 1 ms of the coordinator


@pytest.mark.cluster
@pytest.mark.slow
def test_the_benchmark_runs_all_blocks_and_resumes_half_of_them():
    words = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("scale.py")), "--blocks", "90", "--workers", "1"]
    table = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "| blocks | 90 |" in table
    for row in ("blocks per second", "memory at 100%", "`atrous status`, all done", "resume, half done: until the first block"):
        assert f"| {row} | " in table


@pytest.mark.cluster
@pytest.mark.slow
def test_a_resume_can_be_measured_without_the_run():
    words = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("scale.py")), "--blocks", "90", "--only-resume"]
    table = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "| resume, half done: until the first block | " in table
    assert "blocks per second" not in table


@pytest.mark.parametrize(
    ("change", "n_workers", "blocks_per_s"),
    [
        pytest.param({}, 1, 0.5, id="one worker computes all the time"),
        pytest.param({}, 10, 5.0, id="ten workers are ten times as fast"),
        pytest.param({}, 1000, 200.0, id="storage is full"),
        pytest.param({"coordinator_s": 0.02}, 1000, 50.0, id="the coordinator is busy"),
        pytest.param({"compute_s": (1.0, 3.0)}, 10, 5.0, id="the mean counts where blocks differ"),
    ],
)
def test_the_slowest_part_decides(change, n_workers, blocks_per_s):
    costs = dataclasses.replace(COSTS, **change)
    n_blocks = 100 * n_workers
    seconds, share = simulate(costs, n_workers=n_workers, n_blocks=n_blocks)
    assert n_blocks / seconds == pytest.approx(blocks_per_s, rel=0.1)
    assert share == pytest.approx(2.0 * n_blocks / seconds / n_workers, rel=0.1)


def test_the_same_seed_gives_the_same_time():
    costs = dataclasses.replace(COSTS, compute_s=(1.0, 2.0, 4.0))
    times = {simulate(costs, n_workers=7, n_blocks=50, seed=seed) for seed in (0, 0, 1)}
    assert len(times) == 2


def test_fewer_blocks_than_workers_take_as_long_as_one():
    seconds, _ = simulate(COSTS, n_workers=8, n_blocks=3)
    assert seconds == pytest.approx(2.0, abs=0.03)


def test_the_chart_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.WORKERS", (1, 2, 10))
    monkeypatch.setattr("scaling.STRONG_GPX", (0.01, 0.02, 0.03))
    write_chart(COSTS, 1.8, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000
