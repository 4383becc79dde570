"""A journal that is read in one pass gives what a dictionary of its last lines gives, whatever happened to its blocks."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.grid import Blocks
from pipeline.receipt import ChunkReceipt
from workflows.events import BlockFailure, BlockReceipt
from workflows.journal import Journal, latest, read_entries
from workflows.replay import Replay

if TYPE_CHECKING:
    from pathlib import Path

RUN = "0123456789ab"
BLOCKS = Blocks(shape=(48, 64), block_px=16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.zarr"


def write(path, *outcomes, run_id=RUN) -> None:
    with Journal(path, run_id=run_id) as journal:
        journal.append(*outcomes)


def replay(path, **more) -> Replay:
    return Replay(path, run_id=RUN, blocks=BLOCKS, **more)


def put(out: Path, key: str, n_bytes: int) -> None:
    (out / key).parent.mkdir(parents=True, exist_ok=True)
    (out / key).write_bytes(b"x" * n_bytes)


indices = st.tuples(st.integers(0, 2), st.integers(0, 3))
failures = st.builds(BlockFailure, block=indices, error=st.text(max_size=5), attempts=st.integers(1, 3))
receipts = st.builds(
    BlockReceipt,
    block=indices,
    state=st.just("done"),
    chunks=st.just((ChunkReceipt(key="0/labels/c/0/0", n_bytes=3, crc32c=1),)),
    class_counts=st.tuples(*[st.integers(0, 10**9)] * 3),
    n_pixels=st.integers(0, 10**9),
    seconds=st.floats(0, 1e6),
    device=st.just("cpu"),
    host=st.text(max_size=3),
    stage_s=st.dictionaries(st.sampled_from(["read", "crf"]), st.integers(0, 1000).map(float)),
    unreadable=st.just(()) | st.tuples(st.tuples(*[st.integers(0, 99)] * 2, *[st.integers(1, 99)] * 2)),
)
skipped = st.builds(
    BlockReceipt,
    block=indices,
    state=st.just("nodata"),
    n_pixels=st.integers(0, 9),
    seconds=st.just(0.0),
    device=st.just(""),
    host=st.just(""),
)


@given(outcomes=st.lists(st.one_of(receipts, failures, skipped), max_size=40), foreign=st.lists(receipts, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_line_of_a_block_wins(path, outcomes, foreign):
    path.unlink(missing_ok=True)
    write(path, *outcomes[:20])
    write(path, *foreign, run_id="an earlier one")
    write(path, *outcomes[20:])
    found = replay(path).ledger
    last = latest(read_entries(path, run_id=RUN))
    finished = [outcome for outcome in last.values() if isinstance(outcome, BlockReceipt)]
    assert (found.n_done, found.n_nodata) == tuple(sum(one.state == state for one in finished) for state in ("done", "nodata"))
    assert found.failures == {block: outcome for block, outcome in last.items() if isinstance(outcome, BlockFailure)}
    assert found.n_pixels == sum(one.n_pixels for one in finished)
    assert list(found.left()) == [index for index in BLOCKS if index not in last]
    counts = [one.class_counts for one in finished if one.class_counts]
    assert [n for n in found.class_counts if n] == [n for n in map(sum, zip(*counts, strict=True)) if n]
    assert sum(found.stage_s.values()) == sum(sum(one.stage_s.values()) for one in finished)
    assert found.unreadable == {one.block: one.unreadable for one in finished if one.unreadable}


def test_no_journal_is_an_empty_one(path):
    assert replay(path).ledger.n_left == 12


def test_lines_of_the_first_versions_have_no_stages(path, receipt):
    write(path, receipt(0, 0))
    line = json.loads(path.read_bytes())
    del line["stage_s"], line["crc"]
    path.write_text(json.dumps(line) + "\n")
    found = replay(path).ledger
    assert (found.n_done, found.stage_s) == (1, {})


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"run": "other"},
        {"state": "half done"},
        {"later": 1},
        {"block": [0, 4]},
        {"block": [-1, 0]},
        {"block": [0, 1.5]},
        {"block": ["0", "1"]},
    ],
    ids=repr,
)
def test_lines_that_say_nothing_of_a_block_of_this_run_are_passed_over(path, receipt, change):
    write(path, receipt(0, 0), receipt(0, 1))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        del line["crc"]  # it would tell
    lines[0].update(change)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = replay(path).ledger
    assert (found.n_done, found.holds((0, 0)), found.holds((0, 1))) == (1, False, True)


@pytest.mark.parametrize("line", [b"not JSON", b"", b"null", b"{}", b"[1", b"2]", b'{"v":1}', b"\xff\xfe"], ids=repr)
def test_one_garbage_line_hides_no_other(path, receipt, line):
    write(path, receipt(0, 0))
    whole = path.read_bytes()
    write(path, receipt(0, 1))
    path.write_bytes(line + b"\n" + whole + line + b"\n" + path.read_bytes()[len(whole) :] + b"torn")
    assert replay(path).ledger.n_done == 2


@pytest.mark.parametrize("n_bytes", [None, 0, 16, 18], ids=["missing", "empty", "short", "long"])
def test_a_block_whose_file_is_not_as_its_last_line_says_is_left(path, out, receipt, n_bytes):
    write(path, receipt(0, 0), receipt(0, 1), receipt(1, 0, state="nodata", chunks=(), class_counts=()))
    put(out, "0/labels/c/0/0", 17)
    if n_bytes is not None:
        put(out, "0/labels/c/0/1", n_bytes)
    found = replay(path, out=out)
    assert (found.n_damaged, found.ledger.n_done, found.ledger.n_nodata) == (1, 1, 1)
    assert found.first_damage().startswith("missing: 0/labels/c/0/1" if n_bytes is None else "length: 0/labels/c/0/1")
    assert (0, 1) in set(found.ledger.left())
    assert found.ledger.class_counts == (5, 0, 7)


def test_a_damaged_block_that_was_done_again_is_whole(path, out, receipt):
    older = receipt(0, 0, chunks=(ChunkReceipt(key="0/labels/c/0/0", n_bytes=1, crc32c=1),), class_counts=(1, 1, 1))
    put(out, "0/labels/c/0/0", 17)
    write(path, older, receipt(0, 0))
    found = replay(path, out=out)
    assert (found.n_damaged, found.ledger.n_done, found.ledger.class_counts) == (0, 1, (5, 0, 7))
    write(path, older)
    found = replay(path, out=out)
    assert (found.n_damaged, found.ledger.n_done, found.ledger.n_pixels) == (1, 0, 0)


def test_memory_does_not_grow_with_the_journal(path, receipt):
    write(path, *(receipt(row, col, class_counts=(1,) * 21) for row in range(3) for col in range(4)))
    replay(path)
    path.write_bytes(path.read_bytes() * 300)
    tracemalloc.start()
    try:
        found = replay(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.ledger.class_counts == (12,) * 21
    assert peak < 1 << 20
