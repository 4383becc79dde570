"""Probabilities to class ids and confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NODATA_LABEL = 255
"""The label of pixels without data; never a class."""


def label(probabilities: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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
    labels = probabilities.argmax(axis=0).astype(np.uint8)
    confidence = quantise(probabilities.max(axis=0))
    labels[~valid] = NODATA_LABEL
    confidence[~valid] = 0
    return labels, confidence


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return probabilities of 0 to 1 as u1 of 0 to 255, rounded to the nearest."""
    return np.asarray(np.clip(probabilities * np.float32(255) + np.float32(0.5), 0, 255), np.uint8)


def dequantise(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities that `quantise` stored; what was below 1/510 is 0 now."""
    return np.multiply(stored, np.float32(1 / 255), dtype=np.float32)
