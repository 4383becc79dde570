"""What has become of every block of a run? One byte per block and sums over the finished ones: a million blocks take a megabyte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.window import Window, disjoint
from workflows.events import BlockFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.grid import Blocks
    from workflows.events import BlockIndex, Outcome, Place

_LEFT, _FAILED, _NODATA, _DONE = range(4)
_FINISHED = {"nodata": _NODATA, "done": _DONE}


class Ledger:
    """The state of every block, and sums over the finished ones."""

    def __init__(self, blocks: Blocks) -> None:
        self.failures: dict[BlockIndex, BlockFailure] = {}
        """The quarantined blocks."""
        self.class_counts: tuple[int, ...] = ()
        """Pixels per class over all finished blocks; empty before the first one with data."""
        self.n_pixels = 0
        """Pixels of the finished blocks, nodata included."""
        self.stage_s: dict[str, float] = {}
        """Wall time of each stage, summed over the finished blocks, s."""
        self.unreadable: dict[BlockIndex, tuple[Place, ...]] = {}
        """Finished blocks of which the scene did not give everything, with the places that are nodata for that reason."""
        self._blocks = blocks
        self._states = np.full((blocks.n_rows, blocks.n_cols), _LEFT, np.uint8)

    @property
    def n_done(self) -> int:
        """Finished blocks with data."""
        return self._count(_DONE)

    @property
    def n_nodata(self) -> int:
        """Finished blocks that hold nodata only."""
        return self._count(_NODATA)

    @property
    def n_finished(self) -> int:
        """Both."""
        return self.n_done + self.n_nodata

    @property
    def n_left(self) -> int:
        """Blocks neither finished nor quarantined."""
        return self._count(_LEFT)

    @property
    def n_pixels_left(self) -> int:
        """Pixels of the blocks that are left."""
        sizes = zip(self._blocks.shape, self._states.shape, strict=True)
        rows, cols = (np.minimum(self._blocks.block_px, length - self._blocks.block_px * np.arange(n)) for length, n in sizes)
        return int(rows @ (self._states == _LEFT).astype(np.int64) @ cols)

    def left(self) -> Iterator[BlockIndex]:
        """Iterate over the blocks that are left, row by row; outcomes may be recorded meanwhile."""
        for row in range(self._blocks.n_rows):
            for col in np.flatnonzero(self._states[row] == _LEFT):
                yield row, int(col)

    def record(self, outcome: Outcome) -> None:
        """Take in what became of a block that is left."""
        assert self._states[outcome.block] == _LEFT, f"block {outcome.block} has an outcome already"
        if isinstance(outcome, BlockFailure):
            self._states[outcome.block] = _FAILED
            self.failures[outcome.block] = outcome
        else:
            self.finish(outcome.block, outcome.state, outcome.n_pixels, outcome.class_counts, outcome.stage_s)
            self.note_unreadable(outcome.block, outcome.unreadable)

    def finish(
        self, block: BlockIndex, state: str, n_pixels: int, class_counts: Sequence[int], stage_s: Mapping[str, float]
    ) -> None:
        """Take in the receipt of a block that is left, field by field."""
        self._states[block] = _FINISHED[state]
        self._add(n_pixels, class_counts, stage_s, sign=1)

    def note_unreadable(self, block: BlockIndex, places: tuple[Place, ...]) -> None:
        """Remember what the scene did not give of a finished block."""
        if places:
            self.unreadable[block] = places

    def unreadable_windows(self) -> tuple[Window, ...]:
        """Return what the scene did not give, joined over the edges of blocks."""
        return disjoint(
            Window(row_off=row, col_off=col, height=height, width=width)
            for places in self.unreadable.values()
            for row, col, height, width in places
        )

    def take_back(self, outcome: Outcome) -> None:
        """Undo ``record``."""
        if isinstance(outcome, BlockFailure):
            del self.failures[outcome.block]
        else:
            self._add(outcome.n_pixels, outcome.class_counts, outcome.stage_s, sign=-1)
            self.unreadable.pop(outcome.block, None)
        self._states[outcome.block] = _LEFT

    def holds(self, block: BlockIndex) -> bool:
        """Tell whether the outcome of a block is recorded."""
        return bool(self._states[block] != _LEFT)

    def _count(self, state: int) -> int:
        return int(np.count_nonzero(self._states == state))

    def _add(self, n_pixels: int, class_counts: Sequence[int], stage_s: Mapping[str, float], *, sign: int) -> None:
        self.n_pixels += sign * n_pixels
        if class_counts:
            sums = self.class_counts or (0,) * len(class_counts)
            self.class_counts = tuple([total + sign * n for total, n in zip(sums, class_counts, strict=True)])
        for name, seconds in stage_s.items():
            self.stage_s[name] = self.stage_s.get(name, 0.0) + sign * seconds
