"""Blocks and lattices against brute force over every pixel or square."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SpecError
from pipeline.grid import Blocks, Lattice
from pipeline.window import Window

shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@st.composite
def lattices(draw):
    size = draw(st.integers(1, 40))
    return Lattice(shape=draw(shapes), size_px=size, step_px=draw(st.integers(1, size)))


@given(shapes, st.integers(1, 100))
def test_block_windows_cover_the_scene_exactly_once(shape, block_px):
    blocks = Blocks(shape=shape, block_px=block_px)
    written = np.zeros(shape, int)
    indices = list(blocks)
    for index in indices:
        window = blocks.window(index)
        assert Window.of_shape(shape).contains(window)
        written[window.to_slices()] += 1
    assert (written == 1).all()
    assert len(blocks) == len(indices) == len(set(indices)) == blocks.n_rows * blocks.n_cols
    assert indices == sorted(indices), "row by row"


@given(shapes, st.integers(1, 40))
def test_every_block_starts_at_its_multiple_and_only_the_last_ones_are_clipped(shape, block_px):
    blocks = Blocks(shape=shape, block_px=block_px)
    for row, col in blocks:
        window = blocks.window((row, col))
        assert (window.row_off, window.col_off) == (row * block_px, col * block_px)
        assert window.height == block_px or row == blocks.n_rows - 1
        assert window.width == block_px or col == blocks.n_cols - 1


def test_a_ragged_scene_has_the_blocks_one_counts_by_hand():
    blocks = Blocks(shape=(101, 203), block_px=50)
    assert (blocks.n_rows, blocks.n_cols, len(blocks)) == (3, 5, 15)
    assert blocks.window((2, 4)) == Window(row_off=100, col_off=200, height=1, width=3)


@pytest.mark.parametrize("index", [(3, 0), (0, 5), (-1, 0), (0, -1), (99, 99)])
def test_a_block_outside_the_scene_is_refused_with_the_range(index):
    with pytest.raises(SpecError, match=r"101 x 203 px has blocks \(0, 0\) to \(2, 4\)"):
        Blocks(shape=(101, 203), block_px=50).window(index)


@given(lattices())
def test_lattice_windows_cover_the_scene_and_no_row_or_column_is_superfluous(lattice):
    covered = np.zeros(lattice.extent, bool)
    for row in range(lattice.n_rows):
        for col in range(lattice.n_cols):
            window = lattice.window((row, col))
            assert window.shape == (lattice.size_px, lattice.size_px)
            assert (window.row_off, window.col_off) == (row * lattice.step_px, col * lattice.step_px)
            covered[window.to_slices()] = True
    assert covered.all()
    assert lattice.extent[0] >= lattice.shape[0]
    assert lattice.extent[1] >= lattice.shape[1]
    for axis, count in enumerate((lattice.n_rows, lattice.n_cols)):
        before = (count - 2) * lattice.step_px + lattice.size_px
        assert count == 1 or before < lattice.shape[axis], "one window fewer would do"


@given(lattices(), st.integers(-50, 140), st.integers(-50, 140), st.integers(1, 60), st.integers(1, 60))
def test_touching_lists_what_brute_force_finds_in_lattice_order(lattice, row, col, height, width):
    window = Window(row_off=row, col_off=col, height=height, width=width)
    expected = [
        (i, j)
        for i in range(lattice.n_rows)
        for j in range(lattice.n_cols)
        if lattice.window((i, j)).intersect(window) is not None
    ]
    assert lattice.touching(window) == expected


def test_a_scene_smaller_than_a_window_has_one():
    lattice = Lattice(shape=(3, 64), size_px=64, step_px=48)
    assert (lattice.n_rows, lattice.n_cols, lattice.extent) == (1, 1, (64, 64))
    assert Lattice(shape=(3, 65), size_px=64, step_px=48).n_cols == 2


@pytest.mark.parametrize(("size", "step"), [(64, 0), (64, 65), (64, -3), (0, 0)])
def test_a_step_that_leaves_gaps_or_stands_still_is_refused(size, step):
    with pytest.raises(SpecError, match="between 1 and the size"):
        Lattice(shape=(10, 10), size_px=size, step_px=step)
