"""What does a person read of a training: progress while it runs, figures per scene and class at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.train import SceneMeasured, StepDone, TrainSummary

if TYPE_CHECKING:
    from workflows.progress import ProgressView
    from workflows.training_metrics import SceneMetrics
    from workflows.training_spec import TrainSpec


def show_event(event: StepDone | SceneMeasured, spec: TrainSpec, view: ProgressView) -> None:
    """Show one event of a training on ``view``."""
    if isinstance(event, StepDone):
        note = f"step {event.step} of {event.n_steps}, loss {event.loss:.3f}"
        view.advance(f"training {spec.name}", done=event.step, total=event.n_steps, note=note)
    else:
        view.say(f"measured {event.metrics.scene}: mIoU {_share(event.metrics.mean_iou)}")


def summary_lines(summary: TrainSummary) -> list[str]:
    """Return a table of IoU per scene and class, and where the model is."""
    if not summary.metrics:
        return ["no test scenes were given, so nothing was measured", str(summary.checkpoint)]
    classes = summary.metrics[0].classes
    header = f"{'IoU on':<12}" + "".join(f"{name:>12}" for name in (*classes, "mean"))
    return [header, *(_row(metrics) for metrics in summary.metrics), str(summary.checkpoint)]


def summary_to_dict(summary: TrainSummary) -> dict[str, Any]:
    """Return the summary as JSON-able values."""
    return {
        "checkpoint": str(summary.checkpoint),
        "metrics_csv": str(summary.metrics_csv),
        "metrics": {metrics.scene: metrics.to_dict() for metrics in summary.metrics},
        "n_steps": summary.n_steps,
        "final_loss": summary.final_loss,
        "seconds": summary.elapsed_s,
    }


def _row(metrics: SceneMetrics) -> str:
    values = [*metrics.iou.values(), metrics.mean_iou]
    return f"{metrics.scene:<12}" + "".join(f"{_share(value):>12}" for value in values)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
