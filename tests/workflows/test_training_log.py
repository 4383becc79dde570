"""The table of a training, and TensorBoard's files."""

import csv
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from workflows.confusion import SceneMetrics
from workflows.training_log import COLUMNS, TrainingLog

METRICS = SceneMetrics(scene="all", classes=("land", "water", "snow"), confusion=((3, 1, 0), (0, 4, 0), (0, 0, 0)))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_figure_is_a_row(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, tensorboard=False)
    log.add_step(1, loss=0.5, learning_rate=1e-3)
    log.add_metrics(1, "validation", METRICS)
    log.write()
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["class"], row["metric"], float(row["value"])) for row in rows] == [
        ("", "loss", 0.5),
        ("", "learning_rate", 0.001),
        ("land", "iou", 0.75),
        ("water", "iou", 0.8),
        ("", "mean_iou", 0.775),
        ("", "accuracy", 0.875),
    ]
    assert log.series("validation", "iou", scene="all", class_name="water") == ((1.0, 0.8),)


def test_rows_of_an_earlier_process_come_first(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, [(1, "train", "", "", "loss", 2.0)], tensorboard=False)
    log.add_step(2, loss=1.0, learning_rate=0.1)
    assert log.series("train", "loss") == ((1.0, 2.0), (2.0, 1.0))


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TrainingLog(tmp_path)
    log.add_step(3, loss=0.25, learning_rate=1e-3)
    log.write()
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(3, 0.25)]


def test_a_table_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrainingLog(tmp_path, tensorboard=False)
    log.add_step(1, loss=0.5, learning_rate=1e-3)
    log.write()
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workflows.training_log.replace_durably", full)
    log.add_step(2, loss=0.5, learning_rate=1e-3)
    with pytest.raises(StoreError, match=r"No space left on device.*--resume"):
        log.write()
    assert (tmp_path / "metrics.csv").read_bytes() == before
