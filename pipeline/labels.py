"""How are labels and probabilities stored?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NODATA_LABEL = 255
"""The label of pixels without data; never a class."""


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return probabilities of 0 to 1 as u1 of 0 to 255, rounded to the nearest."""
    return np.asarray(np.clip(probabilities * np.float32(255) + np.float32(0.5), 0, 255), np.uint8)


def dequantise(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities that `quantise` stored; what was below 1/510 is 0 now."""
    return np.multiply(stored, np.float32(1 / 255), dtype=np.float32)
