"""What of a damaged scene can still be read? Everything but the stored blocks that fail on their own, which become pixels without data.

::

    +----+----+----+     the window that was asked for fails, so its stored blocks are read one by one;
    | ok |lost| ok |     a block that fails twice, the second time with the file opened anew, is lost as a whole,
    +----+----+----+     whatever part of it the window wants

So what is lost depends on the scene alone, never on the window through which it is seen. In files that are decoded from the first row on
(PNG, JPEG) all rows from the first bad one on are lost: decoders go on behind the damage, and give pixels that are none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.errors import SourceError
from pipeline.scene_info import Tile, check_inside
from pipeline.window import Window, disjoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from pipeline.scene_info import Scene, SceneInfo

_WHOLE_BLOCKS = frozenset({"GTiff", "Zarr", "BMP"})
"""Formats of which a window fails exactly where one of its blocks would."""


class TolerantScene:
    """A scene of which damaged places read as pixels without data."""

    def __init__(self, reopen: Callable[[], Scene], *, in_order: bool = False, lost: tuple[Window, ...] = ()) -> None:
        """Open the scene with ``reopen``; ``in_order``: rows are decoded from the first on; ``lost``: what is known to be lost."""
        self._reopen = reopen
        self._scene = reopen()
        self._in_order = in_order
        self._lost = set(lost)
        self._searched = False
        info = self._scene.info
        # The blocks of a mask may lie otherwise than those of the pixels.
        self._can_read_at_once = in_order or (info.driver in _WHOLE_BLOCKS and info.mask_kind != "mask")

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        return self._scene.info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._scene.bands

    def read(self, window: Window) -> Tile:
        """Read a window inside the scene; SourceError only where the file does not open any more."""
        check_inside(self.info, window)
        tile = self._at_once(window)
        if tile is None:
            tile = self._upper_rows(window) if self._in_order else self._block_by_block(window)
        for place in self.unreadable(window):
            inside = place.relative_to(window).to_slices()
            tile.pixels[:, *inside], tile.valid[inside] = 0, False
        return tile

    def unreadable(self, window: Window) -> tuple[Window, ...]:
        """Return the lost places within ``window`` that were found so far: all of them, once it was read."""
        parts = (window.intersect(place) for place in self._lost)
        return disjoint(part for part in parts if part is not None)

    def close(self) -> None:
        """Give back the file handle."""
        self._scene.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _at_once(self, window: Window) -> Tile | None:
        """Read the window as it is; None where that fails, or would say nothing of the blocks that it touches."""
        if not self._can_read_at_once or (self._in_order and self._searched):
            return None
        try:
            return self._scene.read(window)
        except SourceError:
            return None

    def _block_by_block(self, window: Window) -> Tile:
        tile = self._empty(window)
        for block in self._blocks(window):
            read = None if block in self._lost else self._block(block)
            if read is None:
                self._lost.add(block)
            else:
                _paste(read, tile)
        return tile

    def _blocks(self, window: Window) -> Iterator[Window]:
        """Yield the stored blocks that touch ``window``, each whole, as far as it lies in the scene."""
        height, width = self.info.block_shape
        for row in range(window.row_off // height * height, window.row_end, height):
            for col in range(window.col_off // width * width, window.col_end, width):
                block = Window(row_off=row, col_off=col, height=height, width=width).clip(self.info.shape)
                assert block is not None
                yield block

    def _block(self, block: Window) -> Tile | None:
        """Read one block; None where it fails again with a new handle: a decoder that failed once may go on with anything."""
        for _ in range(2):
            try:
                return self._scene.read(block)
            except SourceError:
                self._open_anew()
        return None

    def _upper_rows(self, window: Window) -> Tile:
        """Read the rows above the first one that is lost."""
        self._search()
        tile = self._empty(window)
        bad = min((place.row_off for place in self._lost), default=self.info.height)
        if bad > window.row_off:
            _paste(self._scene.read(replace(window, height=min(window.height, bad - window.row_off))), tile)
        return tile

    def _search(self) -> None:
        """Find the first row that cannot be read, from the top; twice, for what failed once may have been the disk."""
        if self._searched:
            return
        height, width = self.info.shape
        bad = max(self._first_bad_row() for _ in range(2))
        if bad < height:
            self._lost.add(Window.from_bounds(rows=(bad, height), cols=(0, width)))
        self._searched = True
        self._open_anew()

    def _first_bad_row(self) -> int:
        self._open_anew()
        height = self.info.height
        return next((row for row in range(height) if not self._has_row(row)), height)

    def _has_row(self, row: int) -> bool:
        try:
            self._scene.read(Window(row_off=row, col_off=0, height=1, width=self.info.width))
        except SourceError:
            return False
        return True

    def _open_anew(self) -> None:
        self._scene.close()
        self._scene = self._reopen()

    def _empty(self, window: Window) -> Tile:
        pixels = np.zeros((len(self.bands), *window.shape), self.info.dtype)
        return Tile(window=window, pixels=pixels, valid=np.zeros(window.shape, np.bool_))


def _paste(read: Tile, onto: Tile) -> None:
    """Copy the part of ``read`` that lies in ``onto``."""
    common = read.window.intersect(onto.window)
    assert common is not None
    source, target = common.relative_to(read.window).to_slices(), common.relative_to(onto.window).to_slices()
    onto.pixels[:, *target] = read.pixels[:, *source]
    onto.valid[target] = read.valid[source]
