"""A byte per block says the same as a dictionary of receipts."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.grid import Blocks
from workflows.events import BlockFailure
from workflows.ledger import Ledger

BLOCKS = Blocks(shape=(50, 70), block_px=16)  # 4 x 5 blocks, the last ones 2 px high and 6 px wide


@pytest.fixture
def ledger():
    return Ledger(BLOCKS)


def test_at_first_every_block_is_left(ledger):
    assert list(ledger.left()) == list(BLOCKS)
    assert (ledger.n_left, ledger.n_done, ledger.n_nodata, ledger.n_finished) == (20, 0, 0, 0)
    assert ledger.n_pixels_left == 50 * 70
    assert (ledger.class_counts, ledger.n_pixels, ledger.stage_s, ledger.failures) == ((), 0, {}, {})


def test_outcomes_are_counted_and_no_longer_left(ledger, receipt):
    failure = BlockFailure(block=(3, 4), error="x", attempts=3)
    ledger.record(receipt(0, 0, n_pixels=256, stage_s={"read": 1.0, "crf": 2.0}))
    ledger.record(receipt(1, 4, n_pixels=96, class_counts=(1, 1, 1), stage_s={"read": 0.5}))
    ledger.record(receipt(1, 2, n_pixels=256, state="nodata", chunks=(), class_counts=()))
    ledger.record(failure)
    assert (ledger.n_done, ledger.n_nodata, ledger.n_finished, ledger.n_left) == (2, 1, 3, 16)
    assert ledger.class_counts == (6, 1, 8)
    assert ledger.n_pixels == 608
    assert ledger.stage_s == {"read": 1.5, "crf": 2.0}
    assert ledger.failures == {(3, 4): failure}
    left = list(ledger.left())
    assert left == [index for index in BLOCKS if index not in {(0, 0), (1, 4), (1, 2), (3, 4)}]
    assert ledger.n_pixels_left == sum(BLOCKS.window(index).n_pixels for index in left)


def test_what_is_taken_back_leaves_no_trace(ledger, receipt):
    kept, undone = receipt(0, 0, stage_s={"read": 1.0}), receipt(0, 1, class_counts=(9, 9, 9), stage_s={"read": 0.5})
    failure = BlockFailure(block=(1, 1), error="x", attempts=3)
    ledger.record(kept)
    before = (ledger.n_finished, ledger.class_counts, ledger.n_pixels, dict(ledger.stage_s), list(ledger.left()))
    for outcome in (undone, failure):
        ledger.record(outcome)
        assert ledger.holds(outcome.block)
        ledger.take_back(outcome)
        assert not ledger.holds(outcome.block)
    assert (ledger.n_finished, ledger.class_counts, ledger.n_pixels, dict(ledger.stage_s), list(ledger.left())) == before
    assert ledger.failures == {}


def test_blocks_are_handed_out_once_while_outcomes_come_in(ledger, receipt):
    seen = []
    for index in ledger.left():
        seen.append(index)
        ledger.record(receipt(*index) if index[1] % 2 else BlockFailure(block=index, error="x", attempts=3))
    assert seen == list(BLOCKS)
    assert ledger.n_left == ledger.n_pixels_left == 0


def test_a_block_has_one_outcome(ledger, receipt):
    ledger.record(receipt(0, 0))
    with pytest.raises(AssertionError, match=r"\(0, 0\) has an outcome already"):
        ledger.record(dataclasses.replace(receipt(0, 0), attempt=2))
