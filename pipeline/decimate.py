"""How does a scene of any size become a picture? Cell by cell: the majority of labels, the mean of pixels.

::

    factor 3    a a b | b          a cell of the picture is factor x factor pixels of the scene;
                a c b | b          those at the right and the bottom may be smaller
                a c c | b    ->  a b
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels import NODATA_LABEL
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def decimated_size(size_px: int, factor: int) -> int:
    """Return the number of cells, whole or not, along ``size_px`` pixels."""
    return -(-size_px // factor)


def cell_windows(shape: tuple[int, int], factor: int, *, target_px: int = 2048) -> Iterator[Window]:
    """Yield windows of whole cells, about ``target_px`` on a side, that cover a scene of ``shape`` once."""
    side = max(1, target_px // factor) * factor
    for row in range(0, shape[0], side):
        for col in range(0, shape[1], side):
            rows, cols = (row, min(row + side, shape[0])), (col, min(col + side, shape[1]))
            yield Window.from_bounds(rows=rows, cols=cols)


def decimate_window(window: Window, factor: int) -> Window:
    """Return the cells of a window that starts at a cell's corner."""
    return Window(
        row_off=window.row_off // factor,
        col_off=window.col_off // factor,
        height=decimated_size(window.height, factor),
        width=decimated_size(window.width, factor),
    )


def majority(labels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the most frequent label of each cell; on a tie the lowest.

    Nodata (255) is the highest, so it wins only where it is more frequent than any class.

    Examples
    --------
    >>> majority(np.array([[1, 1, 2, 7], [1, 3, 2, 5]], np.uint8), 3).tolist()
    [[1, 5]]
    """
    if factor == 1:
        return labels
    cells = decimated_size(labels.shape[0], factor), decimated_size(labels.shape[1], factor)
    result = np.full(cells, NODATA_LABEL, np.uint8)
    most = np.zeros(cells, np.int64)
    for label in np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)):
        count = _sum_cells((labels == label).astype(np.int64), factor)
        result[count > most] = label
        np.maximum(most, count, out=most)
    return result


def mean(pixels: NDArray[np.float32], valid: NDArray[np.bool_], factor: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the mean of the valid pixels of each cell, and where there are any.

    Parameters
    ----------
    pixels
        (bands, height, width) float32, any unit.
    valid
        (height, width) bool.
    factor
        Side of a cell, px.
    """
    count = _sum_cells(valid.astype(np.float32), factor)
    total = np.stack([_sum_cells(np.where(valid, band, np.float32(0)), factor) for band in pixels])
    return total / np.maximum(count, 1), count > 0


def _sum_cells(values: NDArray[Any], factor: int) -> NDArray[Any]:
    rows = np.arange(0, values.shape[0], factor)
    cols = np.arange(0, values.shape[1], factor)
    result: NDArray[Any] = np.add.reduceat(np.add.reduceat(values, rows, axis=0), cols, axis=1)
    return result
