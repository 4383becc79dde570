"""A disk that fills up, fails or is read-only costs no block that counts as done."""

from __future__ import annotations

import errno
import os

import pytest
import storage
from jobs import CANNOT_WRITE, COMPLETE, HERE, copy_run, files_of, make_job, reference, run_here

from pipeline.errors import StoreError
from workflows.events import BlockReceipt
from workflows.journal import Journal, read_entries


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"), height=100, width=90, options=("--chunk", "64"))


@pytest.fixture(scope="module")
def expected(job):
    return reference(job)


needs_mount = pytest.mark.skipif(not storage.can_mount(), reason="no disk can be mounted here")


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_calls_that_fail_while_a_run_begins(job, expected, tmp_path, lasting):
    (tmp_path / "disk").mkdir()
    target = storage.Target(job=job, out=tmp_path / "disk" / "out.zarr", expected=expected)
    finding = storage.fail_calls(target, None, lasting=lasting, every=29)
    assert finding.broken == []
    assert finding.codes.total() > 4
    assert finding.codes[CANNOT_WRITE] >= 0.7 * finding.codes.total()


@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["goes on", "overwrites"])
def test_calls_that_fail_when_there_is_a_run_already(job, expected, tmp_path, more):
    begun, disk = tmp_path / "begun.zarr", tmp_path / "disk"
    disk.mkdir()
    with storage.stopped_after(2):
        run_here(*job.segment(begun, *HERE, "-q"))
    target = storage.Target(job=job, out=disk / "out.zarr", expected=expected, more=more)
    finding = storage.fail_calls(target, begun, lasting=False, every=31)
    assert finding.broken == []
    assert finding.n_done > 0


@needs_mount
@pytest.mark.parametrize("what", ["page", "inode"])
def test_disks_that_are_full(job, expected, tmp_path, what):
    finding = storage.fill(job, expected, tmp_path / "disk", what=what, every=5)
    assert finding.broken == []
    assert finding.codes[CANNOT_WRITE] >= 2
    assert finding.codes[COMPLETE] == 1


@needs_mount
def test_nothing_is_computed_for_a_disk_that_is_read_only(job, expected, tmp_path):
    finding = storage.read_only(job, expected, tmp_path / "disk")
    assert finding.broken == []
    assert finding.codes == {CANNOT_WRITE: 2}


def test_the_attack_sees_a_block_that_is_lost(job, expected, tmp_path):
    out = tmp_path / "out.zarr"
    target = storage.Target(job=job, out=out, expected=expected)
    target.run()
    (out / "0/labels/c/0/1").write_bytes(b"")
    finding = storage.Finding(attack="")
    target.judge(target.run(), finding, "here", lambda: (out / "0/labels/c/0/0").write_bytes(b"x" * 100))
    assert finding.n_lost == 0, "the run that was judged had mended the first one"
    assert finding.n_same == 1, "and the next one the second"
    (out / "0/labels/c/0/1").write_bytes(bytes(len(expected["0/labels/c/0/1"])))
    target.judge(target.run(), finding, "here", lambda: None)
    assert (finding.n_lost, finding.n_same, len(finding.broken)) == (1, 1, 2)


def test_a_line_whose_sync_failed_is_not_there_for_the_next_run(tmp_path, monkeypatch):
    path, real, failures = tmp_path / "journal.jsonl", os.fsync, [OSError(errno.EIO, "Input/output error")]

    def fsync(handle):
        if failures:
            raise failures.pop()
        real(handle)

    receipts = [
        BlockReceipt(block=(0, col), state="nodata", n_pixels=1, seconds=0.0, device="cpu", host="here") for col in range(3)
    ]
    with Journal(path, run_id="a") as book:
        book.append(receipts[0])
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="cannot be written"):
            book.append(receipts[1])
        book.append(receipts[2])
    assert [entry.outcome.block for entry in read_entries(path, run_id="a")] == [(0, 0), (0, 2)]


def test_a_copy_of_a_run_is_the_run(job, expected, tmp_path):
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    run_here(*job.segment(first, *HERE, "-q"))
    assert run_here("resume", copy_run(first, second), *HERE, "-q").code == COMPLETE
    assert files_of(second) == expected
