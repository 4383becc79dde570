"""Scores at the network's own stride to blended probabilities: enlarged, made probabilities, weighted and added, in one pass.

One row of pixels at a time stays in the cache; nothing of the size of a window is made. `Blender` calls it, and says what the weights are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.compiled import compiled
from pipeline.lane_count import N_LANES
from pipeline.lanes import add, broadcast, exponential, load, store, subtract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


@compiled
def add_window(
    scores: NDArray[np.float32],
    rows: Positions,
    cols: Positions,
    row_weights: NDArray[np.float32],
    col_weights: NDArray[np.float32],
    onto: NDArray[np.float32],
) -> None:
    """Add the weighted probabilities of a part of a window to ``onto``.

    Parameters
    ----------
    scores
        (classes, cell rows, cell columns) float32 of the whole window.
    rows, cols
        For each pixel row (column) of the part: the cell before it, the cell after it, the share of the latter (`Cells.between`).
    row_weights, col_weights
        (height,), (width,) float32; the weight of a pixel is their product.
    onto
        (classes, height, width) float32, a view whose rows are contiguous.
    """
    n_classes, _, n_cells = scores.shape
    height, width = row_weights.size, col_weights.size
    padded = (width + N_LANES - 1) // N_LANES * N_LANES
    cells = np.empty((n_classes, n_cells), np.float32)
    line = np.zeros(n_classes * padded, np.float32)
    highest = np.zeros(padded, np.float32)
    totals = np.zeros(padded, np.float32)
    left, right, share = cols
    for y in range(height):
        if row_weights[y] == 0:
            continue
        _between_rows(scores, rows[0][y], rows[1][y], rows[2][y], cells)
        for k in range(n_classes):
            start = k * padded
            source = cells[k]
            for x in range(width):
                a = source[left[x]]
                value = a + (source[right[x]] - a) * share[x]
                line[start + x] = value
                highest[x] = value if k == 0 else max(highest[x], value)
            for x in range(width, padded):
                line[start + x] = 0
        _exponentiate(line, highest, totals, n_classes, padded)
        for x in range(width):
            totals[x] = row_weights[y] * col_weights[x] / totals[x]
        for k in range(n_classes):
            target = onto[k, y]
            for x in range(width):
                target[x] += line[k * padded + x] * totals[x]


@compiled
def _between_rows(scores: NDArray[np.float32], above: int, below: int, share: float, cells: NDArray[np.float32]) -> None:
    """Set ``cells`` to the scores between two rows of cells."""
    for k in range(scores.shape[0]):
        upper, lower, target = scores[k, above], scores[k, below], cells[k]
        for i in range(target.size):
            target[i] = upper[i] + (lower[i] - upper[i]) * np.float32(share)


@compiled
def _exponentiate(
    line: NDArray[np.float32], highest: NDArray[np.float32], totals: NDArray[np.float32], n_classes: int, padded: int
) -> None:
    """Exponentiate the scores of one row of pixels, all classes, less the highest, and set ``totals`` to their sum."""
    for x in range(0, padded, N_LANES):
        top = load(highest, x)
        total = broadcast(np.float32(0))
        for k in range(n_classes):
            e = exponential(subtract(load(line, k * padded + x), top))
            store(line, k * padded + x, e)
            total = add(total, e)
        store(totals, x, total)
