"""Windows kept for the next block: for as many uses as there are, never more bytes than allowed, none that nobody will ask for."""

import numpy as np

from pipeline.seen_windows import SeenWindows

ONE = np.ones((2, 4, 4), np.float32)


def test_a_window_is_there_for_as_many_uses_as_were_foreseen():
    seen = SeenWindows(10 * ONE.nbytes)
    seen.keep((0, 1), ONE, uses=2)
    assert seen.take((0, 1)) is ONE
    assert seen.take((0, 1)) is ONE
    assert seen.take((0, 1)) is None
    assert seen.take((5, 5)) is None


def test_what_nobody_needs_is_not_kept():
    seen = SeenWindows(10 * ONE.nbytes)
    seen.keep((0, 0), ONE, uses=0)
    assert seen.take((0, 0)) is None


def test_where_the_limit_is_reached_what_is_held_stays():
    seen = SeenWindows(2 * ONE.nbytes)
    for col in range(3):
        seen.keep((0, col), ONE, uses=1)
    assert [seen.take((0, col)) is not None for col in range(3)] == [True, True, False]
    seen.keep((1, 0), ONE, uses=1)
    assert seen.take((1, 0)) is ONE, "there is room again"


def test_rows_that_were_passed_make_room():
    seen = SeenWindows(2 * ONE.nbytes)
    seen.keep((0, 0), ONE, uses=9)
    seen.keep((3, 0), ONE, uses=9)
    seen.pass_row(3)
    assert seen.take((0, 0)) is None
    assert seen.take((3, 0)) is ONE
    seen.keep((4, 0), ONE, uses=1)
    assert seen.take((4, 0)) is ONE
