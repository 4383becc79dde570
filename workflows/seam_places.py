"""At which places does one look for seams? Where blocks, CRF tiles or network windows meet, and for comparison inside all of them.

::

    +-------+-------+      b  blocks meet: corners, or edges where there is one row of blocks only; CRF tiles likewise
    |   i   |   i   |      w  network windows meet: the middle of their overlap
    |     w |     w |      i  the middle of a window, inside one block and one CRF tile
    +-------b-------+

The places of a kind are spread evenly over all that can be looked at, and are the same each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.locate import network_lattice
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.grid import Lattice
    from pipeline.spec import SegmentSpec

    Axis = NDArray[np.int64]

PlaceKind = Literal["block", "tile", "window", "inside"]

_MOST_PER_AXIS = 1000
"""So many positions along one axis are considered; of a larger scene, as many spread evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A point of the scene with a square around it."""

    kind: PlaceKind
    """What is there."""
    row: int
    """The first row below the point, px."""
    col: int
    """The first column right of the point, px."""

    def square(self, side_px: int) -> Window:
        """Return the square of ``side_px`` around the point; it may reach outside the scene."""
        return Window(row_off=self.row - side_px // 2, col_off=self.col - side_px // 2, height=side_px, width=side_px)


def choose_places(
    spec: SegmentSpec, *, shape: tuple[int, int], done: NDArray[np.bool_], square_px: int, n_places: int
) -> list[Place]:
    """Choose up to ``n_places`` places of each kind.

    Parameters
    ----------
    spec
        Gives blocks, windows and CRF tiles.
    shape
        (height, width) of the scene, px.
    done
        (rows, columns) of blocks, True where there are labels to look at; a square touches no other block.
    square_px
        Side of the squares, px.
    n_places
        At most so many of each kind.
    """
    lattice = network_lattice(shape, spec)
    counts = tuple(zip((lattice.n_rows, lattice.n_cols), shape, strict=True))
    units: dict[PlaceKind, int] = {"block": spec.grid.block_px}
    if spec.crf is not None:
        units["tile"] = spec.crf.tile_px
    kinds: dict[PlaceKind, tuple[Axis, ...]] = {
        kind: tuple(np.arange(unit, length, unit) for length in shape) for kind, unit in units.items()
    }
    if spec.probabilities_from is None:  # else the windows met in an earlier run, and nothing of it is computed again
        kinds["window"] = tuple(_joins(lattice, n, length) for n, length in counts)
    if not any(axis.size for axes in kinds.values() for axis in axes):
        return []
    kinds["inside"] = tuple(_inside(_middles(lattice, n, length), units.values(), square_px) for n, length in counts)
    return [
        Place(kind=kind, row=row, col=col)
        for kind, axes in kinds.items()
        for row, col in _spread(_filled(axes, shape, n_places), shape, done, spec.grid.block_px, square_px, n_places)
    ]


def _joins(lattice: Lattice, n: int, length: int) -> Axis:
    """Return the middle of the overlap of each two neighbours."""
    middles = lattice.step_px * np.arange(1, n) + (lattice.size_px - lattice.step_px) // 2
    return np.asarray(middles[middles < length])


def _middles(lattice: Lattice, n: int, length: int) -> Axis:
    """Return the middle of each window; where there is one only, that of the scene."""
    middles = lattice.step_px * np.arange(n) + lattice.size_px // 2
    inside = middles[middles < length]
    return np.asarray(inside) if inside.size else np.array([length // 2])


def _inside(middles: Axis, units: Iterable[int], square_px: int) -> Axis:
    """Return the middles whose squares cross no edge of a partition into ``units``; all of them where there is none."""
    first, last = middles - square_px // 2, middles - square_px // 2 + square_px - 1
    kept = middles[np.logical_and.reduce([first // unit == last // unit for unit in units])]
    return kept if kept.size else middles


def _filled(axes: tuple[Axis, ...], shape: tuple[int, int], n_places: int) -> tuple[Axis, Axis]:
    """Return (rows, columns), not too many; where nothing meets along one axis, points spread evenly over it."""
    if not any(axis.size for axis in axes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows, cols = (
        _spaced(np.arange(length), n_places) if not axis.size else _spaced(axis, _MOST_PER_AXIS)
        for axis, length in zip(axes, shape, strict=True)
    )
    return rows, cols


def _spread(
    axes: tuple[Axis, Axis], shape: tuple[int, int], done: NDArray[np.bool_], block_px: int, square_px: int, n_places: int
) -> list[tuple[int, int]]:
    """Return (row, column) of up to ``n_places`` crossings whose squares touch blocks with labels only."""
    (top, bottom), (left, right) = (
        _first_and_last_block(axis, length, block_px=block_px, square_px=square_px)
        for axis, length in zip(axes, shape, strict=True)
    )
    good = done[np.ix_(top, left)] & done[np.ix_(top, right)] & done[np.ix_(bottom, left)] & done[np.ix_(bottom, right)]
    rows, cols = axes
    return [(int(rows[one // cols.size]), int(cols[one % cols.size])) for one in _spaced(np.flatnonzero(good), n_places).tolist()]


def _first_and_last_block(axis: Axis, length: int, *, block_px: int, square_px: int) -> tuple[Axis, Axis]:
    first = np.maximum(axis - square_px // 2, 0)
    last = np.minimum(axis - square_px // 2 + square_px, length) - 1
    return first // block_px, last // block_px


def _spaced(values: Axis, n: int) -> Axis:
    """Return ``n`` of the values, spread evenly and away from the ends; all where there are no more."""
    if values.size <= n:
        return values
    return np.asarray(values[(2 * np.arange(n) + 1) * values.size // (2 * n)])
