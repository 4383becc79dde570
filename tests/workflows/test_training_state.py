"""What a training goes on from."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import SourceError, StoreError, StoreMismatchError
from workflows.training_state import STATE_FILE, TrainingState, check_goes_on, read_state, write_state

SETTINGS = {"seed": 1, "schedule": {"batch": 8, "phases": [{"share": 1.0}]}, "mean": None}
DATA = {"a.tif": {"shape": [10, 20], "pixels": [5, 7]}}


def state(**changes) -> TrainingState:
    values = {
        "trains_for": SETTINGS,
        "data": DATA,
        "step": 3,
        "phase": 0,
        "network": {"w": torch.arange(4.0)},
        "average": None,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "rows": [(1, "train", "", "", "loss", 0.5)],
    }
    return TrainingState(**{**values, **changes})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_state(tmp_path, state(best_step=2, best_score=0.5, n_worse=1))
    found = read_state(tmp_path)
    assert found is not None
    assert (found.step, found.best_step, found.best_score, found.n_worse) == (3, 2, 0.5, 1)
    assert found.trains_for == SETTINGS
    assert [tuple(row) for row in found.rows] == [(1, "train", "", "", "loss", 0.5)]
    assert torch.equal(found.network["w"], torch.arange(4.0))
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], torch.ones(4))


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda _: b"not a state", lambda _: b""])
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:
    write_state(tmp_path, state())
    path = tmp_path / STATE_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=r"state\.pt cannot be read"):
        read_state(tmp_path)


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, state())

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"No space left on device.*the one before is intact"):
        write_state(tmp_path, state(step=4))
    monkeypatch.undo()
    found = read_state(tmp_path)
    assert found is not None
    assert found.step == 3
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_other_settings_or_data_are_refused_by_name(tmp_path: Path) -> None:
    check_goes_on(state(), trains_for=SETTINGS, data=DATA, folder=tmp_path)
    other = {**SETTINGS, "schedule": {"batch": 4, "phases": [{"share": 1.0}]}}
    with pytest.raises(StoreMismatchError, match=r"schedule\.batch: was 8, is 4"):
        check_goes_on(state(), trains_for=other, data=DATA, folder=tmp_path)
    with pytest.raises(StoreMismatchError, match=r"a\.tif\.pixels\.1: was 7, is 8"):
        check_goes_on(state(), trains_for=SETTINGS, data={"a.tif": {"shape": [10, 20], "pixels": [5, 8]}}, folder=tmp_path)
