"""Counting by windows, blocks and pieces gives what counting at once gives, wherever the cuts lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SpecError
from pipeline.window import Window
from workflows import evaluation_counts
from workflows.confusion import Tally, count_confusion
from workflows.evaluation_counts import MAX_BLOCKS, CountSpec, SceneCounts, WindowPixels, count_window, effective_block_px
from workflows.trimap import boundary_distance, count_trimap

IGNORED = 255
SHAPE = (61, 87)
N = 4


def labels_and_prediction(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rectangles with a few holes, and a prediction with holes of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 3, IGNORED], np.uint8), (13, 18)).repeat(5, 0).repeat(5, 1)[: SHAPE[0], : SHAPE[1]]
    predicted = np.where(rng.random(SHAPE) < 0.3, rng.integers(0, N, SHAPE), np.where(labels == IGNORED, 0, labels))
    predicted[20:31, 40:52] = IGNORED
    return labels, predicted.astype(np.uint8)


LABELS, PREDICTED = labels_and_prediction()


def count(*, side: tuple[int, int], spec: CountSpec) -> SceneCounts:
    """Count all windows of a grid of ``side`` (height, width)."""
    counts = SceneCounts(spec)
    for row in range(0, SHAPE[0], side[0]):
        for col in range(0, SHAPE[1], side[1]):
            window = Window(row_off=row, col_off=col, height=side[0], width=side[1]).clip(SHAPE)
            assert window is not None
            around = window.grow(spec.trimap_px).clip(SHAPE)
            assert around is not None
            predicted, labels = PREDICTED[window.to_slices()], LABELS[around.to_slices()]
            counts.add(count_window(WindowPixels(window=window, around=around, predicted=predicted, labels=labels), spec))
    return counts


def spec_of(**changes) -> CountSpec:
    return CountSpec(**{"shape": SHAPE, "n_classes": N, "trimap_px": 4, "block_px": 16, **changes})


def visible() -> np.ndarray:
    """Return the labels of pixels that have a prediction, too."""
    return np.where(PREDICTED == IGNORED, IGNORED, LABELS).astype(np.uint8)


@settings(max_examples=30)
@given(
    side=st.tuples(st.integers(3, 61), st.integers(3, 87)),
    block_px=st.integers(5, 100),
    cell_px=st.integers(1, 20),
    piece_px=st.integers(5, 64),
    trimap_px=st.integers(1, 9),
)
def test_windows_of_any_size_give_the_same(side, block_px, cell_px, piece_px, trimap_px):
    spec = spec_of(block_px=block_px, cell_px=cell_px, trimap_px=trimap_px)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_counts, "_PIECE_PX", piece_px)
        cut = count(side=side, spec=spec)
    whole = count(side=SHAPE, spec=spec)
    np.testing.assert_array_equal(cut.total.confusion, whole.total.confusion)
    assert cut.total.trimap == whole.total.trimap
    assert (cut.total.n_pixels, cut.total.n_unlabelled, cut.total.n_unpredicted) == (
        whole.total.n_pixels,
        whole.total.n_unlabelled,
        whole.total.n_unpredicted,
    )
    np.testing.assert_array_equal(cut.right, whole.right)
    np.testing.assert_array_equal(cut.counted, whole.counted)
    for name in ("hits", "labelled", "predicted"):
        np.testing.assert_array_equal(getattr(cut.tally_of_blocks(), name), getattr(whole.tally_of_blocks(), name))


def test_what_is_counted_has_a_label_and_a_prediction():
    total = count(side=(20, 30), spec=spec_of()).total
    np.testing.assert_array_equal(total.confusion, count_confusion(visible(), PREDICTED, n_classes=N))
    assert total.n_pixels == SHAPE[0] * SHAPE[1]
    assert total.n_unlabelled == np.count_nonzero(LABELS == IGNORED)
    assert total.n_unpredicted == np.count_nonzero((LABELS != IGNORED) & (PREDICTED == IGNORED))
    assert total.confusion.sum() + total.n_unlabelled + total.n_unpredicted == total.n_pixels


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_boundaries_are_those_of_the_labels_also_below_holes_of_the_prediction(width):
    total = count(side=(20, 30), spec=spec_of(trimap_px=width)).total
    expected = count_trimap(PREDICTED, visible(), boundary_distance(LABELS))
    assert total.trimap.accuracy(width) == expected.accuracy(width)
    assert total.trimap.n_pixels[:width] == expected.n_pixels[:width]
    assert not any(total.trimap.n_pixels[width:])


def test_blocks_that_have_no_counted_pixel_are_left_out(monkeypatch):
    labels = LABELS.copy()
    labels[:16, :16] = IGNORED
    monkeypatch.setitem(globals(), "LABELS", labels)
    blocks = count(side=(61, 87), spec=spec_of(block_px=16)).tally_of_blocks()
    assert len(blocks.hits) == 4 * 6 - 1
    whole = Tally.of_matrix(count_confusion(visible(), PREDICTED, n_classes=N))
    np.testing.assert_array_equal(blocks.hits.sum(axis=0), whole.hits)
    np.testing.assert_array_equal(blocks.labelled.sum(axis=0), whole.labelled)
    np.testing.assert_array_equal(blocks.predicted.sum(axis=0), whole.predicted)


def test_cells_hold_the_pixels_that_are_right_and_that_count():
    counts = count(side=(7, 11), spec=spec_of(cell_px=10))
    seen = visible() != IGNORED
    assert counts.counted.shape == (7, 9)
    assert counts.counted[2, 4] == np.count_nonzero(seen[20:30, 40:50])
    assert counts.right[6, 8] == np.count_nonzero((seen & (LABELS == PREDICTED))[60:, 80:])
    assert counts.counted.sum() == np.count_nonzero(seen)


@pytest.mark.parametrize(("shape", "expected"), [((100, 100), 512), ((51_200, 51_200), 512), ((51_201, 51_200), 1024)])
def test_large_scenes_have_large_blocks(shape, expected):
    assert effective_block_px(shape, 512) == expected
    assert -(-shape[0] // expected) * -(-shape[1] // expected) <= MAX_BLOCKS


@pytest.mark.parametrize(
    ("changes", "fragment"), [({"trimap_px": 0}, "0 px"), ({"trimap_px": 33}, "33 px"), ({"block_px": 0}, "0 px")]
)
def test_sizes_out_of_range_are_refused(changes, fragment):
    with pytest.raises(SpecError, match=fragment):
        spec_of(**changes)
