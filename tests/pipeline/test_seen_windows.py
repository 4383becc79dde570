"""Windows kept for the next block: for as many uses as there are, never more bytes than allowed, none that nobody will ask for."""

import numpy as np

from pipeline.seen_windows import NO_SCORES, SeenWindows

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


def test_what_a_block_at_work_promises_is_expected_until_it_ends():
    seen = SeenWindows(10 * ONE.nbytes)
    with seen.promised([(0, 1), (0, 2)]):
        assert seen.expects((0, 1))
        assert not seen.expects((0, 3))
        seen.keep((0, 1), ONE, uses=1)
    assert seen.expects((0, 1)), "it is held"
    assert not seen.expects((0, 2))


def test_two_blocks_may_promise_the_same_window():
    seen = SeenWindows(ONE.nbytes)
    with seen.promised([(0, 1)]):
        with seen.promised([(0, 1)]):
            pass
        assert seen.expects((0, 1))


def test_promises_are_not_believed_once_one_could_not_be_kept():
    seen = SeenWindows(ONE.nbytes)
    seen.keep((0, 0), ONE, uses=1)
    seen.keep((0, 1), ONE, uses=1)
    with seen.promised([(0, 2)]):
        assert not seen.expects((0, 2))
    assert seen.expects((0, 0))


def test_that_a_window_has_no_data_is_known_without_room():
    seen = SeenWindows(0)
    seen.keep((0, 0), NO_SCORES, uses=1)
    assert seen.take((0, 0)) is NO_SCORES


def test_rows_that_no_block_will_ask_for_make_room_and_are_not_given():
    scores = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
    seen = SeenWindows(scores.nbytes)
    seen.keep((0, 0), scores, uses=9)
    seen.shrink((0, 0), first_row=2)
    seen.shrink((0, 0), first_row=4)
    seen.shrink((0, 0), first_row=3)  # less than was dropped already
    assert seen.take((0, 0), first_row=3) is None
    taken = seen.take((0, 0), first_row=4)
    assert taken.shape == scores.shape
    np.testing.assert_array_equal(taken[:, 4:], scores[:, 4:])
    assert not taken[:, :4].any()
    seen.keep((0, 1), scores[:, 2:], uses=1)
    assert seen.expects((0, 1)), "two thirds of the room are free"


def test_a_window_that_was_dropped_and_kept_again_is_whole():
    seen = SeenWindows(10 * ONE.nbytes)
    seen.keep((0, 0), ONE, uses=1)
    seen.shrink((0, 0), first_row=3)
    seen.take((0, 0), first_row=3)
    seen.keep((0, 0), ONE, uses=1)
    assert seen.take((0, 0)) is ONE


def test_shrinking_what_is_not_held_or_empty_does_nothing():
    seen = SeenWindows(0)
    seen.keep((0, 0), NO_SCORES, uses=1)
    seen.shrink((0, 0), first_row=2)
    seen.shrink((0, 1), first_row=2)
    assert seen.take((0, 0)) is NO_SCORES
