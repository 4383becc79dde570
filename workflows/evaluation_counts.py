"""What is counted of a window? Pixels by true and predicted class, by block of ground, near boundaries, and by cell of the picture.

::

    labels     |..|=========|..|    read with a halo: a boundary beside the window makes distances inside it
    predicted     |=========|
    blocks     +----:----+----:--   a fixed grid of the scene; what a window has of a block is added to it
    pieces     +----:----:----:--   at most 512 px on a side: what is made of one stays in the processor's cache

A pixel counts where both have a class. Everything that is kept is a sum, so it does not matter which windows a scene is cut into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.decimate import decimated_size
from pipeline.errors import SpecError
from pipeline.labels import NODATA_LABEL
from pipeline.window import Window
from workflows.confusion import Tally, count_confusion
from workflows.trimap import WIDEST_PX, TrimapCounts, boundary_distance, count_trimap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_BLOCKS = 10_000
"""Blocks of a scene, at most: larger scenes have larger blocks."""
_PIECE_PX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CountSpec:
    """What is counted, and how it is cut."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    n_classes: int
    """Classes are 0 to ``n_classes - 1``."""
    trimap_px: int
    """Widest distance from a boundary that is counted, px, 1 to 32."""
    block_px: int
    """Side of a block of ground, px."""
    cell_px: int | None = None
    """Side of a cell of the picture, px; None: no picture."""

    def __post_init__(self) -> None:
        if not 1 <= self.trimap_px <= WIDEST_PX:
            raise SpecError(f"a trimap of {self.trimap_px} px was asked for; it must lie between 1 and {WIDEST_PX} px")
        if self.block_px < 1:
            raise SpecError(f"blocks of {self.block_px} px were asked for; give 1 px or more, and far more than objects are wide")

    @property
    def block_rows_cols(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return decimated_size(self.shape[0], self.block_px), decimated_size(self.shape[1], self.block_px)

    @property
    def cell_rows_cols(self) -> tuple[int, int]:
        """Rows and columns of cells; none without a picture."""
        cell_px = self.cell_px
        return (0, 0) if cell_px is None else (decimated_size(self.shape[0], cell_px), decimated_size(self.shape[1], cell_px))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowPixels:
    """What was read for one window."""

    window: Window
    """Whose pixels are counted."""
    around: Window
    """The window with as much of its halo as the scene has."""
    predicted: NDArray[np.uint8]
    """(height, width) of ``window``, class ids, 255: nodata."""
    labels: NDArray[np.uint8]
    """(height, width) of ``around``, class ids, 255: no label."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """The counts of a part of one block, or of all that was counted."""

    confusion: NDArray[np.int64]
    """(classes, classes): pixels by true (row) and predicted class (column)."""
    trimap: TrimapCounts
    """The same near boundaries, right or wrong."""
    n_pixels: int
    """All pixels, counted or not."""
    n_unlabelled: int
    """Those without a label."""
    n_unpredicted: int
    """Those with a label and without a prediction."""

    def __add__(self, other: Piece) -> Piece:
        """Return the counts of both."""
        return Piece(
            confusion=self.confusion + other.confusion,
            trimap=self.trimap + other.trimap,
            n_pixels=self.n_pixels + other.n_pixels,
            n_unlabelled=self.n_unlabelled + other.n_unlabelled,
            n_unpredicted=self.n_unpredicted + other.n_unpredicted,
        )

    @classmethod
    def none(cls, n_classes: int) -> Self:
        """Return the counts of no pixels."""
        confusion = np.zeros((n_classes, n_classes), np.int64)
        return cls(confusion=confusion, trimap=TrimapCounts.none(), n_pixels=0, n_unlabelled=0, n_unpredicted=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellCounts:
    """Pixels in the cells of the picture that a window touches."""

    at: tuple[slice, slice]
    """Their rows and columns."""
    right: NDArray[np.int64]
    """(rows, cols): pixels whose predicted class is the true one."""
    counted: NDArray[np.int64]
    """(rows, cols): pixels that have both."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowCounts:
    """Everything that a window adds."""

    total: Piece
    """Over the window."""
    blocks: tuple[tuple[tuple[int, int], Tally], ...]
    """(row, column) of blocks, each with what the window has of it."""
    cells: CellCounts | None
    """For the picture."""


class SceneCounts:
    """The sums over the windows of one scene so far."""

    def __init__(self, spec: CountSpec) -> None:
        self.total = Piece.none(spec.n_classes)
        # hits, labelled and predicted pixels of each class: all that an IoU is made of
        self._blocks: NDArray[np.int64] = np.zeros((*spec.block_rows_cols, 3, spec.n_classes), np.int64)
        self.right: NDArray[np.int64] = np.zeros(spec.cell_rows_cols, np.int64)
        self.counted: NDArray[np.int64] = np.zeros(spec.cell_rows_cols, np.int64)

    def add(self, counts: WindowCounts) -> None:
        """Add a window that was not added before."""
        self.total += counts.total
        for at, tally in counts.blocks:
            self._blocks[at] += np.stack([tally.hits, tally.labelled, tally.predicted])
        if counts.cells is not None:
            self.right[counts.cells.at] += counts.cells.right
            self.counted[counts.cells.at] += counts.cells.counted

    def tally_of_blocks(self) -> Tally:
        """Return the tally of each block that has any counted pixel, (blocks, classes), row by row."""
        flat = self._blocks.reshape(-1, *self._blocks.shape[2:])
        flat = flat[flat[:, 1].any(axis=-1)]
        return Tally(hits=flat[:, 0], labelled=flat[:, 1], predicted=flat[:, 2])


def effective_block_px(shape: tuple[int, int], block_px: int) -> int:
    """Return the side of blocks: ``block_px``, doubled until a scene of ``shape`` has at most `MAX_BLOCKS`.

    Examples
    --------
    >>> effective_block_px((18000, 36000), 512), effective_block_px((200_000, 200_000), 512)
    (512, 2048)
    """
    while decimated_size(shape[0], block_px) * decimated_size(shape[1], block_px) > MAX_BLOCKS:
        block_px *= 2
    return block_px


def count_window(pixels: WindowPixels, spec: CountSpec) -> WindowCounts:
    """Count one window."""
    total, blocks = Piece.none(spec.n_classes), []
    for at, block in _cut(pixels.window, spec.block_px):
        found = Piece.none(spec.n_classes)
        for _, part in _cut(block, _PIECE_PX):
            found += _count_piece(pixels, part, spec)
        total += found
        blocks.append((at, Tally.of_matrix(found.confusion)))
    cells = None if spec.cell_px is None else _count_cells(pixels, spec.cell_px)
    return WindowCounts(total=total, blocks=tuple(blocks), cells=cells)


def _cut(window: Window, side_px: int) -> Iterator[tuple[tuple[int, int], Window]]:
    """Yield (row, column) of the squares of a grid of the scene that ``window`` touches, with what it has of each."""
    for row in range(window.row_off // side_px, decimated_size(window.row_end, side_px)):
        for col in range(window.col_off // side_px, decimated_size(window.col_end, side_px)):
            part = Window(row_off=row * side_px, col_off=col * side_px, height=side_px, width=side_px).intersect(window)
            assert part is not None
            yield (row, col), part


def _count_piece(pixels: WindowPixels, part: Window, spec: CountSpec) -> Piece:
    predicted = pixels.predicted[part.relative_to(pixels.window).to_slices()]
    near = part.grow(spec.trimap_px).intersect(pixels.around)
    assert near is not None
    inside = part.relative_to(near).to_slices()
    around = pixels.labels[near.relative_to(pixels.around).to_slices()]
    labels = around[inside]
    counted = np.where(predicted == NODATA_LABEL, np.uint8(NODATA_LABEL), labels)
    n_unlabelled = int(np.count_nonzero(labels == NODATA_LABEL))
    distance = boundary_distance(around, widest_px=spec.trimap_px)[inside]
    return Piece(
        confusion=count_confusion(counted, predicted, n_classes=spec.n_classes),
        trimap=count_trimap(predicted, counted, distance),
        n_pixels=part.n_pixels,
        n_unlabelled=n_unlabelled,
        n_unpredicted=int(np.count_nonzero(counted == NODATA_LABEL)) - n_unlabelled,
    )


def _count_cells(pixels: WindowPixels, cell_px: int) -> CellCounts:
    window, labels = pixels.window, pixels.labels[pixels.window.relative_to(pixels.around).to_slices()]
    counted = (labels != NODATA_LABEL) & (pixels.predicted != NODATA_LABEL)
    right = counted & (labels == pixels.predicted)
    rows, cols = _cell_starts(window.row_off, window.height, cell_px), _cell_starts(window.col_off, window.width, cell_px)
    first = window.row_off // cell_px, window.col_off // cell_px
    return CellCounts(
        at=(slice(first[0], first[0] + len(rows)), slice(first[1], first[1] + len(cols))),
        right=_sum_cells(right, rows, cols),
        counted=_sum_cells(counted, rows, cols),
    )


def _cell_starts(offset: int, length: int, cell_px: int) -> NDArray[np.intp]:
    """Return where cells of the scene begin within ``length`` pixels from ``offset`` on; the first may have begun before."""
    return np.maximum(np.arange(offset // cell_px * cell_px, offset + length, cell_px) - offset, 0)


def _sum_cells(mask: NDArray[np.bool_], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.int64]:
    along: NDArray[np.int64] = np.add.reduceat(mask, cols, axis=1, dtype=np.int64)
    return np.asarray(np.add.reduceat(along, rows, axis=0))
