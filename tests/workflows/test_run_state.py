"""One run owns an output; what it was begun with is never changed, and any other wish is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from pipeline.errors import LockedError, StoreError, StoreMismatchError
from workflows import run_state
from workflows.fingerprint import hard_fields, soft_fields
from workflows.prepare import prepare
from workflows.run_state import (
    RunPaths,
    RunRecord,
    changed,
    check_same,
    is_locked,
    locked,
    new_run_id,
    passing_while_locked,
    read_record,
    remove_state,
    write_record,
)

HOLDER = """
import sys, time
from pathlib import Path
from workflows.run_state import RunPaths, locked
with locked(RunPaths(out=Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def paths(tmp_path):
    paths = RunPaths(out=tmp_path / "labels.zarr")
    paths.folder.mkdir()
    return paths


def record(**changes) -> RunRecord:
    given = {"run_id": "a", "hard": {"x": 1}, "soft": {"y": (1, 2.5)}, "spec": {"s": None}, "scene": {"t": "ä"}}
    return RunRecord(**{**given, **changes})


def test_the_state_lies_beside_the_output_and_not_in_it(paths):
    assert paths.folder == paths.out.with_name("labels.zarr.run")
    parts = (paths.record, paths.journal, paths.lock, paths.failures, paths.scratch)
    assert {path.parent for path in parts} == {paths.folder}


def test_a_record_comes_back_as_json_holds_it(paths):
    write_record(paths, record())
    assert read_record(paths) == record(soft={"y": [1, 2.5]})


def test_a_record_is_written_once(paths):
    write_record(paths, record(run_id="first"))
    with pytest.raises(StoreError, match="cannot be written"):
        write_record(paths, record(run_id="second"))
    assert read_record(paths).run_id == "first"
    assert [path.name for path in paths.folder.iterdir()] == ["run.json"]


def test_a_record_is_synced_before_it_has_its_name(paths, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _handle: seen.append(paths.record.exists()))
    write_record(paths, record())
    assert seen == [False, True]


def test_a_full_disk_leaves_no_half_record(paths, full_disk):
    with full_disk(20), pytest.raises(StoreError, match="cannot be written"):
        write_record(paths, record())
    assert list(paths.folder.iterdir()) == []


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_record_that_is_not_synced_is_a_store_error(paths, monkeypatch, failing_call):
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) == failing_call:
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="cannot be written"):
        write_record(paths, record())


def test_a_flipped_bit_of_a_record_is_noticed(paths):
    write_record(paths, record())
    content, whole, n_same = paths.record.read_bytes(), read_record(paths), 0
    for at in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        paths.record.write_bytes(damaged)
        with suppress(StoreError):
            assert read_record(paths) == whole, "only what is another spelling of the same is read"
            n_same += 1
    assert n_same <= 3


def test_a_record_of_the_first_versions_has_no_digest(paths):
    data = json.loads(record().to_json())
    del data["digest"]
    paths.record.write_text(json.dumps(data))
    assert read_record(paths).run_id == "a"


def test_run_ids_differ():
    assert len({new_run_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no state of a run"),
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xff", "cannot be read"),
        (b"[]", "another format"),
        (b"null", "another format"),
        (b"{}", "another format than 1; use the version"),
        (b'{"format": 2}', "another format than 1"),
        (b'{"format": 1}', "damaged"),
        (b'{"format": 1, "run_id": "a", "hard": {}, "soft": {}, "spec": {}, "scene": {}, "more": 1}', "damaged"),
    ],
    ids=["missing", "empty", "torn", "binary", "list", "null", "no format", "newer", "lacks fields", "unknown field"],
)
def test_a_record_that_does_not_read_is_a_store_error(paths, content, message):
    if content is not None:
        paths.record.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        read_record(paths)


def test_a_second_process_is_locked_out_and_death_frees_the_lock(paths):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(paths.out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(paths)
        with pytest.raises(LockedError, match=f"worked on by process {holder.pid} on "), locked(paths):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert not is_locked(paths)
    with locked(paths):
        assert is_locked(paths)
        assert paths.lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not is_locked(paths)


def test_the_lock_is_freed_by_an_error(paths):
    with pytest.raises(ZeroDivisionError), locked(paths):
        raise ZeroDivisionError
    assert not is_locked(paths)


def test_a_lock_whose_file_was_removed_by_its_last_holder_locks_nothing(paths, monkeypatch):
    """The one that waited for it has a file without a name; another one would make, and lock, a new file."""
    removed, real = [], run_state._take

    def take(file, given):
        real(file, given)
        if not removed:
            removed.append(paths.lock.stat().st_ino)
            paths.lock.rename(paths.folder / "removed")

    monkeypatch.setattr(run_state, "_take", take)
    with locked(paths):
        assert is_locked(paths)
        assert paths.lock.stat().st_ino != removed[0]


def test_what_is_half_made_while_another_works_is_told_as_locked(paths):
    with pytest.raises(StoreError, match="half"), passing_while_locked(paths):
        raise StoreError("half made")
    with locked(paths), pytest.raises(LockedError, match="worked on by another process"), passing_while_locked(paths):
        raise StoreError("half made")


def test_files_of_the_state_that_cannot_be_removed_are_a_store_error(paths):
    paths.scratch.mkdir()
    remove_state(paths.journal)
    with pytest.raises(StoreError, match=r"staged.tif cannot be removed"):
        remove_state(paths.scratch)


def test_looking_at_the_lock_makes_nothing(tmp_path):
    paths = RunPaths(out=tmp_path / "labels.zarr")
    assert not is_locked(paths)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), locked(RunPaths(out=tmp_path / "file" / "labels.zarr")):
        pass


def test_a_file_system_without_locks_is_a_store_error(paths, monkeypatch):
    def flock(_file, _how) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StoreError, match=r"cannot be locked: .*No locks available"), locked(paths):
        pass


def test_a_full_disk_does_not_hinder_the_lock(paths, full_disk):
    with full_disk(3), locked(paths):
        assert is_locked(paths)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": (1, 2)}),
        ({"a": 1}, {"a": True}, {"a": (1, True)}),
        ({"a": 1}, {}, {"a": (1, "(absent)")}),
        ({}, {"a": None}, {"a": ("(absent)", None)}),
        ({"a": float("nan")}, {"a": float("nan")}, {}),
        ({"a": [1, 2]}, {"a": (1, 2)}, {}),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"a": ([1, 2], [2, 1])}),
        ({"a": 0.1 + 0.2}, json.loads(json.dumps({"a": 0.1 + 0.2})), {}),
    ],
)
def test_fields_differ_as_json(old, new, expected):
    assert changed(old, new) == expected


@pytest.fixture
def fingerprint(raster, request_for, execution):
    prepared = prepare(request_for(raster(height=40, width=50)))
    return RunRecord(
        run_id="a",
        hard=hard_fields(prepared.spec, prepared.scene),
        soft=soft_fields(prepared.spec, execution().engine),
        spec={},
        scene={},
    )


def test_every_hard_field_is_refused_by_name(paths, fingerprint):
    paths.out.mkdir()
    assert len(fingerprint.hard) > 25
    for name, was in fingerprint.hard.items():
        other = dataclasses.replace(fingerprint, hard={**fingerprint.hard, name: "another"})
        with pytest.raises(StoreMismatchError) as caught:
            check_same(paths, fingerprint, other)
        text = str(caught.value)
        assert f"another run: {name} was {was}, is another. Use " in text
        assert "--overwrite" in text


def test_every_soft_field_is_told_and_not_refused(paths, fingerprint):
    for name, was in fingerprint.soft.items():
        other = dataclasses.replace(fingerprint, soft={**fingerprint.soft, name: "another"})
        assert check_same(paths, fingerprint, other) == [f"{name} was {was}, is another"]


def test_all_changed_fields_are_named_at_once(paths, fingerprint):
    hard = {**fingerprint.hard, "grid.block_px": 1, "grid.window_px": 2}
    with pytest.raises(StoreMismatchError, match=r"grid\.window_px was 64, is 2; grid\.block_px was 64, is 1"):
        check_same(paths, fingerprint, dataclasses.replace(fingerprint, hard=hard))


def test_the_time_of_a_moved_scene_is_no_evidence(paths, fingerprint):
    paths.out.mkdir()
    hard = {**fingerprint.hard, "input.mtime_ns": 1}
    moved = dataclasses.replace(fingerprint, hard=hard, soft={**fingerprint.soft, "input.uri": "/elsewhere.tif"})
    told = check_same(paths, fingerprint, moved)
    assert [line.split()[0] for line in told] == ["input.uri", "input.mtime_ns"]
    with pytest.raises(StoreMismatchError, match=r"input\.mtime_ns"):
        check_same(paths, fingerprint, dataclasses.replace(fingerprint, hard=hard))
    with pytest.raises(StoreMismatchError, match=r"another run: input\.sample_sha256 was [0-9a-f]+, is x\. Use"):
        check_same(paths, fingerprint, dataclasses.replace(moved, hard={**hard, "input.sample_sha256": "x"}))
