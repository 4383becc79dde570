"""Which windows does one block write, read and compute? Worked out from the shape of the scene alone.

::

    read     |----------------------------------|    the network windows that touch what is needed
    predict       |------------------------|         what is written, with the CRF tiles that touch it and their halos
    write              |--------------|              what the block alone writes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.grid import Blocks, Lattice
from pipeline.window import Window, hull

if TYPE_CHECKING:
    from pipeline.crf.energy import CrfSpec
    from pipeline.spec import SegmentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWindows:
    """What one block writes, and all that it needs for it."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    write: Window
    """The pixels that the block alone writes."""
    predict: Window
    """The pixels whose probabilities it needs: the write window, with the CRF tiles that touch it and their halos."""
    network: tuple[tuple[int, int], ...]
    """Lattice indices of the network windows that touch ``predict``, in lattice order; none where probabilities are recalled."""
    crf: tuple[tuple[int, int], ...]
    """Lattice indices of the CRF tiles that touch ``write``."""
    shared: dict[tuple[int, int], int]
    """Those of the network windows that blocks after this one need, too -> how many of them."""
    read: Window
    """The hull of the network windows, which may reach past the scene; without them the same as ``predict``. A block reads all of it only
    where no earlier block left anything."""


def locate(index: tuple[int, int], *, shape: tuple[int, int], spec: SegmentSpec) -> BlockWindows:
    """Work out the windows of one block in a scene of ``shape`` (height, width); reads nothing."""
    blocks = Blocks(shape=shape, block_px=spec.grid.block_px)
    write = blocks.window(index)
    tiles, needed = _tiles_and_needed(write, shape=shape, spec=spec)
    lattice = network_lattice(shape, spec)
    network = lattice.touching(needed) if spec.probabilities_from is None else []
    rows, cols = (_blocks_touching(index, network, lattice, blocks, axis=axis, spec=spec) for axis in (0, 1))
    return BlockWindows(
        shape=shape,
        write=write,
        predict=needed,
        network=tuple(network),
        crf=tuple(tiles),
        shared=_later_uses(index, network, rows, cols),
        read=hull(lattice.window(window) for window in network) if network else needed,
    )


def network_lattice(shape: tuple[int, int], spec: SegmentSpec) -> Lattice:
    """Return the lattice of network windows over a scene of ``shape`` (height, width)."""
    return Lattice(shape=shape, size_px=spec.grid.window_px, step_px=spec.grid.step_px)


def crf_lattice(shape: tuple[int, int], crf: CrfSpec) -> Lattice:
    """Return the partition into CRF tiles of a scene of ``shape`` (height, width)."""
    return Lattice(shape=shape, size_px=crf.tile_px, step_px=crf.tile_px)


def _tiles_and_needed(write: Window, *, shape: tuple[int, int], spec: SegmentSpec) -> tuple[list[tuple[int, int]], Window]:
    """Return the CRF tiles that touch what a block writes, and the pixels whose probabilities it needs."""
    if spec.crf is None:
        return [], write
    lattice = crf_lattice(shape, spec.crf)
    tiles = lattice.touching(write)
    return tiles, hull(with_halo(lattice.window(tile), spec.crf, shape) for tile in tiles)


def _later_uses(
    index: tuple[int, int], network: list[tuple[int, int]], rows: dict[int, list[int]], cols: dict[int, list[int]]
) -> dict[tuple[int, int], int]:
    """Count, for the network windows of a block, the blocks after it (row by row) that need them, too; those of none are left out."""
    uses = {
        (row, col): sum(one > index[0] for one in rows[row]) * len(cols[col]) + sum(one > index[1] for one in cols[col])
        for row, col in network
    }
    return {one: n for one, n in uses.items() if n}


def _blocks_touching(
    index: tuple[int, int],
    network: list[tuple[int, int]],
    lattice: Lattice,
    blocks: Blocks,
    *,
    axis: Literal[0, 1],
    spec: SegmentSpec,
) -> dict[int, list[int]]:
    """Return, for each row (``axis`` 0) or column of a block's windows, the rows (columns) of blocks that need it."""
    touching: dict[int, list[int]] = {one[axis]: [] for one in network}
    count = (blocks.n_rows, blocks.n_cols)[axis]
    for direction in (range(index[axis], count), range(index[axis] - 1, -1, -1)):
        for block in direction:
            place = (block, index[1]) if axis == 0 else (index[0], block)
            needed = _tiles_and_needed(blocks.window(place), shape=blocks.shape, spec=spec)[1]
            start, end = (needed.row_off, needed.row_end) if axis == 0 else (needed.col_off, needed.col_end)
            here = [one for one in touching if start - lattice.size_px < one * lattice.step_px < end]
            for one in here:
                touching[one].append(block)
            if not here:
                break
    return touching


def with_halo(core: Window, crf: CrfSpec, shape: tuple[int, int]) -> Window:
    """Return a CRF tile with the pixels around it that it is refined with, within a scene of ``shape`` (height, width)."""
    grown = core.grow(crf.halo_px).clip(shape)
    assert grown is not None
    return grown
