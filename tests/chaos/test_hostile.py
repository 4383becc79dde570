"""A few hostile files of every format, read as `hostile.py` reads a thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from hostile import COLUMNS, attack_all, can_trace, opened, row


@pytest.mark.slow
def test_no_file_crashes_or_hangs_its_reader_or_shows_another():
    tallies = attack_all(72, every=9)
    assert [note for tally in tallies.values() for note in tally.notes] == []
    for kind, tally in tallies.items():
        assert tally.outcomes.total() == 8
        assert not tally.outcomes["crash"] + tally.outcomes["hang"] + tally.outcomes["unexpected error"]
        assert len(row(kind, tally)) == len(COLUMNS)


def test_what_was_opened_is_read_from_a_trace(tmp_path):
    trace = tmp_path / "trace"
    trace.write_text(
        '7 openat(AT_FDCWD, "/mutant-3-ours", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        '7 openat(AT_FDCWD, "/a/b", O_RDONLY|O_CLOEXEC) = 5\n'
        '8 open("/not/there", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        '7 connect(5, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, 16) = -1 EINPROGRESS\n'
        '7 openat(AT_FDCWD, "/mutant-3-peer", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        '7 openat(AT_FDCWD, "/c", O_RDONLY) = 5\n'
    )
    found = list(opened(trace))
    assert found[0] == ("3-ours", "/a/b")
    assert found[1][1].startswith("network: 5")
    assert found[2] == ("3-peer", "/c")


def test_the_reader_can_be_watched_or_the_table_says_that_it_was_not():
    tallies = attack_all(0, every=1)
    cells = row("PNG", tallies["PNG"])
    assert (cells[COLUMNS.index("foreign files opened")] == "not watched") is not can_trace()
