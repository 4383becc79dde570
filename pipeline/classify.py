"""Probabilities to class ids and confidence, in one pass over the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.compiled import compiled
from pipeline.labels import NODATA_LABEL

if TYPE_CHECKING:
    from numpy.typing import NDArray


def classify(probabilities: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels and confidence: the most probable class (the lowest id on a tie) and its probability.

    Parameters
    ----------
    probabilities
        (classes, height, width) float32, 0 to 1, at most 255 classes.
    valid
        (height, width) bool, False at nodata.

    Returns
    -------
    labels
        (height, width) u1, class ids; 255 at nodata.
    confidence
        (height, width) u1, probability x 255, rounded; 0 at nodata.
    """
    labels, confidence = np.empty((2, *valid.shape), np.uint8)
    _classify(probabilities, valid, labels, confidence, NODATA_LABEL)
    return labels, confidence


@compiled
def _classify(
    probabilities: NDArray[np.float32],
    valid: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    nodata: int,
) -> None:
    n_classes, height, width = probabilities.shape
    best = np.empty(width, np.float32)
    ids = np.empty(width, np.uint8)
    for y in range(height):
        best[:] = probabilities[0, y]
        ids[:] = 0
        for k in range(1, n_classes):
            row = probabilities[k, y]
            for x in range(width):
                higher = row[x] > best[x]
                best[x] = row[x] if higher else best[x]
                ids[x] = np.uint8(k) if higher else ids[x]
        for x in range(width):
            rounded = min(max(best[x] * np.float32(255) + np.float32(0.5), np.float32(0)), np.float32(255))
            labels[y, x] = ids[x] if valid[y, x] else np.uint8(nodata)
            confidence[y, x] = np.uint8(rounded) if valid[y, x] else np.uint8(0)


@compiled
def count_labels(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels have each value: (256,) int64."""
    counts = np.zeros(256, np.int64)
    for label in labels.ravel():
        counts[label] += 1
    return counts
