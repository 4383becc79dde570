"""Windows kept for the next block: for as many uses as there are, never more bytes than allowed, none that nobody will ask for."""

import shutil

import numpy as np

from pipeline.seen_windows import NO_SCORES, SeenWindows

ONE = np.ones((2, 4, 4), np.float32)


def same(taken, scores):
    return taken is not None and taken.tobytes() == scores.tobytes()


def test_a_window_is_there_for_as_many_uses_as_were_foreseen():
    seen = SeenWindows(10 * ONE.nbytes)
    seen.keep((0, 1), ONE, uses=2)
    assert same(seen.take((0, 1)), ONE)
    assert same(seen.take((0, 1)), ONE)
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
    assert same(seen.take((1, 0)), ONE), "there is room again"


def test_rows_that_were_passed_make_room():
    seen = SeenWindows(2 * ONE.nbytes)
    seen.keep((0, 0), ONE, uses=9)
    seen.keep((3, 0), ONE, uses=9)
    seen.pass_row(3)
    assert seen.take((0, 0)) is None
    assert same(seen.take((3, 0)), ONE)
    seen.keep((4, 0), ONE, uses=1)
    assert same(seen.take((4, 0)), ONE)


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


def test_each_window_has_its_own_scores_however_often_the_room_of_one_was_used():
    seen, rng = SeenWindows(3 * ONE.nbytes), np.random.default_rng(0)
    for row in range(5):
        kept = {(row, col): rng.random(ONE.shape).astype(np.float32) for col in range(3)}
        for index, scores in kept.items():
            seen.keep(index, scores, uses=1)
        for index in [(row, 2), (row, 0), (row, 1)]:
            assert same(seen.take(index), kept[index])


def test_only_some_of_the_disk_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 9 * ONE.nbytes))
    seen = SeenWindows(10**9, folder=str(tmp_path))
    for col in range(4):
        seen.keep((0, col), ONE, uses=1)
    assert [seen.expects((0, col)) for col in range(4)] == [True, True, False, False]
    assert not list(tmp_path.iterdir()), "the file has no name that could be left behind"


def test_where_no_file_can_be_made_nothing_is_kept_and_it_is_said_once(tmp_path, caplog):
    seen = SeenWindows(10**9, folder=str(tmp_path / "gone"))
    for col in range(3):
        seen.keep((0, col), ONE, uses=1)
        assert seen.take((0, col)) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "they are computed again" in caplog.text


class Full:
    """A file on a disk that takes and gives nothing any more."""

    def seek(self, _):
        raise OSError(28, "No space left on device")


def test_what_cannot_be_written_or_read_any_more_is_not_there(caplog):
    seen = SeenWindows(10**9)
    seen.keep((0, 0), ONE, uses=2)
    seen._slots._file = Full()
    seen.keep((0, 1), ONE, uses=1)
    assert not seen.expects((0, 1))
    assert seen.take((0, 0)) is None
    assert not seen.expects((0, 0))
    assert "No space left" in caplog.text
