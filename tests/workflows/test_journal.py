"""A block counts as finished only by a whole, durable line of this run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from workflows.events import BlockFailure
from workflows.journal import Journal, is_receipt, latest, read_entries, read_entry_at, read_values

RUN = "0123456789ab"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def write(path, *outcomes, run_id=RUN) -> None:
    with Journal(path, run_id=run_id) as journal:
        for outcome in outcomes:
            journal.append(outcome)


def read(path, run_id=RUN) -> list:
    return [entry.outcome for entry in read_entries(path, run_id=run_id)]


def test_outcomes_come_back_as_they_were(path, receipt):
    outcomes = [
        receipt(0, 0),
        receipt(0, 1, state="nodata", chunks=(), class_counts=(), attempt=3),
        receipt(1, 1, unreadable=((64, 0, 1, 203), (70, 5, 3, 4))),
        BlockFailure(block=(1, 0), error="OSError: Größe “∞”\nsecond line", attempts=3),
    ]
    write(path, *outcomes)
    assert read(path) == outcomes


def test_a_missing_journal_is_an_empty_one(path):
    assert read(path) == []


def test_lines_are_added_to_those_of_an_earlier_call(path, receipt):
    write(path, receipt(0, 0))
    write(path, receipt(0, 1))
    assert [outcome.block for outcome in read(path)] == [(0, 0), (0, 1)]


def test_the_last_entry_of_a_block_wins(path, receipt):
    failure = BlockFailure(block=(0, 0), error="x", attempts=3)
    write(path, receipt(0, 0), failure, receipt(0, 1), receipt(0, 0, attempt=2))
    assert latest(read_entries(path, run_id=RUN)) == {(0, 0): receipt(0, 0, attempt=2), (0, 1): receipt(0, 1)}


@pytest.mark.parametrize("n_bytes", [1, 70, 65536, 65537, 200_000], ids=lambda n: f"{n} bytes")
def test_a_torn_last_line_is_dropped(path, receipt, n_bytes):
    write(path, receipt(0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"v": 1, "run": "' + b"x" * n_bytes)
    assert read(path) == [receipt(0, 0)]
    write(path, receipt(0, 1))
    assert path.read_bytes().startswith(whole + b'{"v":1,')
    assert read(path) == [receipt(0, 0), receipt(0, 1)]


@pytest.mark.parametrize("cut", [1, 2, 60], ids=lambda n: f"{n} bytes short")
def test_a_line_cut_short_anywhere_is_not_believed(path, receipt, cut):
    write(path, receipt(0, 0), receipt(0, 1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [receipt(0, 0)]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{", b"x" * 65536, b"x" * 150_000], ids=["empty", "newline", "brace", "64 KiB", "150 kB"]
)
def test_a_file_without_a_whole_line_is_an_empty_journal(path, receipt, content):
    path.write_bytes(content)
    write(path, receipt())
    assert read(path) == [receipt()]


def test_lines_longer_than_what_is_read_at_once_survive(path, receipt):
    long = receipt(0, 0, host="h" * 200_000)
    write(path, long)
    write(path, receipt(0, 1))
    assert read(path) == [long, receipt(0, 1)]


def test_blocks_of_an_overwritten_run_do_not_count(path, receipt):
    write(path, receipt(0, 0), run_id="an earlier one")
    write(path, receipt(0, 1))
    assert read(path) == [receipt(0, 1)]


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b"\xff\xfe\x00",
        b"",
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b'["v"]',
        b"{}",
        b'{"v": 1}',
        b'{"v": 1, "run": "0123456789ab", "time_s": 0, "state": "done"}',
        b'{"v": 1, "run": "0123456789ab", "time_s": 0, "state": "failed", "block": [0], "error": "", "attempts": 1}',
        b'{"v": 1, "run": "0123456789ab", "time_s": 0, "state": "failed", "block": [0, 0], "error": "", "tries": 1}',
    ],
    ids=repr,
)
def test_garbage_lines_are_passed_over(path, receipt, line):
    write(path, receipt(0, 0))
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n")
    assert read(path) == [receipt(0, 0)]


@pytest.mark.parametrize(
    ("field", "value"), [("v", 2), ("v", None), ("state", "half done"), ("chunks", [["key", 1]]), ("later", 1)]
)
def test_lines_of_another_format_are_passed_over(path, receipt, field, value):
    write(path, receipt(0, 0))
    line = json.loads(path.read_bytes())
    del line["crc"]  # it would tell
    line[field] = value
    path.write_text(json.dumps(line) + "\n")
    assert read(path) == []


def test_no_flipped_bit_of_a_line_goes_unnoticed(path, receipt):
    write(path, receipt(2, 3))
    whole = path.read_bytes()
    for place in range(len(whole) - 1):  # without the newline, whose loss joins two lines
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            assert read(path) in ([], [receipt(2, 3)])
            assert not any(is_receipt(value, run_id=RUN) and value["block"] != [2, 3] for _, value in read_values(path)), (
                f"bit {bit} of byte {place} makes another block done"
            )


def test_lines_without_a_checksum_are_of_the_first_versions(path, receipt):
    write(path, receipt(2, 3))
    path.write_text(re.sub(r',"crc":\d+}', "}", path.read_text()))
    assert read(path) == [receipt(2, 3)]


def test_a_line_is_synced_before_append_returns(path, receipt, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(handle) -> None:
        synced.append(path.read_bytes())
        real(handle)

    with Journal(path, run_id=RUN) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.append(receipt(0, 0))
        assert len(synced) == 1
        assert synced[0].endswith(b"\n")
        assert json.loads(synced[0])["block"] == [0, 0]


def test_what_ended_together_is_written_and_synced_together(path, receipt, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _handle: synced.append(path.read_bytes().count(b"\n")))
    with Journal(path, run_id=RUN) as journal:
        synced.clear()
        journal.append(receipt(0, 0), BlockFailure(block=(0, 1), error="x", attempts=3), receipt(0, 2))
    assert synced == [3]
    assert [outcome.block for outcome in read(path)] == [(0, 0), (0, 1), (0, 2)]


def test_entries_are_found_again_where_they_start(path, receipt):
    write(path, receipt(0, 0), receipt(0, 1, host="Größe"), receipt(0, 2))
    entries = list(read_entries(path, run_id=RUN))
    assert [read_entry_at(path, entry.start, run_id=RUN) for entry in entries] == entries
    assert read_entry_at(path, entries[1].start + 1, run_id=RUN) is None


def test_a_new_journal_is_synced_into_its_folder(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    Journal(path, run_id=RUN).close()
    assert str(path.parent) in synced


def test_a_sync_that_fails_is_a_store_error(path, receipt, monkeypatch):
    def fsync(_handle) -> None:
        raise OSError(5, "Input/output error")

    with Journal(path, run_id=RUN) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match=r"journal.*Input/output error.*run the same command again"):
            journal.append(receipt(0, 0))


def test_a_full_disk_is_one_store_error_and_loses_only_the_line_at_work(path, receipt, full_disk):
    write(path, receipt(0, 0))
    size = path.stat().st_size
    with full_disk(size + 40), pytest.raises(StoreError, match="cannot be written"):
        write(path, receipt(0, 1))
    assert path.stat().st_size <= size + 40
    assert read(path) == [receipt(0, 0)]
    write(path, receipt(0, 2))
    assert read(path) == [receipt(0, 0), receipt(0, 2)]


def test_a_journal_that_cannot_be_opened_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(tmp_path, run_id=RUN)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(tmp_path / "nowhere" / "journal.jsonl", run_id=RUN)


def test_a_line_says_nothing_of_unreadable_places_where_there_are_none(path, receipt):
    write(path, receipt(0, 0))
    assert b"unreadable" not in path.read_bytes()


@pytest.mark.parametrize(
    "value", [7, None, "a", [7], [[1, 2, 3]], [[0, 0, 0, 1]], [[-1, 0, 1, 1]], [[0, 0, 1, 1.5]], [["a", 0, 1, 1]]], ids=str
)
def test_a_line_with_places_that_make_no_sense_is_passed_over(path, receipt, value):
    write(path, receipt(0, 0), receipt(0, 1, unreadable=((0, 0, 1, 1),)))
    text = re.sub(r',"crc":\d+}', "}", path.read_text())  # it would tell
    path.write_text(text.replace("[[0,0,1,1]]", json.dumps(value)))
    assert read(path) == [receipt(0, 0)]
    values = [value for _, value in read_values(path)]
    assert [is_receipt(value, run_id=RUN) for value in values] == [True, False]
