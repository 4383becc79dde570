"""What did the calls before this one do? Their journal, read line by line into a ledger.

The last line of a block wins. Where it replaces an earlier one, that one is read again, which is rare, and taken back: what is kept of a
block is where its line starts, and a journal of a million lines needs no more memory than one of a hundred.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.receipt import check_receipt
from workflows.events import BlockFailure, BlockReceipt
from workflows.journal import entry_of, is_receipt, places_of, read_entry_at, read_values
from workflows.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.grid import Blocks
    from workflows.events import BlockIndex
    from workflows.journal import Entry

_RECENT = 50
_NONE = -1


class Replay:
    """A journal that was read."""

    def __init__(self, journal: Path, *, run_id: str, blocks: Blocks, out: Path | None = None) -> None:
        """Read the journal; where ``out`` is given, a block is finished only if its files there are as long as its line says."""
        self.ledger = Ledger(blocks)
        """What has become of the blocks."""
        self.recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        """The last lines, oldest first: seconds since 1970, and pixels (none for a failure)."""
        self._journal, self._run_id, self._out, self._blocks = journal, run_id, out, blocks
        shape = (blocks.n_rows, blocks.n_cols)
        self._starts = np.full(shape, _NONE, np.int64)
        self._damaged = np.zeros(shape, np.bool_)
        for start, fields in read_values(journal):
            self._take(start, fields)

    @property
    def n_damaged(self) -> int:
        """Blocks whose files are not as their last line says; the ledger has them as left."""
        return int(np.count_nonzero(self._damaged))

    def first_damage(self) -> str:
        """Return what is wrong with the first of them; for ``n_damaged`` above 0."""
        row, col = divmod(int(np.argmax(self._damaged)), self._damaged.shape[1])
        receipt = self._last_of((row, col)).outcome
        assert self._out is not None
        assert isinstance(receipt, BlockReceipt)
        return next((reason for chunk in receipt.chunks if (reason := check_receipt(self._out, chunk))), f"block {row, col}")

    def _take(self, start: int, value: Any) -> None:
        if is_receipt(value, run_id=self._run_id):
            self._take_receipt(start, value)
            return
        entry = entry_of(value, run_id=self._run_id, start=start)
        if entry is not None and isinstance(entry.outcome, BlockFailure) and self._starts_anew(entry.outcome.block, start):
            self.ledger.record(entry.outcome)
            self.recent.append((entry.time_s, 0))

    def _take_receipt(self, start: int, fields: dict[str, Any]) -> None:
        n_classes, n_pixels = len(self.ledger.class_counts), fields["n_pixels"]
        try:
            row, col = fields["block"]
            files = [(key, n_bytes) for key, n_bytes, _crc in fields["chunks"]]
        except (TypeError, ValueError):
            return  # a line whose bytes were damaged; its block is done again
        block = row, col
        if len(fields["class_counts"]) not in {0, n_classes or len(fields["class_counts"])} or not self._starts_anew(
            block, start
        ):
            return
        if self._out is None or _as_written(self._out, files):
            self.ledger.finish(block, fields["state"], n_pixels, fields["class_counts"], fields.get("stage_s", {}))
            if "unreadable" in fields:
                self.ledger.note_unreadable(block, places_of(fields["unreadable"]))
        else:
            self._damaged[block] = True
        self.recent.append((fields["time_s"], n_pixels))

    def _starts_anew(self, block: BlockIndex, start: int) -> bool:
        """Forget what an earlier line said of a block, in favour of the one at ``start``; False where the scene has no such block."""
        if not self._blocks.holds(block):
            return False
        if self.ledger.holds(block):
            self.ledger.take_back(self._last_of(block).outcome)
        self._damaged[block] = False
        self._starts[block] = start
        return True

    def _last_of(self, block: BlockIndex) -> Entry:
        entry = read_entry_at(self._journal, int(self._starts[block]), run_id=self._run_id)
        if entry is None:
            raise StoreError(f"{self._journal} changed while it was read, though journals only grow; run the same command again")
        return entry


def _as_written(out: Path, files: list[tuple[str, int]]) -> bool:
    """Compare lengths only. `check_receipt`, which says what is wrong, takes three times as long."""
    try:
        for key, n_bytes in files:
            if os.stat(f"{out}/{key}").st_size != n_bytes:  # noqa: PTH116
                return False
    except (OSError, ValueError):
        return False
    return True
