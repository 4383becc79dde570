"""Where is a rectangle of pixels?

::

        col_off        col_off + width
           |                |
    -------+================+-------   row_off
           |     window     |
    -------+================+-------   row_off + height

A window may lie partly or wholly outside the scene until it is clipped. Offsets and sizes are in pixels of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import WindowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """A pixel rectangle, half open: rows ``row_off .. row_off + height - 1``."""

    row_off: int
    """First row, px; may be negative."""
    col_off: int
    """First column, px; may be negative."""
    height: int
    """Rows, px, at least 1."""
    width: int
    """Columns, px, at least 1."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise WindowError(f"a window of {self.height} x {self.width} px was asked for; height and width must be at least 1")

    @classmethod
    def from_bounds(cls, *, rows: tuple[int, int], cols: tuple[int, int]) -> Window:
        """Build the window of rows ``rows[0] .. rows[1] - 1`` and columns ``cols[0] .. cols[1] - 1``."""
        return cls(row_off=rows[0], col_off=cols[0], height=rows[1] - rows[0], width=cols[1] - cols[0])

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Window:
        """Build the window at the origin that covers ``shape`` (height, width)."""
        return cls(row_off=0, col_off=0, height=shape[0], width=shape[1])

    @property
    def row_end(self) -> int:
        """The first row below the window."""
        return self.row_off + self.height

    @property
    def col_end(self) -> int:
        """The first column right of the window."""
        return self.col_off + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def n_pixels(self) -> int:
        """Pixels in the window."""
        return self.height * self.width

    def intersect(self, other: Window) -> Window | None:
        """Return the common part, or None where there is none."""
        rows = max(self.row_off, other.row_off), min(self.row_end, other.row_end)
        cols = max(self.col_off, other.col_off), min(self.col_end, other.col_end)
        if rows[0] >= rows[1] or cols[0] >= cols[1]:
            return None
        return Window.from_bounds(rows=rows, cols=cols)

    def clip(self, shape: tuple[int, int]) -> Window | None:
        """Return the part inside a scene of ``shape`` (height, width), or None where there is none."""
        return self.intersect(Window.of_shape(shape))

    def contains(self, other: Window) -> bool:
        """Tell whether every pixel of ``other`` is a pixel of this window."""
        return self.intersect(other) == other

    def grow(self, margin_px: int) -> Window:
        """Return the window with ``margin_px`` more (or, below zero, fewer) pixels on each side."""
        return Window(
            row_off=self.row_off - margin_px,
            col_off=self.col_off - margin_px,
            height=self.height + 2 * margin_px,
            width=self.width + 2 * margin_px,
        )

    def relative_to(self, outer: Window) -> Window:
        """Return this window in the coordinates of ``outer``'s first pixel."""
        return Window(
            row_off=self.row_off - outer.row_off,
            col_off=self.col_off - outer.col_off,
            height=self.height,
            width=self.width,
        )

    def to_slices(self) -> tuple[slice, slice]:
        """Return (row slice, column slice) for a numpy array whose first pixel is the origin."""
        if self.row_off < 0 or self.col_off < 0:
            raise WindowError(f"{self} starts before the array's first pixel; a negative slice would read from the other end")
        return slice(self.row_off, self.row_end), slice(self.col_off, self.col_end)


def tiling(shape: tuple[int, int], *, height: int, width: int) -> Iterator[Window]:
    """Yield windows of ``height`` x ``width`` px that cover an array of ``shape`` once, row by row; the last ones end with it.

    Examples
    --------
    >>> [str(w.to_slices()) for w in tiling((2, 5), height=2, width=3)]
    ['(slice(0, 2, None), slice(0, 3, None))', '(slice(0, 2, None), slice(3, 5, None))']
    """
    for row in range(0, shape[0], height):
        for col in range(0, shape[1], width):
            yield Window.from_bounds(rows=(row, min(row + height, shape[0])), cols=(col, min(col + width, shape[1])))


def disjoint(windows: Iterable[Window]) -> tuple[Window, ...]:
    """Return windows that cover the same pixels, each once, from top to bottom; neighbours are joined.

    Examples
    --------
    >>> [str(w.to_slices()) for w in disjoint([Window.of_shape((2, 3)), Window(row_off=1, col_off=0, height=2, width=3)])]
    ['(slice(0, 3, None), slice(0, 3, None))']
    """
    waiting = sorted(windows, reverse=True)
    edges = sorted({edge for window in waiting for edge in (window.row_off, window.row_end)})
    active: list[Window] = []
    begun: dict[tuple[int, int], int] = {}
    found = []
    for row in edges:
        active = [window for window in active if window.row_end > row]
        while waiting and waiting[-1].row_off == row:
            active.append(waiting.pop())
        spans = set(_union((window.col_off, window.col_end) for window in active))
        ended = [span for span in begun if span not in spans]
        found += [Window.from_bounds(rows=(begun.pop(span), row), cols=span) for span in ended]
        begun |= {span: row for span in spans if span not in begun}
    return tuple(sorted(found))


def _union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans with those that touch joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def hull(windows: Iterable[Window]) -> Window:
    """Return the smallest window that contains all of ``windows`` (at least one)."""
    items = list(windows)
    if not items:
        raise WindowError("the hull of no windows was asked for; at least one is needed")
    return Window.from_bounds(
        rows=(min(w.row_off for w in items), max(w.row_end for w in items)),
        cols=(min(w.col_off for w in items), max(w.col_end for w in items)),
    )
