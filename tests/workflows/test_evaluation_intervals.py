"""Intervals: the same every time, as wide as they should be, and none where there is too little."""

from __future__ import annotations

import numpy as np
import pytest

from workflows.confusion import Tally
from workflows.evaluation_intervals import FEWEST_BLOCKS, find_intervals, join_blocks

N_BLOCKS = 60


def blocks_of(seed: int, *, n: int = N_BLOCKS) -> Tally:
    """Return blocks of two classes: the share of pixels that are right varies from block to block, 0.7 in the mean."""
    rng = np.random.default_rng(seed)
    n_pixels = 1000
    first = rng.integers(200, 800, n)
    labelled = np.stack([first, n_pixels - first], axis=1)
    right = rng.beta(7, 3, (n, 1))
    hits = np.rint(labelled * right).astype(np.int64)
    wrong = labelled - hits
    return Tally(hits=hits, labelled=labelled, predicted=hits + wrong[:, ::-1])


def truth() -> np.ndarray:
    """Return the IoUs that very many blocks have."""
    blocks = blocks_of(12345, n=200_000)
    return Tally(hits=blocks.hits.sum(axis=0), labelled=blocks.labelled.sum(axis=0), predicted=blocks.predicted.sum(axis=0)).iou


def test_about_95_of_100_intervals_hold_the_truth():
    true = truth()
    found = [find_intervals(blocks_of(seed)) for seed in range(100)]
    for i in range(2):
        n_held = sum(one.iou[i] is not None and one.iou[i].low <= true[i] <= one.iou[i].high for one in found)
        assert 88 <= n_held <= 99
    n_held = sum(one.mean_iou is not None and one.mean_iou.low <= true.mean() <= one.mean_iou.high for one in found)
    assert 88 <= n_held <= 99


def test_intervals_are_the_same_every_time_and_hold_what_was_measured():
    blocks = blocks_of(0)
    first, second = find_intervals(blocks), find_intervals(blocks)
    assert first == second
    measured = Tally(hits=blocks.hits.sum(axis=0), labelled=blocks.labelled.sum(axis=0), predicted=blocks.predicted.sum(axis=0))
    for interval, value in zip((*first.iou, first.mean_iou), (*measured.iou, measured.mean_iou), strict=True):
        assert interval is not None
        assert interval.low < value < interval.high


def test_blocks_that_are_alike_leave_no_doubt():
    one = np.full((20, 2), 50)
    found = find_intervals(Tally(hits=one, labelled=2 * one, predicted=2 * one))
    assert found.mean_iou is not None
    assert (found.mean_iou.low, found.mean_iou.high) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_more_ground_makes_intervals_shorter():
    short, long = (find_intervals(blocks_of(1, n=n)).mean_iou for n in (1000, 20))
    assert short is not None
    assert long is not None
    assert short.high - short.low < (long.high - long.low) / 3


def test_few_blocks_have_no_interval():
    found = find_intervals(blocks_of(0, n=FEWEST_BLOCKS - 1))
    assert (found.iou, found.mean_iou, found.n_blocks) == ((None, None), None, FEWEST_BLOCKS - 1)
    assert find_intervals(blocks_of(0, n=FEWEST_BLOCKS)).mean_iou is not None


def test_a_class_that_is_nowhere_has_no_interval():
    blocks = blocks_of(0)
    nothing = np.zeros((N_BLOCKS, 1), np.int64)
    widened = Tally(**{name: np.hstack([getattr(blocks, name), nothing]) for name in ("hits", "labelled", "predicted")})
    found = find_intervals(widened)
    assert found.iou[2] is None
    assert found.mean_iou == find_intervals(blocks).mean_iou


def test_blocks_of_several_scenes_are_one_list():
    parts = [blocks_of(seed, n=n) for seed, n in ((0, 5), (1, 7))]
    joined = join_blocks(parts)
    np.testing.assert_array_equal(joined.hits, np.concatenate([part.hits for part in parts]))
    assert find_intervals(joined).n_blocks == 12
