"""What a person reads of a training."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from workflows.confusion import SceneMetrics
from workflows.progress import ProgressView
from workflows.train import Measured, Resumed, StepDone, TrainSummary
from workflows.training_report import show_event, summary_lines, summary_to_dict

METRICS = SceneMetrics(scene="tile2", classes=("land", "water"), confusion=((3, 1), (0, 4)))
SUMMARY = TrainSummary(
    checkpoint=Path("m.safetensors"),
    metrics_csv=Path("m.csv"),
    curves=Path("curves.png"),
    samples=Path("samples.png"),
    metrics=(METRICS,),
    best_step=None,
    best_score=None,
    n_steps=3,
    ended_early=False,
    final_loss=0.5,
    elapsed_s=1.0,
)


def shown(event) -> str:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120), show_bar=True) as view:
        show_event(event, SimpleNamespace(name="dubai"), view)
    return text.getvalue()


def test_a_step_moves_the_bar_and_shows_the_loss() -> None:
    text = shown(StepDone(step=2, n_steps=4, loss=0.6931, learning_rate=1e-3, elapsed_s=2.0))
    assert "training dubai" in text
    assert "step 2 of 4, loss 0.693" in text
    assert "50%" in text


def test_a_measured_scene_is_named_with_its_mean_iou() -> None:
    assert "test tile2: mIoU 0.775" in shown(Measured(part="test", metrics=METRICS))
    assert "validation tile2: mIoU 0.775, the best so far" in shown(Measured(part="validation", metrics=METRICS, is_best=True))


def test_a_resumed_training_says_from_where() -> None:
    assert "going on after step 7" in shown(Resumed(step=7))


def test_the_table_has_a_row_per_scene_and_a_column_per_class() -> None:
    header, row, *rest = summary_lines(SUMMARY)
    assert header.split() == ["IoU", "on", "land", "water", "mean"]
    assert row.split() == ["tile2", "0.750", "0.800", "0.775"]
    assert rest == ["curves: curves.png", "samples: samples.png", "m.safetensors"]


def test_it_says_which_weights_were_kept_and_whether_it_ended_early() -> None:
    lines = summary_lines(dataclasses.replace(SUMMARY, best_step=2, best_score=0.61234, ended_early=True))
    assert "kept: step 2, mIoU 0.612 on the validation part; ended early after step 3" in lines


def test_without_test_scenes_it_says_that_nothing_was_measured() -> None:
    assert "nothing was measured" in summary_lines(dataclasses.replace(SUMMARY, metrics=()))[0]


def test_the_summary_is_json() -> None:
    assert json.loads(json.dumps(summary_to_dict(SUMMARY)))["metrics"]["tile2"]["iou"] == {"land": 0.75, "water": 0.8}
