"""Kill everything, resume, compare every byte: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from jobs import command, files_of, journal_blocks, started

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

N_BLOCKS = 100
IN_FLIGHT = 2 * 3  # two workers, two blocks at work and one waiting each
GRID = ["--window", "64", "--overlap", "16", "--block", "64", "--chunk", "32"]


def segment(scene: Path, model: Path, out: Path, *more: str) -> list[str]:
    return command("segment", scene, out, "--model", model, *GRID, "-q", *more)


def wait_for(out: Path, n_blocks: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while len(journal_blocks(out)) < n_blocks:
        assert process.poll() is None, f"ended before it could be killed: {process.communicate()[1].decode()}"
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)


def blocks_on_disk(out: Path) -> set[tuple[int, int]]:
    """Return the blocks of 2 x 2 chunks that have at least one chunk of labels."""
    chunks = (out / "0" / "labels" / "c").glob("*/*")
    return {(int(path.parent.name) // 2, int(path.name) // 2) for path in chunks if path.name.isdigit()}


@pytest.fixture
def job(raster: Callable[..., Path], tiny_model: Callable[..., Path]) -> tuple[Path, Path]:
    return raster(height=640, width=627), tiny_model()


@pytest.mark.parametrize("crf", [[], ["--crf"]], ids=["without CRF", "with CRF"])
def test_a_job_killed_at_30_and_70_percent_ends_with_the_bytes_of_one_that_was_not(
    job: tuple[Path, Path], tmp_path: Path, crf: list[str]
) -> None:
    scene, model = job
    if crf:  # the default CRF reaches 134 px, several tiny blocks far: a bare run of it would take minutes
        scene = _smaller(scene)
    n_blocks = N_BLOCKS if not crf else 9
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    subprocess.run(segment(scene, model, whole, "--cluster", "serial", *crf), check=True, timeout=300)

    for share in (0.3, 0.7):
        words = segment(scene, model, killed, "--workers", "2", *crf)
        with started(words) as process:
            wait_for(killed, int(share * n_blocks), process)
        before = journal_blocks(killed)
        assert len(before) < n_blocks, "killed too late to show anything"
        assert len(set(before)) == len(before), "a finished block was done twice"
        assert len(blocks_on_disk(killed) - set(before)) <= IN_FLIGHT
    subprocess.run(command("resume", killed, "--workers", "2", "-q"), check=True, timeout=300)

    after = journal_blocks(killed)
    assert sorted(after) == sorted(set(after)), "a finished block was done twice"
    assert len(after) == n_blocks
    assert after[: len(before)] == before
    assert files_of(killed) == files_of(whole)


def test_orphaned_workers_of_a_killed_client_do_no_harm(job: tuple[Path, Path], tmp_path: Path) -> None:
    scene, model = job
    whole, out = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    subprocess.run(segment(scene, model, whole, "--cluster", "serial"), check=True, timeout=300)
    with started(segment(scene, model, out, "--workers", "2")) as process:
        wait_for(out, N_BLOCKS // 3, process)
        os.kill(process.pid, signal.SIGKILL)  # the client alone; its workers live on for seconds
        subprocess.run(command("resume", out, "--cluster", "serial", "-q"), check=True, timeout=300)
        assert files_of(out) == files_of(whole)


def test_ctrl_c_finishes_the_blocks_at_work_and_exits_75(job: tuple[Path, Path], tmp_path: Path) -> None:
    scene, model = job
    out = tmp_path / "out.zarr"
    with started(segment(scene, model, out, "--workers", "2")) as process:
        wait_for(out, N_BLOCKS // 3, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the client and all its workers
        assert process.wait(timeout=120) == 75
        stderr = process.stderr
        assert stderr is not None
        assert "atrous resume" in stderr.read().decode()
    stopped_at = len(journal_blocks(out))
    assert stopped_at < N_BLOCKS
    subprocess.run(command("resume", out, "--cluster", "serial", "-q"), check=True, timeout=300)
    assert len(journal_blocks(out)) == N_BLOCKS


def test_a_second_client_leaves_with_75_while_the_first_one_works(job: tuple[Path, Path], tmp_path: Path) -> None:
    scene, model = job
    out = tmp_path / "out.zarr"
    with started(segment(scene, model, out, "--workers", "1")) as process:
        wait_for(out, 1, process)
        os.kill(process.pid, signal.SIGSTOP)  # or it might end before the second one has started
        second = subprocess.run(command("resume", out, "-q"), capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 75
        assert "being worked on" in second.stderr


def _smaller(scene: Path) -> Path:
    import rasterio

    small = scene.with_name("small.tif")
    with rasterio.open(scene) as source:
        profile = {**source.profile, "height": 160, "width": 173}
        with rasterio.open(small, "w", **profile) as target:
            target.write(source.read()[:, :160, :173])
    return small
