"""Which network windows does a block need that an earlier block has seen? Their scores, kept until the last block that needs them.

Windows straddle the edges of blocks, and every block that touches one needs it. What a window gives depends on the scene and the model
alone, so a process that does several blocks may keep it: the bytes are those that the network would give again. At the network's own
stride a window is small. Blocks come row by row, so one row of windows is what is kept::

    done     done     done     done
    =====================================   windows kept: the blocks below need them
    done   | now    | to do    to do
           ^ and these

Of these, the next row of blocks needs only what lies below: the cells above are dropped with the last block in the row that needs them. A
block is read while the one before it computes. What that one will leave is promised meanwhile, so that its pixels are not read again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Index = tuple[int, int]

NO_SCORES = np.empty(0, np.float32)
"""What is kept of a window that holds nodata only."""


class SeenWindows:
    """The scores of windows that other blocks will need, up to a number of bytes; safe for several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[Index, NDArray[np.float32]] = {}
        self._uses: dict[Index, int] = {}
        self._first: dict[Index, int] = {}  # rows of cells that were dropped
        self._n_bytes = 0
        self._promised: Counter[Index] = Counter()
        self._is_full = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def promised(self, indices: Iterable[Index]) -> Iterator[None]:
        """Announce, for the time of a block, the windows that it will leave to later ones."""
        promised = Counter(indices)
        with self._lock:
            self._promised += promised
        try:
            yield
        finally:
            with self._lock:
                self._promised -= promised

    def expects(self, index: Index) -> bool:
        """Tell whether the scores of a window are held or promised; they may still not be there when they are asked for."""
        with self._lock:
            return index in self._held or (index in self._promised and not self._is_full)

    def take(self, index: Index, *, first_row: int = 0) -> NDArray[np.float32] | None:
        """Return the scores of the window ``index`` of the lattice from ``first_row`` on; the last use drops them.

        None where they are not held, or not from there. Rows above may be 0.
        """
        with self._lock:
            scores, first = self._held.get(index), self._first.get(index, 0)
            if scores is None or first > first_row:
                return None
            self._uses[index] -= 1
            if self._uses[index] <= 0:
                self._drop(index)
        return np.pad(scores, ((0, 0), (first, 0), (0, 0))) if first else scores

    def shrink(self, index: Index, *, first_row: int) -> None:
        """Hold the scores of a window, where they are held, only from ``first_row`` on."""
        with self._lock:
            scores, first = self._held.get(index), self._first.get(index, 0)
            if scores is not None and scores.size and first_row > first:
                self._held[index], self._first[index] = scores[:, first_row - first :].copy(), first_row
                self._n_bytes -= scores.nbytes - self._held[index].nbytes

    def keep(self, index: Index, scores: NDArray[np.float32], *, uses: int) -> None:
        """Hold the scores of a window for so many uses; where the limit is reached, what is held already stays."""
        with self._lock:
            if uses < 1 or index in self._held:
                return
            if self._n_bytes + scores.nbytes > self._limit_bytes:
                self._is_full = True
                return
            self._held[index], self._uses[index] = scores, uses
            self._n_bytes += scores.nbytes

    def pass_row(self, row: int) -> None:
        """Drop the windows above ``row``, which no block will ask for any more: another process did those that would have."""
        with self._lock:
            for index in [index for index in self._held if index[0] < row]:
                self._drop(index)

    def _drop(self, index: Index) -> None:
        self._n_bytes -= self._held.pop(index).nbytes
        del self._uses[index]
        self._first.pop(index, None)
