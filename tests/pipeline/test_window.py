"""Windows against numpy slicing."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import WindowError
from pipeline.window import Window, disjoint, hull

SHAPE = (31, 47)
offsets = st.integers(-60, 60)
sizes = st.integers(1, 60)
windows = st.builds(Window, row_off=offsets, col_off=offsets, height=sizes, width=sizes)


def pixels(window):
    """Return the set of pixels, by brute force."""
    return {
        (row, col)
        for row in range(window.row_off, window.row_off + window.height)
        for col in range(window.col_off, window.col_off + window.width)
    }


def painted(window, *, low=-130, high=260):
    """Return a canvas from pixel (low, low) on, True inside the window."""
    rows, cols = np.mgrid[low:high, low:high]
    inside = (rows >= window.row_off) & (rows < window.row_off + window.height)
    return inside & (cols >= window.col_off) & (cols < window.col_off + window.width)


@given(windows, windows)
def test_the_intersection_has_the_common_pixels(one, other):
    common = one.intersect(other)
    expected = painted(one) & painted(other)
    assert (common is None) == (not expected.any())
    if common is not None:
        np.testing.assert_array_equal(painted(common), expected)
    assert other.intersect(one) == common
    assert one.contains(other) == bool((expected == painted(other)).all())


def test_windows_that_only_touch_have_nothing_in_common():
    one = Window(row_off=0, col_off=0, height=3, width=4)
    assert one.intersect(Window(row_off=0, col_off=4, height=3, width=1)) is None
    assert one.intersect(Window(row_off=3, col_off=0, height=1, width=4)) is None
    assert one.intersect(Window(row_off=2, col_off=3, height=9, width=9)) == Window(row_off=2, col_off=3, height=1, width=1)


@given(windows)
def test_clipping_gives_what_numpy_has(window):
    scene = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    row_stop, col_stop = max(window.row_off + window.height, 0), max(window.col_off + window.width, 0)
    expected = scene[max(window.row_off, 0) : row_stop, max(window.col_off, 0) : col_stop]
    clipped = window.clip(SHAPE)
    if clipped is None:
        assert expected.size == 0
    else:
        np.testing.assert_array_equal(scene[clipped.to_slices()], expected)
        assert clipped.shape == expected.shape


@given(windows, st.integers(0, 40))
def test_growing_and_shrinking_again_is_the_identity(window, margin):
    grown = window.grow(margin)
    assert grown.contains(window)
    assert grown.shape == (window.height + 2 * margin, window.width + 2 * margin)
    assert (grown.row_off, grown.col_off) == (window.row_off - margin, window.col_off - margin)
    assert grown.grow(-margin) == window


@given(st.lists(windows, min_size=1, max_size=5))
def test_the_hull_is_the_smallest_window_around_all(several):
    around = hull(several)
    rows = [row for window in several for row in (window.row_off, window.row_off + window.height - 1)]
    cols = [col for window in several for col in (window.col_off, window.col_off + window.width - 1)]
    assert (around.row_off, around.row_off + around.height - 1) == (min(rows), max(rows))
    assert (around.col_off, around.col_off + around.width - 1) == (min(cols), max(cols))


def test_a_hull_takes_any_iterable_but_not_an_empty_one():
    one = Window(row_off=1, col_off=2, height=3, width=4)
    assert hull(window for window in [one]) == one
    with pytest.raises(WindowError, match="at least one"):
        hull([])


@given(windows, windows)
def test_relative_to_counts_from_the_other_windows_first_pixel(inner, outer):
    relative = inner.relative_to(outer)
    assert relative.shape == inner.shape
    assert {(row + outer.row_off, col + outer.col_off) for row, col in pixels(relative)} == pixels(inner)


def test_a_relative_window_picks_the_same_pixels_of_a_crop():
    scene = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    outer = Window(row_off=5, col_off=11, height=20, width=30)
    inner = Window(row_off=9, col_off=12, height=7, width=13)
    crop = scene[outer.to_slices()]
    np.testing.assert_array_equal(crop[inner.relative_to(outer).to_slices()], scene[9:16, 12:25])


def test_bounds_shape_and_counts_agree():
    window = Window.from_bounds(rows=(-2, 5), cols=(3, 14))
    assert window == Window(row_off=-2, col_off=3, height=7, width=11)
    assert (window.row_end, window.col_end, window.shape, window.n_pixels) == (5, 14, (7, 11), 77)
    assert Window.of_shape((7, 11)) == Window(row_off=0, col_off=0, height=7, width=11)


@pytest.mark.parametrize(
    ("height", "width"),
    [pytest.param(0, 4, id="no rows"), pytest.param(4, 0, id="no columns"), pytest.param(-1, 4, id="negative")],
)
def test_a_window_without_pixels_is_refused_with_its_size(height, width):
    with pytest.raises(WindowError, match=f"{height} x {width} px"):
        Window(row_off=0, col_off=0, height=height, width=width)


def test_shrinking_a_window_to_nothing_is_refused():
    with pytest.raises(WindowError, match="at least 1"):
        Window(row_off=0, col_off=0, height=4, width=9).grow(-2)


@pytest.mark.parametrize(("row_off", "col_off"), [(-1, 0), (0, -1)])
def test_slices_never_start_before_the_array(row_off, col_off):
    with pytest.raises(WindowError, match="other end"):
        Window(row_off=row_off, col_off=col_off, height=3, width=3).to_slices()


def test_windows_are_values():
    window = Window(row_off=1, col_off=2, height=3, width=4)
    assert pickle.loads(pickle.dumps(window)) == window
    assert len({window, Window.from_bounds(rows=(1, 4), cols=(2, 6))}) == 1
    assert min(Window(row_off=2, col_off=0, height=1, width=1), window) == window


@given(st.lists(windows, max_size=8))
def test_disjoint_windows_have_the_same_pixels_once_and_as_few_as_rows_of_equal_spans(given_windows):
    found = disjoint(given_windows)
    assert sum(window.n_pixels for window in found) == len(set().union(*map(pixels, given_windows)))
    assert set().union(*map(pixels, found)) == set().union(*map(pixels, given_windows))
    assert list(found) == sorted(found)
    assert disjoint(found) == found
    joined = {(one.row_end, one.col_off, one.width) for one in found} & {(one.row_off, one.col_off, one.width) for one in found}
    assert not joined
