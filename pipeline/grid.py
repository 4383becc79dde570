"""Which blocks does a scene have, and which windows of which lattice touch a block?

Two lattices and one partition, all anchored at pixel (0, 0) of the scene and independent of each other::

    network windows   |-------size-------|          overlapping, ``step`` apart; the last one may reach past the scene
                              |------------------|
                       <-step->

    CRF tiles         |--core--|--core--|--core--|   a partition; each is read with a halo around it

    blocks            |----block----|----block---|   a partition; the unit of work and of writing

A block pulls every network window (and CRF tile) that touches it. What a window holds never depends on the block that asked for it,
and this is why the labels do not depend on the block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SpecError
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_BLOCK_PX = 4096
"""Side of a block where none is asked for, px; beyond it, larger blocks save nothing any more."""
BLOCKS_AT_ONCE = 2
"""Blocks that a process works on: one computes, the other reads or writes."""
BLOCKS_AT_ONCE_CUDA = 8
"""The same where a CUDA device computes: it takes a fifth of the time in which a core reads or writes the block."""


def blocks_at_once(device: str) -> int:
    """Return how many blocks a process works on whose network runs on ``device``: ``cpu``, ``cuda``, ``cuda:1`` ..."""
    return BLOCKS_AT_ONCE_CUDA if device.startswith("cuda") else BLOCKS_AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Squares of ``size_px``, ``step_px`` apart from pixel (0, 0), as many as cover a scene."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    size_px: int
    """Side of one square, px."""
    step_px: int
    """Distance of neighbouring squares, px; at most ``size_px``."""

    def __post_init__(self) -> None:
        if not 1 <= self.step_px <= self.size_px:
            raise SpecError(
                f"a lattice with squares of {self.size_px} px every {self.step_px} px was asked for; the step must lie "
                f"between 1 and the size, so choose an overlap from 0 to {self.size_px - 1} px"
            )

    @property
    def n_rows(self) -> int:
        """Rows of squares."""
        return _n_covering(self.shape[0], size=self.size_px, step=self.step_px)

    @property
    def n_cols(self) -> int:
        """Columns of squares."""
        return _n_covering(self.shape[1], size=self.size_px, step=self.step_px)

    @property
    def extent(self) -> tuple[int, int]:
        """(height, width) that the squares cover: at least the scene, px."""
        return (
            (self.n_rows - 1) * self.step_px + self.size_px,
            (self.n_cols - 1) * self.step_px + self.size_px,
        )

    def window(self, index: tuple[int, int]) -> Window:
        """Locate the square in row ``index[0]`` and column ``index[1]`` of the lattice."""
        return Window(
            row_off=index[0] * self.step_px,
            col_off=index[1] * self.step_px,
            height=self.size_px,
            width=self.size_px,
        )

    def touching(self, window: Window) -> list[tuple[int, int]]:
        """List the (row, column) indices of all squares that share a pixel with ``window``, row by row."""
        rows = self._touching_axis(window.row_off, window.row_end, count=self.n_rows)
        cols = self._touching_axis(window.col_off, window.col_end, count=self.n_cols)
        return [(row, col) for row in rows for col in cols]

    def _touching_axis(self, start: int, stop: int, *, count: int) -> range:
        first = max(0, (start - self.size_px) // self.step_px + 1)
        last = min(count - 1, (stop - 1) // self.step_px)
        return range(first, last + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A partition of a scene into squares of ``block_px``; those at the right and bottom edge are clipped."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    block_px: int
    """Side of one block, px."""

    @property
    def n_rows(self) -> int:
        """Rows of blocks."""
        return -(-self.shape[0] // self.block_px)

    @property
    def n_cols(self) -> int:
        """Columns of blocks."""
        return -(-self.shape[1] // self.block_px)

    def __len__(self) -> int:
        """Count the blocks."""
        return self.n_rows * self.n_cols

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over (row, column) indices, row by row, the order in which scenes are stored."""
        return ((row, col) for row in range(self.n_rows) for col in range(self.n_cols))

    def holds(self, index: tuple[object, object]) -> bool:
        """Tell whether ``index``, as it was read from a file, is the (row, column) of a block; a boolean is no number."""
        row, col = index
        return type(row) is int and type(col) is int and 0 <= row < self.n_rows and 0 <= col < self.n_cols

    def window(self, index: tuple[int, int]) -> Window:
        """Locate the block ``index`` = (row, column): the pixels that it alone writes."""
        square = Window(
            row_off=index[0] * self.block_px,
            col_off=index[1] * self.block_px,
            height=self.block_px,
            width=self.block_px,
        )
        clipped = square.clip(self.shape)
        if clipped is None or min(index) < 0:
            raise SpecError(
                f"block {index} was asked for; the scene of {self.shape[0]} x {self.shape[1]} px has blocks (0, 0) to "
                f"({self.n_rows - 1}, {self.n_cols - 1})"
            )
        return clipped


def _n_covering(length: int, *, size: int, step: int) -> int:
    """Count the intervals of ``size`` every ``step`` that cover ``length``."""
    return 1 if length <= size else -(-(length - size) // step) + 1
