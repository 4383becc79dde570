r"""How do overlapping network windows become one probability per pixel?

Every network window carries a weight per pixel; a pixel's probabilities are the weighted mean over the windows that cover it, summed in
lattice order, so that the sum has the same rounding whichever block asks for it. The weights are known beforehand, so each is divided by
the sum of all that cover the pixel before anything is added.

``taper``: the weight falls linearly over the overlap, so that two neighbours add up to one::

    weight  1 |    ________            ________
              |   /        \  /  \    /
            0 |  /          \/    \  /
                 |-overlap-|

``exact``: the window up to the middle of the overlap, nothing beyond. With an overlap of twice the network's margin every pixel then
comes from a window in which it sees all that it would see in the whole scene.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blended import EVERYWHERE, BlendedHere
from pipeline.errors import SpecError
from pipeline.window import Window, tiling

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.blended import Blended
    from pipeline.fused import Positions
    from pipeline.grid import Lattice
    from pipeline.network.cells import Cells
    from pipeline.network.choices import Alignment
    from pipeline.spec import Blend, GridSpec

_BAND_PX = 128
"""So many rows of a part are blended by one thread at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowParts:
    """Which part of a window goes where, and with which weights."""

    rows: Positions
    """For each row of pixels of the part: the cell before it, the cell after it, the share of the latter (`Cells.between`)."""
    cols: Positions
    """The same for its columns."""
    window_row_weights: NDArray[np.float32]
    """(size,), of all rows of the window; the weight of a pixel is the product of its row's and its column's."""
    window_col_weights: NDArray[np.float32]
    """(size,), of all its columns."""
    within: tuple[slice, slice]
    """Where the part lies in the window, rows and columns."""
    onto: tuple[slice, slice]
    """Where it lies in the target."""


class Blender:
    """The weighted mean over network windows, for the pixels of one target window."""

    def __init__(self, target: Window, lattice: Lattice, *, n_classes: int, blend: Blend, cells: Cells) -> None:
        self._target = target
        self._lattice = lattice
        self._blend: Blend = blend
        self._sum = np.zeros((n_classes, *target.shape), np.float32)
        self._cells = cells

    def add(self, index: tuple[int, int], scores: NDArray[np.float32], *, origin: tuple[int, int] = (0, 0)) -> None:
        """Add the window ``index`` of the lattice.

        Parameters
        ----------
        index
            (row, column) of the network window. Windows must be added in lattice order, row by row.
        scores
            (classes, cell rows, cell columns) float32 whose softmax are the probabilities, as `Engine.scores` gives them.
        origin
            Row and column of the window's cells with which ``scores`` begin, where others are not needed.
        """
        from pipeline.fused import add_window  # noqa: PLC0415  (numba takes 60 MiB; who only plans or coordinates blends nothing)

        parts = window_parts(self._lattice, index, self._target, blend=self._blend, cells=self._cells)
        if parts is not None:
            rows, cols = parts.within
            weights = parts.window_row_weights[rows], parts.window_col_weights[cols]
            positions = _from(parts.rows, origin[0]), _from(parts.cols, origin[1])
            add_window(scores, *positions, *weights, self._sum[:, *parts.onto])

    def blended(self) -> Blended:
        """Return the mean: probabilities that sum to 1; to less where a window that covers the pixel was not added."""
        return BlendedHere(self._sum)


class PartBlender:
    """The same mean for parts of a target window, worked out when they are asked for; what is kept are the scores.

    At a network's stride they are a small part of the probabilities. Pixels that are asked for again are blended again.
    """

    def __init__(self, target: Window, lattice: Lattice, *, n_classes: int, blend: Blend, cells: Cells, threads: int = 1) -> None:
        self._target = target
        self._lattice = lattice
        self._n_classes = n_classes
        self._blend: Blend = blend
        self._cells = cells
        self._threads = threads
        self._scores: list[tuple[tuple[int, int], NDArray[np.float32], tuple[int, int]]] = []

    def add(self, index: tuple[int, int], scores: NDArray[np.float32]) -> None:
        """Add the window ``index`` of the lattice, or what the target needs of it; see `Blender.add`."""
        parts = window_parts(self._lattice, index, self._target, blend=self._blend, cells=self._cells)
        if parts is not None:
            rows, cols = (slice(int(before[0]), int(after[-1]) + 1) for before, after, _ in (parts.rows, parts.cols))
            self._scores.append((index, scores[:, rows, cols].copy(), (rows.start, cols.start)))

    def blended(self) -> Blended:
        """Return itself."""
        return self

    def probabilities(self, part: tuple[slice, slice] = EVERYWHERE) -> NDArray[np.float32]:
        """See `Blended`."""
        window = self._window(part)
        found = np.empty((self._n_classes, *window.shape), np.float32)

        def keep(rows: slice, blended: Blended) -> None:
            found[:, rows] = blended.probabilities()

        self._in_bands(window, keep)
        return found

    def classify(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See `Blended`."""
        labels, confidence = np.empty((2, *valid.shape), np.uint8)

        def keep(rows: slice, blended: Blended) -> None:
            labels[rows], confidence[rows] = blended.classify(EVERYWHERE, valid[rows])

        self._in_bands(self._window(part), keep)
        return labels, confidence

    def quantise(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """See `Blended`."""
        stored = np.empty((self._n_classes, *valid.shape), np.uint8)

        def keep(rows: slice, blended: Blended) -> None:
            stored[:, rows] = blended.quantise(EVERYWHERE, valid[rows])

        self._in_bands(self._window(part), keep)
        return stored

    def _window(self, part: tuple[slice, slice]) -> Window:
        """Return a part of the target as a window of the scene."""
        rows, cols = (range(n)[one] for n, one in zip(self._target.shape, part, strict=True))
        top, left = self._target.row_off, self._target.col_off
        return Window.from_bounds(rows=(top + rows.start, top + rows.stop), cols=(left + cols.start, left + cols.stop))

    def _in_bands(self, window: Window, keep: Callable[[slice, Blended], None]) -> None:
        """Blend some rows of a window at a time, on all threads, and hand them on with their place."""

        def blend(band: Window) -> None:
            moved = dataclasses.replace(band, row_off=window.row_off + band.row_off, col_off=window.col_off)
            blender = Blender(moved, self._lattice, n_classes=self._n_classes, blend=self._blend, cells=self._cells)
            for index, scores, origin in self._scores:
                blender.add(index, scores, origin=origin)
            keep(band.to_slices()[0], blender.blended())

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(blend, tiling(window.shape, height=_BAND_PX, width=window.width)))


@lru_cache(maxsize=512)
def shares(lattice: Lattice, index: int, *, n: int, blend: Blend) -> NDArray[np.float32]:
    """Return the weights of the ``index``-th of ``n`` windows along one axis as shares of all windows': (size,) float32, 0 to 1.

    They are kept, and not to be changed.
    """
    own = axis_weights(lattice, index, n=n, blend=blend)
    total = np.zeros_like(own)
    reach = (lattice.size_px - 1) // lattice.step_px
    for other in range(max(0, index - reach), min(n, index + reach + 1)):
        shift = (other - index) * lattice.step_px
        weights = axis_weights(lattice, other, n=n, blend=blend)
        first, last = max(0, shift), min(lattice.size_px, lattice.size_px + shift)
        total[first:last] += weights[first - shift : last - shift]
    return np.divide(own, total, out=np.zeros_like(own), where=own > 0)


def axis_weights(lattice: Lattice, index: int, *, n: int, blend: Blend) -> NDArray[np.float32]:
    """Return the weights of the ``index``-th of ``n`` windows along one axis: (size,) float32, 0 to 1."""
    overlap = lattice.size_px - lattice.step_px
    position = np.arange(lattice.size_px, dtype=np.float32) + np.float32(0.5)
    if blend == "exact":
        first = 0 if index == 0 else overlap // 2
        last = lattice.size_px if index == n - 1 else lattice.step_px + overlap // 2
        return np.asarray((position > first) & (position < last), np.float32)
    if overlap == 0:
        return np.ones(lattice.size_px, np.float32)
    ramp = np.minimum(position, lattice.size_px - position) / np.float32(overlap)
    return np.asarray(np.minimum(ramp, np.float32(1)), np.float32)


def window_parts(lattice: Lattice, index: tuple[int, int], target: Window, *, blend: Blend, cells: Cells) -> WindowParts | None:
    """Return what the window ``index`` of the lattice gives to ``target``; None where they do not touch."""
    window = lattice.window(index)
    common = window.intersect(target)
    if common is None:
        return None
    between = cells.between(lattice.size_px)
    rows, cols = common.relative_to(window).to_slices()
    return WindowParts(
        rows=_part(between, rows),
        cols=_part(between, cols),
        window_row_weights=shares(lattice, index[0], n=lattice.n_rows, blend=blend),
        window_col_weights=shares(lattice, index[1], n=lattice.n_cols, blend=blend),
        within=(rows, cols),
        onto=common.relative_to(target).to_slices(),
    )


def _part(between: Positions, part: slice) -> Positions:
    before, after, share = between
    return before[part], after[part], share[part]


def _from(positions: Positions, first: int) -> Positions:
    """Return positions among the cells from ``first`` on."""
    before, after, share = positions
    return (before - first, after - first, share) if first else positions


def check_grid(grid: GridSpec, *, output_stride: int, margin_px: int | None, alignment: Alignment = "centre") -> None:
    """Raise SpecError unless the network can run on ``grid``.

    Parameters
    ----------
    grid
        Windows and overlap.
    output_stride
        Of the network. Windows start at multiples of it, or else the network samples each window on another phase.
    margin_px
        How far a pixel of the network sees, px, for the blend ``exact``; None with image-level pooling, where it sees the whole window.
    alignment
        Where the network's cells lie; with ``corner`` a window may also end just on its last cell, one pixel past a multiple.
    """
    beyond = grid.window_px % output_stride
    if (beyond and not (beyond == 1 and alignment == "corner")) or grid.step_px % output_stride:
        also = f"; a window may also be one pixel more, with an overlap of as much more (such as {output_stride * 32 + 1} and 65)"
        raise SpecError(
            f"a window of {grid.window_px} px with an overlap of {grid.overlap_px} px was asked for; the network has output stride "
            f"{output_stride}, so both must be multiples of {output_stride}{also if alignment == 'corner' else ''}"
        )
    if grid.blend != "exact":
        return
    if margin_px is None:
        raise SpecError(
            "blend 'exact' was asked for with a model that pools over its whole window (image-level pooling); no finite overlap makes "
            "its windows equal to the whole scene: use --image-pooling global, --blend taper, or a model without image-level pooling"
        )
    needed = 2 * margin_px
    if grid.overlap_px < needed:
        window = -(-2 * needed // output_stride) * output_stride
        raise SpecError(
            f"blend 'exact' was asked for with an overlap of {grid.overlap_px} px; this network sees {margin_px} px to each side, so "
            f"use --overlap {needed} with a --window above that, for example {max(window, grid.window_px)}"
        )
