"""Which network windows does a block need that an earlier block has seen? Their scores, kept until the last block that needs them.

Windows straddle the edges of blocks, and every block that touches one needs it. What a window gives depends on the scene and the model
alone, so a process that does several blocks may keep it: the bytes are those that the network would give again. Blocks come row by row, so
one row of windows is what is kept::

    done     done     done     done
    =====================================   windows kept: the blocks below need them
    done   | now    | to do    to do
           ^ and these

A wide scene has many of them, so they wait in a file without a name, which ends with the process. Where it cannot be written, windows are
computed again. A block is read while the one before it computes. What that one will leave is promised meanwhile, so that its pixels are not
read again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
from collections import Counter
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Index = tuple[int, int]

NO_SCORES = np.empty(0, np.float32)
"""What is kept of a window that holds nodata only."""
_SHARE_OF_DISK = 4
"""Of what is free where the file lies, one part in so many is used at most."""
_log = logging.getLogger(__name__)


class SeenWindows:
    """The scores of windows that other blocks will need, up to a number of bytes; safe for several threads."""

    def __init__(self, limit_bytes: int, *, folder: str | None = None) -> None:
        """Keep at most ``limit_bytes`` in a file in ``folder``, None: where temporary files lie."""
        self._limit_bytes = limit_bytes
        self._folder = folder
        self._slots: _Slots | None = None
        self._held: dict[Index, int | None] = {}  # where in the file; None where there is nothing to keep
        self._uses: dict[Index, int] = {}
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

    def take(self, index: Index) -> NDArray[np.float32] | None:
        """Return the scores of the window ``index`` of the lattice, None where they are not held; the last use drops them."""
        with self._lock:
            if index not in self._held:
                return None
            slot = self._held[index]
            scores = NO_SCORES if slot is None or self._slots is None else self._slots.read(slot)
            self._uses[index] -= 1
            if self._uses[index] <= 0 or scores is None:
                self._drop(index)
        return scores

    def keep(self, index: Index, scores: NDArray[np.float32], *, uses: int) -> None:
        """Hold the scores of a window, all of one shape, for so many uses; where the limit is reached, what is held already stays."""
        with self._lock:
            if uses < 1 or index in self._held:
                return
            slot = self._write(scores) if scores.size else None
            if slot is None and scores.size:
                self._is_full = True
                return
            self._held[index], self._uses[index] = slot, uses

    def pass_row(self, row: int) -> None:
        """Drop the windows above ``row``, which no block will ask for any more: another process did those that would have."""
        with self._lock:
            for index in [index for index in self._held if index[0] < row]:
                self._drop(index)

    def _write(self, scores: NDArray[np.float32]) -> int | None:
        """Return the slot into which scores were written; None where there is no room."""
        if scores.nbytes > self._limit_bytes:
            return None
        try:
            if self._slots is None:
                self._slots = _Slots(scores.shape, limit_bytes=self._limit_bytes, folder=self._folder)
            return self._slots.write(scores)
        except OSError as error:
            if not self._is_full:
                _log.warning(
                    "windows of finished blocks could not be kept in a temporary file (%s); they are computed again", error
                )
            return None

    def _drop(self, index: Index) -> None:
        slot = self._held.pop(index)
        del self._uses[index]
        if slot is not None and self._slots is not None:
            self._slots.free(slot)


class _Slots:
    """A file of arrays of one shape; those that are dropped make room for others."""

    def __init__(self, shape: tuple[int, ...], *, limit_bytes: int, folder: str | None) -> None:
        self._shape = shape
        self._item_bytes = 4 * int(np.prod(shape))
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this is there
        room = min(limit_bytes, shutil.disk_usage(folder or tempfile.gettempdir()).free // _SHARE_OF_DISK)
        self._free = list(range(room // self._item_bytes))[::-1]

    def write(self, values: NDArray[np.float32]) -> int | None:
        """Write values into a free slot and return it; None where there is none."""
        if not self._free:
            return None
        slot = self._free[-1]
        self._file.seek(slot * self._item_bytes)
        self._file.write(np.ascontiguousarray(values).data)
        self._file.flush()  # a full disk is told here
        return self._free.pop()

    def read(self, slot: int) -> NDArray[np.float32] | None:
        """Return what a slot holds; None where it cannot be read."""
        values = np.empty(self._shape, np.float32)
        try:
            self._file.seek(slot * self._item_bytes)
            n_read: int = self._file.readinto(values.data)  # type: ignore[attr-defined]
        except OSError:
            return None
        return values if n_read == self._item_bytes else None

    def free(self, slot: int) -> None:
        """Let a slot be written again."""
        self._free.append(slot)
