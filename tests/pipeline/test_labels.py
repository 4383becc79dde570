"""Labels and confidence against the most literal reading of their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classify import classify, count_labels
from pipeline.labels import NODATA_LABEL, quantise


def probabilities_of(shape, seed=0):
    raw = np.random.default_rng(seed).uniform(0, 1, shape)
    return (raw / raw.sum(axis=0)).astype(np.float32)


@given(st.integers(1, 7), st.integers(0, 99))
def test_a_label_is_the_most_probable_class_and_its_confidence_the_rounded_probability(n_classes, seed):
    probabilities = probabilities_of((n_classes, 5, 9), seed)
    valid = np.random.default_rng(seed).uniform(size=(5, 9)) < 0.7
    labels, confidence = classify(probabilities, valid)
    assert labels.dtype == confidence.dtype == np.uint8
    for row in range(5):
        for col in range(9):
            values = [float(value) for value in probabilities[:, row, col]]
            expected = (values.index(max(values)), int(max(values) * 255 + 0.5)) if valid[row, col] else (255, 0)
            assert (labels[row, col], confidence[row, col]) == expected


def test_a_tie_goes_to_the_lowest_id():
    labels, confidence = classify(np.array([[[0.2]], [[0.4]], [[0.4]]], np.float32), np.ones((1, 1), bool))
    assert (labels.item(), confidence.item()) == (1, 102)


def test_255_classes_leave_255_for_nodata():
    probabilities = np.zeros((255, 1, 2), np.float32)
    probabilities[254] = 1
    labels, confidence = classify(probabilities, np.array([[True, False]]))
    assert labels.tolist() == [[254, NODATA_LABEL]]
    assert confidence.tolist() == [[255, 0]]


def test_the_probabilities_are_left_alone():
    probabilities = probabilities_of((3, 4, 5))
    before = probabilities.copy()
    classify(probabilities, np.zeros((4, 5), bool))
    np.testing.assert_array_equal(probabilities, before)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.0, 0), (1.0, 255), (0.5 / 255 - 1e-4, 0), (0.5 / 255 + 1e-4, 1), (0.5, 128), (1.0 + 1e-6, 255), (-1e-6, 0)],
)
def test_probabilities_are_rounded_to_the_nearest_step_and_never_wrap(probability, expected):
    assert quantise(np.array([probability], np.float32)).tolist() == [expected]


def test_every_step_survives_the_way_to_a_probability_and_back():
    steps = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(steps.astype(np.float32) / np.float32(255)), steps)


def test_labels_are_counted_in_any_order_of_memory():
    labels = np.random.default_rng(0).integers(0, 256, (70, 90)).astype(np.uint8)
    expected = np.bincount(labels.ravel(), minlength=256)
    np.testing.assert_array_equal(count_labels(labels), expected)
    np.testing.assert_array_equal(count_labels(np.asfortranarray(labels)), expected)
