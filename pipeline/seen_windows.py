"""Which network windows does a block need that an earlier block has seen? Their scores, kept until the last block that needs them.

Windows straddle the edges of blocks, and every block that touches one needs it. What a window gives depends on the scene and the model
alone, so a process that does several blocks may keep it: the bytes are those that the network would give again. At the network's own
stride a window is small. Blocks come row by row, so one row of windows is what is kept::

    done     done     done     done
    =====================================   windows kept: the blocks below need them
    done   | now    | to do    to do
           ^ and these
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Index = tuple[int, int]


class SeenWindows:
    """The scores of windows that other blocks will need, up to a number of bytes; safe for several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[Index, NDArray[np.float32]] = {}
        self._uses: dict[Index, int] = {}
        self._n_bytes = 0
        self._lock = threading.Lock()

    def take(self, index: Index) -> NDArray[np.float32] | None:
        """Return the scores of the window ``index`` of the lattice, None where they are not held; the last use drops them."""
        with self._lock:
            scores = self._held.get(index)
            if scores is not None:
                self._uses[index] -= 1
                if self._uses[index] <= 0:
                    self._drop(index)
            return scores

    def keep(self, index: Index, scores: NDArray[np.float32], *, uses: int) -> None:
        """Hold the scores of a window for so many uses; where the limit is reached, what is held already stays."""
        with self._lock:
            if uses < 1 or index in self._held or self._n_bytes + scores.nbytes > self._limit_bytes:
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
