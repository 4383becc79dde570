"""Every figure of a confusion matrix, against scikit-learn on the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sklearn

from workflows.confusion import SceneMetrics, Tally, count_confusion, pool_metrics

N = 5
CLASSES = tuple("abcde")
IGNORED = 255


def random_labels(seed: int, *, shape=(37, 53), classes=(0, 1, 1, 3, 4, IGNORED)) -> tuple[np.ndarray, np.ndarray]:
    """Return labels with holes, and a prediction that is right in most places; class 2 is predicted only."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array(classes, np.uint8), shape)
    guess = rng.integers(0, N, shape, dtype=np.uint8)
    return labels, np.where((rng.random(shape) < 0.6) & (labels != IGNORED), labels, guess).astype(np.uint8)


def measure(labels: np.ndarray, predicted: np.ndarray) -> SceneMetrics:
    return SceneMetrics.of_matrix("scene", CLASSES, count_confusion(labels, predicted, n_classes=N))


@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_scikit_learn(seed):
    labels, predicted = random_labels(seed)
    found = measure(labels, predicted)
    true, guess = labels[labels != IGNORED], predicted[labels != IGNORED]
    each = {"labels": range(N), "average": None, "zero_division": np.nan}
    np.testing.assert_array_equal(found.confusion, sklearn.confusion_matrix(true, guess, labels=range(N)))
    for ours, theirs in (
        (found.iou, sklearn.jaccard_score(true, guess, labels=range(N), average=None)),
        (found.f1, sklearn.f1_score(true, guess, **each)),
        (found.precision, sklearn.precision_score(true, guess, **each)),
        (found.recall, sklearn.recall_score(true, guess, **each)),
    ):
        values = [np.nan if value is None else value for value in ours.values()]
        np.testing.assert_allclose(values, theirs, rtol=1e-12)
    assert found.recall["c"] is None
    assert found.iou["c"] == 0
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(true, guess), rel=1e-12)
    assert found.mean_iou == pytest.approx(sklearn.jaccard_score(true, guess, average="macro"), rel=1e-12)
    assert found.frequency_weighted_iou == pytest.approx(sklearn.jaccard_score(true, guess, average="weighted"), rel=1e-12)


def test_a_class_in_neither_has_no_figures_and_is_left_out_of_the_mean():
    found = measure(np.array([[0, 0, 1, IGNORED]], np.uint8), np.array([[0, 1, 1, 4]], np.uint8))
    assert found.iou == {"a": 0.5, "b": 0.5, "c": None, "d": None, "e": None}
    assert [figure["e"] for figure in (found.iou, found.f1, found.precision, found.recall)] == [None] * 4
    assert found.mean_iou == 0.5
    assert found.n_pixels == 3


def test_without_pixels_there_is_no_figure():
    found = measure(np.full((2, 3), IGNORED, np.uint8), np.zeros((2, 3), np.uint8))
    assert (found.mean_iou, found.accuracy, found.frequency_weighted_iou) == (None, None, None)
    assert set(found.iou.values()) == {None}


def test_pooled_figures_are_those_of_all_pixels():
    pairs = [random_labels(seed) for seed in range(3)]
    whole = measure(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    pooled = pool_metrics([measure(*pair) for pair in pairs], "all")
    assert pooled.scene == "all"
    assert pooled.confusion == whole.confusion


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 4), st.just(3), st.just(3)), elements=st.integers(0, 3)))
def test_many_matrices_at_once_give_what_each_gives(matrices):
    together = Tally.of_matrix(matrices)
    for i, matrix in enumerate(matrices):
        alone = Tally.of_matrix(matrix)
        for name in ("iou", "f1", "precision", "recall", "mean_iou", "frequency_weighted_iou", "accuracy"):
            np.testing.assert_array_equal(getattr(together, name)[i], getattr(alone, name))


def test_counts_beyond_32_bits_are_exact():
    matrix = np.array([[2**40, 1], [0, 2**41]])
    found = SceneMetrics.of_matrix("large", ("a", "b"), matrix)
    assert found.n_pixels == 2**40 + 1 + 2**41
    assert found.iou["a"] == 2**40 / (2**40 + 1)
