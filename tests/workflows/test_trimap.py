"""Accuracy near boundaries, against the definition spelled out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.window import Window
from workflows.trimap import WIDEST_PX, TrimapCounts, boundary_distance, count_trimap, distance_in

IGNORED = 255


def distance_by_definition(labels) -> np.ndarray:
    """Return 1 + the number of king's moves to the nearest pixel with an upright neighbour of another class."""
    height, width = labels.shape
    on_boundary = [
        (row, col)
        for row in range(height)
        for col in range(width)
        for near_row, near_col in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1))
        if 0 <= near_row < height
        and 0 <= near_col < width
        and IGNORED not in (labels[row, col], labels[near_row, near_col])
        and labels[row, col] != labels[near_row, near_col]
    ]
    distance = np.full(labels.shape, WIDEST_PX + 1)
    for row in range(height):
        for col in range(width):
            moves = [max(abs(row - r), abs(col - c)) for r, c in on_boundary]
            distance[row, col] = min([1 + moved for moved in moves] + [WIDEST_PX + 1])
    return distance


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.sampled_from([0, 0, 0, 1, IGNORED])))
def test_the_distance_is_that_of_its_definition(labels):
    np.testing.assert_array_equal(boundary_distance(labels), distance_by_definition(labels))


def test_distances_end_beyond_the_widest_band():
    row = boundary_distance(np.array([[1] + [0] * 40], np.uint8))[0]
    assert row[:3].tolist() == [1, 1, 2]
    assert row[WIDEST_PX] == WIDEST_PX
    assert set(row[WIDEST_PX + 1 :]) == {WIDEST_PX + 1}


def test_what_has_no_label_makes_no_boundary():
    assert (boundary_distance(np.array([[0, IGNORED, 1]], np.uint8)) == WIDEST_PX + 1).all()


def test_a_window_sees_the_boundaries_around_it():
    labels = np.random.default_rng(0).integers(0, 2, (9, 11)).repeat(13, 0).repeat(13, 1).astype(np.uint8)
    window = Window(row_off=40, col_off=51, height=30, width=23)
    np.testing.assert_array_equal(distance_in(labels, window), boundary_distance(labels)[window.to_slices()])


def test_bands_hold_labelled_pixels_up_to_their_width():
    labels = np.array([[0, 0, 0, 1, 1, IGNORED]], np.uint8)
    predicted = np.array([[0, 1, 0, 0, 1, 0]], np.uint8)
    counts = count_trimap(predicted, labels, boundary_distance(labels))
    assert counts.n_pixels[:4] == (2, 2, 1, 0)  # the last pixel lies at 3 px and has no label
    assert counts.n_right[:4] == (1, 1, 1, 0)
    assert [counts.accuracy(width) for width in (1, 2, 3, 32)] == [0.5, 0.5, 0.6, 0.6]
    assert (counts + counts).n_pixels[:3] == (4, 4, 2)


@pytest.mark.parametrize("width", [1, 4, 32])
def test_without_boundaries_there_is_no_accuracy(width):
    assert TrimapCounts.none().accuracy(width) is None
