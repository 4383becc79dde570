import numpy as np
import pytest
from label_scenes import blobs, scene_of

from pipeline.window import Window
from workflows.label_index import CELL_PX, index_labels


def test_every_labelled_pixel_is_counted_in_its_cell():
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (150, 331)).astype(np.uint8)
    index = index_labels(scene_of(labels), 3)
    assert index.counts.shape == (3, 6, 3)
    for row in range(3):
        for col in range(6):
            cell = labels[index.cell(row, col).to_slices()]
            assert index.counts[row, col].tolist() == [int((cell == k).sum()) for k in range(3)]
    assert index.totals.tolist() == [int((labels == k).sum()) for k in range(3)]


def test_a_large_scene_is_counted_block_by_block(monkeypatch):
    labels = blobs((300, 500))
    whole = index_labels(scene_of(labels), 3)
    monkeypatch.setattr("workflows.label_index._CELLS_AT_ONCE", 2)
    np.testing.assert_array_equal(index_labels(scene_of(labels), 3).counts, whole.counts)


def test_a_full_cell_fits_its_number():
    index = index_labels(scene_of(np.zeros((CELL_PX, CELL_PX), np.uint8)), 1)
    assert index.totals.tolist() == [CELL_PX**2]


def test_pixels_without_data_have_no_label():
    valid = np.ones((70, 90), bool)
    valid[:10] = False
    assert index_labels(scene_of(np.zeros((70, 90), np.uint8), valid=valid), 2).totals.tolist() == [60 * 90, 0]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(row_off=0, col_off=0, height=64, width=64), False),
        (Window(row_off=0, col_off=1, height=64, width=64), True),
        (Window(row_off=-20, col_off=90, height=30, width=200), True),
        (Window(row_off=64, col_off=64, height=9, width=9), False),
        (Window(row_off=500, col_off=0, height=9, width=9), False),
    ],
)
def test_windows_without_a_label_are_known_by_their_cells(window, expected):
    labels = np.full((150, 200), 255, np.uint8)
    labels[3, 70] = 1
    assert index_labels(scene_of(labels), 2).may_have_labels(window) is expected
