"""What does a person read of a training? Progress while it runs, figures per scene and class at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.train import Resumed, StepDone, TrainSummary

if TYPE_CHECKING:
    from workflows.confusion import SceneMetrics
    from workflows.progress import ProgressView
    from workflows.train import TrainingEvent
    from workflows.training_spec import TrainSpec


def show_event(event: TrainingEvent, spec: TrainSpec, view: ProgressView) -> None:
    """Show one event of a training on ``view``."""
    if isinstance(event, StepDone):
        note = f"step {event.step} of {event.n_steps}, loss {event.loss:.3f}"
        view.advance(f"training {spec.name}", done=event.step, total=event.n_steps, note=note)
    elif isinstance(event, Resumed):
        view.say(f"going on after step {event.step}")
    else:
        best = ", the best so far" if event.is_best else ""
        view.say(f"{event.part} {event.metrics.scene}: mIoU {_share(event.metrics.mean_iou)}{best}")


def summary_lines(summary: TrainSummary) -> list[str]:
    """Return a table of IoU per test scene and class, which weights were kept, and where everything is."""
    lines = []
    if summary.metrics:
        classes = summary.metrics[0].classes
        lines.append(f"{'IoU on':<12}" + "".join(f"{name:>12}" for name in (*classes, "mean")))
        lines += [_row(metrics) for metrics in summary.metrics]
    else:
        lines.append("no test scenes were given, so nothing was measured that was not trained or chosen by")
    if summary.best_step is not None:
        early = f"; ended early after step {summary.n_steps}" if summary.ended_early else ""
        lines.append(f"kept: step {summary.best_step}, mIoU {_share(summary.best_score)} on the validation part{early}")
    return [*lines, f"curves: {summary.curves}", f"samples: {summary.samples}", str(summary.checkpoint)]


def summary_to_dict(summary: TrainSummary) -> dict[str, Any]:
    """Return the summary as JSON-able values."""
    return {
        **{name: str(getattr(summary, name)) for name in ("checkpoint", "metrics_csv", "curves", "samples")},
        "metrics": {metrics.scene: metrics.to_dict() for metrics in summary.metrics},
        "best_step": summary.best_step,
        "validation_mean_iou": summary.best_score,
        "n_steps": summary.n_steps,
        "ended_early": summary.ended_early,
        "final_loss": summary.final_loss,
        "seconds": summary.elapsed_s,
    }


def _row(metrics: SceneMetrics) -> str:
    values = [*metrics.iou.values(), metrics.mean_iou]
    return f"{metrics.scene:<12}" + "".join(f"{_share(value):>12}" for value in values)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
