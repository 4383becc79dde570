"""The clock of a block's stages, and the turn."""

import threading

import pytest

from pipeline.workplace import StageClock, Workplace


def test_a_stage_counts_every_time_and_also_when_it_fails(monkeypatch):
    now = iter([1.0, 2.0, 5.0, 9.0, 10.0, 10.5])
    monkeypatch.setattr("pipeline.workplace.time.perf_counter", lambda: next(now))
    clock = StageClock()
    with clock.stage("read"):
        pass
    with pytest.raises(ValueError, match="x"), clock.stage("crf"):
        raise ValueError("x")
    with clock.stage("read"):
        pass
    assert clock.seconds == {"read": 1.5, "crf": 4.0}


def test_the_turn_is_held_while_the_block_computes_and_waiting_is_counted():
    turn = threading.Lock()
    workplace = Workplace(turn=turn)
    with workplace.held("turn"):
        assert turn.locked()
    assert not turn.locked()
    assert workplace.clock.seconds["wait"] >= 0


def test_the_entry_can_be_left_before_the_block_ends_and_is_left_at_its_end():
    entry = threading.Lock()
    workplace = Workplace(entry=entry)
    with workplace.held("entry") as leave:
        assert entry.locked()
        leave()
        assert not entry.locked()
    with pytest.raises(ValueError, match="x"), workplace.held("entry"):
        raise ValueError("x")
    assert not entry.locked()
