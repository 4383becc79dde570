"""Where are the pixels of a class? Counted once, in cells of 64 x 64 px, so that a place of a class is found without holding the labels.

::

    labels of a scene, strip by strip -> counts (rows of cells, columns of cells, classes) uint16

Memory: cells x classes x 2 bytes, a two-thousandth of the scene's pixels for each class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.window import Window, tiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL_PX = 64
"""Side of a cell, px."""
_CELLS_AT_ONCE = 16


class Labelled(Protocol):
    """What has labels that can be read by window."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        ...

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside, 255: no label."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelIndex:
    """How many pixels of each class lie in each cell of a scene."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    counts: NDArray[np.uint16]
    """(rows of cells, columns of cells, classes)."""

    @property
    def totals(self) -> NDArray[np.int64]:
        """(classes,) labelled pixels."""
        totals: NDArray[np.int64] = self.counts.sum(axis=(0, 1), dtype=np.int64)
        return totals

    def within(self, cells: NDArray[np.bool_]) -> LabelIndex:
        """Return the index of a part of the scene: (rows of cells, columns of cells) bool says which cells are in it."""
        return LabelIndex(shape=self.shape, counts=self.counts * cells[:, :, np.newaxis])

    def cell(self, row: int, col: int) -> Window:
        """Return the pixels of a cell."""
        window = Window(row_off=row * CELL_PX, col_off=col * CELL_PX, height=CELL_PX, width=CELL_PX).clip(self.shape)
        assert window is not None
        return window

    def may_have_labels(self, window: Window) -> bool:
        """Tell whether a cell that ``window`` touches has a labelled pixel; False beyond the scene."""
        inside = window.clip(self.shape)
        if inside is None:
            return False
        rows = slice(inside.row_off // CELL_PX, -(-inside.row_end // CELL_PX))
        cols = slice(inside.col_off // CELL_PX, -(-inside.col_end // CELL_PX))
        return bool(self.counts[rows, cols].any())


def index_labels(scene: Labelled, n_classes: int) -> LabelIndex:
    """Read all labels of a scene once, block by block, and return where they are.

    Raises
    ------
    SourceError
        A file is damaged, or a label means nothing.
    """
    height, width = scene.shape
    counts = np.zeros((-(-height // CELL_PX), -(-width // CELL_PX), n_classes), np.uint16)
    side = CELL_PX * _CELLS_AT_ONCE
    for window in tiling(scene.shape, height=side, width=side):
        found = _count_cells(scene.read_labels(window), n_classes)
        first = window.row_off // CELL_PX, window.col_off // CELL_PX
        counts[first[0] : first[0] + found.shape[0], first[1] : first[1] + found.shape[1]] = found
    return LabelIndex(shape=scene.shape, counts=counts)


def _count_cells(labels: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    """Return (rows of cells, columns of cells, classes) pixels of each class; labels without a class do not count."""
    rows, cols = (-(-length // CELL_PX) for length in labels.shape)
    kept = np.minimum(labels, n_classes).astype(np.intp)
    cells = (np.arange(labels.shape[0]) // CELL_PX)[:, np.newaxis] * cols + np.arange(labels.shape[1]) // CELL_PX
    counted = np.bincount((cells * (n_classes + 1) + kept).ravel(), minlength=rows * cols * (n_classes + 1))
    return counted.reshape(rows, cols, n_classes + 1)[:, :, :n_classes]
